package oracle

import (
	"bytes"
	"math/rand"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	v1 "k8s.io/api/core/v1"

	"github.com/fairlead/fairlead/internal/cluster"
	"github.com/fairlead/fairlead/internal/compile"
	"github.com/fairlead/fairlead/internal/config"
	"github.com/fairlead/fairlead/internal/fwd"
	"github.com/fairlead/fairlead/internal/fwdtext"
	"github.com/fairlead/fairlead/internal/kube"
)

// product is the road that the daemon takes from API objects to the forwarding table, without its
// loop.
type product struct {
	t       testing.TB
	config  *config.Config
	local   []netip.Addr
	convert kube.Converter
	store   cluster.Store
	facts   compile.Facts
	table   fwd.Table
}

func newProduct(t testing.TB, cfg *Config) *product {
	t.Helper()
	parsed, err := config.Parse(Flags(cfg), nil)
	if err != nil {
		t.Fatalf("the daemon refuses %v: %v", Flags(cfg), err)
	}
	p := &product{t: t, config: parsed, convert: kube.Converter{AllLBIPsAreVIPs: !parsed.Gates.LoadBalancerIPMode}}
	for _, text := range cfg.LocalAddresses {
		p.local = append(p.local, netip.MustParseAddr(text))
	}
	return p
}

// load brings store and table from an old state of the cluster to a new one; old is empty for the
// first time.
func (p *product) load(old, c *Cluster) {
	gone := make(map[any]func())
	for _, s := range old.Services {
		name := fwd.Service{Namespace: s.Namespace, Name: s.Name}
		gone[name] = func() { p.store.DeleteService(name) }
	}
	for _, sl := range old.Slices {
		name := cluster.SliceName{Namespace: sl.Namespace, Name: sl.Name}
		gone[name] = func() { p.store.DeleteSlice(name) }
	}
	p.store.SetNode(p.node(c.Nodes))
	var cidrs []netip.Prefix
	for _, sc := range c.ServiceCIDRs {
		cidrs = kube.MergeCIDRs(cidrs, kube.ConvertServiceCIDR(sc))
	}
	p.store.SetServiceCIDRs(cidrs)
	for _, s := range c.Services {
		if v, _ := p.convert.Service(s); v != nil && watched(s.Labels) {
			delete(gone, v.Name)
			p.store.SetService(v)
		}
	}
	for _, sl := range c.Slices {
		if v, _ := p.convert.Slice(sl); v != nil && watched(sl.Labels) {
			delete(gone, v.Name)
			p.store.SetSlice(v)
		}
	}
	for _, forget := range gone {
		forget()
	}
	p.compile()
}

// watched is what the API server selects for the daemon, and the reader of files.
func watched(labels map[string]string) bool {
	_, foreign := labels["service.kubernetes.io/service-proxy-name"]
	_, headless := labels["service.kubernetes.io/headless"]
	return !foreign && !headless
}

func (p *product) node(nodes []*v1.Node) cluster.Node {
	for _, n := range nodes {
		if n.Name == p.config.NodeName {
			return kube.ConvertNode(n)
		}
	}
	return cluster.Node{}
}

// compile brings the table up to date with the store.
func (p *product) compile() {
	node := p.store.Node()
	h := p.config.Header(node, append(node.Addrs, p.local...))
	p.config.SetServiceCIDRs(&h, p.store.ServiceCIDRs())
	p.table.SetHeader(h)
	if facts := p.config.Facts(node); facts != p.facts {
		p.facts = facts
		p.store.MarkAllDirty()
	}
	for _, name := range p.store.TakeDirty() {
		s := p.store.Service(name)
		if s == nil {
			p.table.Remove(name)
			continue
		}
		f, _ := compile.Compile(s, p.store.Slices(name), &p.facts)
		p.table.Put(f)
	}
}

func (p *product) text() string {
	p.t.Helper()
	var b bytes.Buffer
	if err := fwdtext.Write(&b, &p.table); err != nil {
		p.t.Fatal(err)
	}
	return b.String()
}

// lookup is the product's answer for a cluster that it has not seen before.
func lookup(t testing.TB, c *Cluster, cfg *Config, p fwd.Packet) Answer {
	t.Helper()
	product := newProduct(t, cfg)
	product.load(&Cluster{}, c)
	return FromOutcome(product.table.Lookup(p), p.Src)
}

// seeds is the number of random clusters of a test.
func seeds(many int) int {
	if testing.Short() {
		return many / 10
	}
	return many
}

// TestProductAgrees compares the compiled table with the oracle on random clusters and packets.
func TestProductAgrees(t *testing.T) {
	for seed := range seeds(2000) {
		c, cfg, packets := Random(rand.New(rand.NewSource(int64(seed))), RandomOptions{ForKernel: seed%4 == 0})
		product := newProduct(t, cfg)
		product.load(&Cluster{}, c)
		for _, p := range packets {
			want := Judge(c, cfg, p).String()
			got := FromOutcome(product.table.Lookup(p), p.Src).String()
			if want == got {
				continue
			}
			small := Shrink(c, func(c *Cluster) bool { return Judge(c, cfg, p).String() != lookup(t, c, cfg, p).String() })
			t.Logf("seed %d", seed)
			Disagreement(t, "", small, cfg, p, Judge(small, cfg, p).String(), lookup(t, small, cfg, p).String())
			return // one is enough to look at, and there may be thousands
		}
	}
}

// TestIncrementalIsScratch applies random changes one after the other to one table, which must then
// be the same, text and answers, as a table that is made of the last state at once.
func TestIncrementalIsScratch(t *testing.T) {
	for seed := range seeds(200) {
		r := rand.New(rand.NewSource(int64(seed)))
		c, cfg, packets := Random(r, RandomOptions{})
		incremental := newProduct(t, cfg)
		before := Cluster{}
		for step := range 20 {
			incremental.load(&before, c)
			scratch := newProduct(t, cfg)
			scratch.load(&Cluster{}, c)
			if d := cmp.Diff(scratch.text(), incremental.text()); d != "" {
				t.Fatalf("seed %d, step %d: the table is not that of the state (-scratch +incremental):\n%s", seed, step, d)
			}
			p := packets[step%len(packets)]
			if want, got := Judge(c, cfg, p).String(), FromOutcome(incremental.table.Lookup(p), p.Src).String(); want != got {
				t.Logf("seed %d, step %d", seed, step)
				Disagreement(t, "", c, cfg, p, want, got)
				return
			}
			before = *c
			for range 1 + r.Intn(3) {
				Mutate(r, c)
			}
		}
	}
}

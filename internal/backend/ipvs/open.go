package ipvs

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/internal/backend"
	"github.com/fairlead/fairlead/internal/fwd"
	"github.com/fairlead/fairlead/internal/host/conntrack"
	"github.com/fairlead/fairlead/internal/host/ipset"
	hostipvs "github.com/fairlead/fairlead/internal/host/ipvs"
	"github.com/fairlead/fairlead/internal/host/link"
	"github.com/fairlead/fairlead/internal/host/xtables"
	"github.com/fairlead/fairlead/internal/instance"
)

// Options are the operator's choices.
type Options struct {
	Instance instance.ID
	// NodeName determines the order in which this node adds endpoints.
	NodeName string
	VIPs     VIPMode
	// Scheduler is the kernel's name of the scheduler for Services that name none.
	Scheduler string
	// Exclude are networks whose addresses belong to other programs.
	Exclude []netip.Prefix
	// NodeIP is, by fwd.Family.Index, the node's source address for packets to VIPs in mode
	// VIPRoute; it may be the zero Addr.
	NodeIP [2]netip.Addr
	// Timeouts are set unless 0.
	Timeouts hostipvs.Timeouts
	// DrainTimeout is how long a removed real server may keep its connections; 0 means the kernel's
	// TCP timeout.
	DrainTimeout time.Duration
	// StrictARP prevents the node from answering ARP requests for VIPs on other interfaces.
	StrictARP bool
	// Warn, if not nil, reports a problem with a Service to users.
	Warn func(s fwd.Service, reason, message string)
}

// Plane is a Backend on this node's kernel and its background work.
type Plane struct {
	*Backend
	// Flavour is the flavour of iptables in use.
	Flavour xtables.Flavour
	// Drift receives hints that others may have changed what the backend wrote.
	Drift backend.Hints
	// Listen is called once per family after the first complete write: from then on changes of
	// rules are noticed. Changes of addresses and routes are noticed from the start, those of
	// virtual servers and sets by Run.
	Listen func(fwd.Family)

	sweeper *sweeper
	looker  *looker
}

// Run removes connection tracking entries from before their virtual server, and checks whether
// others have changed virtual servers or sets, until the context ends.
func (p *Plane) Run(ctx context.Context) {
	var both sync.WaitGroup
	both.Go(func() { p.sweeper.run(ctx) })
	both.Go(func() { p.looker.run(ctx) })
	both.Wait()
}

// kernel has the connections to the kernel that both families share.
type kernel struct {
	servers *hostipvs.Kernel
	sets    *ipset.Kernel
	links   *link.Kernel
}

// Open prepares this node's kernel and returns a Backend for the families that kernel and tools
// support, at least one. The error says what is missing and what to do.
func Open(ctx context.Context, log *slog.Logger, o Options) (*Plane, error) {
	k, err := openKernel(ctx, o)
	if err != nil {
		return nil, err
	}
	if err := setSysctls(log, o.StrictARP); err != nil {
		return nil, err
	}
	timeouts, err := setTimeouts(ctx, k.servers, o.Timeouts)
	if err != nil {
		return nil, err
	}
	p := &Plane{sweeper: newSweeper(conntrack.Kernel{}, log), Drift: backend.NewHints()}
	common := FamilyOptions{
		RenderOptions: RenderOptions{Instance: o.Instance, VIPs: o.VIPs, Scheduler: o.Scheduler, Exclude: o.Exclude},
		Servers:       k.servers, Sets: k.sets, Links: k.links, Stale: p.sweeper.submit, Seed: seed(o.NodeName),
		FinTimeout: timeouts.TCPFin, DrainTimeout: cmp.Or(o.DrainTimeout, timeouts.TCP), Warn: o.Warn, Logger: log,
	}
	opts, tables, err := openFamilies(ctx, log, p, common, o)
	if err != nil {
		return nil, err
	}
	if o.VIPs == VIPMark {
		if err := beginNarrow(ctx, o.Instance, k.links, k.servers, opts); err != nil {
			return nil, err
		}
	}
	p.Backend = New(opts)
	if err := p.watch(ctx, log, k, o.Instance, tables); err != nil {
		return nil, err
	}
	if size, err := k.servers.ConnTableSize(ctx); err == nil {
		log.Info("using IPVS", "scheduler", o.Scheduler, "vips", o.VIPs.String(), "connectionBuckets", size, "tcpTimeout", timeouts.TCP,
			"finTimeout", timeouts.TCPFin, "udpTimeout", timeouts.UDP, "drainTimeout", common.DrainTimeout)
	}
	return p, nil
}

func openKernel(ctx context.Context, o Options) (k kernel, err error) {
	if k.servers, err = hostipvs.Open(ctx); err != nil {
		return k, err
	}
	if err := k.servers.ProbeScheduler(ctx, o.Scheduler); err != nil {
		if errors.Is(err, unix.ENOENT) {
			return k, fmt.Errorf("the kernel has no IPVS scheduler %q: load the module ip_vs_%s, or choose another with --ipvs-scheduler (%w)", o.Scheduler, o.Scheduler, err)
		}
		return k, err
	}
	if k.sets, err = ipset.Open(); err != nil {
		return k, fmt.Errorf("the kernel has no ipset: load the module ip_set (%w)", err)
	}
	if k.links, err = link.Open(o.Instance.Routing()); err != nil {
		return k, err
	}
	if _, err := k.links.EnsureDummy(ctx, o.Instance.Device()); err != nil {
		return k, fmt.Errorf("cannot create the device for VIPs: load the module dummy, and make sure that no other device has the name (%w)", err)
	}
	return k, nil
}

// watch sends hints to p.Drift.
func (p *Plane) watch(ctx context.Context, log *slog.Logger, k kernel, id instance.ID, byFamily map[fwd.Family]*xtables.Tables) error {
	lost, err := k.links.WatchLoss(ctx, id.Device())
	if err != nil {
		return err
	}
	go func() {
		for range lost {
			for f := range byFamily {
				p.Drift.Send(backend.Drift{Family: f, What: "addresses, routes or routing rules"})
			}
		}
	}()
	p.Listen = func(f fwd.Family) {
		err := byFamily[f].Watch(ctx, tables, id.Prefix(), func(table, process string) {
			p.Drift.Send(backend.Drift{Family: f, What: "table " + table, Process: process})
		})
		if err != nil {
			log.Warn("cannot watch iptables; changes by others are noticed only by verification", "family", f.String(), "error", err)
		}
	}
	p.looker = newLooker(k.servers, k.sets.Sizes, p.targets(), p.Drift)
	return nil
}

// beginNarrow starts families with a narrow table unless they have a wide one already: another mode
// may have served them until now.
func beginNarrow(ctx context.Context, id instance.ID, links link.Host, servers hostipvs.Interface, opts map[fwd.Family]FamilyOptions) error {
	routes, err := links.Routes(ctx)
	if err != nil {
		return err
	}
	for f, o := range opts {
		if wide(id, routes, f) {
			continue
		}
		if err := narrowServers(ctx, id, links, servers, f); err != nil {
			return err
		}
		o.Narrow = true
		opts[f] = o
	}
	return nil
}

// seed derives FamilyOptions.Seed from the name of the node.
func seed(node string) uint64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(node))
	return h.Sum64()
}

// setTimeouts sets the timeouts that are not 0, and returns the effective ones.
func setTimeouts(ctx context.Context, servers hostipvs.Interface, t hostipvs.Timeouts) (hostipvs.Timeouts, error) {
	have, err := servers.Timeouts(ctx)
	if err != nil {
		return have, err
	}
	want := hostipvs.Timeouts{TCP: cmp.Or(t.TCP, have.TCP), TCPFin: cmp.Or(t.TCPFin, have.TCPFin), UDP: cmp.Or(t.UDP, have.UDP)}
	if want == have {
		return have, nil
	}
	return want, servers.SetTimeouts(ctx, want)
}

// openFamilies selects the flavour of iptables and the families that work.
func openFamilies(ctx context.Context, log *slog.Logger, p *Plane, common FamilyOptions, o Options) (map[fwd.Family]FamilyOptions, map[fwd.Family]*xtables.Tables, error) {
	detected, why, err := xtables.Detect(ctx, xtables.Host{})
	if err != nil {
		return nil, nil, err
	}
	flavours := []xtables.Flavour{detected}
	for _, fl := range []xtables.Flavour{xtables.NFT, xtables.Legacy} {
		if fl != detected && detected != xtables.Plain {
			flavours = append(flavours, fl)
		}
	}
	var errs []error
	for _, fl := range flavours {
		if fl != detected { // some kernels let a flavour read tables but not write them
			why = fmt.Sprintf("the kernel refuses the rules from %s", detected)
		}
		p.Flavour = fl
		opts, kernel, failed := openFlavour(ctx, fl, common, o)
		if len(opts) == 0 {
			errs = append(errs, failed...)
			continue
		}
		for _, err := range failed {
			log.Warn("skipping an address family", "error", err)
		}
		for _, f := range fwd.Families {
			if fo, ok := opts[f]; ok {
				log.Info("using iptables", "family", f.String(), "flavour", string(fl), "why", why, "hairpinByBPF", fo.HairpinBPF, "randomFully", fo.RandomFully, "chains", o.Instance.Prefix())
			}
		}
		return opts, kernel, nil
	}
	return nil, nil, errors.Join(errs...)
}

// openFlavour selects the families that work with a flavour.
func openFlavour(ctx context.Context, fl xtables.Flavour, common FamilyOptions, o Options) (opts map[fwd.Family]FamilyOptions, kernel map[fwd.Family]*xtables.Tables, failed []error) {
	opts, kernel = make(map[fwd.Family]FamilyOptions), make(map[fwd.Family]*xtables.Tables)
	for _, f := range fwd.Families {
		if f == fwd.IPv6 && !link.HasIPv6() {
			failed = append(failed, fmt.Errorf("%s: the kernel does not support it", f))
			continue
		}
		tables, err := xtables.New(fl, f == fwd.IPv6)
		if err == nil {
			err = tables.Usable(ctx)
		}
		var bpf bool
		if err == nil {
			bpf, err = tryKernel(ctx, f, tables, common.Sets, o.Instance)
		}
		if err != nil {
			failed = append(failed, fmt.Errorf("%s, iptables %s: %w", f, fl, err))
			continue
		}
		fo := common
		fo.Tables, fo.HairpinBPF, fo.RandomFully, fo.NodeIP = tables, bpf, tables.RandomFully(), o.NodeIP[f.Index()]
		opts[f], kernel[f] = fo, tables
	}
	return opts, kernel, failed
}

// tryKernel checks that the kernel has what the rules need, and whether it has xt_bpf. If it has
// the rules of an earlier run, it does, and nothing is written.
func tryKernel(ctx context.Context, f fwd.Family, tables *xtables.Tables, sets ipset.Sets, id instance.ID) (bpf bool, err error) {
	if len(tables.Rules(ctx, tableMangle, names(id).Name(chainGuard))) > 0 {
		if rules := tables.Rules(ctx, tableNAT, names(id).Name(chainPostrouting)); len(rules) > 0 {
			return strings.Contains(strings.Join(rules, "\n"), "-m bpf "), nil
		}
	}
	return probe(ctx, f, xtables.Exchanged(tables, names(id)), ipset.Renamed(sets, names(id).Name))
}

// probeName is the name of the chain and the set that probe adds.
const probeName = chainPrefix + "PROBE"

// probe tests what the rules need, and removes everything again. bpf means that the kernel has
// xt_bpf, which is optional. The error says what is missing.
func probe(ctx context.Context, f fwd.Family, tables xtables.Interface, sets ipset.Sets) (bpf bool, err error) {
	if err := sets.Destroy(ctx, probeName); err != nil && !errors.Is(err, ipset.ErrNoSet) { // an interrupted probe left it
		return false, err
	}
	for _, typ := range []ipset.Type{ipset.HashIPPortNet, ipset.HashIPPortIP, ipset.HashIP, ipset.HashIPPort} {
		s := ipset.Set{Name: probeName, Type: typ, IPv6: f == fwd.IPv6, MaxElem: ipset.DefaultMaxElem}
		if err := sets.Create(ctx, s); err != nil {
			return false, fmt.Errorf("the kernel has no sets of type %s: load the modules ip_set and ip_set_hash_* (%w)", typ, err)
		}
		if typ == ipset.HashIPPort {
			break // the rules of needs use it
		}
		if err := sets.Destroy(ctx, probeName); err != nil {
			return false, err
		}
	}
	ctx = context.WithoutCancel(ctx)
	defer func() { err = errors.Join(err, sets.Destroy(ctx, probeName)) }()
	lacking, err := xtables.Lacking(ctx, tables, probeName, needs)
	if err != nil {
		return false, err
	}
	for _, n := range needs {
		if why := lacking[n]; why != nil && n != xtables.NeedBPF {
			return false, fmt.Errorf("iptables cannot write %q into table %s: load the module %s (%w)", n.Rule, n.Table, n.Module, why)
		}
	}
	return lacking[xtables.NeedBPF] == nil, nil
}

// needs are sorted by table, as in a restore.
var needs = []xtables.Need{
	{Table: tableMangle, Rule: "-m set --match-set " + probeName + " dst,dst -j RETURN", Module: "xt_set"},
	{Table: tableNAT, Rule: "-m set --match-set " + probeName + " dst,dst -j RETURN", Module: "xt_set"},
	xtables.NeedBPF,
	{Table: tableFilter, Rule: "-m ipvs --vmethod MASQ --vdir ORIGINAL -j RETURN", Module: "xt_ipvs"},
	{Table: tableFilter, Rule: "-m addrtype --src-type LOCAL -j RETURN", Module: "xt_addrtype"},
	{Table: tableFilter, Rule: "-m conntrack --ctstate NEW -j RETURN", Module: "xt_conntrack"},
}

package nftables

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/internal/backend"
	"github.com/fairlead/fairlead/internal/backend/nftables/nftsim"
	"github.com/fairlead/fairlead/internal/fwd"
	"github.com/fairlead/fairlead/internal/host/hosttest"
	"github.com/fairlead/fairlead/internal/host/nft"
)

// quarantined applies a table, removes the Services that the kernel refuses, as the loop does, and
// returns their names.
func quarantined(t *testing.T, b backend.Backend, table *fwd.Table) []string {
	t.Helper()
	var out []string
	for range 10 {
		_, err := b.Apply(context.Background())
		if err == nil {
			return out
		}
		var fe *backend.FamilyError
		if !errors.As(err, &fe) || !fe.Refused || len(fe.Culprits) == 0 {
			t.Fatalf("no Service is named: %v", err)
		}
		for _, s := range fe.Culprits {
			out = append(out, s.Name)
			b.Update(table.Remove(s))
		}
	}
	t.Fatalf("there is no end to it: %v", out)
	return nil
}

// TestCulprits: whichever object of a Service is refused, only that Service is named, and without
// it all others are written, at the start and later.
func TestCulprits(t *testing.T) {
	element := func(set, key string) func(nft.Op) bool {
		return func(o nft.Op) bool {
			for _, e := range o.Elements {
				if o.Kind == nft.AddElements && o.Name == set && strings.HasPrefix(e.Key, key) {
					return true
				}
			}
			return false
		}
	}
	named := func(kind nft.OpKind, prefix string) func(nft.Op) bool {
		return func(o nft.Op) bool { return o.Kind == kind && strings.HasPrefix(o.Name, prefix) }
	}
	vip := func(i byte) string { return string([]byte{10, 96, 0, i}) }
	tests := []struct {
		name   string
		refuse func(nft.Op) bool
		want   []string
	}{
		{"a verdict", element(setVIPs, vip(7)), []string{"svc-7"}},
		{"an endpoint", element(setEndpoints, vip(9)), []string{"svc-9"}},
		{"two of them", func(o nft.Op) bool { return element(setEndpoints, vip(3))(o) || element(setVIPs, vip(30))(o) }, []string{"svc-3", "svc-30"}},
		{"a node port", element(setNodePorts, string([]byte{132, 0, 0, 0, 30008 >> 8, 30008 & 0xff})), []string{"svc-8"}},
		{"a chain of session affinity", named(nft.AddRules, "affinity-"), []string{"svc-44", "svc-47"}},
		{"the chain of a shape", named(nft.AddRules, "xcC_"), []string{"svc-40"}},
		{"a chain behind that", named(nft.AddRules, "pool-1-bit"), []string{"svc-49"}},
		{"a set of source ranges", named(nft.AddSet, "sources-"), []string{"svc-43", "svc-44", "svc-45"}},
	}
	for _, tt := range tests {
		for _, later := range []bool{false, true} {
			sim := nftsim.New(fwd.IPv4)
			refuse := func(o nft.Op) unix.Errno {
				if tt.refuse(o) {
					return unix.EINVAL
				}
				return 0
			}
			b := newBackend(map[fwd.Family]nft.Interface{fwd.IPv4: sim}, 20, nil)
			table := everyShape()
			if later {
				var empty fwd.Table
				b.Update(empty.SetHeader(table.Header()))
				if _, err := b.Apply(context.Background()); err != nil {
					t.Fatal(err)
				}
			}
			sim.Refuse = refuse
			give(b, table)
			if diff := cmp.Diff(tt.want, quarantined(t, b, table), cmpopts.SortSlices(strings.Compare)); diff != "" {
				t.Errorf("%s, later %v (-want +got):\n%s", tt.name, later, diff)
			}
			if diff := cmp.Diff(values(objectsOf(fwd.IPv4, table)), readAll(t, fwd.IPv4, sim)); diff != "" {
				t.Errorf("%s, later %v: the others are not in the table (-want +got):\n%s", tt.name, later, diff)
			}
		}
	}
}

// wide is a Service with very many frontends of IPv4: service ports on each of some external
// addresses.
func wide(name string, addrs, ports int) *fwd.Fragment {
	f := &fwd.Fragment{Owner: fwd.Service{Namespace: "default", Name: name}}
	owners := make([]fwd.ServicePort, ports)
	for p := range owners {
		owners[p] = fwd.ServicePort{Service: f.Owner, Port: fmt.Sprintf("p%04d", p), Proto: fwd.TCP}
		f.Pools = append(f.Pools, samplePool(fwd.PoolKey{Port: owners[p], Family: fwd.IPv4}, 1, 1))
	}
	all := fwd.Route{Action: fwd.Forward, Masquerade: true}
	for a := range addrs {
		for p, owner := range owners {
			f.Frontends = append(f.Frontends, fwd.Frontend{
				Key:  fwd.Key{Family: fwd.IPv4, Addr: netip.AddrFrom4([4]byte{203, name[0], byte(a >> 8), byte(a)}), Proto: fwd.TCP, Port: uint16(1 + p)},
				Kind: fwd.ExternalIP, Owner: owner, Routes: [fwd.NumClasses]fwd.Route{all, all, all},
			})
		}
	}
	return f
}

// TestFull: if the kernel has no room for the frontends of all Services, because of one Service
// that alone exceeds it, of two that do together, or of one for which the others leave none, the
// largest is named. The others are written, and so are their later changes.
func TestFull(t *testing.T) {
	for _, tt := range []struct {
		name   string
		room   map[string]int
		chunk  int
		before bool // whether the small ones come first
		large  map[string]int
		want   []string
	}{
		{"one that exceeds it alone", map[string]int{setVIPs: 60}, 40, false, map[string]int{"a-large": 100}, []string{"a-large"}},
		{"later", map[string]int{setVIPs: 60}, 40, true, map[string]int{"a-large": 100}, []string{"a-large"}},
		{"two that exceed it together", map[string]int{setVIPs: 60}, 1000, false, map[string]int{"a-large": 30, "z-large": 25}, []string{"a-large"}},
		{"none that exceeds it alone", map[string]int{setVIPs: 60}, 1000, true, map[string]int{"a-large": 45}, []string{"a-large"}},
		{"the map of endpoints", map[string]int{setEndpoints: 60}, 1000, true, map[string]int{"a-large": 100}, []string{"a-large"}},
	} {
		sim := nftsim.New(fwd.IPv4)
		sim.Room = tt.room
		b := newBackend(map[fwd.Family]nft.Interface{fwd.IPv4: sim}, tt.chunk, nil)
		table := &fwd.Table{}
		b.Update(table.SetHeader(fwd.Header{MasqueradeBit: 14, NodePorts: [2]fwd.NodePortAddrs{{All: true}}}))
		small := func() {
			for i := range 20 {
				b.Update(table.Put(sampleFragment(i, 2)))
			}
		}
		if tt.before {
			small()
			if _, err := b.Apply(t.Context()); err != nil {
				t.Fatal(err)
			}
		} else {
			small()
		}
		for name, n := range tt.large {
			b.Update(table.Put(wide(name, n, 1)))
		}
		if diff := cmp.Diff(tt.want, quarantined(t, b, table)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
		b.Update(table.Put(sampleFragment(7, 3)))
		if _, err := b.Apply(t.Context()); err != nil {
			t.Errorf("%s: a change of a small one: %v", tt.name, err)
		}
		if diff := cmp.Diff(values(objectsOf(fwd.IPv4, table)), readAll(t, fwd.IPv4, sim)); diff != "" {
			t.Errorf("%s: the others are not in the table (-want +got):\n%s", tt.name, diff)
		}
	}
}

// TestNoSizes: no set with elements of Services has a size.
func TestNoSizes(t *testing.T) {
	for id, o := range objectsOf(fwd.IPv4, everyShape()) {
		if id.Kind == KindSet && o.set.Size > 0 && !o.set.Dynamic {
			t.Errorf("set %s has a size: %d", id.Name, o.set.Size)
		}
	}
}

// TestKernelManyFrontends: with more frontends than a map held before, in one Service, all is
// served. The Service is written in steps, and other Services are changed between them.
func TestKernelManyFrontends(t *testing.T) {
	hosttest.Netns(t, "nft")
	tab := kernel(t)[fwd.IPv4]
	b := New(map[fwd.Family]nft.Interface{fwd.IPv4: tab}, nil)
	table := &fwd.Table{}
	b.Update(table.SetHeader(fwd.Header{MasqueradeBit: 14, NodePorts: [2]fwd.NodePortAddrs{{All: true}}}))
	b.Update(table.Put(sampleFragment(1, 2)))
	put := func(what string, f *fwd.Fragment) {
		t.Helper()
		start := time.Now()
		b.Update(table.Put(f))
		if _, err := b.Apply(t.Context()); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		t.Logf("%s: %v", what, time.Since(start))
	}
	// expect checks that frontends are there or not. Listing the map would take a minute; a
	// transaction that deletes an element and is then aborted answers at once.
	expect := func(want error, keys ...fwd.Key) {
		t.Helper()
		for _, k := range keys {
			def, _ := staticSet(setVIPs)
			op := nft.Op{Kind: nft.DelElements, Name: setVIPs, Set: def, Elements: []nft.Element{{Key: string(frontendKey(nil, k))}}}
			if err := tab.Check(t.Context(), []nft.Op{op}); !errors.Is(err, want) {
				t.Errorf("%v: %v, want %v", k, err, want)
			}
		}
	}
	key := func(a, b byte, port uint16) fwd.Key {
		return fwd.Key{Family: fwd.IPv4, Addr: netip.AddrFrom4([4]byte{203, 'w', a, b}), Proto: fwd.TCP, Port: port}
	}
	first, last := key(0, 0, 1), key(1, 6, 1000)
	unchanged := fwd.Key{Family: fwd.IPv4, Addr: netip.MustParseAddr("10.96.0.1"), Proto: fwd.UDP, Port: 80}
	small := fwd.Key{Family: fwd.IPv4, Addr: netip.MustParseAddr("10.96.0.2"), Proto: fwd.SCTP, Port: 80}

	target := wide("wide", 263, 1000)
	for step, done := 1, false; !done; step++ {
		var next *fwd.Fragment
		next, done = fwd.Step(table.Claimed(target.Owner), target, 20_000)
		put(fmt.Sprintf("step %d", step), next)
		if step == 1 {
			put("a new Service meanwhile", sampleFragment(2, 2))
			expect(nil, first, small)
			expect(unix.ENOENT, last)
		}
	}
	put("a changed Service beside 263,000 frontends", sampleFragment(1, 3))
	expect(nil, first, last, unchanged, small)
	expect(unix.ENOENT, key(1, 7, 1000))
	put("without them", &fwd.Fragment{Owner: target.Owner})
	expect(unix.ENOENT, first, last)
	expect(nil, unchanged, small)
}

// fill adds clients to the affinity set until it is full.
func fill(t *testing.T, table nft.Interface) {
	t.Helper()
	set, _ := staticSet(setAffinity)
	const atOnce = 1 << 17
	for n := uint32(0); n < affinitySize; n += atOnce {
		op := nft.Op{Kind: nft.AddElements, Name: setAffinity, Set: set}
		for i := n; i < n+atOnce; i++ {
			key := keyAddr(nil, netip.AddrFrom4([4]byte{100, byte(i >> 16), byte(i >> 8), byte(i)}))
			op.Elements = append(op.Elements, nft.Element{Key: string(keyNumber(keyNumber(key, 1), 2))})
		}
		if err := table.Commit(t.Context(), []nft.Op{op}); err != nil {
			t.Fatal(err)
		}
	}
}

// affine is a Service with session affinity whose endpoint is on this host.
func affine(addr netip.Addr, port uint16, to netip.AddrPort) *fwd.Fragment {
	f := &fwd.Fragment{Owner: fwd.Service{Namespace: "default", Name: "affine"}}
	owner := fwd.ServicePort{Service: f.Owner, Port: "p", Proto: fwd.TCP}
	all := fwd.Route{Action: fwd.Forward}
	f.Frontends = []fwd.Frontend{{Key: fwd.Key{Family: fwd.IPv4, Addr: addr, Proto: fwd.TCP, Port: port}, Owner: owner, Routes: [fwd.NumClasses]fwd.Route{all, all, all}}}
	f.Pools = []fwd.Pool{{Key: fwd.PoolKey{Port: owner, Family: fwd.IPv4}, AffinitySec: 3600, Endpoints: []fwd.Endpoint{{Addr: to, Weight: 1, Local: true}}}}
	return f
}

// TestKernelAffinityFull: if no more clients can be remembered, they are served nevertheless, and
// it is logged once.
func TestKernelAffinityFull(t *testing.T) {
	hosttest.Netns(t, "nft")
	tab := kernel(t)[fwd.IPv4]
	var log bytes.Buffer
	b := New(map[fwd.Family]nft.Interface{fwd.IPv4: tab}, slog.New(slog.NewTextHandler(&log, nil)))
	server := hosttest.Listen(t, netip.MustParseAddr("127.0.0.1"))
	to := server.Addr().(*net.TCPAddr).AddrPort()
	table := &fwd.Table{}
	b.Update(table.SetHeader(fwd.Header{MasqueradeBit: 14}))
	b.Update(table.Put(affine(netip.MustParseAddr("127.0.0.9"), 80, to)))
	observe := func(want int) {
		t.Helper()
		if _, err := b.Apply(t.Context()); err != nil {
			t.Fatal(err)
		}
		if drifted, err := b.Observe(t.Context()); drifted != 0 || err != nil {
			t.Fatal(drifted, err)
		}
		if got := strings.Count(log.String(), "affinity"); got != want {
			t.Errorf("logged %d times, want %d: %s", got, want, log.String())
		}
	}
	dial := func() {
		t.Helper()
		c, err := net.DialTimeout("tcp", "127.0.0.9:80", hosttest.Patience)
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
	}
	observe(0)
	fill(t, tab)
	dial()
	observe(1)
	observe(1)
	if out := hosttest.Run(t, "nft", "flush", "set", "ip", TableName, setAffinity); out != "" {
		t.Error(out)
	}
	observe(1)
	dial()
	if out := hosttest.Run(t, "nft", "list", "set", "ip", TableName, setAffinity); !strings.Contains(out, "127.0.0.1") {
		t.Errorf("with room again the client is not remembered:\n%s", out)
	}
}

// If the kernel refuses objects of no Service, there are no culprits.
func TestNobodyIsToBlame(t *testing.T) {
	for _, name := range []string{chainServices, chainPostrouting, setEqualBytes, setClusterIPs} {
		sim := nftsim.New(fwd.IPv4)
		sim.Refuse = func(o nft.Op) unix.Errno {
			if o.Name == name {
				return unix.EOPNOTSUPP
			}
			return 0
		}
		b := New(map[fwd.Family]nft.Interface{fwd.IPv4: sim}, nil)
		give(b, everyShape())
		_, err := b.Apply(context.Background())
		var fe *backend.FamilyError
		if !errors.As(err, &fe) || !fe.Refused || len(fe.Culprits) != 0 {
			t.Errorf("%s: %v blames %v", name, err, fe.Culprits)
		}
	}
}

// TestKernelCulprits: the kernel refuses source ranges that overlap, as in one Service, which the
// compiler would not render.
func TestKernelCulprits(t *testing.T) {
	hosttest.Netns(t, "nft")
	tab := kernel(t)[fwd.IPv4]
	b := New(map[fwd.Family]nft.Interface{fwd.IPv4: tab}, nil)
	table := everyShape()
	bad := sampleFragment(60, 3)
	for i := range bad.Frontends {
		if bad.Frontends[i].Key.Family == fwd.IPv4 {
			bad.Frontends[i].Sources = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("10.1.0.0/16")}
		}
	}
	table.Put(bad)
	give(b, table)
	if diff := cmp.Diff([]string{"svc-60"}, quarantined(t, b, table)); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(values(objectsOf(fwd.IPv4, table)), readAll(t, fwd.IPv4, tab)); diff != "" {
		t.Errorf("the others are not in the table (-want +got):\n%s", diff)
	}
}

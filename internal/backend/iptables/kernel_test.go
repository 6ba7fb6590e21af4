package iptables

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/fairlead/fairlead/internal/backend"
	"github.com/fairlead/fairlead/internal/benchtest"
	"github.com/fairlead/fairlead/internal/fwd"
	"github.com/fairlead/fairlead/internal/host/hosttest"
	"github.com/fairlead/fairlead/internal/host/xtables"
)

// kernel returns a backend for the tables of the goroutine's network namespace, and a function that
// lists its rules.
func kernel(t testing.TB, fl xtables.Flavour, bpf bool) (backend.Backend, func() map[fwd.Family]map[ChainID]Chain) {
	t.Helper()
	opts := make(map[fwd.Family]FamilyOptions)
	for _, f := range fwd.Families {
		tables, err := xtables.New(fl, f == fwd.IPv6)
		if err != nil {
			t.Fatal(err)
		}
		opts[f] = FamilyOptions{Tables: tables, HairpinBPF: bpf, RandomFully: tables.RandomFully(), DropInvalid: true}
		if fl == xtables.NFT {
			o := opts[f]
			o.MaxChains = 20
			opts[f] = o
		}
	}
	return New(opts), func() map[fwd.Family]map[ChainID]Chain {
		out := make(map[fwd.Family]map[ChainID]Chain)
		for f, o := range opts {
			m, err := (&target{family: f, tables: o.Tables}).Read(context.Background())
			if err != nil {
				t.Fatal(err)
			}
			out[f] = m
		}
		return out
	}
}

// everyShape is a table with every kind of rule that the renderer writes.
func everyShape() *fwd.Table {
	t := &fwd.Table{}
	t.SetHeader(fwd.Header{
		Detector: [2]fwd.Detector{{Prefix: netip.MustParsePrefix("10.244.0.0/16")}, {InterfacePrefix: "veth"}},
		NodePorts: [2]fwd.NodePortAddrs{
			{All: true, Loopback: true},
			{Prefixes: []netip.Prefix{netip.MustParsePrefix("fd00:1::/64"), netip.MustParsePrefix("fd00:2::/64")}},
		},
		MasqueradeSource: [2]netip.Addr{{}, netip.MustParseAddr("fd00:1::2")},
		MasqueradeBit:    14,
	})
	for i := range 40 {
		t.Put(sampleFragment(i, 1+i%3))
	}
	for i := 40; i < 48; i++ {
		f := sampleFragment(i, 3)
		for j := range f.Frontends {
			fe := &f.Frontends[j]
			drop := fwd.Route{Action: fwd.Drop}
			reject := fwd.Route{Action: fwd.Reject}
			pod := fwd.Route{Action: fwd.Forward}
			host := fwd.Route{Action: fwd.Forward, Masquerade: true}
			src := []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("198.51.100.7/32")}
			if fe.Key.Family == fwd.IPv6 {
				src = []netip.Prefix{netip.MustParsePrefix("2001:db8::/32")}
			}
			switch i {
			case 40:
				fe.Routes = [fwd.NumClasses]fwd.Route{drop, pod, host}
			case 41:
				fe.Routes = [fwd.NumClasses]fwd.Route{drop, drop, drop}
			case 42:
				fe.Routes = [fwd.NumClasses]fwd.Route{reject, reject, reject}
			case 43:
				fe.Routes = [fwd.NumClasses]fwd.Route{reject, reject, reject}
				fe.Sources = src
			case 44:
				fe.Routes = [fwd.NumClasses]fwd.Route{host, host, host}
				fe.Sources = src
			case 45:
				fe.Routes = [fwd.NumClasses]fwd.Route{drop, reject, host}
				fe.Sources = src
			case 46:
				fe.Routes = [fwd.NumClasses]fwd.Route{{Action: fwd.Forward, Scope: fwd.Local}, pod, host}
			}
		}
		for k := range f.Pools {
			if i == 44 {
				f.Pools[k].AffinitySec = 10800
			}
			if i == 46 {
				local := f.Pools[k]
				local.Key.Scope = fwd.Local
				local.Endpoints = local.Endpoints[:1]
				f.Pools = append(f.Pools, local)
			}
			if i == 47 {
				f.Pools[k] = samplePool(f.Pools[k].Key, i, 100)
				f.Pools[k].AffinitySec = 10
			}
		}
		slices.SortFunc(f.Pools, func(a, b fwd.Pool) int { return a.Key.Compare(b.Key) })
		f.HealthCheck.Port = uint16(31000 + i)
		t.Put(f)
	}
	t.Put(unmovedFragment())
	return t
}

// unmovedFragment is a Service that has an endpoint with the address and port of its frontend.
func unmovedFragment() *fwd.Fragment {
	f := sampleFragment(60, 2)
	f.Frontends = slices.DeleteFunc(f.Frontends, func(f fwd.Frontend) bool { return f.Key.IsNodePort() })
	for i, k := range f.Frontends {
		p := &f.Pools[i]
		p.Endpoints[0].Addr = netip.AddrPortFrom(k.Key.Addr, k.Key.Port)
		slices.SortFunc(p.Endpoints, func(a, b fwd.Endpoint) int { return a.Addr.Compare(b.Addr) })
	}
	return f
}

// sampleFragment is a Service with a ClusterIP in both families and, for every fourth, a node port.
func sampleFragment(i, endpoints int) *fwd.Fragment {
	proto := []fwd.Proto{fwd.TCP, fwd.UDP, fwd.SCTP}[i%3]
	f := &fwd.Fragment{Owner: fwd.Service{Namespace: "default", Name: fmt.Sprintf("svc-%d", i)}, CreatedUnix: int64(i)}
	port := fwd.ServicePort{Service: f.Owner, Port: "http", Proto: proto}
	for _, fam := range fwd.Families {
		vip := netip.AddrFrom4([4]byte{10, 96, byte(i >> 8), byte(i)})
		if fam == fwd.IPv6 {
			vip = netip.AddrFrom16([16]byte{0xfd, 0, 14: byte(i >> 8), 15: byte(i)})
		}
		pod := fwd.Route{Action: fwd.Forward}
		masq := fwd.Route{Action: fwd.Forward, Masquerade: true}
		f.Frontends = append(f.Frontends, fwd.Frontend{Key: fwd.Key{Family: fam, Addr: vip, Proto: proto, Port: 80},
			Owner: port, Routes: [fwd.NumClasses]fwd.Route{fwd.Outside: masq, fwd.Pod: pod, fwd.Host: masq}})
		if i%4 == 0 {
			f.Frontends = append(f.Frontends, fwd.Frontend{Key: fwd.Key{Family: fam, Proto: proto, Port: uint16(30000 + i)},
				Kind: fwd.NodePort, Owner: port, Routes: [fwd.NumClasses]fwd.Route{masq, masq, masq}})
		}
		f.Pools = append(f.Pools, samplePool(fwd.PoolKey{Port: port, Family: fam}, i, endpoints))
	}
	slices.SortFunc(f.Frontends, func(a, b fwd.Frontend) int { return a.Key.Compare(b.Key) })
	return f
}

func samplePool(k fwd.PoolKey, i, endpoints int) fwd.Pool {
	p := fwd.Pool{Key: k}
	for e := range endpoints {
		n := i*endpoints + e
		a := netip.AddrFrom4([4]byte{10, 244, byte(n >> 8), byte(n)})
		if k.Family == fwd.IPv6 {
			a = netip.AddrFrom16([16]byte{0xfd, 1, 13: byte(n >> 16), 14: byte(n >> 8), 15: byte(n)})
		}
		p.Endpoints = append(p.Endpoints, fwd.Endpoint{Addr: netip.AddrPortFrom(a, 8080), Weight: uint32(1 + e%2), Local: e == 0})
	}
	return p
}

// TestKernelRoundTrip checks that iptables-save prints our rules exactly as we wrote them.
// Otherwise a restart would write them again, and every verification would find drift.
func TestKernelRoundTrip(t *testing.T) {
	for _, fl := range []xtables.Flavour{xtables.Legacy, xtables.NFT} {
		for _, bpf := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s/bpf=%v", fl, bpf), func(t *testing.T) {
				hosttest.Netns(t, "iptables")
				ctx := context.Background()
				b, read := kernel(t, fl, bpf)
				table := everyShape()
				h := table.Header()
				b.Update(fwd.Changes{Header: &h})
				for f := range table.Services() {
					b.Update(fwd.Changes{Services: []fwd.ServiceChange{{Owner: f.Owner, New: f}}})
				}
				if _, err := b.Apply(ctx); err != nil {
					t.Fatal(err)
				}
				for _, fam := range fwd.Families {
					want := chainsOf(fam, options{bpf: bpf, randomFully: true, dropInvalid: true}, table)
					for id, c := range want {
						c.Owner = fwd.Service{}
						want[id] = c
					}
					if diff := cmp.Diff(want, read()[fam]); diff != "" {
						t.Errorf("%s: in the kernel is not what was wanted (-want +got):\n%s", fam, diff)
					}
				}
				if drifted, err := b.Observe(ctx); err != nil || drifted != 0 {
					t.Errorf("Observe after Apply: %d drifted, %v", drifted, err)
				}
				if err := b.Cleanup(ctx); err != nil {
					t.Fatal(err)
				}
				for fam, m := range read() {
					if len(m) != 0 {
						t.Errorf("%s: left after clean-up: %v", fam, m)
					}
				}
			})
		}
	}
}

// TestKernelLeftovers checks that the rules of both userlands are found, that RemoveOthers keeps
// those of the userland in use, and that Remove keeps the rules of other programs.
func TestKernelLeftovers(t *testing.T) {
	hosttest.Netns(t, "iptables")
	ctx := context.Background()
	foreign := "*nat\n:KUBE-SERVICES - [0:0]\n-A PREROUTING -j KUBE-SERVICES\nCOMMIT\n"
	for _, fl := range []xtables.Flavour{xtables.Legacy, xtables.NFT} {
		b, _ := kernel(t, fl, true)
		h := benchtest.Header()
		b.Update(fwd.Changes{Header: &h})
		if _, err := b.Apply(ctx); err != nil {
			t.Fatal(err)
		}
		tables, err := xtables.New(fl, false)
		if err != nil {
			t.Fatal(err)
		}
		if err := tables.Restore(ctx, []byte(foreign)); err != nil {
			t.Fatal(err)
		}
	}
	count := func() map[string]int {
		left, err := Leftovers(ctx)
		if err != nil {
			t.Fatal(err)
		}
		m := make(map[string]int)
		for _, l := range left {
			m[string(l.Flavour)+" "+l.Family.String()]++
		}
		return m
	}
	want := map[string]int{"legacy IPv4": 1, "legacy IPv6": 1, "nft IPv4": 1, "nft IPv6": 1}
	if diff := cmp.Diff(want, count()); diff != "" {
		t.Fatal(diff)
	}
	guarded := false
	RemoveOthers(ctx, 0, xtables.NFT, fwd.IPv4, func(l Leftover) { guarded = l.Guard }, slog.New(slog.DiscardHandler))
	if !guarded {
		t.Error("the rules that guard loopback addresses were not noticed")
	}
	delete(want, "legacy IPv4")
	if diff := cmp.Diff(want, count()); diff != "" {
		t.Fatal(diff)
	}
	left, err := Leftovers(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range left {
		if err := l.Remove(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if m := count(); len(m) != 0 {
		t.Errorf("left: %v", m)
	}
	for _, save := range []string{"iptables-legacy-save", "iptables-nft-save"} {
		if text := hosttest.Run(t, save, "-t", "nat"); !strings.Contains(text, "-A PREROUTING -j KUBE-SERVICES") {
			t.Errorf("a foreign rule is gone:\n%s", text)
		}
	}
}

// BenchmarkKernel loads Services of 10 endpoints each into the kernel, then changes one of them. It
// prints the times of both; with FAIRLEAD_KERNEL_TESTS=1 as root.
func BenchmarkKernel(b *testing.B) {
	for _, fl := range []xtables.Flavour{xtables.Legacy, xtables.NFT} {
		for _, n := range []int{1000, 10000} {
			b.Run(fmt.Sprintf("%s/%dServices", fl, n), func(b *testing.B) {
				hosttest.Netns(b, "iptables")
				ctx := context.Background()
				tables, err := xtables.New(fl, false)
				if err != nil {
					b.Fatal(err)
				}
				frags := make([]*fwd.Fragment, n)
				for i := range frags {
					frags[i] = benchtest.Fragment(i, 10)
				}
				var load, change, read time.Duration
				for range b.N {
					o := FamilyOptions{Tables: tables, HairpinBPF: true, RandomFully: true, DropInvalid: true}
					if fl == xtables.NFT {
						o.MaxChains = nftMaxChains
					}
					be := New(map[fwd.Family]FamilyOptions{fwd.IPv4: o})
					table := &fwd.Table{}
					start := time.Now()
					be.Update(table.SetHeader(benchtest.Header()))
					for _, f := range frags {
						be.Update(table.Put(f))
					}
					if _, err := be.Apply(ctx); err != nil {
						b.Fatal(err)
					}
					load += time.Since(start)

					start = time.Now()
					be.Update(table.Put(benchtest.Fragment(n/2, 9)))
					if res, err := be.Apply(ctx); err != nil || res.Written != 1 {
						b.Fatal(res, err)
					}
					change += time.Since(start)

					start = time.Now()
					if drifted, err := be.Observe(ctx); err != nil || drifted != 0 {
						b.Fatal(drifted, err)
					}
					read += time.Since(start)
					if err := be.Cleanup(ctx); err != nil {
						b.Fatal(err)
					}
				}
				b.ReportMetric(0, "ns/op")
				b.ReportMetric(load.Seconds()/float64(b.N), "load-s")
				b.ReportMetric(change.Seconds()/float64(b.N), "change-s")
				b.ReportMetric(read.Seconds()/float64(b.N), "observe-s")
			})
		}
	}
}

// A restart must not write: with the legacy userland, each test of a rule would copy the whole
// table.
func TestKernelIsTriedOnlyWithoutOurRules(t *testing.T) {
	for _, fl := range []xtables.Flavour{xtables.Legacy, xtables.NFT} {
		t.Run(string(fl), func(t *testing.T) {
			if fl == xtables.NFT {
				hosttest.Need(t, hosttest.NFTables)
			}
			hosttest.Netns(t, "iptables-"+string(fl))
			tables, err := xtables.New(fl, false)
			if err != nil {
				t.Fatal(err)
			}
			affinity, bpf, err := tryKernel(t.Context(), tables, names(0))
			if err != nil || !affinity || !bpf {
				t.Fatalf("affinity %v, BPF %v, %v", affinity, bpf, err)
			}
			for _, want := range []bool{true, false} {
				b := New(map[fwd.Family]FamilyOptions{fwd.IPv4: {Tables: tables, HairpinBPF: want}})
				var table fwd.Table
				b.Update(table.SetHeader(fwd.Header{MasqueradeBit: 14}))
				if _, err := b.Apply(t.Context()); err != nil {
					t.Fatal(err)
				}
				if affinity, bpf, err := tryKernel(t.Context(), tables, names(0)); err != nil || !affinity || bpf != want {
					t.Errorf("with rules: affinity %v, BPF %v, %v; want BPF %v", affinity, bpf, err, want)
				}
				if err := b.Cleanup(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// The kernel accepts every name that the configuration accepts: a prefix with a wildcard, a prefix
// of the maximum length, a bridge.
func TestKernelInterfaceNames(t *testing.T) {
	for _, fl := range []xtables.Flavour{xtables.Legacy, xtables.NFT} {
		t.Run(string(fl), func(t *testing.T) {
			hosttest.Netns(t, "iptables-"+string(fl))
			b, _ := kernel(t, fl, true)
			var table fwd.Table
			for _, d := range []fwd.Detector{{InterfacePrefix: "cali2345678901"}, {InterfacePrefix: "cali23456789012"}, {Bridge: "br-234567890123"}} {
				b.Update(table.SetHeader(fwd.Header{MasqueradeBit: 14, Detector: [2]fwd.Detector{d, d}}))
				if _, err := b.Apply(t.Context()); err != nil {
					t.Fatalf("%+v: %v", d, err)
				}
				if drifted, err := b.Observe(t.Context()); err != nil || drifted != 0 {
					t.Errorf("%+v: %d drifted, %v", d, drifted, err)
				}
			}
		})
	}
}

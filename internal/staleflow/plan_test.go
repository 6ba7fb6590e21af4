package staleflow

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/fairlead/fairlead/internal/fwd"
	"github.com/fairlead/fairlead/internal/host/conntrack"
)

// written says that the rules of both families are in the kernel.
var written = [2]bool{true, true}

func ap(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

func aps(s ...string) []netip.AddrPort {
	var out []netip.AddrPort
	for _, a := range s {
		out = append(out, ap(a))
	}
	slices.SortFunc(out, netip.AddrPort.Compare)
	return out
}

// key parses "10.96.0.10:53/udp" or "node4:30053/udp".
func key(tb testing.TB, s string) fwd.Key {
	tb.Helper()
	var k fwd.Key
	for _, p := range []fwd.Proto{fwd.UDP, fwd.TCP} {
		suffix := "/" + p.String()
		if len(s) < len(suffix) || s[len(s)-len(suffix):] != suffix {
			continue
		}
		rest := s[:len(s)-len(suffix)]
		k.Proto = p
		var fam, port int
		if n, _ := fmt.Sscanf(rest, "node%d:%d", &fam, &port); n == 2 {
			k.Family, k.Port = fwd.Family(fam), uint16(port)
			return k
		}
		a := ap(rest)
		k.Family, k.Addr, k.Port = fwd.FamilyOf(a.Addr()), a.Addr(), a.Port()
		return k
	}
	tb.Fatalf("key %q", s)
	return k
}

// fragment returns a Service with a UDP port and a TCP port that have the given keys. Both forward
// if there are endpoints.
func fragment(name string, created int64, keys []fwd.Key, endpoints []netip.AddrPort) *fwd.Fragment {
	owner := fwd.Service{Namespace: "ns", Name: name}
	f := &fwd.Fragment{Owner: owner, CreatedUnix: created}
	for _, k := range keys {
		fe := fwd.Frontend{Key: k, Owner: fwd.ServicePort{Service: owner, Port: "p", Proto: k.Proto}}
		for c := range fe.Routes {
			fe.Routes[c].Action = fwd.Reject
			if slices.ContainsFunc(endpoints, func(e netip.AddrPort) bool { return fwd.FamilyOf(e.Addr()) == k.Family }) {
				fe.Routes[c].Action = fwd.Forward
			}
		}
		f.Frontends = append(f.Frontends, fe)
	}
	slices.SortFunc(f.Frontends, func(a, b fwd.Frontend) int { return a.Key.Compare(b.Key) })
	port := fwd.ServicePort{Service: owner, Port: "p", Proto: fwd.UDP}
	for _, fam := range fwd.Families {
		sp := fwd.ServingPort{Port: port, Family: fam}
		for _, e := range endpoints {
			if fwd.FamilyOf(e.Addr()) == fam {
				sp.Endpoints = append(sp.Endpoints, e)
			}
		}
		f.Serving = append(f.Serving, sp)
	}
	return f
}

var header = fwd.Header{
	NodePorts: [2]fwd.NodePortAddrs{
		{Prefixes: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}, Loopback: true},
		{All: true},
	},
	LocalAddrs: []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("2001:db8::1")},
}

func flow(src, dst, replySrc string) conntrack.Flow {
	return conntrack.Flow{Proto: 17, OrigSrc: ap(src), OrigDst: ap(dst), ReplySrc: ap(replySrc), ReplyDst: ap(src)}
}

func TestStale(t *testing.T) {
	var table fwd.Table
	var b Builder
	b.Update(table.SetHeader(header))
	dns := []fwd.Key{key(t, "10.96.0.10:53/udp"), key(t, "10.96.0.10:54/tcp"), key(t, "203.0.113.9:53/udp"), key(t, "node4:30053/udp"), key(t, "node4:30054/tcp")}
	b.Update(table.Put(fragment("dns", 1, dns, aps("10.1.0.5:53", "10.1.0.6:5353"))))
	b.Update(table.Put(fragment("dns6", 1, []fwd.Key{key(t, "[fd00::10]:53/udp"), key(t, "node6:30053/udp")}, aps("[fd01::5]:53"))))
	b.Update(table.Put(fragment("none", 1, []fwd.Key{key(t, "10.96.0.11:53/udp"), key(t, "10.96.0.11:54/tcp")}, nil)))
	b.Update(table.Put(fragment("tcp", 1, []fwd.Key{key(t, "10.96.0.12:53/tcp")}, aps("10.1.0.5:53"))))
	gone := []fwd.Key{key(t, "10.96.0.13:53/udp"), key(t, "node4:30013/udp")}
	b.Update(table.Put(fragment("gone", 1, gone, aps("10.1.0.7:53"))))
	b.Update(table.Put(fragment("gone", 1, gone, aps("10.1.0.6:53"))))
	b.Update(table.Put(fragment("gone", 1, gone, nil)))
	b.Update(table.Remove(fwd.Service{Namespace: "ns", Name: "gone"}))
	b.Found([]fwd.Key{key(t, "10.96.0.10:53/udp"), key(t, "10.96.0.14:53/udp"), key(t, "node4:30014/udp"), key(t, "10.96.0.15:53/tcp")})
	plan := b.Snapshot(written, true)

	const pod = "10.1.0.99:4000"
	tcp, zone, zoneNAT := flow(pod, "10.96.0.10:53", "10.1.0.9:53"), flow(pod, "10.96.0.10:53", "10.96.0.10:53"), flow(pod, "10.96.0.10:53", "10.1.0.9:53")
	tcp.Proto = 6
	syn := func(dst string) conntrack.Flow {
		f := flow(pod, dst, dst)
		f.Proto, f.Opening = 6, true
		return f
	}
	answered, synNAT, synZone := syn("10.96.0.10:54"), syn("10.96.0.10:54"), syn("10.96.0.10:54")
	answered.Opening = false
	synNAT.ReplySrc = ap("10.1.0.9:54")
	synZone.Zone = 5
	zone.Zone = 5
	zoneNAT.OrigZone = 5
	tests := []struct {
		name  string
		flow  conntrack.Flow
		want  Reason
		stale bool
	}{
		{"endpoint serves", flow(pod, "10.96.0.10:53", "10.1.0.5:53"), 0, false},
		{"another endpoint serves", flow(pod, "10.96.0.10:53", "10.1.0.6:5353"), 0, false},
		{"C01 endpoint is gone", flow(pod, "10.96.0.10:53", "10.1.0.9:53"), EndpointGone, true},
		{"target port was changed", flow(pod, "10.96.0.10:53", "10.1.0.6:53"), EndpointGone, true},
		{"C02 by node port", flow("198.51.100.7:1", "192.0.2.1:30053", "10.1.0.9:53"), EndpointGone, true},
		{"by node port, serves", flow("198.51.100.7:1", "192.0.2.1:30053", "10.1.0.5:53"), 0, false},
		{"C05 without NAT", flow(pod, "10.96.0.10:53", "10.96.0.10:53"), BlackHole, true},
		{"C05 without NAT by node port", flow("198.51.100.7:1", "192.0.2.1:30053", "192.0.2.1:30053"), BlackHole, true},
		{"C08 nothing serves", flow(pod, "10.96.0.11:53", "10.1.0.9:53"), EndpointGone, true},
		{"nothing serves, without NAT", flow(pod, "10.96.0.11:53", "10.96.0.11:53"), 0, false},
		{"C10 TCP", tcp, 0, false},
		{"TCP without an answer", syn("10.96.0.10:54"), BlackHole, true},
		{"TCP without an answer, answered since", answered, 0, false},
		{"TCP without an answer, with NAT", synNAT, 0, false},
		{"TCP without an answer, in a zone", synZone, 0, false},
		{"TCP without an answer to a port that is UDP", syn("10.96.0.10:53"), 0, false},
		{"TCP without an answer, nothing serves", syn("10.96.0.11:54"), 0, false},
		{"TCP without an answer by node port", syn("192.0.2.1:30054"), BlackHole, true},
		{"TCP without an answer to a node port elsewhere", syn("198.51.100.7:30054"), 0, false},
		{"UDP to a port that is TCP", flow(pod, "10.96.0.12:53", "10.1.0.9:53"), 0, false},
		{"another port of the address", flow(pod, "10.96.0.10:55", "10.1.0.9:53"), 0, false},
		{"C14 external IP", flow("198.51.100.7:1", "203.0.113.9:53", "10.1.0.9:53"), EndpointGone, true},
		{"port of a node port elsewhere", flow("192.0.2.1:5", "198.51.100.7:30053", "198.51.100.7:30053"), 0, false},
		{"node port on an address without node ports", flow("198.51.100.7:1", "198.51.100.1:30053", "198.51.100.1:30053"), 0, false},
		{"node port on loopback, from this host", flow("127.0.0.1:9", "127.0.0.1:30053", "10.1.0.9:53"), EndpointGone, true},
		{"node port on loopback, from elsewhere", flow("198.51.100.7:9", "127.0.0.1:30053", "10.1.0.9:53"), 0, false},
		{"no Service", flow(pod, "8.8.8.8:53", "8.8.8.8:53"), 0, false},
		{"IPv6 serves", flow("[fd01::9]:1", "[fd00::10]:53", "[fd01::5]:53"), 0, false},
		{"IPv6 gone", flow("[fd01::9]:1", "[fd00::10]:53", "[fd01::6]:53"), EndpointGone, true},
		{"IPv6 node port", flow("[2001:db8::9]:1", "[2001:db8::1]:30053", "[fd01::6]:53"), EndpointGone, true},
		{"without NAT in a zone", zone, 0, false},
		{"with NAT in a zone", zoneNAT, EndpointGone, true},
		{"removed frontend, its last endpoint", flow(pod, "10.96.0.13:53", "10.1.0.6:53"), FrontendGone, true},
		{"removed frontend, an endpoint before that", flow(pod, "10.96.0.13:53", "10.1.0.7:53"), FrontendGone, true},
		{"removed node port", flow("198.51.100.7:1", "192.0.2.1:30013", "10.1.0.7:53"), FrontendGone, true},
		{"removed node port, other NAT", flow("198.51.100.7:1", "192.0.2.1:30013", "10.1.0.8:53"), 0, false},
		{"node port on an address that the node no longer has", flow("198.51.100.7:1", "192.0.2.9:30053", "10.1.0.5:53"), FrontendGone, true},
		{"node port on such an address, other NAT", flow("198.51.100.7:1", "192.0.2.9:30053", "10.1.0.8:53"), 0, false},
		{"node port on an address that serves none, with NAT", flow("198.51.100.7:1", "198.51.100.1:30053", "10.1.0.5:53"), FrontendGone, true},
		{"found in the kernel and wanted", flow(pod, "10.96.0.10:53", "10.1.0.5:53"), 0, false},
		{"found in the kernel", flow(pod, "10.96.0.14:53", "10.1.0.8:53"), FrontendGone, true},
		{"found in the kernel, without NAT", flow(pod, "10.96.0.14:53", "10.96.0.14:53"), 0, false},
		{"node port found in the kernel", flow("198.51.100.7:1", "192.0.2.1:30014", "10.1.0.8:53"), FrontendGone, true},
		{"node port found in the kernel, elsewhere", flow("198.51.100.7:1", "198.51.100.8:30014", "10.1.0.8:53"), 0, false},
		{"removed frontend, other NAT", flow(pod, "10.96.0.13:53", "10.1.0.8:53"), 0, false},
		{"removed frontend, without NAT", flow(pod, "10.96.0.13:53", "10.96.0.13:53"), 0, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, stale := plan.Stale(tt.flow)
			if stale != tt.stale || stale && got != tt.want {
				t.Errorf("got %v, %v; want %v, %v", got, stale, tt.want, tt.stale)
			}
			if _, stale := (Plan{}).Stale(tt.flow); stale {
				t.Error("stale by the zero plan")
			}
		})
	}
}

func TestSnapshotHoldsWhatChanged(t *testing.T) {
	var table fwd.Table
	var b Builder
	v4, v6, tcp := key(t, "10.96.0.10:53/udp"), key(t, "[fd00::10]:53/udp"), key(t, "10.96.0.10:53/tcp")
	expect := func(what string, want4, want6 bool) {
		t.Helper()
		p := b.Snapshot(written, false)
		if p.has(fwd.IPv4) != want4 || p.has(fwd.IPv6) != want6 {
			t.Errorf("%s: IPv4 %v, IPv6 %v; want %v, %v", what, p.has(fwd.IPv4), p.has(fwd.IPv6), want4, want6)
		}
	}
	both := func(eps ...string) fwd.Changes { return table.Put(fragment("a", 1, []fwd.Key{v4, v6}, aps(eps...))) }
	expect("nothing", false, false)
	b.Update(both("10.1.0.5:53", "[fd01::5]:53"))
	expect("first", true, true)
	expect("again", false, false)
	b.Update(both("10.1.0.5:53", "[fd01::5]:53"))
	expect("the same", false, false)
	b.Update(both("10.1.0.5:53", "[fd01::6]:53"))
	expect("IPv6 endpoint", false, true)
	b.Update(table.SetHeader(header))
	expect("header", false, false)
	b.Update(table.Put(fragment("b", 1, []fwd.Key{tcp}, nil)))
	expect("TCP, nothing serves", false, false)
	b.Update(table.Put(fragment("b", 1, []fwd.Key{tcp}, aps("10.1.0.5:53"))))
	if p := b.Snapshot(written, false); p.hasUDP(fwd.IPv4) || !p.hasTCP(fwd.IPv4) || p.has(fwd.IPv6) {
		t.Errorf("TCP: got %+v", p)
	}
	b.Update(table.Put(fragment("b", 1, []fwd.Key{tcp}, aps("10.1.0.6:53"))))
	expect("another endpoint of TCP", false, false)
	b.Update(table.Put(fragment("np", 1, []fwd.Key{key(t, "node4:30053/udp")}, aps("10.1.0.5:53"))))
	expect("node port", true, false)
	moved := header
	moved.LocalAddrs = moved.LocalAddrs[1:]
	b.Update(table.SetHeader(moved))
	expect("addresses of the node", true, false)
	b.Update(table.Remove(fwd.Service{Namespace: "ns", Name: "np"}))
	expect("removed", true, false)
	b.Found([]fwd.Key{tcp})
	expect("found TCP", false, false)
	b.Found([]fwd.Key{v6})
	expect("found", false, true)
	b.Update(both())
	b.Update(both("10.1.0.5:53", "[fd01::6]:53"))
	expect("gone and back", true, true)
	if p := b.Snapshot(written, true); !p.has(fwd.IPv4) || !p.has(fwd.IPv6) {
		t.Error("all: not all")
	}
}

// TestUnwrittenFamilyWaits proves that the changes of a family are kept while its rules cannot be
// written.
func TestUnwrittenFamilyWaits(t *testing.T) {
	var table fwd.Table
	var b Builder
	keys := []fwd.Key{key(t, "10.96.0.10:53/udp"), key(t, "[fd00::10]:53/udp"), key(t, "[fd00::11]:53/tcp")}
	b.Update(table.Put(fragment("a", 1, keys, aps("10.1.0.5:53", "[fd01::5]:53"))))
	b.Update(table.Remove(fwd.Service{Namespace: "ns", Name: "a"}))
	b.Update(table.Put(fragment("b", 1, keys[2:], aps("[fd01::5]:53"))))
	v4 := flow("10.1.0.9:1", "10.96.0.10:53", "10.1.0.5:53")
	v6 := flow("[fd01::9]:1", "[fd00::10]:53", "[fd01::5]:53")
	syn := flow("[fd01::9]:1", "[fd00::11]:53", "[fd00::11]:53")
	syn.Proto, syn.Opening = 6, true
	for i, want := range [][3]bool{{true, false, false}, {false, true, true}, {false, false, false}} {
		p := b.Snapshot([2]bool{true, i > 0}, false)
		var got [3]bool
		for j, f := range []conntrack.Flow{v4, v6, syn} {
			_, got[j] = p.Stale(f)
		}
		if got != want {
			t.Errorf("snapshot %d: IPv4, IPv6, TCP are stale: %v, want %v", i, got, want)
		}
	}
}

// TestConnectsOfEverything proves that a plan for everything finds SYNs to all TCP frontends.
func TestConnectsOfEverything(t *testing.T) {
	var table fwd.Table
	var b Builder
	k := []fwd.Key{key(t, "10.96.0.10:53/tcp")}
	f := flow("10.1.0.9:1", "10.96.0.10:53", "10.96.0.10:53")
	f.Proto, f.Opening = 6, true
	stale := func(all bool) bool {
		_, stale := b.Snapshot(written, all).Stale(f)
		return stale
	}
	b.Update(table.Put(fragment("a", 1, k, aps("10.1.0.5:53"))))
	if !stale(false) || stale(false) || !stale(true) {
		t.Error("want it stale when the frontend begins to forward, then where everything is looked at")
	}
	b.Update(table.Put(fragment("a", 1, k, nil)))
	if stale(true) {
		t.Error("stale though nothing serves")
	}
	early := b.Snapshot(written, false)
	b.Update(table.Put(fragment("a", 1, k, aps("10.1.0.5:53"))))
	early = early.merge(b.Snapshot(written, false))
	b.Update(table.Remove(fwd.Service{Namespace: "ns", Name: "a"}))
	if p := early.merge(b.Snapshot(written, false)); !p.Empty() {
		t.Errorf("a plan for a frontend that came and went: %+v", p)
	}
}

func TestKeyPassesBetweenServices(t *testing.T) {
	k := key(t, "10.96.0.10:53/udp")
	for name, created := range map[string]int64{"to an older one": 1, "to the next one": 3} {
		t.Run(name, func(t *testing.T) {
			var table fwd.Table
			var b Builder
			b.Update(table.Put(fragment("a", 2, []fwd.Key{k}, aps("10.1.0.1:53"))))
			b.Update(table.Put(fragment("b", created, []fwd.Key{k}, aps("10.1.0.2:53"))))
			if created > 2 {
				b.Update(table.Remove(fwd.Service{Namespace: "ns", Name: "a"}))
			}
			p := b.Snapshot(written, false)
			if _, stale := p.Stale(flow("10.1.0.9:1", "10.96.0.10:53", "10.1.0.2:53")); stale {
				t.Error("the flow to the new owner's endpoint is stale")
			}
			if r, stale := p.Stale(flow("10.1.0.9:1", "10.96.0.10:53", "10.1.0.1:53")); !stale || r != EndpointGone {
				t.Errorf("the flow to the old owner's endpoint: %v, %v", r, stale)
			}
		})
	}
}

func TestSnapshotIsImmutable(t *testing.T) {
	var table fwd.Table
	var b Builder
	k := []fwd.Key{key(t, "10.96.0.10:53/udp")}
	b.Update(table.Put(fragment("a", 1, k, aps("10.1.0.1:53"))))
	p := b.Snapshot(written, false)
	b.Update(table.Put(fragment("a", 1, k, aps("10.1.0.2:53"))))
	b.Update(table.Remove(fwd.Service{Namespace: "ns", Name: "a"}))
	if _, stale := p.Stale(flow("10.1.0.9:1", "10.96.0.10:53", "10.1.0.1:53")); stale {
		t.Error("a snapshot changed after it was taken")
	}
}

// naive implements the rules of doc.go literally, on the whole table, without an index.
type naive struct {
	table *fwd.Table
	had   map[fwd.Key][]netip.AddrPort // all endpoints that each key had
	found map[fwd.Key]bool
	began map[fwd.Key]bool // TCP keys that began to forward, or with all set any that forward
}

func (n *naive) stale(f conntrack.Flow) (Reason, bool) {
	isNAT := f.ReplySrc != f.OrigDst
	if !isNAT && (f.Zone != 0 || f.OrigZone != 0) {
		return 0, false
	}
	h := n.table.Header()
	served := h.IsLocal(f.OrigDst.Addr()) && h.NodePorts[fwd.FamilyOf(f.OrigDst.Addr()).Index()].Serves(f.OrigDst.Addr(), h.IsLocal(f.OrigSrc.Addr()))
	matches := func(k fwd.Key, nodePort bool) bool {
		if k.Proto != fwd.Proto(f.Proto) || k.Port != f.OrigDst.Port() || k.Family != fwd.FamilyOf(f.OrigDst.Addr()) || k.IsNodePort() != nodePort {
			return false
		}
		if !nodePort {
			return k.Addr == f.OrigDst.Addr()
		}
		return served
	}
	if f.Proto == 6 {
		for k := range n.began {
			if f.Opening && !isNAT && (matches(k, false) || matches(k, true)) {
				return BlackHole, true
			}
		}
		return 0, false
	}
	for _, nodePort := range []bool{false, true} {
		for frag := range n.table.Services() {
			for _, fe := range frag.Frontends {
				if !matches(fe.Key, nodePort) {
					continue
				}
				for _, s := range frag.Serving {
					switch {
					case s.Port != fe.Owner || s.Family != fe.Key.Family:
					case slices.Contains(s.Endpoints, f.ReplySrc):
						return 0, false
					case isNAT:
						return EndpointGone, true
					default:
						return BlackHole, len(s.Endpoints) > 0
					}
				}
			}
		}
	}
	if !isNAT {
		return 0, false
	}
	for k, eps := range n.had {
		elsewhere := k.IsNodePort() && k.Proto == fwd.UDP && k.Port == f.OrigDst.Port() && k.Family == fwd.FamilyOf(f.OrigDst.Addr())
		if (matches(k, false) || elsewhere) && slices.Contains(eps, f.ReplySrc) {
			return FrontendGone, true
		}
	}
	for k := range n.found {
		if matches(k, false) || matches(k, true) {
			return FrontendGone, true
		}
	}
	return 0, false
}

// remember records the endpoints of all keys, and the TCP keys that began to forward, or with all
// set any that forward.
func (n *naive) remember(forwarded map[fwd.Key]bool, all bool) {
	now := n.forwarding()
	for k := range now {
		if all || !forwarded[k] {
			n.began[k] = true
		}
	}
	maps.DeleteFunc(n.began, func(k fwd.Key, _ bool) bool { return !now[k] })
	for frag := range n.table.Services() {
		for _, fe := range frag.Frontends {
			for _, s := range frag.Serving {
				if fe.Key.Proto == fwd.UDP && s.Port == fe.Owner && s.Family == fe.Key.Family {
					n.had[fe.Key] = append(n.had[fe.Key], s.Endpoints...)
				}
			}
		}
	}
}

// forwarding returns the TCP keys with endpoints.
func (n *naive) forwarding() map[fwd.Key]bool {
	out := make(map[fwd.Key]bool)
	for frag := range n.table.Services() {
		for _, fe := range frag.Frontends {
			if fe.Key.Proto == fwd.TCP && fe.Routes[fwd.Outside].Action == fwd.Forward {
				out[fe.Key] = true
			}
		}
	}
	return out
}

// TestPlanAgainstNaive merges snapshots like a worker that never starts a pass, and compares with
// the naive implementation.
func TestPlanAgainstNaive(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	vips := []string{"10.96.0.1", "10.96.0.2", "192.0.2.1", "[fd00::1]", "[2001:db8::1]"}
	eps := []string{"10.1.0.1:53", "10.1.0.2:53", "10.1.0.2:54", "10.96.0.1:53", "192.0.2.1:53", "[fd01::1]:53", "[fd01::2]:53"}
	dsts := append(slices.Clone(vips), "127.0.0.1", "198.51.100.1", "198.51.100.7", "[2001:db8::7]")
	pick := func(s []string) string { return s[rng.IntN(len(s))] }
	outcomes := make(map[string]int)
	for range 60 {
		table := &fwd.Table{}
		n := &naive{table: table, had: make(map[fwd.Key][]netip.AddrPort), found: make(map[fwd.Key]bool), began: make(map[fwd.Key]bool)}
		var b Builder
		b.Update(table.SetHeader(header))
		for _, at := range []string{"10.96.0.2:54/udp", "node4:54/udp"} {
			if rng.IntN(2) == 0 {
				n.found[key(t, at)] = true
			}
		}
		b.Found(slices.Collect(maps.Keys(n.found)))
		pending := b.Snapshot(written, true)
		for range 30 {
			name := pick([]string{"a", "b", "c"})
			forwarded, all := n.forwarding(), rng.IntN(5) == 0
			if rng.IntN(3) == 0 {
				b.Update(table.Remove(fwd.Service{Namespace: "ns", Name: name}))
			} else {
				keys := make(map[fwd.Key]bool)
				for range rng.IntN(4) {
					at := pick(append(vips, "node4", "node6"))
					keys[key(t, fmt.Sprintf("%s:%d/%s", at, 53+rng.IntN(2), pick([]string{"udp", "udp", "tcp"})))] = true
				}
				var serving []string
				for range rng.IntN(4) {
					serving = append(serving, pick(eps))
				}
				b.Update(table.Put(fragment(name, int64(rng.IntN(3)), slices.Collect(maps.Keys(keys)), slices.Compact(aps(serving...)))))
			}
			n.remember(forwarded, all)
			pending = pending.merge(b.Snapshot(written, all))
			for range 20 {
				dst := fmt.Sprintf("%s:%d", pick(dsts), 53+rng.IntN(2))
				src, reply := "198.51.100.7:1", pick(eps)
				if rng.IntN(4) == 0 {
					reply = dst
				}
				if rng.IntN(4) == 0 {
					src = "192.0.2.1:1"
				}
				f := flow(src, dst, reply)
				f.Proto = []uint8{17, 17, 17, 6}[rng.IntN(4)]
				f.Zone = uint16(rng.IntN(4) / 3)
				f.Opening = f.Proto == 6 && rng.IntN(2) == 0
				gotR, got := pending.Stale(f)
				wantR, want := n.stale(f)
				if got != want || got && gotR != wantR {
					t.Fatalf("%+v: got %v, %v; want %v, %v", f, gotR, got, wantR, want)
				}
				if got {
					outcomes[gotR.String()]++
					outcomes[fmt.Sprint("protocol ", f.Proto)]++
				} else {
					outcomes["kept"]++
				}
			}
		}
	}
	if outcomes["protocol 6"] == 0 {
		t.Errorf("no TCP connection was stale: %v", outcomes)
	}
	for r := range NumReasons {
		if outcomes[r.String()] == 0 {
			t.Errorf("no flow was stale for %v: %v", r, outcomes)
		}
	}
}

func BenchmarkStale(b *testing.B) {
	var table fwd.Table
	var bl Builder
	for i := range 1000 {
		k := fwd.Key{Family: fwd.IPv4, Addr: netip.AddrFrom4([4]byte{10, 96, byte(i >> 8), byte(i)}), Proto: fwd.UDP, Port: 53}
		bl.Update(table.Put(fragment(fmt.Sprint("s", i), 1, []fwd.Key{k}, aps("10.1.0.5:53", "10.1.0.6:53"))))
	}
	p := bl.Snapshot(written, true)
	f := flow("10.1.0.9:1", "10.96.1.1:53", "10.1.0.6:53")
	b.ReportAllocs()
	for b.Loop() {
		if _, stale := p.Stale(f); stale {
			b.Fatal("stale")
		}
	}
}

package fwd

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
)

// generator makes valid fragments out of few Services and few keys, so that conflicts are common.
type generator struct{ *rand.Rand }

func newGenerator(seed uint64) generator { return generator{rand.New(rand.NewPCG(seed, 7))} }

// RandomTable is for tests of packages that this one cannot import.
func RandomTable(seed uint64) *Table {
	g, t := newGenerator(seed), new(Table)
	t.SetHeader(g.header())
	for range 12 {
		t.Put(g.fragment(g.owner()))
	}
	return t
}

func (g generator) owner() Service {
	names := []string{"a", "b", "c", "d", `odd "name", with=all:of/it`, "é\n", ""}
	return Service{Namespace: fmt.Sprintf("ns%d", g.IntN(2)), Name: names[g.IntN(len(names))]}
}

func (g generator) one(n int) bool { return g.IntN(n) == 0 }

func (g generator) addr(f Family, net byte) netip.Addr {
	a := [4]byte{10, net, 0, byte(1 + g.IntN(6))}
	if f == IPv4 {
		return netip.AddrFrom4(a)
	}
	return netip.AddrFrom16([16]byte{0: 0xfd, 12: a[0], a[1], a[2], a[3]})
}

// fragment makes a fragment that keeps all invariants; now and then an empty one.
func (g generator) fragment(owner Service) *Fragment {
	f := &Fragment{Owner: owner, CreatedUnix: int64(g.IntN(3))}
	if g.one(8) {
		return f
	}
	if g.one(3) {
		f.HealthCheck = HealthCheck{Port: uint16(1 + g.IntN(9)), LocalEndpoints: g.IntN(3)}
	}
	for i := range f.LocalPolicyEmpty {
		f.LocalPolicyEmpty[i] = [2]int{g.IntN(2), g.IntN(2)}
	}
	for _, name := range []string{"", "http", "odd port"} {
		for _, fam := range Families {
			if g.one(2) {
				g.port(f, ServicePort{Service: owner, Port: name, Proto: []Proto{TCP, UDP, SCTP}[g.IntN(3)]}, fam)
			}
		}
	}
	slices.SortStableFunc(f.Frontends, func(a, b Frontend) int { return a.Key.Compare(b.Key) })
	f.Frontends = slices.CompactFunc(f.Frontends, func(a, b Frontend) bool { return a.Key == b.Key })
	used := make(map[PoolKey]bool)
	for _, fe := range f.Frontends {
		for _, r := range fe.Routes {
			used[fe.Pool(r)] = used[fe.Pool(r)] || r.Action == Forward
		}
	}
	for k, ok := range used {
		if ok {
			f.Pools = append(f.Pools, g.pool(k))
		}
	}
	slices.SortFunc(f.Pools, func(a, b Pool) int { return a.Key.Compare(b.Key) })
	slices.SortFunc(f.Serving, func(a, b ServingPort) int { return PoolKey{a.Port, a.Family, 0}.Compare(PoolKey{b.Port, b.Family, 0}) })
	return f
}

// port adds the frontends and the serving endpoints of a service port.
func (g generator) port(f *Fragment, p ServicePort, fam Family) {
	for range g.IntN(4) {
		fe := Frontend{Owner: p, Kind: Kind(g.IntN(4)), Key: Key{Family: fam, Proto: p.Proto, Port: uint16(80 + g.IntN(2))}}
		if fe.Kind != NodePort {
			fe.Key.Addr = g.addr(fam, 96)
		}
		same := g.route()
		for c := range fe.Routes {
			if fe.Routes[c] = same; g.one(3) {
				fe.Routes[c] = g.route()
			}
		}
		if fe.Kind == LoadBalancer && g.one(2) {
			fe.Sources = []netip.Prefix{netip.PrefixFrom(g.addr(fam, 1), fam.Bits()), netip.PrefixFrom(g.addr(fam, 2), fam.Bits())}
		}
		f.Frontends = append(f.Frontends, fe)
	}
	if p.Proto == UDP {
		s := ServingPort{Port: p, Family: fam}
		for i := range g.IntN(3) {
			s.Endpoints = append(s.Endpoints, netip.AddrPortFrom(g.addr(fam, byte(i)), 53))
		}
		f.Serving = append(f.Serving, s)
		if len(f.Leaving) == 0 && g.one(3) {
			f.Leaving = []netip.AddrPort{netip.AddrPortFrom(g.addr(fam, 1), 53)}
		}
	}
}

func (g generator) route() Route {
	r := Route{Action: Action(g.IntN(3)), Reason: Reason(g.IntN(int(NumReasons)))}
	if r.Action == Forward {
		r.Scope, r.Masquerade = Scope(g.IntN(2)), g.one(2)
	}
	return r
}

func (g generator) pool(k PoolKey) Pool {
	p := Pool{Key: k, AffinitySec: uint32(g.IntN(2) * 10)}
	for i := range 1 + g.IntN(3) {
		p.Endpoints = append(p.Endpoints, Endpoint{
			Addr:   netip.AddrPortFrom(g.addr(k.Family, byte(i)), 80),
			Weight: uint32(1 + g.IntN(2)), Local: g.one(2), Terminating: g.one(3), Instance: uint32(g.IntN(2)),
		})
	}
	if g.one(3) {
		p.Scheduler, p.SchedulerFlags = "mh", SchedulerFlags(g.IntN(4))
	}
	return p
}

func (g generator) header() Header {
	h := Header{MasqueradeBit: uint8(g.IntN(32))}
	for i, fam := range Families {
		d := &h.Detector[i]
		switch g.IntN(4) {
		case 0:
			d.Prefix = netip.PrefixFrom(g.addr(fam, 0), fam.Bits()-8).Masked()
		case 1:
			d.Bridge = "cbr0"
		case 2:
			d.InterfacePrefix = "od d"
		}
		n := &h.NodePorts[i]
		n.Loopback = fam == IPv4 && g.one(2)
		if n.All = g.one(2); !n.All && g.one(2) {
			n.Prefixes = []netip.Prefix{netip.PrefixFrom(g.addr(fam, 0), fam.Bits())}
		}
		h.LocalAddrs = append(h.LocalAddrs, g.addr(fam, 200))
		if g.one(2) {
			h.ServiceCIDRs[i] = []netip.Prefix{netip.PrefixFrom(g.addr(fam, 0), fam.Bits()-4).Masked()}
		}
	}
	h.RejectOtherPorts, h.DropUnallocated = g.one(2), g.one(2)
	return h
}

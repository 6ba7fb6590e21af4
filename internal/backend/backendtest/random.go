package backendtest

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"

	"github.com/fairlead/fairlead/internal/fwd"
)

// The world in which random tables live: two families with the same plan.
type plan struct {
	// local are the node's addresses; the second lies among the pods.
	local []netip.Addr
	// pods are the cluster's pods, nodePods those of this node.
	pods, nodePods netip.Prefix
	// vips are where virtual IPs come from: many in few prefixes, so that Services share and
	// contest them.
	vips []netip.Prefix
	// clients are hosts outside of the cluster, nodes the network of the node.
	clients, nodes netip.Prefix
	loopback       netip.Addr
}

var plans = [2]plan{{
	local:    addrs("192.168.7.10", "10.244.1.1", "203.0.113.80"),
	pods:     netip.MustParsePrefix("10.244.0.0/16"),
	nodePods: netip.MustParsePrefix("10.244.1.0/24"),
	vips:     prefixes("10.96.0.0/25", "10.99.128.0/29", "203.0.113.72/29"),
	clients:  netip.MustParsePrefix("198.51.100.0/28"),
	nodes:    netip.MustParsePrefix("192.168.7.0/24"),
	loopback: netip.MustParseAddr("127.0.0.1"),
}, {
	local:    addrs("fd00:7::10", "fd00:244:1::1", "2001:db8:1::80"),
	pods:     netip.MustParsePrefix("fd00:244::/32"),
	nodePods: netip.MustParsePrefix("fd00:244:1::/112"),
	vips:     prefixes("fd00:96::/121", "fd00:99::/125", "2001:db8:1::78/125"),
	clients:  netip.MustParsePrefix("2001:db8:51::/124"),
	nodes:    netip.MustParsePrefix("fd00:7::/64"),
	loopback: netip.IPv6Loopback(),
}}

func addrs(s ...string) []netip.Addr {
	out := make([]netip.Addr, len(s))
	for i := range s {
		out[i] = netip.MustParseAddr(s[i])
	}
	return out
}

func prefixes(s ...string) []netip.Prefix {
	out := make([]netip.Prefix, len(s))
	for i := range s {
		out[i] = netip.MustParsePrefix(s[i])
	}
	return out
}

// nth is the n-th address of a prefix, for n below 65536 and the size of the prefix.
func nth(p netip.Prefix, n int) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := len(b) - 1; n > 0; i-- {
		n += int(b[i])
		b[i] = byte(n)
		n >>= 8
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// within is a random address of a prefix, of its first 2^16 - 2 at most and never the first.
func within(r *rand.Rand, p netip.Prefix) netip.Addr {
	bits := min(16, p.Addr().BitLen()-p.Bits())
	return nth(p, 1+r.IntN(1<<bits-2))
}

func pick[T any](r *rand.Rand, s ...T) T { return s[r.IntN(len(s))] }

// one says yes once in n times.
func one(r *rand.Rand, n int) bool { return r.IntN(n) == 0 }

// randomHeader differs in everything but LocalAddrs.
func randomHeader(r *rand.Rand) fwd.Header {
	h := fwd.Header{MasqueradeBit: uint8(r.IntN(32))}
	for i, p := range plans {
		h.LocalAddrs = append(h.LocalAddrs, p.local...)
		h.Detector[i] = pick(r, fwd.Detector{}, fwd.Detector{Prefix: p.pods}, fwd.Detector{Prefix: p.nodePods},
			fwd.Detector{Bridge: "cbr0"}, fwd.Detector{InterfacePrefix: "veth"})
		some := fwd.NodePortAddrs{Prefixes: []netip.Prefix{p.nodes, netip.PrefixFrom(p.local[2], p.local[2].BitLen())}}
		slices.SortFunc(some.Prefixes, netip.Prefix.Compare)
		h.NodePorts[i] = pick(r, fwd.NodePortAddrs{All: true}, fwd.NodePortAddrs{All: true}, some, fwd.NodePortAddrs{})
	}
	h.NodePorts[fwd.IPv4.Index()].Loopback = one(r, 2)
	for i, p := range plans {
		if one(r, 3) {
			h.MasqueradeSource[i] = p.local[0]
		}
	}
	slices.SortFunc(h.LocalAddrs, netip.Addr.Compare)
	return h
}

func serviceName(i int) fwd.Service {
	return fwd.Service{Namespace: fmt.Sprintf("ns-%d", i%3), Name: fmt.Sprintf("svc-%d", i)}
}

// builder makes one fragment.
type builder struct {
	r         *rand.Rand
	frag      *fwd.Fragment
	frontends map[fwd.Key]fwd.Frontend
	pools     map[fwd.PoolKey]fwd.Pool
	// last are the endpoints of the last port, by family and scope: ports of a Service often have
	// them in common.
	last [2][fwd.NumScopes][]fwd.Endpoint
}

// randomFragment is Service i with routes of every mixture, source ranges, and pools of one to 300
// endpoints.
func randomFragment(r *rand.Rand, i int) *fwd.Fragment {
	owner := serviceName(i)
	b := builder{r: r, frag: &fwd.Fragment{Owner: owner, CreatedUnix: int64(r.IntN(3))},
		frontends: make(map[fwd.Key]fwd.Frontend), pools: make(map[fwd.PoolKey]fwd.Pool)}
	ports := 1 + r.IntN(3)
	if one(r, 12) {
		ports = 40
	}
	families := pick(r, fwd.Families[:], fwd.Families[:], fwd.Families[:1], fwd.Families[1:])
	var clusterIPs [2]netip.Addr
	for i, p := range plans {
		clusterIPs[i] = within(r, p.vips[0])
	}
	affinity := uint32(0)
	if one(r, 6) {
		affinity = pick[uint32](r, 1, 10, 10800, 86400)
	}
	for n := range ports {
		sp := fwd.ServicePort{Service: owner, Port: fmt.Sprintf("p%d", n), Proto: pick(r, fwd.TCP, fwd.TCP, fwd.UDP, fwd.SCTP)}
		number := pick(r, 53, 80, 443, 8443)
		if ports > 3 {
			number = 1000 + n
		}
		for _, f := range families {
			b.port(sp, f, clusterIPs[f.Index()], uint16(number), affinity)
		}
	}
	if one(r, 10) {
		// Kubernetes gives a port to one Service only.
		b.frag.HealthCheck = fwd.HealthCheck{Port: uint16(32000 + i), LocalEndpoints: r.IntN(3)}
	}
	return b.finish()
}

// port adds a service port of one family: its frontends, and its pools as far as frontends use
// them.
func (b *builder) port(sp fwd.ServicePort, f fwd.Family, clusterIP netip.Addr, number uint16, affinity uint32) {
	r, p := b.r, plans[f.Index()]
	var have []fwd.Scope
	for s := range fwd.NumScopes {
		last := &b.last[f.Index()][s]
		if !one(r, 3) {
			*last = randomEndpoints(r, f, poolSize(r))
		}
		if len(*last) > 0 {
			have = append(have, s)
			key := fwd.PoolKey{Port: sp, Family: f, Scope: s}
			b.pools[key] = fwd.Pool{Key: key, Endpoints: *last, AffinitySec: affinity}
		}
	}
	add := func(kind fwd.Kind, a netip.Addr, port uint16) {
		k := fwd.Key{Family: f, Addr: a, Proto: sp.Proto, Port: port}
		if _, taken := b.frontends[k]; taken {
			return
		}
		fe := fwd.Frontend{Key: k, Kind: kind, Owner: sp, Routes: randomRoutes(r, have)}
		if one(r, 6) || kind == fwd.LoadBalancer && one(r, 2) {
			fe.Sources = randomSources(r, f)
		}
		b.frontends[k] = fe
	}
	add(fwd.ClusterIP, clusterIP, number)
	if one(r, 4) {
		add(fwd.ExternalIP, pick(r, within(r, p.vips[1]), p.local[0]), number)
	}
	if one(r, 4) {
		add(fwd.LoadBalancer, within(r, p.vips[2]), number)
	}
	if one(r, 3) {
		add(fwd.NodePort, netip.Addr{}, uint16(30000+r.IntN(40)))
	}
}

func poolSize(r *rand.Rand) int {
	switch n := r.IntN(100); {
	case n < 15:
		return 0
	case n < 45:
		return 1
	case n < 65:
		return 2
	case n < 90:
		return 3 + r.IntN(8)
	case n < 94:
		return 32
	case n < 98:
		return 33
	default:
		return 300
	}
}

func randomEndpoints(r *rand.Rand, f fwd.Family, n int) []fwd.Endpoint {
	p := plans[f.Index()]
	byAddr := make(map[netip.AddrPort]fwd.Endpoint)
	weights := pick(r, 1, 1, 1, 10, 65535)
	for len(byAddr) < n {
		var e fwd.Endpoint
		a := within(r, p.pods)
		switch r.IntN(10) {
		case 0, 1, 2:
			a = within(r, p.nodePods)
		case 3:
			a = pick(r, p.local[0], within(r, p.nodes), within(r, p.clients))
		}
		e.Addr = netip.AddrPortFrom(a, pick[uint16](r, 8080, 8081, 9376))
		e.Local = p.nodePods.Contains(a) || slices.Contains(p.local, a)
		e.Weight = uint32(1 + r.IntN(weights))
		e.Terminating = one(r, 10)
		byAddr[e.Addr] = e
	}
	return slices.SortedFunc(maps.Values(byAddr), func(a, b fwd.Endpoint) int { return a.Addr.Compare(b.Addr) })
}

// randomRoutes are those that compile makes, or any others, as far as the scopes that have
// endpoints allow.
func randomRoutes(r *rand.Rand, have []fwd.Scope) [fwd.NumClasses]fwd.Route {
	reject := fwd.Route{Action: fwd.Reject, Reason: fwd.ReasonNoEndpoints}
	drop := fwd.Route{Action: fwd.Drop, Reason: fwd.ReasonInternalLocalEmpty}
	forward := func(masq bool) fwd.Route {
		return fwd.Route{Action: fwd.Forward, Scope: pick(r, have...), Masquerade: masq, Reason: fwd.ReasonCluster}
	}
	all := func(a fwd.Route) [fwd.NumClasses]fwd.Route { return [fwd.NumClasses]fwd.Route{a, a, a} }
	if len(have) == 0 {
		mixed := [fwd.NumClasses]fwd.Route{pick(r, drop, reject), pick(r, drop, reject), pick(r, drop, reject)}
		return pick(r, all(reject), all(reject), all(drop), mixed)
	}
	to, masq := forward(false), forward(true)
	same := masq
	same.Masquerade = false
	var mixed [fwd.NumClasses]fwd.Route
	for i := range mixed {
		mixed[i] = pick(r, drop, reject, forward(false), forward(true))
	}
	nonPod := [fwd.NumClasses]fwd.Route{fwd.Outside: masq, fwd.Pod: same, fwd.Host: masq}
	external := [fwd.NumClasses]fwd.Route{fwd.Outside: to, fwd.Pod: same, fwd.Host: masq}
	externalEmpty := [fwd.NumClasses]fwd.Route{fwd.Outside: drop, fwd.Pod: same, fwd.Host: masq}
	return pick(r, nonPod, nonPod, all(masq), all(to), external, externalEmpty, all(drop), mixed, mixed)
}

// randomSources are disjoint, sorted prefixes from which some of the packets come. None contains
// everything: that is written as no prefix at all.
func randomSources(r *rand.Rand, f fwd.Family) []netip.Prefix {
	p := plans[f.Index()]
	half := netip.PrefixFrom(p.clients.Addr(), p.clients.Bits()+1)
	candidates := []netip.Prefix{half, p.nodes, p.pods, netip.PrefixFrom(p.loopback, p.loopback.BitLen())}
	var out []netip.Prefix
	for _, c := range candidates {
		if one(r, 2) {
			out = append(out, c)
		}
	}
	if len(out) == 0 {
		out = candidates[:1]
	}
	out = slices.Clone(out)
	slices.SortFunc(out, netip.Prefix.Compare)
	return out
}

// finish sorts what was collected and leaves out pools that no route uses.
func (b *builder) finish() *fwd.Fragment {
	used := make(map[fwd.PoolKey]bool)
	for _, k := range slices.SortedFunc(maps.Keys(b.frontends), fwd.Key.Compare) {
		fe := b.frontends[k]
		b.frag.Frontends = append(b.frag.Frontends, fe)
		for _, route := range fe.Routes {
			if route.Action == fwd.Forward {
				used[fe.Pool(route)] = true
			}
		}
	}
	for _, k := range slices.SortedFunc(maps.Keys(used), fwd.PoolKey.Compare) {
		b.frag.Pools = append(b.frag.Pools, b.pools[k])
		if k.Port.Proto == fwd.UDP && k.Scope == fwd.Cluster {
			s := fwd.ServingPort{Port: k.Port, Family: k.Family}
			for _, e := range b.pools[k].Endpoints {
				s.Endpoints = append(s.Endpoints, e.Addr)
			}
			b.frag.Serving = append(b.frag.Serving, s)
		}
	}
	return b.frag
}

// randomPackets go to the table's frontends, to their neighbours, and to ports of the node.
func randomPackets(r *rand.Rand, t *fwd.Table, n int) []fwd.Packet {
	var fes []fwd.Frontend
	for f := range t.Services() {
		fes = append(fes, f.Frontends...)
	}
	out := make([]fwd.Packet, 0, n)
	for range n {
		fam := pick(r, fwd.Families[:]...)
		k := fwd.Key{Family: fam, Addr: within(r, plans[fam.Index()].vips[0]), Proto: fwd.TCP, Port: 80}
		if len(fes) > 0 && !one(r, 20) {
			k = pick(r, fes...).Key
		}
		out = append(out, packetTo(r, t, k))
	}
	return out
}

func packetTo(r *rand.Rand, t *fwd.Table, k fwd.Key) fwd.Packet {
	pl := plans[k.Family.Index()]
	p := fwd.Packet{Proto: k.Proto}
	p.Src, p.InInterface = randomSource(r, t, k)
	a, port := k.Addr, k.Port
	if k.IsNodePort() {
		a = pick(r, pl.local...)
		if one(r, 4) {
			a = pl.loopback
		}
	}
	switch r.IntN(20) {
	case 0:
		port++
	case 1:
		p.Proto = pick(r, fwd.TCP, fwd.UDP, fwd.SCTP)
	case 2:
		a = a.Next()
	case 3:
		a = pick(r, pl.local...)
	case 4:
		port = uint16(30000 + r.IntN(40))
	}
	p.Dst = netip.AddrPortFrom(a, port)
	return p
}

// randomSource is a client and the interface by which it comes; none for the node itself.
func randomSource(r *rand.Rand, t *fwd.Table, k fwd.Key) (netip.Addr, string) {
	pl := plans[k.Family.Index()]
	var src netip.Addr
	switch r.IntN(6) {
	case 0:
		src = within(r, pl.nodePods)
	case 1:
		src = within(r, pl.pods)
	case 2:
		src = pick(r, pl.local...)
	case 3:
		src = pl.loopback
	case 4:
		src = within(r, pl.clients)
	default:
		// One of the frontend's own endpoints: hairpin.
		src = within(r, pl.nodes)
		if f := t.Frontend(k); f != nil {
			if pool := t.Pool(f.Pool(pick(r, f.Routes[:]...))); pool != nil {
				src = pick(r, pool.Endpoints...).Addr.Addr()
			}
		}
	}
	switch {
	case src.IsLoopback() || slices.Contains(pl.local, src):
		return src, ""
	case pl.nodePods.Contains(src):
		return src, pick(r, "cbr0", "veth1a2b", "veth", "cbr01")
	}
	return src, pick(r, "eth0", "eth0", "eth0", "cbr0")
}

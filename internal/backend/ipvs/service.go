package ipvs

import (
	"hash/fnv"
	"net/netip"
	"slices"

	"github.com/fairlead/fairlead/internal/fwd"
)

// spot is the address, port and protocol of a possible virtual server.
type spot struct {
	proto fwd.Proto
	addr  netip.AddrPort
}

func (s spot) server() Key { return Key{Kind: KindServer, Proto: s.proto, Addr: s.addr} }

// entry returns the entry of a set for the spot.
func (s spot) entry(set string) Key {
	return Key{Kind: KindEntry, Name: set, Proto: s.proto, Addr: s.addr}
}

func (s spot) compare(o spot) int {
	if c := s.addr.Compare(o.addr); c != 0 {
		return c
	}
	return int(s.proto) - int(o.proto)
}

// members are the sets of bySpot that contain a spot.
type members uint16

// The bits of members. Those by class are the first of NumClasses bits.
const (
	inFrontends = iota
	inDivert
	inEmpty
	inRanged
	inMasq
	inDrop     = inMasq + int(fwd.NumClasses)
	inRedirect = inDrop + int(fwd.NumClasses)
	numMembers = inRedirect + int(fwd.NumClasses)
)

func (m members) has(bit int) bool { return m&(1<<bit) != 0 }
func (m *members) add(bit int)     { *m |= 1 << bit }

// program is the wanted state of a spot. The zero program means no virtual server.
type program struct {
	owner   fwd.Service
	server  *Server
	members members
	// sources are the allowed sources of a spot in RANGED. self adds the spot's own address, which
	// the kernel may use as source of this node's packets.
	sources []netip.Prefix
	self    bool
	// redirect is the destination for the classes for which the spot is in REDIRECT.
	redirect netip.AddrPort
}

// elements yields the elements of SOURCES for a spot.
func (p *program) elements(s spot, set string) []Key {
	var out []Key
	add := func(pre netip.Prefix) {
		k := s.entry(set)
		k.Prefix = pre
		if !slices.Contains(out, k) {
			out = append(out, k)
		}
	}
	for _, pre := range p.sources {
		if pre.Bits() > 0 {
			add(pre)
			continue
		}
		// The kernel takes no prefix of length 0.
		low := netip.PrefixFrom(pre.Addr(), 1)
		high := pre.Addr().AsSlice()
		high[0] = 0x80
		a, _ := netip.AddrFromSlice(high)
		add(low)
		add(netip.PrefixFrom(a, 1))
	}
	if p.self {
		add(hostPrefix(s.addr.Addr()))
	}
	return out
}

// primary returns the pool of a frontend's virtual server: that of the first class that is
// forwarded, in the order of expected traffic.
func primary(f *fwd.Frontend) (fwd.PoolKey, bool) {
	for _, c := range [...]fwd.Class{fwd.Outside, fwd.Pod, fwd.Host} {
		if r := f.Routes[c]; r.Action == fwd.Forward {
			return f.Pool(r), true
		}
	}
	return fwd.PoolKey{}, false
}

// secondary returns the other pool of a frontend, if a class uses one.
func secondary(f *fwd.Frontend) (fwd.PoolKey, bool) {
	first, _ := primary(f)
	for _, r := range f.Routes {
		if k := f.Pool(r); r.Action == fwd.Forward && k != first {
			return k, true
		}
	}
	return fwd.PoolKey{}, false
}

// holder returns the frontend of the cluster IP of the same service port if its virtual server has
// the pool.
func (r *renderer) holder(frag *fwd.Fragment, pool fwd.PoolKey) (netip.AddrPort, bool) {
	for i := range frag.Frontends {
		f := &frag.Frontends[i]
		if f.Kind != fwd.ClusterIP || f.Owner != pool.Port || f.Key.Family != pool.Family || f.Key.IsNodePort() || r.opt.excludes(f.Key.Addr) {
			continue
		}
		if k, ok := primary(f); ok && k == pool {
			return netip.AddrPortFrom(f.Key.Addr, f.Key.Port), true
		}
	}
	return netip.AddrPort{}, false
}

// site is the address of alternates: virtual servers that clients do not use directly, whose pool
// is reached by redirection only.
type site struct {
	addr  netip.Addr
	proto fwd.Proto
}

// alternates returns the pools of a fragment that need an alternate, with its site: the first
// address of the service port, preferably a cluster IP, but neither an address of the node, whose
// other ports are not ours, nor an excluded one. Without such an address there is no alternate.
func (r *renderer) alternates(frag *fwd.Fragment) map[fwd.PoolKey]site {
	var out map[fwd.PoolKey]site
	for i := range frag.Frontends {
		f := &frag.Frontends[i]
		if f.Key.Family != r.family {
			continue
		}
		pool, needed := secondary(f)
		if !needed || out[pool] != (site{}) {
			continue
		}
		if _, there := r.holder(frag, pool); there {
			continue
		}
		if a, ok := r.home(frag, f.Owner); ok {
			if out == nil {
				out = make(map[fwd.PoolKey]site)
			}
			out[pool] = site{a, f.Key.Proto}
		}
	}
	return out
}

// home returns the address for the alternates of a service port.
func (r *renderer) home(frag *fwd.Fragment, port fwd.ServicePort) (netip.Addr, bool) {
	var best *fwd.Frontend
	for i := range frag.Frontends {
		f := &frag.Frontends[i]
		if f.Owner == port && f.Key.Family == r.family && !f.Key.IsNodePort() && !r.header.IsLocal(f.Key.Addr) &&
			!r.opt.excludes(f.Key.Addr) && (best == nil || f.Kind < best.Kind) {
			best = f
		}
	}
	if best == nil {
		return netip.Addr{}, false
	}
	return best.Key.Addr, true
}

// lowestAlternate is the lowest port of alternates.
const lowestAlternate = 1024

// settle assigns each alternate of a site a port that no frontend of the address uses: the first
// free one, starting at a hash of its pool. The result depends on the current frontends alone, not
// on their order of arrival.
func (r *renderer) settle(at site) map[fwd.PoolKey]netip.AddrPort {
	pools := r.sites[at]
	slices.SortFunc(pools, fwd.PoolKey.Compare)
	out := make(map[fwd.PoolKey]netip.AddrPort, len(pools))
	taken := make(map[uint16]bool, len(pools))
	for _, pool := range pools {
		h := fnv.New32a()
		h.Write([]byte(pool.Port.Namespace + "\x00" + pool.Port.Name + "\x00" + pool.Port.Port + "\x00" + pool.Scope.String()))
		const n = 1<<16 - lowestAlternate
		for i := range uint32(n) {
			port := uint16(lowestAlternate + (h.Sum32()%n+i)%n)
			_, used := r.frontends[fwd.Key{Family: r.family, Addr: at.addr, Proto: at.proto, Port: port}]
			if !used && !taken[port] {
				taken[port] = true
				out[pool] = netip.AddrPortFrom(at.addr, port)
				break
			}
		}
	}
	return out
}

// programAt renders a spot: its frontend, otherwise the node port, otherwise an alternate.
func (r *renderer) programAt(s spot) program {
	k := fwd.Key{Family: r.family, Addr: s.addr.Addr(), Proto: s.proto, Port: s.addr.Port()}
	if r.opt.excludes(k.Addr) {
		return program{}
	}
	c, ok := r.frontends[k]
	if !ok && slices.Contains(r.nodeAddrs, k.Addr) {
		k.Addr = netip.Addr{}
		c, ok = r.frontends[k]
	}
	if ok {
		return r.programOf(c.frontend, c.fragment, s)
	}
	if pool, ok := r.alternateAt[s]; ok {
		return program{owner: pool.Port.Service, server: serverOf(&r.opt, r.fragments[pool.Port.Service].Pool(pool))}
	}
	return program{}
}

func (r *renderer) programOf(f *fwd.Frontend, frag *fwd.Fragment, s spot) program {
	p := program{owner: frag.Owner}
	first, forwards := primary(f)
	if forwards {
		p.server = serverOf(&r.opt, frag.Pool(first))
	} else {
		p.server = serverOf(&r.opt, nil)
		p.members.add(inEmpty)
	}
	if second, ok := secondary(f); ok {
		if p.redirect, ok = r.holder(frag, second); !ok {
			p.redirect = r.alternateOf[second]
		}
	}
	p.members.add(inFrontends)
	if r.opt.VIPs == VIPMark {
		p.members.add(inDivert)
	}
	if len(f.Sources) > 0 {
		p.members.add(inRanged)
		p.sources, p.self = f.Sources, r.dialsAsVIP(f, s.addr.Addr())
	}
	for c, route := range f.Routes {
		switch {
		case route.Action == fwd.Drop, route.Action == fwd.Reject && forwards:
			// IPVS can reject only all classes.
			p.members.add(inDrop + c)
		case route.Action == fwd.Forward:
			if route.Masquerade {
				p.members.add(inMasq + c)
			}
			if f.Pool(route) != first && p.redirect.IsValid() {
				p.members.add(inRedirect + c)
			}
		}
	}
	return p
}

// dialsAsVIP reports whether to allow the address of the Service as source, because this node is
// allowed to connect to the frontend and its packets may have that source.
func (r *renderer) dialsAsVIP(f *fwd.Frontend, vip netip.Addr) bool {
	if r.opt.VIPs == VIPMark || r.header.IsLocal(vip) {
		return false
	}
	return slices.ContainsFunc(r.header.LocalAddrs, func(a netip.Addr) bool { return fwd.FamilyOf(a) == r.family && f.Admits(a) })
}

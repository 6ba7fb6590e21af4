package ipvs

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/fairlead/fairlead/internal/backend"
	"github.com/fairlead/fairlead/internal/fwd"
)

// renderer implements backend.Renderer for one family. Render first updates the input (the first
// group of fields) and records the spots that depend on the changes; then it renders these spots
// again. So the result depends on the input alone.
type renderer struct {
	family fwd.Family
	opt    RenderOptions
	begun  bool

	header    fwd.Header
	fragments map[fwd.Service]*fwd.Fragment
	frontends map[fwd.Key]claim
	vips      map[netip.Addr]bool
	// placed are the alternates that each Service needs; sites are the same by address and
	// protocol.
	placed map[fwd.Service]map[fwd.PoolKey]site
	sites  map[site][]fwd.PoolKey
	// health counts the Services that need a health-check port, hairpin the endpoints of pools by
	// entry.
	health  map[uint16]int
	hairpin map[Key]int

	// nodeAddrs are the addresses with virtual servers for node ports.
	nodeAddrs []netip.Addr
	// settled, alternateOf and alternateAt are the alternates by site, by pool and by spot.
	settled     map[site]map[fwd.PoolKey]netip.AddrPort
	alternateOf map[fwd.PoolKey]netip.AddrPort
	alternateAt map[spot]fwd.PoolKey
	// programs are the rendered programs by spot; redirects are the spots of FAIRLEAD-REDIRECT.
	programs  map[spot]program
	redirects map[spot]netip.AddrPort

	out edits
}

// claim is a frontend with its fragment.
type claim struct {
	frontend *fwd.Frontend
	fragment *fwd.Fragment
}

func newRenderer(f fwd.Family, o RenderOptions) *renderer {
	return &renderer{
		family: f, opt: o,
		fragments:   make(map[fwd.Service]*fwd.Fragment),
		frontends:   make(map[fwd.Key]claim),
		vips:        make(map[netip.Addr]bool),
		placed:      make(map[fwd.Service]map[fwd.PoolKey]site),
		sites:       make(map[site][]fwd.PoolKey),
		health:      make(map[uint16]int),
		hairpin:     make(map[Key]int),
		settled:     make(map[site]map[fwd.PoolKey]netip.AddrPort),
		alternateOf: make(map[fwd.PoolKey]netip.AddrPort),
		alternateAt: make(map[spot]fwd.PoolKey),
		programs:    make(map[spot]program),
		redirects:   make(map[spot]netip.AddrPort),
	}
}

type edits []backend.Edit[Key, Value]

func (e *edits) set(k Key, v Value) { *e = append(*e, backend.Edit[Key, Value]{Key: k, Value: v}) }
func (e *edits) gone(k Key)         { *e = append(*e, backend.Edit[Key, Value]{Key: k, Delete: true}) }
func (e *edits) put(k Key, v Value, wanted bool) {
	if wanted {
		e.set(k, v)
	} else {
		e.gone(k)
	}
}

// concerned is what a Render has to update.
type concerned struct {
	spots map[spot]bool
	sites map[site]bool
	// services are the Services whose alternates may change.
	services map[fwd.Service]bool
}

// Render implements backend.Renderer.
func (r *renderer) Render(ch fwd.Changes) []backend.Edit[Key, Value] {
	r.out = nil
	c := concerned{make(map[spot]bool), make(map[site]bool), make(map[fwd.Service]bool)}
	if !r.begun {
		r.begun = true
		for name, typ := range setsOf(r.family, &r.opt) {
			r.out.set(Key{Kind: KindSet, Name: name}, Value{SetType: typ})
		}
		r.setRedirects()
		r.setHeader(r.header, &c)
	}
	if ch.Header != nil {
		r.setHeader(*ch.Header, &c)
	}
	for _, sc := range ch.Services {
		r.replace(sc, &c)
	}
	for _, v := range ch.VIPs {
		if fwd.FamilyOf(v.VIP.Addr) != r.family {
			continue
		}
		if v.Gone {
			delete(r.vips, v.VIP.Addr)
		} else {
			r.vips[v.VIP.Addr] = true
		}
		r.setVIP(v.VIP.Addr)
	}
	r.place(&c)
	changed := false
	for s := range c.spots {
		if r.renderSpot(s) {
			changed = true
		}
	}
	if changed {
		r.setRedirects()
	}
	return r.out
}

// setHeader processes a header and records the spots that depend on its changes.
func (r *renderer) setHeader(h fwd.Header, c *concerned) {
	old := r.header
	r.header = h
	for k, rules := range staticsOf(r.family, &r.opt, &h) {
		r.out.set(k, Value{Rules: rules})
	}
	if r.opt.VIPs == VIPMark {
		r.out.set(Key{Kind: KindDivert}, Value{Mark: divertMark(&h)})
	}
	i := r.family.Index()
	moved := !slices.Equal(old.LocalAddrs, h.LocalAddrs)
	if moved || !old.NodePorts[i].Equal(h.NodePorts[i]) {
		r.setNodeAddrs(c)
	}
	if moved {
		r.setLocalAddrs(&old, c)
	}
	if moved || !slices.Equal(old.ServiceCIDRs[i], h.ServiceCIDRs[i]) {
		r.setVIPs(&old)
	}
}

// setNodeAddrs updates the addresses of node ports.
func (r *renderer) setNodeAddrs(c *concerned) {
	old := r.nodeAddrs
	r.nodeAddrs = nil
	for _, a := range r.header.LocalAddrs {
		if fwd.FamilyOf(a) == r.family && !a.IsLoopback() && !a.IsLinkLocalUnicast() && !r.opt.excludes(a) && r.header.NodePorts[r.family.Index()].Serves(a, false) {
			r.nodeAddrs = append(r.nodeAddrs, a)
		}
	}
	for k := range r.frontends {
		if k.IsNodePort() {
			c.spotsOf(k, old)
			c.spotsOf(k, r.nodeAddrs)
		}
	}
}

// setLocalAddrs updates what depends on the addresses of the node.
func (r *renderer) setLocalAddrs(old *fwd.Header, c *concerned) {
	for k, cl := range r.frontends {
		if len(cl.frontend.Sources) > 0 {
			c.spotsOf(k, r.nodeAddrs)
		}
	}
	for s := range r.fragments {
		c.services[s] = true
	}
	for port := range r.health {
		for _, a := range slices.Concat(old.LocalAddrs, r.header.LocalAddrs) {
			r.setHealth(a, port)
		}
	}
}

// setVIPs updates the KindVIPs of all addresses and service CIDRs.
func (r *renderer) setVIPs(old *fwd.Header) {
	if r.opt.VIPs == VIPRoute {
		for _, p := range r.opt.serviceCIDRs(old, r.family) {
			r.out.gone(Key{Kind: KindVIP, Prefix: p})
		}
	}
	for a := range r.vips {
		r.setVIP(a)
	}
	if r.opt.VIPs == VIPRoute {
		for _, p := range r.opt.serviceCIDRs(&r.header, r.family) {
			r.out.set(Key{Kind: KindVIP, Prefix: p}, Value{Source: r.source()})
		}
	}
}

// source returns the source address of the node's own packets to Services, if the mode can set it.
func (r *renderer) source() netip.Addr {
	if ip := r.opt.NodeIP; r.opt.VIPs == VIPRoute && fwd.FamilyOf(ip) == r.family && r.header.IsLocal(ip) {
		return ip
	}
	return netip.Addr{}
}

// setVIP renders what delivers packets for an address of Services to this node. Addresses of the
// node need nothing.
func (r *renderer) setVIP(a netip.Addr) {
	foreign := r.vips[a] && !r.header.IsLocal(a) && !r.opt.excludes(a)
	r.out.put(Key{Kind: KindEntry, Name: setName(r.family, setVIPs), Addr: netip.AddrPortFrom(a, 0)}, Value{}, foreign)
	if r.opt.VIPs == VIPMark {
		return
	}
	covered := false
	if r.opt.VIPs == VIPRoute {
		for _, p := range r.opt.serviceCIDRs(&r.header, r.family) {
			if p == hostPrefix(a) {
				return // the CIDR has the same key
			}
			covered = covered || p.Contains(a)
		}
	}
	r.out.put(Key{Kind: KindVIP, Prefix: hostPrefix(a)}, Value{Source: r.source()}, foreign && !covered)
}

// setHealth renders a health-check port on a current or former address of the node.
func (r *renderer) setHealth(a netip.Addr, port uint16) {
	if fwd.FamilyOf(a) != r.family || a.IsLoopback() {
		return
	}
	s := spot{fwd.TCP, netip.AddrPortFrom(a, port)}
	r.out.put(s.entry(setName(r.family, setHealth)), Value{}, r.health[port] > 0 && r.header.IsLocal(a))
}

// spotsOf records the spots of a frontend.
func (c *concerned) spotsOf(k fwd.Key, nodeAddrs []netip.Addr) {
	if !k.IsNodePort() {
		c.spots[spot{k.Proto, netip.AddrPortFrom(k.Addr, k.Port)}] = true
		return
	}
	for _, a := range nodeAddrs {
		c.spots[spot{k.Proto, netip.AddrPortFrom(a, k.Port)}] = true
	}
}

// replace replaces the fragment of a Service; nil removes it.
func (r *renderer) replace(sc fwd.ServiceChange, c *concerned) {
	owner, now := sc.Owner, sc.New
	was := r.fragments[owner]
	unchanged := sc.Unchanged()
	c.services[owner] = true
	if now != nil {
		r.fragments[owner] = now
		for i := range now.Frontends {
			f := &now.Frontends[i]
			if f.Key.Family == r.family {
				r.frontends[f.Key] = claim{f, now}
				if !unchanged(f.Owner) {
					r.frontendChanged(f.Key, c)
				}
			}
		}
		r.count(now, 1)
	} else {
		delete(r.fragments, owner)
	}
	if was == nil {
		return
	}
	for i := range was.Frontends {
		k := was.Frontends[i].Key
		// The key may be another Service's by now, or still this one's.
		if k.Family == r.family && r.frontends[k].fragment == was {
			delete(r.frontends, k)
			r.frontendChanged(k, c)
		}
	}
	r.count(was, -1)
}

func (r *renderer) frontendChanged(k fwd.Key, c *concerned) {
	c.spotsOf(k, r.nodeAddrs)
	if at := (site{k.Addr, k.Proto}); len(r.sites[at]) > 0 {
		c.sites[at] = true
	}
}

// count adds (by 1) or removes (by -1) the needs of a fragment: its health-check port and its
// hairpin entries.
func (r *renderer) count(f *fwd.Fragment, by int) {
	if port := f.HealthCheck.Port; port != 0 {
		if r.health[port] += by; r.health[port] == 0 {
			delete(r.health, port)
		}
		for _, a := range r.header.LocalAddrs {
			r.setHealth(a, port)
		}
	}
	if r.opt.HairpinBPF {
		return
	}
	for i := range f.Pools {
		p := &f.Pools[i]
		if p.Key.Family != r.family {
			continue
		}
		for _, e := range p.Endpoints {
			if !e.Local {
				continue
			}
			k := spot{p.Key.Port.Proto, e.Addr}.entry(setName(r.family, setHairpin))
			k.Prefix = hostPrefix(e.Addr.Addr())
			if r.hairpin[k] += by; r.hairpin[k] == 0 {
				delete(r.hairpin, k)
			}
			r.out.put(k, Value{Owner: f.Owner}, r.hairpin[k] > 0)
		}
	}
}

// place updates the alternates of the Services that changed. It assigns ports to these, and to
// those whose port another frontend uses now.
func (r *renderer) place(c *concerned) {
	for owner := range c.services {
		var needed map[fwd.PoolKey]site
		if f := r.fragments[owner]; f != nil {
			needed = r.alternates(f)
		}
		was := r.placed[owner]
		for pool, at := range was {
			if needed[pool] != at {
				r.sites[at] = slices.DeleteFunc(r.sites[at], func(k fwd.PoolKey) bool { return k == pool })
				c.sites[at] = true
			}
		}
		for pool, at := range needed {
			if was[pool] != at {
				r.sites[at] = append(r.sites[at], pool)
			}
			c.sites[at] = true // its endpoints may have changed
		}
		r.placed[owner] = needed
		if len(needed) == 0 {
			delete(r.placed, owner)
		}
	}
	for at := range c.sites {
		for pool, addr := range r.settled[at] {
			delete(r.alternateOf, pool)
			delete(r.alternateAt, spot{at.proto, addr})
			c.moved(r, at, pool, addr)
		}
	}
	for at := range c.sites {
		if len(r.sites[at]) == 0 {
			delete(r.sites, at)
			delete(r.settled, at)
			continue
		}
		r.settled[at] = r.settle(at)
		for pool, addr := range r.settled[at] {
			r.alternateOf[pool] = addr
			r.alternateAt[spot{at.proto, addr}] = pool
			c.moved(r, at, pool, addr)
		}
	}
}

// moved records the spot of an alternate and the spots that redirect to it.
func (c *concerned) moved(r *renderer, at site, pool fwd.PoolKey, addr netip.AddrPort) {
	c.spots[spot{at.proto, addr}] = true
	if f := r.fragments[pool.Port.Service]; f != nil {
		for i := range f.Frontends {
			if fe := &f.Frontends[i]; fe.Owner == pool.Port && fe.Key.Family == r.family {
				c.spotsOf(fe.Key, r.nodeAddrs)
			}
		}
	}
}

// renderSpot renders a spot and reports whether its redirection changed.
func (r *renderer) renderSpot(s spot) bool {
	was, is := r.programs[s], r.programAt(s)
	if is.server != nil {
		r.programs[s] = is
		r.out.set(s.server(), Value{Server: is.server, Owner: is.owner})
	} else {
		delete(r.programs, s)
		r.out.gone(s.server())
	}
	for bit, what := range bySpot {
		if was.members.has(bit) || is.members.has(bit) {
			r.out.put(s.entry(setName(r.family, what)), Value{Owner: is.owner}, is.members.has(bit))
		}
	}
	sources := setName(r.family, setSources)
	for _, k := range was.elements(s, sources) {
		r.out.gone(k)
	}
	for _, k := range is.elements(s, sources) {
		r.out.set(k, Value{Owner: is.owner})
	}
	if is.redirect.IsValid() {
		r.redirects[s] = is.redirect
	} else {
		delete(r.redirects, s)
	}
	return was.redirect != is.redirect
}

// setRedirects renders FAIRLEAD-REDIRECT, which only packets to these spots enter.
func (r *renderer) setRedirects() {
	var rules []string
	for _, s := range slices.SortedFunc(maps.Keys(r.redirects), spot.compare) {
		rules = append(rules, fmt.Sprintf(redirectRule,
			hostPrefix(s.addr.Addr()), s.proto, s.proto, s.addr.Port(), r.redirects[s]))
	}
	rules = append(rules, "-j ACCEPT")
	r.out.set(Key{Kind: KindChain, Table: tableNAT, Name: chainRedirect}, Value{Rules: strings.Join(rules, "\n")})
}

// objectsOf renders a table for one family.
func objectsOf(f fwd.Family, o RenderOptions, t *fwd.Table) map[Key]Value {
	h := t.Header()
	ch := fwd.Changes{Header: &h}
	for frag := range t.Services() {
		ch.Services = append(ch.Services, fwd.ServiceChange{Owner: frag.Owner, New: frag})
	}
	for _, v := range t.VIPs() {
		ch.VIPs = append(ch.VIPs, fwd.VIPChange{VIP: v})
	}
	out := make(map[Key]Value)
	for _, e := range newRenderer(f, o).Render(ch) {
		if e.Delete {
			delete(out, e.Key)
		} else {
			out[e.Key] = e.Value
		}
	}
	return out
}

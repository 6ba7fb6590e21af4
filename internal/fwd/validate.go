package fwd

import (
	"errors"
	"fmt"
	"net/netip"
)

// Validate checks what always holds for a header. The error names each field that breaks a rule.
func (h *Header) Validate() error {
	var c checker
	c.require(h.MasqueradeBit <= 31, "masquerade bit %d: want 0 to 31", h.MasqueradeBit)
	for i, fam := range Families {
		np := h.NodePorts[i]
		c.require(!np.All || len(np.Prefixes) == 0, "node ports of %s: both all addresses and prefixes", fam)
		c.require(!np.Loopback || fam == IPv4, "node ports of %s: loopback is for IPv4 only", fam)
		for _, p := range np.Prefixes {
			c.prefix("node ports", p, fam)
		}
		ascending(&c, "node ports", np.Prefixes, netip.Prefix.Compare)
		c.disjoint("service CIDRs", h.ServiceCIDRs[i], fam)
		if p := h.Detector[i].Prefix; p != (netip.Prefix{}) {
			c.prefix("pod CIDR", p, fam)
		}
		if a := h.MasqueradeSource[i]; a != (netip.Addr{}) {
			c.addr("masquerade source", a, fam)
		}
	}
	for _, a := range h.LocalAddrs {
		c.addr("local addresses", a, FamilyOf(a))
	}
	ascending(&c, "local addresses", h.LocalAddrs, netip.Addr.Compare)
	return errors.Join(c...)
}

// Validate checks what always holds for a fragment: values are in range and of the family of their
// object, lists are sorted without duplicates, every route that forwards has its pool, and every
// pool has such a route. The error names each object that breaks a rule.
func (f *Fragment) Validate() error {
	var c checker
	c.require(!f.Empty(), "there is nothing in it")
	used := make(map[PoolKey]bool)
	var keys []Key
	for i := range f.Frontends {
		fe := &f.Frontends[i]
		keys = append(keys, fe.Key)
		c.frontend(fe)
		c.require(fe.Owner.Service == f.Owner && fe.Owner.Proto == fe.Key.Proto, "frontend %s: owner %s/%s", fe.Key, fe.Owner, fe.Owner.Proto)
		for _, r := range fe.Routes {
			if k := fe.Pool(r); r.Action == Forward && !used[k] {
				used[k] = true
				c.require(f.Pool(k) != nil, "frontend %s: there is no %s", fe.Key, k)
			}
		}
	}
	var pools, serving []PoolKey
	for i := range f.Pools {
		p := &f.Pools[i]
		pools = append(pools, p.Key)
		c.pool(p)
		c.require(used[p.Key], "%s: no route uses it", p.Key)
	}
	for _, s := range f.Serving {
		serving = append(serving, PoolKey{Port: s.Port, Family: s.Family})
		c.addrPorts(fmt.Sprintf("%s serving %s", s.Family, s.Port), s.Endpoints, s.Family)
	}
	for _, a := range f.Leaving {
		c.addrPorts("leaving", []netip.AddrPort{a}, FamilyOf(a.Addr()))
	}
	ascending(&c, "frontends", keys, Key.Compare)
	ascending(&c, "pools", pools, PoolKey.Compare)
	ascending(&c, "serving", serving, PoolKey.Compare)
	ascending(&c, "leaving", f.Leaving, netip.AddrPort.Compare)
	return errors.Join(c...)
}

// String names the pool in errors.
func (k PoolKey) String() string {
	return fmt.Sprintf("%s pool %s/%s of scope %s", k.Family, k.Port, k.Port.Proto, k.Scope)
}

// checker collects what is wrong.
type checker []error

func (c *checker) require(ok bool, format string, args ...any) {
	if !ok {
		*c = append(*c, fmt.Errorf(format, args...))
	}
}

func (c *checker) frontend(f *Frontend) {
	what := "frontend " + f.Key.String()
	c.require(f.Key.Port != 0, "%s: port 0", what)
	if !f.Key.IsNodePort() {
		c.addr(what, f.Key.Addr, f.Key.Family)
	}
	c.disjoint(what+": sources", f.Sources, f.Key.Family)
	c.require(len(f.Sources) == 0 || f.Sources[0].Bits() > 0, "%s: sources: %s restricts nobody", what, f.Sources)
	for class, r := range f.Routes {
		c.require(r.Action == Forward || r.Scope == Cluster && !r.Masquerade, "%s: %s: only a route that forwards has a scope and masquerades", what, Class(class))
	}
}

func (c *checker) pool(p *Pool) {
	what := p.Key.String()
	c.require(len(p.Endpoints) > 0, "%s: there are no endpoints", what)
	c.require(p.AffinitySec <= 86400, "%s: affinity of %d seconds: want at most 86400", what, p.AffinitySec)
	var addrs []netip.AddrPort
	for _, e := range p.Endpoints {
		addrs = append(addrs, e.Addr)
		c.require(1 <= e.Weight && e.Weight <= 65535, "%s: %s: weight %d: want 1 to 65535", what, e.Addr, e.Weight)
	}
	c.addrPorts(what, addrs, p.Key.Family)
}

func (c *checker) addrPorts(what string, list []netip.AddrPort, fam Family) {
	for _, a := range list {
		c.require(a.Port() != 0, "%s: %s: port 0", what, a)
		c.addr(what, a.Addr(), fam)
	}
	ascending(c, what, list, netip.AddrPort.Compare)
}

// disjoint checks that prefixes are valid and sorted, and that none is inside another.
func (c *checker) disjoint(what string, list []netip.Prefix, fam Family) {
	for i, p := range list {
		c.prefix(what, p, fam)
		c.require(i == 0 || !list[i-1].Overlaps(p), "%s: %s overlaps the one before it", what, p)
	}
	ascending(c, what, list, netip.Prefix.Compare)
}

func (c *checker) prefix(what string, p netip.Prefix, fam Family) {
	c.require(p == p.Masked(), "%s: %s has bits set after its length", what, p)
	c.addr(what, p.Addr(), fam)
}

func (c *checker) addr(what string, a netip.Addr, fam Family) {
	c.require(a.IsValid() && FamilyOf(a) == fam && !a.Is4In6() && a.Zone() == "", "%s: %s: want an %s address, without a zone and not IPv4-mapped", what, a, fam)
}

// ascending checks that a list is sorted without duplicates.
func ascending[T any](c *checker, what string, list []T, compare func(a, b T) int) {
	for i := 1; i < len(list); i++ {
		c.require(compare(list[i-1], list[i]) < 0, "%s: %v: not sorted, or there twice", what, list[i])
	}
}

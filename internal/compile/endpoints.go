package compile

import (
	"cmp"
	"fmt"
	"net/netip"
	"path"
	"slices"

	"github.com/fairlead/fairlead/internal/cluster"
	"github.com/fairlead/fairlead/internal/fwd"
)

// candidate is an endpoint of a service port before policy looks at it.
type candidate struct {
	addr  netip.AddrPort
	ep    *cluster.Endpoint
	local bool
	// seq is the place of the endpoint in the slices, sorted by name.
	seq int
}

// draining says that the endpoint serves while it shuts down. It is used if no ready one is left
// (KEP-1669).
func (c *candidate) draining() bool { return !c.ep.Ready && c.ep.Serving && c.ep.Terminating }

// sets is what endpoint selection gives for one service port.
type sets struct {
	// cluster is the C-set; it is empty only if there is no usable endpoint anywhere. local is the
	// L-set.
	cluster, local []fwd.Endpoint
}

func sortedByName(s []*cluster.Slice) []*cluster.Slice {
	byName := func(a, b *cluster.Slice) int {
		return cmp.Or(cmp.Compare(a.Name.Namespace, b.Name.Namespace), cmp.Compare(a.Name.Name, b.Name.Name))
	}
	if slices.IsSortedFunc(s, byName) {
		return s
	}
	return slices.SortedFunc(slices.Values(s), byName)
}

// reportEndpoints reports endpoints with addresses that cannot be used, once for each slice. It
// names the address, since the index in the API object is not known here.
func (c *compiler) reportEndpoints(fam fwd.Family) {
	for _, s := range c.slices {
		if s.Family != fam {
			continue
		}
		bad, first, reason := 0, 0, ""
		for i := range s.Endpoints {
			if why := unusable(s.Endpoints[i].Addr, fam); why != "" {
				if bad++; bad == 1 {
					first, reason = i, why
				}
			}
		}
		if bad == 0 {
			continue
		}
		more := ""
		if bad > 1 {
			more = fmt.Sprintf(" (and %d more of this EndpointSlice)", bad-1)
		}
		c.problem(fmt.Sprintf("EndpointSlice %s: endpoints[].addresses", s.Name),
			"%s is ignored: %s%s", s.Endpoints[first].Addr, reason, more)
	}
}

// endpoints returns the endpoints of a service port: found by port name and protocol, sorted by
// address and port, each once. Of duplicates a local one wins, then the one of the first slice by
// name, then the first in the slice. The result is valid until the next call.
func (c *compiler) endpoints(fam fwd.Family, p cluster.ServicePort) []candidate {
	all := c.candidates[:0]
	for _, s := range c.slices {
		if s.Family != fam {
			continue
		}
		for _, sp := range s.Ports {
			if sp.Name != p.Name || sp.Protocol != p.Protocol {
				continue
			}
			for i := range s.Endpoints {
				e := &s.Endpoints[i]
				if unusable(e.Addr, fam) != "" {
					continue
				}
				local := c.facts.NodeName != "" && e.Where().Node == c.facts.NodeName
				all = append(all, candidate{netip.AddrPortFrom(e.Addr, sp.Port), e, local, len(all)})
			}
		}
	}
	c.candidates = all
	slices.SortFunc(all, func(a, b candidate) int {
		if d := a.addr.Compare(b.addr); d != 0 {
			return d
		}
		if a.local != b.local {
			if a.local {
				return -1
			}
			return 1
		}
		return cmp.Compare(a.seq, b.seq)
	})
	return slices.CompactFunc(all, func(a, b candidate) bool { return a.addr == b.addr })
}

// choose selects the C-set and the L-set. Each falls back on draining endpoints by itself, and the
// C-set does so without regard to topology, which never leaves it empty: a mode is on only if an
// endpoint is hinted for this node.
func (c *compiler) choose(found []candidate) (s sets) {
	here := c.topology(found)
	s.cluster = c.pick(found, func(e *candidate) bool { return e.ep.Ready && here(e.ep) })
	if len(s.cluster) == 0 {
		s.cluster = c.pick(found, (*candidate).draining)
	}
	s.local = c.pick(found, func(e *candidate) bool { return e.ep.Ready && e.local })
	if len(s.local) == 0 {
		s.local = c.pick(found, func(e *candidate) bool { return e.draining() && e.local })
	}
	return s
}

// topology returns which ready endpoints the hints leave to this node (KEP-2433, KEP-3015).
func (c *compiler) topology(found []candidate) func(*cluster.Endpoint) bool {
	forNode := func(e *cluster.Endpoint) bool { return slices.Contains(e.Where().NodeHints, c.facts.NodeName) }
	forZone := func(e *cluster.Endpoint) bool { return slices.Contains(e.Where().ZoneHints, c.facts.Zone) }
	switch {
	case !c.facts.IgnoreNodeHints && c.facts.NodeName != "" && hinted(found, func(p *cluster.Place) []string { return p.NodeHints }, c.facts.NodeName):
		return forNode
	case c.facts.Zone != "" && hinted(found, func(p *cluster.Place) []string { return p.ZoneHints }, c.facts.Zone):
		return forZone
	}
	return func(*cluster.Endpoint) bool { return true }
}

// hinted says whether the hints of one kind count: every ready endpoint has one, since hints are
// being rolled out otherwise, and at least one names this node or zone, which would have no
// endpoints otherwise.
func hinted(found []candidate, hints func(*cluster.Place) []string, name string) bool {
	some := false
	for i := range found {
		e := found[i].ep
		if !e.Ready {
			continue
		}
		list := hints(e.Where())
		if len(list) == 0 {
			return false
		}
		some = some || slices.Contains(list, name)
	}
	return some
}

// pick returns the endpoints to keep, in the order found; nil if none.
func (c *compiler) pick(found []candidate, keep func(*candidate) bool) []fwd.Endpoint {
	n := 0
	for i := range found {
		if keep(&found[i]) {
			n++
		}
	}
	if n == 0 {
		return nil
	}
	out := make([]fwd.Endpoint, 0, n)
	for i := range found {
		if e := &found[i]; keep(e) {
			out = append(out, fwd.Endpoint{
				Addr: e.addr, Weight: c.weight(e), Local: e.local, Terminating: e.draining(), Instance: e.ep.Instance,
			})
		}
	}
	return out
}

// weight is the endpoint's share of new connections, given by the first selector that matches.
func (c *compiler) weight(e *candidate) uint32 {
	for i := range c.svc.Weights {
		w := &c.svc.Weights[i]
		fits := false
		switch w.Selector {
		case cluster.SelectAll:
			fits = true
		case cluster.SelectLocal:
			fits = e.local
		case cluster.SelectSameZone:
			fits = c.facts.Zone != "" && e.ep.Where().Zone == c.facts.Zone
		case cluster.SelectNode:
			fits = e.ep.Where().Node == w.Value
		case cluster.SelectZone:
			fits = e.ep.Where().Zone == w.Value
		case cluster.SelectPod:
			fits, _ = path.Match(w.Value, e.ep.Pod)
		case cluster.SelectAddress:
			fits = w.Prefix.Contains(e.ep.Addr)
		}
		if fits {
			return uint32(w.Weight)
		}
	}
	return 1
}

// leaving adds the endpoints that shut down.
func (c *compiler) leaving(found []candidate) {
	for i := range found {
		if found[i].ep.Terminating {
			c.out.Leaving = append(c.out.Leaving, found[i].addr)
		}
	}
}

// serving lists the endpoints whose existing flows are valid, whether or not policy allows new
// ones.
func serving(found []candidate) []netip.AddrPort {
	var out []netip.AddrPort
	for i := range found {
		if found[i].ep.Ready || found[i].ep.Serving {
			out = append(out, found[i].addr)
		}
	}
	return out
}

// countDistinct sorts the addresses in place and counts the different ones.
func countDistinct(a []netip.Addr) int {
	slices.SortFunc(a, netip.Addr.Compare)
	return len(slices.Compact(a))
}

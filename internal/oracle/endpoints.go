package oracle

import (
	"cmp"
	"net/netip"
	"slices"

	v1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

// endpoint is one destination of a service port, with the defaults of its conditions filled in.
type endpoint struct {
	addr                        netip.AddrPort
	onNode                      string // empty if unknown
	local                       bool
	ready, serving, terminating bool
	zones, nodes                []string // hints, sorted, each once, without blanks
}

// fallback says that the endpoint may be used when no ready one is there: it shuts down, but still
// serves.
func (e endpoint) fallback() bool { return !e.ready && e.serving && e.terminating }

// slicesOf returns the EndpointSlices of a Service in a family, by name.
func (c *Cluster) slicesOf(s *v1.Service, v4 bool) []*discoveryv1.EndpointSlice {
	want := discoveryv1.AddressTypeIPv6
	if v4 {
		want = discoveryv1.AddressTypeIPv4
	}
	var out []*discoveryv1.EndpointSlice
	for _, sl := range c.Slices {
		if !hidden(sl.Labels) && sl.Namespace == s.Namespace && sl.Labels[discoveryv1.LabelServiceName] == s.Name && sl.AddressType == want {
			out = append(out, sl)
		}
	}
	slices.SortFunc(out, func(a, b *discoveryv1.EndpointSlice) int { return cmp.Compare(a.Name, b.Name) })
	return out
}

// endpointsOf returns the endpoints of a service port in a family, each ip:port once.
func (c *Cluster) endpointsOf(s *v1.Service, port *v1.ServicePort, node string, v4 bool) []endpoint {
	var out []endpoint
	for _, sl := range c.slicesOf(s, v4) {
		for _, e := range entries(sl, port, node, v4) {
			at := slices.IndexFunc(out, func(o endpoint) bool { return o.addr == e.addr })
			switch {
			case at < 0:
				out = append(out, e)
			case e.local && !out[at].local:
				out[at] = e
			}
		}
	}
	return out
}

// entries returns what a slice has for a service port. Entries of one slice may contradict one
// another; since their order in the object means nothing, those in the better state come first.
func entries(sl *discoveryv1.EndpointSlice, port *v1.ServicePort, node string, v4 bool) []endpoint {
	var out []endpoint
	for i := range sl.Endpoints {
		for _, number := range portNumbers(sl, port) {
			if e, ok := readEndpoint(&sl.Endpoints[i], number, node); ok && e.addr.Addr().Is4() == v4 {
				out = append(out, e)
			}
		}
	}
	rank := func(bad bool) int {
		if bad {
			return 1
		}
		return 0
	}
	slices.SortFunc(out, func(a, b endpoint) int {
		return cmp.Or(
			cmp.Compare(rank(!a.ready), rank(!b.ready)),
			cmp.Compare(rank(!a.serving), rank(!b.serving)),
			cmp.Compare(rank(a.terminating), rank(b.terminating)),
			cmp.Compare(a.onNode, b.onNode),
			slices.Compare(a.zones, b.zones),
			slices.Compare(a.nodes, b.nodes),
		)
	})
	return out
}

// portNumbers returns the numbers that a slice has for a service port: of its ports with the same
// name and protocol.
func portNumbers(sl *discoveryv1.EndpointSlice, port *v1.ServicePort) []uint16 {
	var out []uint16
	for _, p := range sl.Ports {
		if p.Name == nil || p.Port == nil || *p.Port < 1 || *p.Port > 65535 {
			continue
		}
		var proto v1.Protocol
		if p.Protocol != nil {
			proto = *p.Protocol
		}
		if *p.Name == port.Name && protocol(proto) == protocol(port.Protocol) {
			out = append(out, uint16(*p.Port))
		}
	}
	return out
}

// readEndpoint reads an entry of a slice; ok is false if it has no usable address.
func readEndpoint(e *discoveryv1.Endpoint, port uint16, node string) (out endpoint, ok bool) {
	if len(e.Addresses) == 0 {
		return endpoint{}, false
	}
	a, ok := parseAddr(e.Addresses[0])
	if !ok || !forwardable(a) {
		return endpoint{}, false
	}
	out = endpoint{
		addr:        netip.AddrPortFrom(a, port),
		local:       node != "" && e.NodeName != nil && *e.NodeName == node,
		ready:       orDefault(e.Conditions.Ready, true),
		serving:     orDefault(e.Conditions.Serving, true),
		terminating: orDefault(e.Conditions.Terminating, false),
	}
	if e.NodeName != nil {
		out.onNode = *e.NodeName
	}
	if e.Hints != nil {
		for _, z := range e.Hints.ForZones {
			if z.Name != "" {
				out.zones = append(out.zones, z.Name)
			}
		}
		for _, n := range e.Hints.ForNodes {
			if n.Name != "" {
				out.nodes = append(out.nodes, n.Name)
			}
		}
	}
	slices.Sort(out.zones)
	slices.Sort(out.nodes)
	out.zones, out.nodes = slices.Compact(out.zones), slices.Compact(out.nodes)
	return out, true
}

func orDefault(b *bool, unset bool) bool {
	if b == nil {
		return unset
	}
	return *b
}

// clusterSet returns the endpoints that serve for the whole cluster: the ready ones that topology
// leaves, else all that serve while they terminate.
func clusterSet(all []endpoint, node, zone string, cfg *Config) []endpoint {
	ready := where(all, func(e endpoint) bool { return e.ready })
	if len(ready) == 0 {
		return where(all, endpoint.fallback)
	}
	forNode := func(e endpoint) bool { return slices.Contains(e.nodes, node) }
	everyNode := !slices.ContainsFunc(ready, func(e endpoint) bool { return len(e.nodes) == 0 })
	if cfg.gate("PreferSameTrafficDistribution") && everyNode && slices.ContainsFunc(ready, forNode) {
		return where(ready, forNode)
	}
	forZone := func(e endpoint) bool { return slices.Contains(e.zones, zone) }
	everyZone := !slices.ContainsFunc(ready, func(e endpoint) bool { return len(e.zones) == 0 })
	if zone != "" && everyZone && slices.ContainsFunc(ready, forZone) {
		return where(ready, forZone)
	}
	return ready
}

// localSet returns the endpoints that serve on this node: the ready ones, else those that serve
// while they terminate.
func localSet(all []endpoint) []endpoint {
	if ready := where(all, func(e endpoint) bool { return e.local && e.ready }); len(ready) > 0 {
		return ready
	}
	return where(all, func(e endpoint) bool { return e.local && e.fallback() })
}

func where(all []endpoint, keep func(endpoint) bool) []endpoint {
	var out []endpoint
	for _, e := range all {
		if keep(e) {
			out = append(out, e)
		}
	}
	return out
}

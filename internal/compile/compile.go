package compile

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"github.com/fairlead/fairlead/internal/cluster"
	"github.com/fairlead/fairlead/internal/fwd"
)

// Facts is what the node and its configuration contribute to every Service.
type Facts struct {
	// NodeName decides which endpoints are local; empty makes none local.
	NodeName string
	// Zone is the node's topology zone; empty turns zone hints off.
	Zone string
	// PrimaryIP is the node's primary IP by fwd.Family.Index, the zero Addr if unknown.
	PrimaryIP [2]netip.Addr
	// DetectsPods says whether local pods can be recognised, by fwd.Family.Index.
	DetectsPods [2]bool
	// MasqueradeAll masquerades whatever is sent to a cluster IP.
	MasqueradeAll bool
	// IgnoreExternalIPs leaves spec.externalIPs out (feature gate AllowServiceExternalIPs off,
	// KEP-5707).
	IgnoreExternalIPs bool
	// IgnoreNodeHints leaves node hints out (feature gate PreferSameTrafficDistribution off,
	// KEP-3015).
	IgnoreNodeHints bool
}

// Problem is something in a Service that is not supported or not valid. It is reported, and the
// rest of the Service is served.
type Problem struct {
	// Field is the path of the field in the API object, such as "spec.ports[1]".
	Field string
	// Message tells users what is ignored and why.
	Message string
}

// Compile returns all that the node does for a Service. svc and f are not nil; the slices are those
// of the Service, in any order. Compile does not change or keep its arguments, and the result does
// not refer to them.
func Compile(svc *cluster.Service, endpointSlices []*cluster.Slice, f *Facts) (*fwd.Fragment, []Problem) {
	c := compiler{
		svc:   svc,
		facts: f,
		out:   &fwd.Fragment{Owner: svc.Name, CreatedUnix: svc.CreatedUnix},
	}
	c.slices = sortedByName(endpointSlices)
	c.ports = c.distinctPorts()
	if !f.IgnoreExternalIPs {
		c.externalIPs = c.byFamily("spec.externalIPs", svc.ExternalIPs)
	}
	c.lbIPs = c.byFamily("status.loadBalancer.ingress", svc.LoadBalancerIPs)
	c.externalLocal = c.externalPolicyLocal()
	c.healthCheck()
	for _, fam := range fwd.Families {
		if svc.ClusterIPs[fam.Index()].IsValid() {
			c.family(fam)
		}
	}
	c.settleFrontends()
	c.dropUnusedPools()
	slices.SortFunc(c.out.Serving, func(a, b fwd.ServingPort) int {
		return cmp.Or(a.Port.Compare(b.Port), cmp.Compare(a.Family, b.Family))
	})
	slices.SortFunc(c.out.Leaving, netip.AddrPort.Compare)
	c.out.Leaving = slices.Compact(c.out.Leaving)
	// A pod has an address of each family: counting both would double it.
	c.out.HealthCheck.LocalEndpoints = max(countDistinct(c.localReady[0]), countDistinct(c.localReady[1]))
	return c.out, c.problems
}

// compiler is the state of one Compile.
type compiler struct {
	svc    *cluster.Service
	facts  *Facts
	slices []*cluster.Slice
	ports  []cluster.ServicePort
	// The usable addresses by family.
	externalIPs, lbIPs [2][]netip.Addr
	// externalLocal is external traffic policy Local where it counts.
	externalLocal bool

	out      *fwd.Fragment
	problems []Problem
	// localReady collects by family the addresses of ready endpoints on this node, if there is a
	// health check that counts them.
	localReady [2][]netip.Addr
	// candidates is scratch memory of endpoints.
	candidates []candidate
}

func (c *compiler) problem(field, format string, args ...any) {
	c.problems = append(c.problems, Problem{Field: field, Message: fmt.Sprintf(format, args...)})
}

// distinctPorts returns the ports of the Service without duplicates of a name and protocol.
// Endpoints are found by these two, so a duplicate cannot be told from the first.
func (c *compiler) distinctPorts() []cluster.ServicePort {
	if len(c.svc.Ports) < 2 {
		return c.svc.Ports
	}
	type id struct {
		name  string
		proto fwd.Proto
	}
	first := make(map[id]int, len(c.svc.Ports))
	out := make([]cluster.ServicePort, 0, len(c.svc.Ports))
	for i, p := range c.svc.Ports {
		k := id{p.Name, p.Protocol}
		if was, ok := first[k]; ok {
			c.problem(fmt.Sprintf("spec.ports[%d]", i), "ignored: spec.ports[%d] has the same name %q and protocol %s", was, p.Name, p.Protocol)
			continue
		}
		first[k] = i
		out = append(out, p)
	}
	return out
}

// externalPolicyLocal says whether external traffic policy Local counts: on a Service of type
// ClusterIP only the API field externalIPs makes it meaningful.
func (c *compiler) externalPolicyLocal() bool {
	if !c.svc.ExternalLocal {
		return false
	}
	return c.svc.Type != cluster.TypeClusterIP || len(c.svc.ExternalIPs) > 0 && !c.facts.IgnoreExternalIPs
}

func (c *compiler) healthCheck() {
	if c.svc.Type != cluster.TypeLoadBalancer || !c.externalLocal {
		return
	}
	if c.svc.HealthCheckNodePort == 0 {
		c.problem("spec.healthCheckNodePort", "not set: load balancers cannot ask this node whether it has endpoints, though externalTrafficPolicy is Local")
		return
	}
	c.out.HealthCheck.Port = c.svc.HealthCheckNodePort
}

// family compiles what belongs to one family in which the Service is handled.
func (c *compiler) family(fam fwd.Family) {
	i := fam.Index()
	c.reportEndpoints(fam)
	clusterIP := c.svc.ClusterIPs[i]
	if why := unusable(clusterIP, fam); why != "" {
		c.problem("spec.clusterIPs", "%s is ignored: %s", clusterIP, why)
		clusterIP = netip.Addr{}
	}
	sources := c.sources(fam)
	for _, p := range c.ports {
		owner := fwd.ServicePort{Service: c.out.Owner, Port: p.Name, Proto: p.Protocol}
		internal, external := c.port(fam, p, owner)

		add := func(kind fwd.Kind, addr netip.Addr, port uint16, routes [fwd.NumClasses]fwd.Route, sources []netip.Prefix) {
			c.out.Frontends = append(c.out.Frontends, fwd.Frontend{
				Key:  fwd.Key{Family: fam, Addr: addr, Proto: p.Protocol, Port: port},
				Kind: kind, Owner: owner, Routes: routes, Sources: sources,
			})
		}
		if clusterIP.IsValid() {
			add(fwd.ClusterIP, clusterIP, p.Port, internal, nil)
		}
		for _, a := range c.externalIPs[i] {
			add(fwd.ExternalIP, a, p.Port, external, nil)
		}
		for _, a := range c.lbIPs[i] {
			add(fwd.LoadBalancer, a, p.Port, external, sources)
		}
		if p.NodePort != 0 {
			add(fwd.NodePort, netip.Addr{}, p.NodePort, external, nil)
		}
	}
}

// port chooses the endpoints of a service port, adds its pools and its list of serving endpoints,
// and returns the routes of its cluster IP and of its external frontends.
func (c *compiler) port(fam fwd.Family, p cluster.ServicePort, owner fwd.ServicePort) (internal, external [fwd.NumClasses]fwd.Route) {
	i := fam.Index()
	accessible := p.NodePort != 0 || len(c.lbIPs[i]) > 0 || len(c.externalIPs[i]) > 0
	found := c.endpoints(fam, p)
	s := c.choose(found)
	c.leaving(found)
	// Those that no route uses are dropped at the end.
	for scope, eps := range [fwd.NumScopes][]fwd.Endpoint{fwd.Cluster: s.cluster, fwd.Local: s.local} {
		if len(eps) > 0 {
			c.out.Pools = append(c.out.Pools, fwd.Pool{
				Key:         fwd.PoolKey{Port: owner, Family: fam, Scope: fwd.Scope(scope)},
				Endpoints:   eps,
				AffinitySec: c.svc.AffinitySec,
				Scheduler:   c.svc.Scheduler, SchedulerFlags: c.svc.SchedulerFlags,
			})
		}
	}
	if p.Protocol == fwd.UDP {
		c.out.Serving = append(c.out.Serving, fwd.ServingPort{Port: owner, Family: fam, Endpoints: serving(found)})
	}
	if c.out.HealthCheck.Port != 0 {
		for j := range found {
			if found[j].local && found[j].ep.Ready {
				c.localReady[i] = append(c.localReady[i], found[j].addr.Addr())
			}
		}
	}
	if len(s.cluster) > 0 && len(s.local) == 0 {
		if c.svc.InternalLocal {
			c.out.LocalPolicyEmpty[fam.Index()][0]++
		}
		if c.externalLocal && accessible {
			c.out.LocalPolicyEmpty[fam.Index()][1]++
		}
	}
	return c.internalRoutes(fam, s), c.externalRoutes(fam, s)
}

// internalRoutes are those of a cluster IP. Sources that are not local pods are masqueraded, so
// that replies come back through this node. Without a detector no source can be told from a pod,
// and none is masqueraded.
func (c *compiler) internalRoutes(fam fwd.Family, s sets) [fwd.NumClasses]fwd.Route {
	switch {
	case len(s.cluster) == 0:
		return everybody(fwd.Route{Action: fwd.Reject, Reason: fwd.ReasonNoEndpoints})
	case c.svc.InternalLocal && len(s.local) == 0:
		return everybody(fwd.Route{Action: fwd.Drop, Reason: fwd.ReasonInternalLocalEmpty})
	}
	r := fwd.Route{Action: fwd.Forward, Scope: fwd.Cluster, Reason: fwd.ReasonCluster}
	if c.svc.InternalLocal {
		r.Scope, r.Reason = fwd.Local, fwd.ReasonInternalLocal
	}
	r.Masquerade = c.facts.MasqueradeAll || c.facts.DetectsPods[fam.Index()]
	routes := everybody(r)
	routes[fwd.Pod].Masquerade = c.facts.MasqueradeAll
	return routes
}

// externalRoutes are those of external IPs, load-balancer IPs and node ports. With policy Cluster
// the endpoint may be on another node, which would answer directly, so every source is masqueraded.
// With policy Local outside clients keep their address and reach endpoints on this node; sources in
// the cluster are served as if the packet had gone out to the load balancer and come back in to
// some node that has endpoints, which is the choice of the cluster pool.
func (c *compiler) externalRoutes(fam fwd.Family, s sets) [fwd.NumClasses]fwd.Route {
	switch {
	case len(s.cluster) == 0:
		return everybody(fwd.Route{Action: fwd.Reject, Reason: fwd.ReasonNoEndpoints})
	case !c.externalLocal:
		return everybody(fwd.Route{Action: fwd.Forward, Scope: fwd.Cluster, Masquerade: true, Reason: fwd.ReasonCluster})
	}
	outside := fwd.Route{Action: fwd.Forward, Scope: fwd.Local, Reason: fwd.ReasonExternalLocal}
	if len(s.local) == 0 {
		outside = fwd.Route{Action: fwd.Drop, Reason: fwd.ReasonExternalLocalEmpty}
	}
	routes := everybody(outside)
	short := fwd.Route{Action: fwd.Forward, Scope: fwd.Cluster, Reason: fwd.ReasonShortCircuit}
	if c.facts.DetectsPods[fam.Index()] {
		routes[fwd.Pod] = short
	}
	short.Masquerade = true
	routes[fwd.Host] = short
	return routes
}

func everybody(r fwd.Route) [fwd.NumClasses]fwd.Route {
	return [fwd.NumClasses]fwd.Route{fwd.Outside: r, fwd.Pod: r, fwd.Host: r}
}

// settleFrontends sorts the frontends by key. Where several fields of the Service name one key, the
// first in the order of kinds wins, then the first port: the order in which family adds them, since
// a key that two ports name is of the same kind in both. Source ranges of any of them hold for the
// winner: a field that is added to a Service must not open what another field closes.
func (c *compiler) settleFrontends() {
	all := c.out.Frontends
	slices.SortStableFunc(all, func(a, b fwd.Frontend) int { return a.Key.Compare(b.Key) })
	kept := all[:0]
	for i := range all {
		f := &all[i]
		if n := len(kept); n > 0 && kept[n-1].Key == f.Key {
			// The same address twice in one field is no conflict.
			if w := &kept[n-1]; w.Kind != f.Kind || w.Owner != f.Owner {
				restricts := ""
				if len(f.Sources) > 0 && len(w.Sources) == 0 { // there are no two lists of ranges in a Service
					w.Sources = f.Sources
					restricts = "; spec.loadBalancerSourceRanges still restrict it"
				}
				c.problem(field(f.Kind), "%s of port %q is ignored: the Service already claims it as %s of port %q%s",
					f.Key, f.Owner.Port, w.Kind, w.Owner.Port, restricts)
			}
			continue
		}
		kept = append(kept, *f)
	}
	clear(all[len(kept):])
	c.out.Frontends = kept
}

// field is the path of the API field that a kind of frontend comes from.
func field(k fwd.Kind) string {
	switch k {
	case fwd.ExternalIP:
		return "spec.externalIPs"
	case fwd.LoadBalancer:
		return "status.loadBalancer.ingress"
	}
	return "spec.ports"
}

// dropUnusedPools sorts the pools and keeps those that a route of a frontend chooses from; if
// all frontends of a pool lost their keys to another port, the pool is unused.
func (c *compiler) dropUnusedPools() {
	byKey := func(p fwd.Pool, k fwd.PoolKey) int { return p.Key.Compare(k) }
	slices.SortFunc(c.out.Pools, func(a, b fwd.Pool) int { return a.Key.Compare(b.Key) })
	used := make([]bool, len(c.out.Pools))
	for i := range c.out.Frontends {
		f := &c.out.Frontends[i]
		for _, r := range f.Routes {
			if r.Action == fwd.Forward {
				at, _ := slices.BinarySearchFunc(c.out.Pools, f.Pool(r), byKey)
				used[at] = true
			}
		}
	}
	kept := c.out.Pools[:0]
	for i, p := range c.out.Pools {
		if used[i] {
			kept = append(kept, p)
		}
	}
	clear(c.out.Pools[len(kept):])
	c.out.Pools = kept
}

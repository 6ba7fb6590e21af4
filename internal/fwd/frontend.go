package fwd

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Class is the class of a packet's source, as this node sees it. Each packet has exactly one,
// tested in the order Pod, Host, Outside: a node address that the detector recognises counts as a
// pod.
type Class uint8

// The classes of sources.
const (
	// Outside is every source that is neither of the others, and every pod where no detector is
	// configured.
	Outside Class = iota
	// Pod is a source that the local detector recognises (Header.Detector).
	Pod
	// Host is a source address of the node itself, 127.0.0.0/8 included.
	Host
	// NumClasses is the number of classes, for arrays by class.
	NumClasses
)

func (c Class) String() string { return [...]string{"outside", "pod", "host"}[c] }

// Kind says which field of the Service a frontend comes from.
type Kind uint8

// The kinds of frontends, in the order in which one Service's fields win where they name the same
// key.
const (
	ClusterIP Kind = iota
	ExternalIP
	LoadBalancer
	NodePort
)

func (k Kind) String() string {
	return [...]string{"ClusterIP", "ExternalIP", "LoadBalancer", "NodePort"}[k]
}

// Action is what a route does.
type Action uint8

// The actions.
const (
	// Drop discards the packet silently: endpoints exist, but policy leaves none on this node.
	Drop Action = iota
	// Reject answers TCP with a reset and everything else with ICMP port unreachable: there is no
	// usable endpoint at all.
	Reject
	// Forward sends the connection to an endpoint of the pool.
	Forward
)

func (a Action) String() string { return [...]string{"drop", "reject", "forward"}[a] }

// Scope tells the two pools of a service port apart.
type Scope uint8

// The scopes.
const (
	// Cluster is the pool chosen from the whole cluster by readiness and topology.
	Cluster Scope = iota
	// Local is the pool of endpoints on this node.
	Local
	// NumScopes is the number of scopes.
	NumScopes
)

func (s Scope) String() string { return [...]string{"cluster", "local"}[s] }

// Route is what happens to a new connection of one class of sources.
type Route struct {
	Action Action
	// Scope says which pool of the frontend's service port Forward chooses from; Cluster for the
	// other actions.
	Scope Scope
	// Masquerade rewrites the source to an address of the node; false unless the action is Forward.
	// A connection whose chosen endpoint is its own source (hairpin) is always masqueraded.
	Masquerade bool
	// Reason is the rule that decided.
	Reason Reason
}

// Frontend is one key with its owner and its routes.
type Frontend struct {
	Key    Key
	Kind   Kind
	Owner  ServicePort
	Routes [NumClasses]Route
	// Sources restricts who may connect: masked prefixes of the key's family, sorted, nothing
	// contained in another. Empty means everybody. A source outside of them is dropped, for every
	// class, whether or not there are endpoints.
	Sources []netip.Prefix
}

// Pool returns the key of the pool that the route chooses from.
func (f *Frontend) Pool(r Route) PoolKey {
	return PoolKey{Port: f.Owner, Family: f.Key.Family, Scope: r.Scope}
}

// Admits says whether the source may connect at all (Sources).
func (f *Frontend) Admits(src netip.Addr) bool {
	return len(f.Sources) == 0 || slices.ContainsFunc(f.Sources, func(p netip.Prefix) bool { return p.Contains(src) })
}

// Forwards says whether connections of some class of sources are forwarded.
func (f *Frontend) Forwards() bool {
	return slices.ContainsFunc(f.Routes[:], func(r Route) bool { return r.Action == Forward })
}

// Equal compares all fields.
func (f Frontend) Equal(o Frontend) bool {
	return f.Key == o.Key && f.Kind == o.Kind && f.Owner == o.Owner && f.Routes == o.Routes && slices.Equal(f.Sources, o.Sources)
}

// PoolKey identifies a pool.
type PoolKey struct {
	Port   ServicePort
	Family Family
	Scope  Scope
}

// Compare orders by service port, family and scope.
func (k PoolKey) Compare(o PoolKey) int {
	return cmp.Or(k.Port.Compare(o.Port), cmp.Compare(k.Family, o.Family), cmp.Compare(k.Scope, o.Scope))
}

// Endpoint is a destination of a pool.
type Endpoint struct {
	Addr netip.AddrPort
	// Weight is the relative share of new connections, from 1 to 65535.
	Weight uint32
	// Local says that the endpoint is on this node.
	Local bool
	// Terminating says that the endpoint serves while it shuts down.
	Terminating bool
	// Instance tells apart the pods that have had this address one after the other; 0 where that is
	// not known. Dataplanes that track connections themselves (IPVS) need it; it does not affect
	// the choice of an endpoint.
	Instance uint32
}

// Pool is what a route chooses an endpoint from: per new connection, at random in proportion to the
// weights, unless session affinity remembers one for the client.
type Pool struct {
	Key PoolKey
	// Endpoints is sorted by address and port, without duplicates, and never empty.
	Endpoints []Endpoint
	// AffinitySec is the time in seconds for which a client address stays with its endpoint after
	// its last new connection, from 1 to 86400; 0 means no session affinity. Both pools of a
	// service port share the records.
	AffinitySec uint32
	// Scheduler is the name of the IPVS scheduler that the Service asks for, such as "mh"; empty
	// for the node's default. Other dataplanes ignore it and choose at random.
	Scheduler string
	// SchedulerFlags belong to Scheduler.
	SchedulerFlags SchedulerFlags
}

// SchedulerFlags change how the IPVS schedulers sh and mh choose. The others know none.
type SchedulerFlags uint8

// The flags of schedulers, see ipvsadm(8).
const (
	// SchedulerFallback chooses another endpoint if the hashed one accepts no connections.
	SchedulerFallback SchedulerFlags = 1 << iota
	// SchedulerPort includes the source port in the hash.
	SchedulerPort
)

// schedulerFlagNames are the names of the flags in order, as ipvsadm writes them without the
// scheduler's name.
var schedulerFlagNames = []string{"fallback", "port"}

// ParseSchedulerFlags reads a comma list of "fallback" and "port"; nothing is no flag.
func ParseSchedulerFlags(s string) (SchedulerFlags, error) {
	var f SchedulerFlags
	for name := range strings.SplitSeq(s, ",") {
		if name = strings.TrimSpace(name); name == "" {
			continue
		}
		i := slices.Index(schedulerFlagNames, name)
		if i < 0 {
			return 0, fmt.Errorf("%q: want %s", name, strings.Join(schedulerFlagNames, ", "))
		}
		f |= 1 << i
	}
	return f, nil
}

// String is the comma list that ParseSchedulerFlags reads.
func (f SchedulerFlags) String() string {
	var names []string
	for i, name := range schedulerFlagNames {
		if f&(1<<i) != 0 {
			names = append(names, name)
		}
	}
	return strings.Join(names, ",")
}

// Equal compares all fields.
func (p Pool) Equal(o Pool) bool {
	return p.Key == o.Key && p.AffinitySec == o.AffinitySec && p.Scheduler == o.Scheduler && p.SchedulerFlags == o.SchedulerFlags &&
		slices.Equal(p.Endpoints, o.Endpoints)
}

// VIP is an address of Services, of whatever kind, on which at least one frontend is.
type VIP struct {
	Addr netip.Addr
	// ClusterIP says that the address is the cluster IP of some Service.
	ClusterIP bool
}

// HealthCheck describes the health-check node port of a Service (type LoadBalancer with external
// traffic policy Local).
type HealthCheck struct {
	// Port is the TCP port on the node; 0 means that the Service has none.
	Port uint16
	// LocalEndpoints counts the distinct addresses of ready endpoints on this node, over all ports,
	// of the family that has more.
	LocalEndpoints int
}

// ServingPort lists, for a UDP service port of one family, every endpoint that serves, including
// those that policy or topology exclude on this node. Flows to other endpoints are stale.
type ServingPort struct {
	Port   ServicePort
	Family Family
	// Endpoints is sorted, without duplicates.
	Endpoints []netip.AddrPort
}

// Fragment is what one Service contributes to the table, for both families. A Fragment with only an
// owner is the same as none.
type Fragment struct {
	Owner Service
	// CreatedUnix is the creation time of the Service in seconds since 1970; it settles conflicts:
	// older wins.
	CreatedUnix int64
	// Frontends is sorted by key, one for each.
	Frontends []Frontend
	// Pools is sorted by key and holds exactly the pools that routes of Frontends use.
	Pools []Pool
	// Serving is sorted by port and family; one for each UDP service port and family that is
	// handled here.
	Serving []ServingPort
	// Leaving are the endpoints of all ports and both families that shut down and are not gone yet,
	// whether or not they are in a pool; sorted, without duplicates. If an address disappears from
	// this list, its pod has ended.
	Leaving []netip.AddrPort
	// HealthCheck is the Service's health-check node port.
	HealthCheck HealthCheck
	// LocalPolicyEmpty counts, by Family.Index, the service ports whose internal (index 0) or
	// external (index 1) traffic policy is Local and that have endpoints, none of them on this
	// node.
	LocalPolicyEmpty [2][2]int
}

// Empty says that the fragment contributes nothing.
func (f *Fragment) Empty() bool {
	return len(f.Frontends) == 0 && len(f.Pools) == 0 && len(f.Serving) == 0 && len(f.Leaving) == 0 && f.HealthCheck == HealthCheck{}
}

// Equal compares all fields.
func (f *Fragment) Equal(o *Fragment) bool {
	return f.Owner == o.Owner && f.CreatedUnix == o.CreatedUnix && f.HealthCheck == o.HealthCheck && f.LocalPolicyEmpty == o.LocalPolicyEmpty &&
		slices.EqualFunc(f.Frontends, o.Frontends, Frontend.Equal) &&
		slices.EqualFunc(f.Pools, o.Pools, Pool.Equal) &&
		slices.EqualFunc(f.Serving, o.Serving, ServingPort.Equal) && slices.Equal(f.Leaving, o.Leaving)
}

// Equal compares all fields.
func (s ServingPort) Equal(o ServingPort) bool {
	return s.Port == o.Port && s.Family == o.Family && slices.Equal(s.Endpoints, o.Endpoints)
}

// Pool returns the pool with that key, or nil.
func (f *Fragment) Pool(k PoolKey) *Pool {
	i, ok := slices.BinarySearchFunc(f.Pools, k, func(p Pool, k PoolKey) int { return p.Key.Compare(k) })
	if !ok {
		return nil
	}
	return &f.Pools[i]
}

// KeepsAddress says that a connection to the frontend, one of the fragment's, may be masqueraded
// although its destination stays as it is, since an endpoint has the frontend's own address and
// port. The kernel's connection tracking then sees no translation of the destination (IPS_DST_NAT).
// A frontend for node ports does not count: there the endpoint is on this host and nothing leaves
// it.
func (f *Fragment) KeepsAddress(fe *Frontend) bool {
	if fe.Key.IsNodePort() {
		return false
	}
	own := netip.AddrPortFrom(fe.Key.Addr, fe.Key.Port)
	return slices.ContainsFunc(fe.Routes[:], func(r Route) bool {
		if r.Action != Forward || !r.Masquerade {
			return false
		}
		p := f.Pool(fe.Pool(r))
		return p != nil && slices.ContainsFunc(p.Endpoints, func(e Endpoint) bool { return e.Addr == own })
	})
}

package cluster

import (
	"net/netip"
	"slices"

	"github.com/fairlead/fairlead/internal/fwd"
)

// SliceName names an EndpointSlice.
type SliceName struct {
	Namespace string
	Name      string
}

func (n SliceName) String() string { return n.Namespace + "/" + n.Name }

// ServiceType is the field spec.type as far as it matters here.
type ServiceType uint8

// The types of Services; ExternalName never gets here.
const (
	TypeClusterIP ServiceType = iota
	TypeNodePort
	TypeLoadBalancer
)

// ServicePort is one entry of spec.ports.
type ServicePort struct {
	// Name is unique among the ports of a protocol; it may be empty.
	Name     string
	Protocol fwd.Proto
	// Port is the port of virtual IPs, from 1 to 65535.
	Port uint16
	// NodePort is 0 where there is none.
	NodePort uint16
}

// Service is what is used of a v1.Service. Fields by family have IPv4 at index 0 and IPv6 at index
// 1.
type Service struct {
	Name fwd.Service
	// CreatedUnix is the creation time in seconds since 1970.
	CreatedUnix int64
	Type        ServiceType
	// Critical Services are programmed first on a node without rules, since others depend on them.
	Critical bool
	// ClusterIPs are zero in a family in which the Service is not handled at all.
	ClusterIPs [2]netip.Addr
	Ports      []ServicePort
	// ExternalIPs are of either family, in the order of the object, without duplicates.
	ExternalIPs []netip.Addr
	// LoadBalancerIPs are the ingress addresses of mode VIP; those of mode Proxy are left out.
	LoadBalancerIPs []netip.Addr
	// SourceRanges restricts clients of LoadBalancerIPs; a family without a range is not
	// restricted.
	SourceRanges []netip.Prefix
	// InternalLocal is internalTrafficPolicy: Local.
	InternalLocal bool
	// ExternalLocal is the field externalTrafficPolicy: Local, whether or not it applies to this
	// Service.
	ExternalLocal bool
	// HealthCheckNodePort is the field, 0 for none, whether or not it applies to this Service.
	HealthCheckNodePort uint16
	// AffinitySec is the timeout of sessionAffinity ClientIP in seconds, from 1 to 86400; 0 for
	// none.
	AffinitySec uint32
	// Scheduler is the IPVS scheduler that an annotation asks for, empty for the node's default.
	Scheduler      string
	SchedulerFlags fwd.SchedulerFlags
	// Weights say how endpoints share new connections; the first that matches an endpoint applies,
	// and the default is 1.
	Weights []Weight
}

// WeightSelector says which endpoints a Weight is for.
type WeightSelector uint8

// The selectors.
const (
	// SelectAll matches every endpoint.
	SelectAll WeightSelector = iota
	// SelectLocal matches endpoints on this node.
	SelectLocal
	// SelectSameZone matches endpoints in this node's zone, if it has one.
	SelectSameZone
	// SelectNode and SelectZone match endpoints whose node or zone is named Value.
	SelectNode
	SelectZone
	// SelectPod matches endpoints whose pod name matches the pattern Value (path.Match).
	SelectPod
	// SelectAddress matches endpoints inside Prefix.
	SelectAddress
)

// Weight gives endpoints their share of new connections.
type Weight struct {
	Selector WeightSelector
	Value    string
	Prefix   netip.Prefix
	// Weight is from 1 to 65535.
	Weight uint16
}

// Equal compares all fields.
func (s *Service) Equal(o *Service) bool {
	return s.Name == o.Name && s.CreatedUnix == o.CreatedUnix && s.Type == o.Type && s.Critical == o.Critical &&
		slices.Equal(s.Ports, o.Ports) && s.equalAddresses(o) &&
		s.InternalLocal == o.InternalLocal && s.ExternalLocal == o.ExternalLocal &&
		s.HealthCheckNodePort == o.HealthCheckNodePort && s.AffinitySec == o.AffinitySec &&
		s.Scheduler == o.Scheduler && s.SchedulerFlags == o.SchedulerFlags && slices.Equal(s.Weights, o.Weights)
}

func (s *Service) equalAddresses(o *Service) bool {
	return s.ClusterIPs == o.ClusterIPs && slices.Equal(s.ExternalIPs, o.ExternalIPs) &&
		slices.Equal(s.LoadBalancerIPs, o.LoadBalancerIPs) && slices.Equal(s.SourceRanges, o.SourceRanges)
}

// SlicePort is one entry of an EndpointSlice's ports that has a name and a number.
type SlicePort struct {
	Name     string
	Protocol fwd.Proto
	Port     uint16
}

// Place says where an endpoint is and which nodes and zones it is meant for. Many endpoints share
// one, mostly those of a node.
type Place struct {
	// Node and Zone are empty where the object names none.
	Node, Zone string
	// ZoneHints and NodeHints are sorted.
	ZoneHints []string
	NodeHints []string
}

// Equal compares all fields.
func (p *Place) Equal(o *Place) bool {
	return p == o || p.Node == o.Node && p.Zone == o.Zone && slices.Equal(p.ZoneHints, o.ZoneHints) && slices.Equal(p.NodeHints, o.NodeHints)
}

// Endpoint is one entry of an EndpointSlice's endpoints, with the defaults of its conditions filled
// in. There are more of them than of any other object, so each byte counts.
type Endpoint struct {
	// Addr is the first address of the entry; the others are never used.
	Addr netip.Addr
	// Pod is the name of the pod behind the address, Instance a hash of its UID; empty and 0 where
	// the object names none.
	Pod string
	// Place is nil if the object does not say; Where never returns nil.
	Place       *Place
	Instance    uint32
	Ready       bool
	Serving     bool
	Terminating bool
}

var nowhere Place

// Where returns the Place of an endpoint.
func (e *Endpoint) Where() *Place {
	if e.Place == nil {
		return &nowhere
	}
	return e.Place
}

// Equal compares all fields.
func (e Endpoint) Equal(o Endpoint) bool {
	return e.Addr == o.Addr && e.Ready == o.Ready && e.Serving == o.Serving && e.Terminating == o.Terminating &&
		e.Pod == o.Pod && e.Instance == o.Instance && e.Where().Equal(o.Where())
}

// Slice is what is used of a discovery/v1 EndpointSlice. All its addresses are of one family.
type Slice struct {
	Name      SliceName
	Service   fwd.Service
	Family    fwd.Family
	Ports     []SlicePort
	Endpoints []Endpoint
	// TriggerUnixNano is the time of the change that made this version of the slice (annotation
	// endpoints.kubernetes.io/last-change-trigger-time), in nanoseconds since 1970; 0 if it says
	// none. Equal leaves it out.
	TriggerUnixNano int64
}

// Equal compares what matters for forwarding: all but TriggerUnixNano.
func (s *Slice) Equal(o *Slice) bool {
	return s.Name == o.Name && s.Service == o.Service && s.Family == o.Family &&
		slices.Equal(s.Ports, o.Ports) && slices.EqualFunc(s.Endpoints, o.Endpoints, Endpoint.Equal)
}

// Node is what is used of the node's own v1.Node.
type Node struct {
	Name string
	// Zone is the label topology.kubernetes.io/zone.
	Zone string
	// Addrs are the internal addresses, then the external ones, in the order of the object.
	Addrs []netip.Addr
	// PodCIDRs in the order of the object, masked.
	PodCIDRs []netip.Prefix
	// Deleting says that the Node has a deletion timestamp, or is gone.
	Deleting bool
	// ToBeDeleted says that the cluster autoscaler is about to remove the Node (taint
	// ToBeDeletedByClusterAutoscaler).
	ToBeDeleted bool
}

// Equal compares all fields.
func (n *Node) Equal(o *Node) bool {
	return n.Name == o.Name && n.Zone == o.Zone && n.Deleting == o.Deleting && n.ToBeDeleted == o.ToBeDeleted &&
		slices.Equal(n.Addrs, o.Addrs) && slices.Equal(n.PodCIDRs, o.PodCIDRs)
}

package benchtest

import (
	"fmt"
	"net/netip"

	"github.com/fairlead/fairlead/internal/cluster"
	"github.com/fairlead/fairlead/internal/compile"
	"github.com/fairlead/fairlead/internal/fwd"
)

// Size is the size of a cluster.
type Size struct {
	Services int
	// Endpoints are those of each Service.
	Endpoints int
}

// String is what a benchmark of that size is called.
func (s Size) String() string { return fmt.Sprintf("%dx%d", s.Services, s.Endpoints) }

// Sizes are the clusters that benchmarks are made for.
var Sizes = []Size{{1000, 10}, {10000, 10}, {50000, 5}}

// NodeName is the name of the node that everything is compiled for; it has its share of the
// endpoints.
const NodeName = "node-1"

// PodCIDR holds all endpoints of the clusters, ServiceCIDR all cluster IPs.
var (
	PodCIDR     = netip.MustParsePrefix("10.128.0.0/9")
	ServiceCIDR = netip.MustParsePrefix("10.96.0.0/12")
)

// nodes are as many as Kubernetes promises to work with 10 Services each and more.
const nodes = 500

// places are shared by the endpoints of a node, as kube shares them.
var places = func() (out [nodes]cluster.Place) {
	for i := range out {
		out[i] = cluster.Place{Node: fmt.Sprintf("node-%d", i), Zone: fmt.Sprintf("zone-%d", i%3)}
	}
	return out
}()

// Service is Service i.
func Service(i int) *cluster.Service {
	s := &cluster.Service{
		Name:        fwd.Service{Namespace: fmt.Sprintf("namespace-%d", i/20), Name: fmt.Sprintf("service-%d", i)},
		CreatedUnix: int64(i),
		Ports:       []cluster.ServicePort{{Name: "http", Protocol: fwd.TCP, Port: 80}},
	}
	s.ClusterIPs[fwd.IPv4.Index()] = netip.AddrFrom4([4]byte{10, byte(96 + i>>16), byte(i >> 8), byte(i)})
	return s
}

// Slice holds the endpoints of Service i, which no other Service has as long as all have as many.
func Slice(i, endpoints int) *cluster.Slice {
	name := Service(i).Name
	s := &cluster.Slice{
		Name:    cluster.SliceName{Namespace: name.Namespace, Name: name.Name + "-x7k2p"},
		Service: name,
		Family:  fwd.IPv4,
		Ports:   []cluster.SlicePort{{Name: "http", Protocol: fwd.TCP, Port: 8080}},
	}
	for e := range endpoints {
		n := i*endpoints + e
		s.Endpoints = append(s.Endpoints, cluster.Endpoint{
			Addr:  netip.AddrFrom4([4]byte{10, byte(128 + n>>16), byte(n >> 8), byte(n)}),
			Pod:   fmt.Sprintf("%s-6d4cf56db6-%05d", name.Name, e),
			Place: &places[n%nodes], Instance: uint32(n), Ready: true, Serving: true,
		})
	}
	return s
}

// Facts are those of the node.
func Facts() *compile.Facts {
	f := &compile.Facts{NodeName: NodeName, Zone: "zone-1"}
	f.DetectsPods[fwd.IPv4.Index()] = true
	return f
}

// Header is that of the node's table.
func Header() fwd.Header {
	h := fwd.Header{MasqueradeBit: 14, LocalAddrs: []netip.Addr{netip.MustParseAddr("192.168.0.2")}}
	h.Detector[fwd.IPv4.Index()].Prefix = PodCIDR
	h.NodePorts[fwd.IPv4.Index()] = fwd.NodePortAddrs{All: true, Loopback: true}
	h.ServiceCIDRs[fwd.IPv4.Index()] = []netip.Prefix{ServiceCIDR}
	return h
}

// Fragment is what Service i is compiled to. It panics if something of the Service could not be
// honoured.
func Fragment(i, endpoints int) *fwd.Fragment {
	f, problems := compile.Compile(Service(i), []*cluster.Slice{Slice(i, endpoints)}, Facts())
	if len(problems) > 0 {
		panic(fmt.Sprintf("BUG: %s: %v", f.Owner, problems))
	}
	return f
}

// Fragments are those of all Services.
func Fragments(s Size) []*fwd.Fragment {
	out := make([]*fwd.Fragment, s.Services)
	for i := range out {
		out[i] = Fragment(i, s.Endpoints)
	}
	return out
}

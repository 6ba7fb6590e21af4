package oracle

import (
	"fmt"
	"math/rand"
	"slices"

	v1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/fairlead/fairlead/internal/fwd"
)

// RandomOptions say what Random may make.
type RandomOptions struct {
	// Services is the number of Services, at least 1; 0 means from 1 to 6.
	Services int
	// Packets is the number of packets; 0 means 50.
	Packets int
	// ForKernel leaves out what network namespaces cannot carry out or what loops in them: sources
	// that nobody there can have (a node's packet from an interface, loopback sources from outside,
	// a source on the wrong side), SCTP packets, endpoints and external IPs that are not hosts of
	// the lab or that are frontends themselves, and clusters without the node. All addresses then
	// are of the lists below, so that a lab can build all of them beforehand.
	ForKernel bool
}

// The addresses of random clusters: few, so that collisions are common. IPv4 and IPv6 lists have
// the same meaning item by item. Pods of the node n1 come first in the lists of pods.
var (
	clusterIPs = [2][]string{
		{"172.30.0.1", "172.30.0.2", "172.30.0.3", "172.30.0.4", "172.30.0.5", "172.30.0.6"},
		{"fd30::1", "fd30::2", "fd30::3", "fd30::4", "fd30::5", "fd30::6"},
	}
	virtualIPs = [2][]string{
		{"1.2.3.4", "5.6.7.8", "192.168.99.11"},
		{"2001:db8:1::4", "2001:db8:1::8", "2001:db8:99::11"},
	}
	nodeIPs = [2][]string{
		{"192.168.0.2", "192.168.0.3", "192.168.0.4"},
		{"fd00:192::2", "fd00:192::3", "fd00:192::4"},
	}
	secondIPs = [2]string{"192.168.1.2", "fd00:193::2"}
	podIPs    = [2][]string{
		{"10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.1.2", "10.0.1.3", "10.0.2.2"},
		{"fd00:10::2", "fd00:10::3", "fd00:10::4", "fd00:10:0:1::2", "fd00:10:0:1::3", "fd00:10:0:2::2"},
	}
	podNodes   = []string{"n1", "n1", "n1", "n2", "n2", "n3"}
	outsideIPs = [2][]string{
		{"203.0.113.2", "203.0.113.130"},
		{"2001:db8:203::2", "2001:db8:203:1::2"},
	}
	podCIDRs = [2][]string{
		{"10.0.0.0/24", "10.0.1.0/24", "10.0.2.0/24"},
		{"fd00:10::/64", "fd00:10:0:1::/64", "fd00:10:0:2::/64"},
	}
	servicePorts = []int32{80, 443, 30001}
	nodePorts    = []int32{30001, 30002, 30003, 80}
	protocols    = []v1.Protocol{v1.ProtocolTCP, v1.ProtocolTCP, v1.ProtocolUDP, v1.ProtocolSCTP}
)

// The interfaces on which packets arrive at the node.
const (
	podInterface     = "veth1"
	outsideInterface = "eth0"
)

// dice makes the choices; a helper type to keep them short.
type dice struct {
	*rand.Rand
	opt RandomOptions
}

// one says yes once in n times.
func (d dice) one(n int) bool { return d.Intn(n) == 0 }

// fam is the index of a family: mostly IPv4.
func (d dice) fam() int {
	if d.one(3) {
		return 1
	}
	return 0
}

func pick[T any](d dice, from ...T) T { return from[d.Intn(len(from))] }

// some picks up to most values, the same one perhaps twice.
func some[T any](d dice, most int, from ...T) []T {
	var out []T
	for range d.Intn(most + 1) {
		out = append(out, pick(d, from...))
	}
	return out
}

// Random makes a cluster, the settings of its node n1 and packets that are likely to hit something.
// The same state of r and the same options give the same result. Whatever an API server would
// refuse, but a file or an old object can hold, may occur.
func Random(r *rand.Rand, opt RandomOptions) (*Cluster, *Config, []fwd.Packet) {
	d := dice{r, opt}
	c := &Cluster{Nodes: d.nodes()}
	cfg := d.config(c)
	n := opt.Services
	if n == 0 {
		n = 1 + d.Intn(6)
	}
	for i := range n {
		c.Services = append(c.Services, d.service(i))
	}
	for _, s := range c.Services {
		for i := range pick(d, 0, 1, 2, 2, 3, 3) {
			c.Slices = append(c.Slices, d.slice(s, i))
		}
	}
	if !d.opt.ForKernel && d.one(10) {
		c.Slices = append(c.Slices, d.slice(&v1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "gone"}}, 0))
	}
	packets := opt.Packets
	if packets == 0 {
		packets = 50
	}
	var out []fwd.Packet
	for range packets {
		out = append(out, d.packet(c, cfg))
	}
	if cfg.NFTables = d.one(4); cfg.NFTables {
		c.ServiceCIDRs = d.serviceCIDRs()
	}
	return c, cfg, out
}

// Mutate changes one object of the cluster: it adds, replaces or deletes a Service or a slice, or
// alters the node. Objects are replaced, never changed, so that a copy of the lists keeps the old
// state.
func Mutate(r *rand.Rand, c *Cluster) {
	d := dice{r, RandomOptions{}}
	switch d.Intn(8) {
	case 0:
		s := d.service(d.Intn(8))
		c.Services = replaceOrAdd(c.Services, s, func(o *v1.Service) bool { return o.Namespace == s.Namespace && o.Name == s.Name })
	case 1, 2:
		if len(c.Services) == 0 {
			return
		}
		i := d.Intn(len(c.Services))
		old := c.Services[i]
		s := d.service(0)
		s.Namespace, s.Name = old.Namespace, old.Name
		if d.one(2) {
			s.CreationTimestamp = old.CreationTimestamp
		}
		c.Services = slices.Replace(slices.Clone(c.Services), i, i+1, s)
	case 3:
		if len(c.Services) > 0 {
			i := d.Intn(len(c.Services))
			c.Services = slices.Delete(slices.Clone(c.Services), i, i+1)
		}
	case 4, 5, 6:
		if len(c.Services) == 0 {
			return
		}
		sl := d.slice(pick(d, c.Services...), d.Intn(3))
		if d.one(8) { // the slice goes over to another Service
			sl.Labels[discoveryv1.LabelServiceName] = pick(d, c.Services...).Name
		}
		c.Slices = replaceOrAdd(c.Slices, sl, func(o *discoveryv1.EndpointSlice) bool { return o.Namespace == sl.Namespace && o.Name == sl.Name })
	case 7:
		switch {
		case len(c.Slices) > 0 && d.one(2):
			i := d.Intn(len(c.Slices))
			c.Slices = slices.Delete(slices.Clone(c.Slices), i, i+1)
		default:
			c.Nodes = d.nodes()
		}
	}
}

func replaceOrAdd[T any](list []T, v T, same func(T) bool) []T {
	list = slices.Clone(list)
	if i := slices.IndexFunc(list, same); i >= 0 {
		list[i] = v
		return list
	}
	return append(list, v)
}

func (d dice) nodes() []*v1.Node {
	var out []*v1.Node
	for i, name := range []string{"n1", "n2", "n3"} {
		if name == "n1" && !d.opt.ForKernel && d.one(20) {
			continue
		}
		n := &v1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{v1.LabelHostname: name}}}
		switch zone := pick(d, "zone-a", "zone-a", "zone-b", "", "none"); zone {
		case "none":
		default:
			n.Labels[v1.LabelTopologyZone] = zone
		}
		families := pick(d, []int{0, 1}, []int{0, 1}, []int{0}, []int{1, 0}, []int{1})
		if d.opt.ForKernel {
			families = []int{0, 1}
		}
		n.Status.Addresses = []v1.NodeAddress{{Type: v1.NodeHostName, Address: name}}
		for _, f := range families {
			n.Status.Addresses = append(n.Status.Addresses, v1.NodeAddress{Type: v1.NodeInternalIP, Address: nodeIPs[f][i]})
			n.Spec.PodCIDRs = append(n.Spec.PodCIDRs, podCIDRs[f][i])
		}
		if name == "n1" && d.one(4) {
			// External addresses come after internal ones, wherever they are in the list.
			ext := v1.NodeAddress{Type: v1.NodeExternalIP, Address: secondIPs[d.fam()]}
			n.Status.Addresses = slices.Insert(n.Status.Addresses, 1, ext)
		}
		if d.one(8) {
			n.Spec.PodCIDRs = nil
		}
		if len(n.Spec.PodCIDRs) > 0 {
			n.Spec.PodCIDR = n.Spec.PodCIDRs[0]
		}
		out = append(out, n)
	}
	return out
}

// serviceCIDRs contain cluster IPs, and here and there other addresses; they overlap, and some are
// not ready.
func (d dice) serviceCIDRs() []*networkingv1.ServiceCIDR {
	var out []*networkingv1.ServiceCIDR
	for i := range d.Intn(4) {
		sc := &networkingv1.ServiceCIDR{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("cidr-%d", i)}}
		sc.Spec.CIDRs = pick(d, []string{"172.30.0.0/24"}, []string{"172.30.0.0/29", "fd30::/112"}, []string{"fd30::/125", "172.30.0.0/16"},
			[]string{"1.2.3.0/24"}, []string{"2001:db8::/32", "192.168.0.0/16"})
		if ready := pick(d, "", "True", "True", "False"); ready != "" {
			sc.Status.Conditions = []metav1.Condition{{Type: networkingv1.ServiceCIDRConditionReady, Status: metav1.ConditionStatus(ready)}}
		}
		out = append(out, sc)
	}
	return out
}

func (d dice) config(c *Cluster) *Config {
	cfg := &Config{
		NodeName:           "n1",
		DetectLocalMode:    pick(d, "", "ClusterCIDR", "ClusterCIDR", "ClusterCIDR", "NodeCIDR", "BridgeInterface", "InterfaceNamePrefix"),
		MasqueradeAll:      d.one(5),
		LocalhostNodePorts: !d.one(4),
		BridgeInterface:    podInterface,
		InterfacePrefix:    "veth",
		LocalAddresses:     []string{secondIPs[0], secondIPs[1]},
	}
	cfg.ClusterCIDRs = pick(d,
		[]string{"10.0.0.0/8", "fd00:10::/32"}, []string{"fd00:10::/32", "10.0.0.0/8"}, []string{"10.0.77.1/16"}, []string{"10.0.0.0/16"},
		[]string{"fd00:10::/48"}, []string{"192.168.0.0/16", "fd00::/16"}, []string{"0.0.0.0/0"}, nil)
	cfg.NodePortAddresses = pick(d, nil, nil, nil, nil,
		[]string{"192.168.0.0/24"}, []string{"192.168.1.77/24", "fd00:192::/32"}, []string{"fd00:193::2/128"}, []string{"127.0.0.0/8", "192.168.0.0/16"},
		[]string{"127.0.0.1/32"}, []string{"127.0.0.2/32"}, []string{"10.9.8.7/0"}, []string{"::/0", "1.2.3.4/32"}, []string{"::1/128"},
		[]string{"primary"}, []string{"primary"}, []string{"primary", "localhost"}, []string{"localhost"}, []string{"localhost", "192.168.1.0/24"},
		[]string{"all"}, []string{"primary", "all"}, []string{"primary", "fd00:193::/64"}, []string{"8.8.8.8/32"})
	cfg.BindAddress = pick(d, "", "", "", "0.0.0.0", "::", secondIPs[0], secondIPs[1], nodeIPs[0][0])
	if !d.opt.ForKernel && d.one(20) {
		cfg.BindAddress = pick(d, "127.0.0.1", "::1", "198.51.100.1")
	}
	for f := range 2 {
		if d.one(3) {
			cfg.LocalAddresses = append(cfg.LocalAddresses, pick(d, virtualIPs[f]...))
		}
		if d.opt.ForKernel { // the lab's interfaces have these whatever the Node object says
			cfg.LocalAddresses = append(cfg.LocalAddresses, nodeIPs[f][0])
		}
	}
	for _, gate := range []string{"AllowServiceExternalIPs", "PreferSameTrafficDistribution", "LoadBalancerIPMode"} {
		if d.one(6) {
			if cfg.Gates == nil {
				cfg.Gates = make(map[string]bool)
			}
			cfg.Gates[gate] = d.one(4)
		}
	}
	if d.opt.ForKernel && cfg.DetectLocalMode == "NodeCIDR" && len(c.Nodes[0].Spec.PodCIDRs) == 0 {
		cfg.DetectLocalMode = "ClusterCIDR" // a daemon would not start
	}
	return cfg
}

// serviceName gives Services few names, in namespaces whose order differs from that of the joined
// text.
func serviceName(i int) metav1.ObjectMeta {
	return metav1.ObjectMeta{Namespace: []string{"ns", "ns-b", "a"}[i%3], Name: fmt.Sprintf("s%d", i)}
}

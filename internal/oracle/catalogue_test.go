package oracle

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/fairlead/fairlead/internal/fwd"
)

// The sources of the catalogue of cases, as "address" or "address%interface".
const (
	srcPod  = "10.0.0.2%veth1"
	srcNode = "192.168.0.2"
	srcAlt  = "192.168.1.2"
	srcLo   = "127.0.0.1"
	srcExt  = "203.0.113.2%eth0"
	srcBlk  = "203.0.113.130%eth0"
)

// fixture is a node n1 in zone-a with two addresses, others beside it, and a detector by cluster
// CIDR.
func fixture() (*Cluster, *Config) {
	c := &Cluster{Nodes: []*v1.Node{
		node("n1", "zone-a", "192.168.0.2"), node("n2", "zone-a", "192.168.0.3"), node("n3", "zone-b", "192.168.0.4"),
	}}
	c.Nodes[0].Spec.PodCIDRs = []string{"10.0.0.0/24"}
	return c, &Config{NodeName: "n1", ClusterCIDRs: []string{"10.0.0.0/8"}, LocalhostNodePorts: true, LocalAddresses: []string{srcAlt}}
}

func node(name, zone, addr string) *v1.Node {
	return &v1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{v1.LabelTopologyZone: zone}},
		Status:     v1.NodeStatus{Addresses: []v1.NodeAddress{{Type: v1.NodeInternalIP, Address: addr}}},
	}
}

// svc makes a Service with one TCP port, unnamed; fields is a list of settings like "np=3001
// lb=1.2.3.4 etp=Local".
func svc(name, clusterIP, fields string) *v1.Service {
	s := &v1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name}}
	s.Spec = v1.ServiceSpec{Type: v1.ServiceTypeClusterIP, ClusterIP: clusterIP, ClusterIPs: []string{clusterIP}, Ports: []v1.ServicePort{{Port: 80, Protocol: v1.ProtocolTCP}}}
	for _, f := range strings.Fields(fields) {
		key, value, _ := strings.Cut(f, "=")
		switch key {
		case "type":
			s.Spec.Type = v1.ServiceType(value)
		case "np":
			fmt.Sscan(value, &s.Spec.Ports[0].NodePort)
		case "lb":
			s.Status.LoadBalancer.Ingress = append(s.Status.LoadBalancer.Ingress, v1.LoadBalancerIngress{IP: value})
		case "ext":
			s.Spec.ExternalIPs = append(s.Spec.ExternalIPs, value)
		case "range":
			s.Spec.LoadBalancerSourceRanges = append(s.Spec.LoadBalancerSourceRanges, value)
		case "etp":
			s.Spec.ExternalTrafficPolicy = v1.ServiceExternalTrafficPolicy(value)
		case "itp":
			p := v1.ServiceInternalTrafficPolicy(value)
			s.Spec.InternalTrafficPolicy = &p
		default:
			panic("field " + f)
		}
	}
	return s
}

func loadBalancer(name, clusterIP, fields string) *v1.Service {
	return svc(name, clusterIP, "type=LoadBalancer "+fields)
}

// eps makes a slice of a Service from endpoints like "10.0.1.1@n1:ST/zone-a,zone-b/n1,n2": address,
// node, state, zone hints and node hints; all but the address may be left out. States are those of
// the catalogue: R, ST, NT, NR, nil.
func eps(s *v1.Service, specs string) *discoveryv1.EndpointSlice {
	port, proto, name := int32(80), v1.ProtocolTCP, ""
	sl := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: s.Namespace, Name: s.Name + "-1", Labels: map[string]string{discoveryv1.LabelServiceName: s.Name}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: &name, Port: &port, Protocol: &proto}},
	}
	if strings.Count(specs, ":") > 2*len(strings.Fields(specs)) {
		sl.AddressType = discoveryv1.AddressTypeIPv6
	}
	for _, spec := range strings.Fields(specs) {
		parts := strings.Split(spec, "/")
		addr, rest, _ := strings.Cut(parts[0], "@")
		onNode, state, _ := strings.Cut(rest, ":")
		e := discoveryv1.Endpoint{Addresses: []string{addr}, Conditions: conditions(state)}
		if onNode != "" {
			e.NodeName = &onNode
		}
		for i, names := range parts[1:] {
			if e.Hints == nil {
				e.Hints = &discoveryv1.EndpointHints{}
			}
			for _, n := range strings.FieldsFunc(names, func(r rune) bool { return r == ',' }) {
				if i == 0 {
					e.Hints.ForZones = append(e.Hints.ForZones, discoveryv1.ForZone{Name: n})
				} else {
					e.Hints.ForNodes = append(e.Hints.ForNodes, discoveryv1.ForNode{Name: n})
				}
			}
		}
		sl.Endpoints = append(sl.Endpoints, e)
	}
	return sl
}

func conditions(state string) discoveryv1.EndpointConditions {
	set := func(ready, serving, terminating bool) discoveryv1.EndpointConditions {
		return discoveryv1.EndpointConditions{Ready: &ready, Serving: &serving, Terminating: &terminating}
	}
	switch state {
	case "", "nil":
		return discoveryv1.EndpointConditions{}
	case "R":
		return set(true, true, false)
	case "ST":
		return set(false, true, true)
	case "NT":
		return set(false, false, true)
	case "NR":
		return set(false, false, false)
	case "NRserving":
		return set(false, true, false)
	}
	panic("state " + state)
}

// packet reads "source>destination" or "source>destination/proto", the source as in the constants
// above.
func packet(t *testing.T, text string) fwd.Packet {
	t.Helper()
	from, to, ok := strings.Cut(text, ">")
	if !ok {
		t.Fatalf("packet %q has no >", text)
	}
	to, proto, ok := strings.Cut(to, "/")
	if !ok {
		proto = "tcp"
	}
	src, iface, _ := strings.Cut(from, "%")
	p, err := fwd.ParseProto(proto)
	if err != nil {
		t.Fatal(err)
	}
	return fwd.Packet{Src: netip.MustParseAddr(src), Dst: netip.MustParseAddrPort(to), Proto: p, InInterface: iface}
}

// brief writes an answer as the catalogue does: "10.0.1.1 10.0.1.2 m"; ports only if they are not
// 80.
func brief(a Answer) string {
	if a.Verdict != fwd.VerdictForward {
		return strings.ToUpper(a.Verdict.String())
	}
	var words, marks []string
	for _, e := range a.Endpoints {
		word, mark := e.Addr().String(), "u"
		if e.Port() != 80 {
			word = e.String()
		}
		if a.Masquerade[e] {
			mark = "m"
		}
		words, marks = append(words, word), append(marks, mark)
	}
	if strings.Count(strings.Join(marks, ""), marks[0]) == len(marks) {
		marks = marks[:1]
	}
	return strings.Join(words, " ") + " " + strings.Join(marks, "")
}

// check judges packets: flows is "source>destination" and the wanted brief answer in turn.
func check(t *testing.T, id string, c *Cluster, cfg *Config, flows ...string) {
	t.Helper()
	for i := 0; i < len(flows); i += 2 {
		a := Judge(c, cfg, packet(t, flows[i]))
		if got := brief(a); got != flows[i+1] {
			t.Errorf("%s: %s: got %s, want %s", id, flows[i], got, flows[i+1])
		}
	}
}

// TestMasqueradeMatrix is group M of the catalogue: each flow with a detector, without one, and
// with masqueradeAll.
func TestMasqueradeMatrix(t *testing.T) {
	c, cfg := fixture()
	svc1 := loadBalancer("svc1", "172.30.0.41", "np=3001 lb=1.2.3.4")
	svc2 := loadBalancer("svc2", "172.30.0.42", "np=3002 lb=5.6.7.8 etp=Local")
	svc3 := loadBalancer("svc3", "172.30.0.43", "np=3003 lb=9.10.11.12 itp=Local")
	both := svc("both", "172.30.0.44", "type=LoadBalancer lb=1.2.3.5 itp=Local etp=Local")
	c.Services = []*v1.Service{svc1, svc2, svc3, both}
	for i, s := range c.Services {
		c.Slices = append(c.Slices, eps(s, fmt.Sprintf("10.180.0.%d@n1:R 10.180.1.%d@n2:R", i+1, i+1)))
	}
	noDetector, masqAll, neither := *cfg, *cfg, *cfg
	noDetector.ClusterCIDRs, neither.ClusterCIDRs = nil, nil
	masqAll.MasqueradeAll, neither.MasqueradeAll = true, true
	nodeCIDR, iface := *cfg, *cfg
	nodeCIDR.DetectLocalMode = "NodeCIDR"
	iface.DetectLocalMode, iface.InterfacePrefix = "InterfaceNamePrefix", "veth"

	const (
		l1r1 = "10.180.0.1 10.180.1.1 "
		l2r2 = "10.180.0.2 10.180.1.2 "
		l3r3 = "10.180.0.3 10.180.1.3 "
		l2   = "10.180.0.2 "
		l3   = "10.180.0.3 "
	)
	cases := []struct{ id, flow, base, noDetector, masqAll string }{
		{"M01", srcPod + ">172.30.0.41:80", l1r1 + "u", l1r1 + "u", l1r1 + "m"},
		{"M02", srcPod + ">192.168.0.2:3001", l1r1 + "m", l1r1 + "m", l1r1 + "m"},
		{"M03", srcPod + ">1.2.3.4:80", l1r1 + "m", l1r1 + "m", l1r1 + "m"},
		{"M04", srcNode + ">172.30.0.41:80", l1r1 + "m", l1r1 + "u", l1r1 + "m"},
		{"M05", srcNode + ">192.168.0.2:3001", l1r1 + "m", l1r1 + "m", l1r1 + "m"},
		{"M06", srcLo + ">127.0.0.1:3001", l1r1 + "m", l1r1 + "m", l1r1 + "m"},
		{"M07", srcNode + ">1.2.3.4:80", l1r1 + "m", l1r1 + "m", l1r1 + "m"},
		{"M08", srcExt + ">172.30.0.41:80", l1r1 + "m", l1r1 + "u", l1r1 + "m"},
		{"M09", srcExt + ">192.168.0.2:3001", l1r1 + "m", l1r1 + "m", l1r1 + "m"},
		{"M10", srcExt + ">1.2.3.4:80", l1r1 + "m", l1r1 + "m", l1r1 + "m"},
		{"M11", srcPod + ">172.30.0.42:80", l2r2 + "u", l2r2 + "u", l2r2 + "m"},
		{"M12", srcPod + ">192.168.0.2:3002", l2r2 + "u", l2 + "u", l2r2 + "u"},
		{"M13", srcPod + ">5.6.7.8:80", l2r2 + "u", l2 + "u", l2r2 + "u"},
		{"M14", srcNode + ">172.30.0.42:80", l2r2 + "m", l2r2 + "u", l2r2 + "m"},
		{"M15", srcNode + ">192.168.0.2:3002", l2r2 + "m", l2r2 + "m", l2r2 + "m"},
		{"M16", srcLo + ">127.0.0.1:3002", l2r2 + "m", l2r2 + "m", l2r2 + "m"},
		{"M17", srcNode + ">5.6.7.8:80", l2r2 + "m", l2r2 + "m", l2r2 + "m"},
		{"M18", srcExt + ">172.30.0.42:80", l2r2 + "m", l2r2 + "u", l2r2 + "m"},
		{"M19", srcExt + ">192.168.0.2:3002", l2 + "u", l2 + "u", l2 + "u"},
		{"M20", srcExt + ">5.6.7.8:80", l2 + "u", l2 + "u", l2 + "u"},
		{"M21", srcPod + ">172.30.0.43:80", l3 + "u", l3 + "u", l3 + "m"},
		{"M22", srcPod + ">192.168.0.2:3003", l3r3 + "m", l3r3 + "m", l3r3 + "m"},
		{"M23", srcPod + ">9.10.11.12:80", l3r3 + "m", l3r3 + "m", l3r3 + "m"},
		{"M24", srcNode + ">172.30.0.43:80", l3 + "m", l3 + "u", l3 + "m"},
		{"M25", srcNode + ">192.168.0.2:3003", l3r3 + "m", l3r3 + "m", l3r3 + "m"},
		{"M26", srcLo + ">127.0.0.1:3003", l3r3 + "m", l3r3 + "m", l3r3 + "m"},
		{"M27", srcNode + ">9.10.11.12:80", l3r3 + "m", l3r3 + "m", l3r3 + "m"},
		{"M28", srcExt + ">172.30.0.43:80", l3 + "m", l3 + "u", l3 + "m"},
		{"M29", srcExt + ">192.168.0.2:3003", l3r3 + "m", l3r3 + "m", l3r3 + "m"},
		{"M30", srcExt + ">9.10.11.12:80", l3r3 + "m", l3r3 + "m", l3r3 + "m"},
		{"M32", "10.0.9.9%eth0>192.168.0.2:3002", l2r2 + "u", l2 + "u", l2r2 + "u"},
		{"M35", srcPod + ">1.2.3.5:80", "10.180.0.4 10.180.1.4 u", "10.180.0.4 u", "10.180.0.4 10.180.1.4 u"},
	}
	for _, tc := range cases {
		t.Run(tc.id, func(t *testing.T) {
			check(t, "base", c, cfg, tc.flow, tc.base)
			check(t, "no detector", c, &noDetector, tc.flow, tc.noDetector)
			check(t, "masqueradeAll", c, &masqAll, tc.flow, tc.masqAll)
		})
	}
	check(t, "M31", c, &neither, srcPod+">192.168.0.2:3002", l2+"u", srcPod+">5.6.7.8:80", l2+"u")
	check(t, "M33", c, &nodeCIDR, "10.0.9.9%eth0>192.168.0.2:3002", l2+"u")
	check(t, "M34", c, &iface, "203.0.113.2%veth7>5.6.7.8:80", l2r2+"u")
}

// story is one cluster state of the catalogue with the packets that are asked about it.
type story struct {
	ids     string
	service *v1.Service
	// endpoints is as eps takes it; empty means no slice at all.
	endpoints string
	// edit changes the fixture, nil for nothing.
	edit func(c *Cluster, cfg *Config)
	// flows is a packet and the wanted answer in turn.
	flows []string
}

func runStories(t *testing.T, stories []story) {
	t.Helper()
	for _, st := range stories {
		t.Run(st.ids, func(t *testing.T) {
			c, cfg := fixture()
			c.Services = []*v1.Service{st.service}
			if st.endpoints != "" {
				c.Slices = []*discoveryv1.EndpointSlice{eps(st.service, st.endpoints)}
			}
			if st.edit != nil {
				st.edit(c, cfg)
			}
			check(t, st.ids, c, cfg, st.flows...)
		})
	}
}

const (
	toCluster  = ">172.30.0.41:80"
	toVIP      = ">1.2.3.4:80"
	toExternal = ">192.168.99.11:80"
	toNode     = ">192.168.0.2:3001"
)

// TestPolicies is group P: missing endpoints and traffic policies.
func TestPolicies(t *testing.T) {
	plain := func() *v1.Service { return svc("s", "172.30.0.41", "") }
	lb := func(fields string) *v1.Service { return loadBalancer("s", "172.30.0.41", "np=3001 lb=1.2.3.4 "+fields) }
	runStories(t, []story{
		{ids: "P01 P02", service: plain(), flows: []string{srcPod + toCluster, "REJECT", srcNode + toCluster, "REJECT"}},
		{ids: "P04 P05", service: lb("ext=192.168.99.11"), flows: []string{
			srcExt + toNode, "REJECT", srcExt + toExternal, "REJECT", srcExt + toVIP, "REJECT",
			srcPod + toNode, "REJECT", srcPod + toExternal, "REJECT", srcPod + toVIP, "REJECT",
			srcNode + toNode, "REJECT", srcNode + toExternal, "REJECT", srcNode + toVIP, "REJECT"}},
		{ids: "P07", service: plain(), endpoints: "10.0.1.1@n1:NR 10.0.1.2@n1:NRserving", flows: []string{srcPod + toCluster, "REJECT"}},
		{ids: "P08", service: lb(""), endpoints: "10.0.1.1@n1:NT", flows: []string{srcPod + toCluster, "REJECT", srcExt + toVIP, "REJECT"}},
		{ids: "P10 P20", service: lb("itp=Local"), endpoints: "10.0.1.2@n2:R", flows: []string{
			srcNode + toCluster, "DROP", srcPod + toCluster, "DROP", srcPod + toVIP, "10.0.1.2 m"}},
		{ids: "P11", service: svc("s", "172.30.0.41", "itp=Local"), endpoints: "10.0.1.1@n1:R 10.0.1.2@n2:R 10.0.1.3@n3:R", flows: []string{
			srcPod + toCluster, "10.0.1.1 u"}},
		{ids: "P10 without external frontends", service: svc("s", "172.30.0.41", "itp=Local"), endpoints: "10.0.1.2@n2:R", flows: []string{
			srcNode + toCluster, "DROP", srcExt + toCluster, "DROP"}},
		{ids: "P13", service: svc("s", "172.30.0.41", "itp=Local"), flows: []string{srcPod + toCluster, "REJECT"}},
		{ids: "P14 P16 P17", service: lb("etp=Local"), endpoints: "10.0.1.2@n2:R", flows: []string{
			srcExt + toVIP, "DROP", srcExt + toNode, "DROP", srcNode + toVIP, "10.0.1.2 m", srcNode + toNode, "10.0.1.2 m", srcPod + toCluster, "10.0.1.2 u"}},
		{ids: "P19", service: svc("s", "172.30.0.41", "type=NodePort np=3001"), endpoints: "10.0.1.1@n1:R 10.0.1.2@n2:R 10.0.1.3@n3:R", flows: []string{
			srcExt + toNode, "10.0.1.1 10.0.1.2 10.0.1.3 m"}},
		{ids: "P22", service: svc("s", "172.30.0.41", "ext=192.168.99.11 etp=Local"), endpoints: "10.0.1.2@n2:R", flows: []string{
			srcExt + toExternal, "DROP"}},
		{ids: "P22 with an external IP of the other family", service: svc("s", "172.30.0.41", "lb=1.2.3.4 ext=fd00::1 etp=Local"), endpoints: "10.0.1.2@n2:R",
			flows: []string{srcExt + toVIP, "DROP"}},
		{ids: "P23", service: svc("s", "172.30.0.41", "lb=1.2.3.4 etp=Local"), endpoints: "10.0.1.2@n2:R", flows: []string{srcExt + toVIP, "10.0.1.2 m"}},
		{ids: "P25", service: plain(), endpoints: "10.0.1.1@n1:R", edit: func(c *Cluster, _ *Config) {
			c.Services[0].Spec.Ports = []v1.ServicePort{{Name: "a", Port: 80}, {Name: "b", Port: 81}}
			a := "a"
			c.Slices[0].Ports[0].Name = &a
		}, flows: []string{srcPod + toCluster, "10.0.1.1 u", srcPod + ">172.30.0.41:81", "REJECT"}},
		{ids: "eTP Local without an external frontend has no effect", service: svc("s", "172.30.0.41", "type=NodePort etp=Local"), endpoints: "10.0.1.2@n2:R",
			flows: []string{srcExt + toCluster, "10.0.1.2 m"}},
	})
}

// TestTerminating is group T. The states of T03 and T06, which the catalogue only refers to, are
// filled in from the rules.
func TestTerminating(t *testing.T) {
	local := func() *v1.Service { return loadBalancer("s", "172.30.0.41", "lb=1.2.3.4 etp=Local") }
	runStories(t, []story{
		{ids: "T01 T02", service: local(), endpoints: "10.0.1.1@n1:R 10.0.1.2@n1:R 10.0.1.3@n1:ST 10.0.1.4@n1:NT 10.0.1.5@n2:R", flows: []string{
			srcPod + toCluster, "10.0.1.1 10.0.1.2 10.0.1.5 u", srcExt + toVIP, "10.0.1.1 10.0.1.2 u"}},
		{ids: "T04 T05", service: local(), endpoints: "10.0.1.1@n1:NT 10.0.1.2@n1:ST 10.0.1.3@n1:ST 10.0.1.4@n1:NR 10.0.1.5@n2:R", flows: []string{
			srcExt + toVIP, "10.0.1.2 10.0.1.3 u", srcPod + toVIP, "10.0.1.5 u", srcNode + toVIP, "10.0.1.5 m"}},
		{ids: "T07", service: local(), endpoints: "10.0.1.4@n1:NT 10.0.1.5@n2:R", flows: []string{srcExt + toVIP, "DROP"}},
		{ids: "T08", service: local(), endpoints: "10.0.1.4@n1:NT 10.0.1.5@n2:NT", flows: []string{srcPod + toCluster, "REJECT", srcExt + toVIP, "REJECT"}},
		{ids: "T10", service: loadBalancer("s", "172.30.0.41", "lb=1.2.3.4"), endpoints: "10.0.1.2@n1:ST 10.0.1.3@n1:ST 10.0.1.4@n2:NT 10.0.1.5@n2:ST", flows: []string{
			srcPod + toCluster, "10.0.1.2 10.0.1.3 10.0.1.5 u", srcExt + toVIP, "10.0.1.2 10.0.1.3 10.0.1.5 m"}},
		{ids: "T11", service: loadBalancer("s", "172.30.0.41", "lb=1.2.3.4"), endpoints: "10.0.1.5@n2:ST", flows: []string{
			srcPod + toCluster, "10.0.1.5 u", srcExt + toVIP, "10.0.1.5 m"}},
		{ids: "T13", service: svc("s", "172.30.0.41", "itp=Local"), endpoints: "10.0.1.1@n1:NT 10.0.1.2@n2:R", flows: []string{srcPod + toCluster, "DROP"}},
		{ids: "T14", service: svc("s", "172.30.0.41", "itp=Local"), endpoints: "10.0.1.1@n1:R 10.0.1.2@n1:ST", flows: []string{srcPod + toCluster, "10.0.1.1 u"}},
		{ids: "T17", service: svc("s", "172.30.0.41", ""), endpoints: "10.0.1.1@n1:nil", flows: []string{srcPod + toCluster, "10.0.1.1 u"}},
	})
}

// TestTopology is group Z.
func TestTopology(t *testing.T) {
	plain := svc("s", "172.30.0.41", "lb=1.2.3.4")
	const z01 = "10.0.1.1@n2:R/zone-a 10.0.1.2@n2:R/zone-b 10.0.1.3@n2:R/zone-c 10.0.1.4@n2:R/zone-a"
	const z13 = "10.0.1.1@n1:R/zone-a/n1 10.0.1.2@n2:R/zone-a/n2 10.0.1.3@n3:R/zone-b/n3"
	zone := func(z string) func(*Cluster, *Config) {
		return func(c *Cluster, _ *Config) { c.Nodes[0].Labels[v1.LabelTopologyZone] = z }
	}
	runStories(t, []story{
		{ids: "Z01 Z02 Z19", service: plain, endpoints: z01, flows: []string{srcPod + toCluster, "10.0.1.1 10.0.1.4 u", srcExt + toVIP, "10.0.1.1 10.0.1.4 m"}},
		{ids: "Z04", service: plain, endpoints: z01, edit: zone("zone-x"), flows: []string{srcPod + toCluster, "10.0.1.1 10.0.1.2 10.0.1.3 10.0.1.4 u"}},
		{ids: "Z05", service: plain, endpoints: "10.0.1.1@n2:R/zone-a 10.0.1.2@n2:R/zone-b 10.0.1.3@n2:R/zone-c 10.0.1.4@n2:R", flows: []string{
			srcPod + toCluster, "10.0.1.1 10.0.1.2 10.0.1.3 10.0.1.4 u"}},
		{ids: "Z07", service: plain, endpoints: "10.0.1.1@n2:R/zone-a 10.0.1.2@n2:R/zone-b 10.0.1.3@n2:NR", flows: []string{srcPod + toCluster, "10.0.1.1 u"}},
		{ids: "Z08", service: plain, endpoints: "10.0.1.1@n2:R/zone-a,zone-b 10.0.1.2@n2:R/zone-b,zone-c 10.0.1.3@n2:R/zone-c", flows: []string{
			srcPod + toCluster, "10.0.1.1 u"}},
		{ids: "Z10", service: svc("s", "172.30.0.41", "itp=Local"), endpoints: "10.0.1.1@n2:R/zone-a 10.0.1.2@n1:R/zone-b", flows: []string{srcPod + toCluster, "10.0.1.2 u"}},
		{ids: "Z11", service: plain, endpoints: "10.0.1.1@n2:ST/zone-a 10.0.1.2@n2:ST/zone-b", flows: []string{srcPod + toCluster, "10.0.1.1 10.0.1.2 u"}},
		{ids: "Z13", service: plain, endpoints: z13, flows: []string{srcPod + toCluster, "10.0.1.1 u"}},
		{ids: "Z14", service: plain, endpoints: "10.0.1.1@n1:NR/zone-a/n1 10.0.1.2@n2:R/zone-a/n2 10.0.1.3@n3:R/zone-b/n3", flows: []string{srcPod + toCluster, "10.0.1.2 u"}},
		{ids: "Z16", service: plain, endpoints: "10.0.1.2@n2:R//n2 10.0.1.3@n3:R//n3", flows: []string{srcPod + toCluster, "10.0.1.2 10.0.1.3 u"}},
		{ids: "Z17", service: plain, endpoints: z13, edit: func(_ *Cluster, cfg *Config) {
			cfg.Gates = map[string]bool{"PreferSameTrafficDistribution": false}
		}, flows: []string{srcPod + toCluster, "10.0.1.1 10.0.1.2 u"}},
		{ids: "Z20", service: plain, endpoints: z01, edit: zone("zone-b"), flows: []string{srcPod + toCluster, "10.0.1.2 u"}},
	})
}

// TestLoadBalancers is group L: load-balancer addresses with their source ranges, and external IPs.
func TestLoadBalancers(t *testing.T) {
	const ranges = "range=192.168.0.0/24 range=203.0.113.0/25 "
	const e = "10.180.0.1"
	svcR := func(fields string) *v1.Service {
		return loadBalancer("r", "172.30.0.41", "np=3001 lb=1.2.3.4 "+fields)
	}
	vipIsLocal := func(_ *Cluster, cfg *Config) { cfg.LocalAddresses = append(cfg.LocalAddresses, "1.2.3.4") }
	proxy := v1.LoadBalancerIPModeProxy
	runStories(t, []story{
		{ids: "L01 L02 L04 L05", service: svcR(ranges), endpoints: e + "@n1:R", flows: []string{
			srcExt + toVIP, e + " m", srcBlk + toVIP, "DROP", srcPod + toCluster, e + " u", srcBlk + toNode, e + " m", srcPod + toVIP, "DROP"}},
		{ids: "L07", service: svcR(ranges), endpoints: e + "@n1:R", edit: vipIsLocal, flows: []string{"1.2.3.4" + toVIP, e + " m"}},
		{ids: "L08", service: svcR("range=203.0.113.0/25"), endpoints: e + "@n1:R", edit: vipIsLocal, flows: []string{
			srcNode + toVIP, "DROP", "1.2.3.4" + toVIP, "DROP"}},
		{ids: "L10", service: svcR(ranges + "ext=192.168.99.11"), endpoints: e + "@n1:R", flows: []string{srcBlk + toExternal, e + " m"}},
		{ids: "L10 with the load-balancer IP", service: svcR(ranges + "ext=1.2.3.4"), endpoints: e + "@n1:R", flows: []string{
			srcExt + toVIP, e + " m", srcBlk + toVIP, "DROP"}},
		{ids: "L10 with the cluster IP", service: svcR(ranges + "lb=172.30.0.41"), endpoints: e + "@n1:R", flows: []string{
			srcExt + toCluster, e + " m", srcBlk + toCluster, "DROP", srcPod + toCluster, "DROP"}},
		{ids: "L11", service: svcR(ranges), flows: []string{srcBlk + toVIP, "DROP", srcExt + toVIP, "REJECT"}},
		{ids: "L13", service: svcR(ranges + "etp=Local"), endpoints: "10.180.1.1@n2:R", flows: []string{srcExt + toVIP, "DROP", srcNode + toVIP, "10.180.1.1 m"}},
		{ids: "L14", service: svcR("range=2001:db8::/32"), endpoints: e + "@n1:R", flows: []string{srcExt + toVIP, e + " m"}},
		{ids: "L17", service: svcR(""), endpoints: e + "@n1:R", edit: func(c *Cluster, _ *Config) {
			c.Services[0].Status.LoadBalancer.Ingress[0].IPMode = &proxy
		}, flows: []string{srcPod + toVIP, "PASS", srcPod + toCluster, e + " u", srcExt + toNode, e + " m"}},
		{ids: "L17 with the gate off", service: svcR(""), endpoints: e + "@n1:R", edit: func(c *Cluster, cfg *Config) {
			c.Services[0].Status.LoadBalancer.Ingress[0].IPMode = &proxy
			cfg.Gates = map[string]bool{"LoadBalancerIPMode": false}
		}, flows: []string{srcPod + toVIP, e + " m"}},
		{ids: "L19", service: svcR(""), endpoints: e + "@n1:R", edit: func(c *Cluster, _ *Config) {
			c.Services[0].Status.LoadBalancer.Ingress = []v1.LoadBalancerIngress{{Hostname: "lb.example"}}
		}, flows: []string{srcPod + toVIP, "PASS", srcExt + toNode, e + " m"}},
		{ids: "L20", service: svcR("lb=1.2.3.5"), endpoints: e + "@n1:R", edit: func(c *Cluster, _ *Config) {
			c.Services[0].Status.LoadBalancer.Ingress[0].IPMode = &proxy
		}, flows: []string{srcPod + toVIP, "PASS", srcPod + ">1.2.3.5:80", e + " m"}},
		{ids: "L22", service: svc("s", "172.30.0.41", "ext=1.2.3.4"), endpoints: e + "@n1:R", flows: []string{srcNode + toVIP, e + " m"}},
		{ids: "L23", service: svc("s", "172.30.0.41", ""), endpoints: e + "@n1:R", edit: func(c *Cluster, _ *Config) {
			c.Services[0].Spec.ExternalIPs = []string{"", "foo", "010.001.002.003"}
		}, flows: []string{srcPod + ">10.1.2.3:80", e + " m", srcPod + ">8.1.2.3:80", "PASS"}},
		{ids: "L25", service: svc("s", "172.30.0.41", "ext=192.168.99.11"), endpoints: e + "@n1:R", edit: func(_ *Cluster, cfg *Config) {
			cfg.Gates = map[string]bool{"AllowServiceExternalIPs": false}
		}, flows: []string{srcExt + toExternal, "PASS"}},
		{ids: "L26", service: svcR(""), endpoints: e + "@n1:R", edit: func(c *Cluster, _ *Config) {
			sctp := v1.ProtocolSCTP
			c.Services[0].Spec.Ports[0].Protocol, c.Slices[0].Ports[0].Protocol = sctp, &sctp
		}, flows: []string{srcExt + toVIP + "/sctp", e + " m", srcExt + toVIP, "PASS"}},
	})
}

// TestNodePorts is group N, as far as it is about the iptables mode.
func TestNodePorts(t *testing.T) {
	const e = "10.180.0.1"
	np := func() *v1.Service { return svc("s", "172.30.0.41", "type=NodePort np=3001 lb=1.2.3.4") }
	list := func(entries ...string) func(*Cluster, *Config) {
		return func(_ *Cluster, cfg *Config) { cfg.NodePortAddresses = entries }
	}
	run := func(ids string, edit func(*Cluster, *Config), flows ...string) story {
		return story{ids: ids, service: np(), endpoints: e + "@n1:R", edit: edit, flows: flows}
	}
	const toAlt, toLo = ">192.168.1.2:3001", ">127.0.0.1:3001"
	runStories(t, []story{
		run("N01 N05", nil, srcExt+toNode, e+" m", srcExt+toAlt, e+" m", srcLo+toLo, e+" m", srcExt+">192.168.0.3:3001", "PASS"),
		run("N04", list("192.168.0.0/24"), srcLo+toLo, "PASS", srcExt+toNode, e+" m", srcExt+toAlt, "PASS"),
		run("N05 switched off", func(_ *Cluster, cfg *Config) { cfg.LocalhostNodePorts = false }, srcLo+toLo, "PASS", srcExt+toLo, "PASS", srcExt+toNode, e+" m"),
		run("N07", list("127.0.0.0/8", "192.168.0.0/24"), srcLo+toLo, e+" m"),
		run("N10", list("2001:db8::/64"), srcExt+toNode, e+" m", srcExt+toAlt, e+" m"),
		run("N11", nil, srcExt+toLo, "DROP", srcExt+">127.0.0.1:9", "DROP", srcLo+">127.0.0.1:9", "PASS"),
		run("N14", func(_ *Cluster, cfg *Config) { cfg.LocalAddresses = append(cfg.LocalAddresses, "1.2.3.4") }, srcExt+">1.2.3.4:3001", e+" m"),
		run("primary", list("primary"), srcExt+toNode, e+" m", srcExt+toAlt, "PASS", srcLo+toLo, "PASS"),
		run("primary is the bind address", func(_ *Cluster, cfg *Config) {
			cfg.NodePortAddresses, cfg.BindAddress = []string{"primary"}, srcAlt
		}, srcExt+toNode, "PASS", srcExt+toAlt, e+" m"),
		run("primary of an unknown node", func(c *Cluster, cfg *Config) {
			c.Nodes, cfg.NodePortAddresses = nil, []string{"primary"}
		}, srcExt+toAlt, "PASS", srcLo+toLo, "PASS"),
		run("keywords", list("primary", "localhost"), srcExt+toNode, e+" m", srcExt+toAlt, "PASS", srcLo+toLo, e+" m"),
		run("all", list("10.9.9.9/32", "all"), srcExt+toAlt, e+" m", srcLo+toLo, e+" m"),
		run("zero length with other bits", list("10.0.0.0/0"), srcExt+toAlt, e+" m"),
		run("wrong protocol", nil, srcExt+toNode+"/udp", "PASS"),
		{ids: "N08", service: svc("s", "fd30::41", "type=NodePort np=3001"), endpoints: "fd00:10::1@n1:R", edit: func(c *Cluster, _ *Config) {
			c.Nodes[0].Status.Addresses = append(c.Nodes[0].Status.Addresses, v1.NodeAddress{Type: v1.NodeInternalIP, Address: "2001:db8::2"})
		}, flows: []string{"::1>[::1]:3001", "PASS", "2001:db8:9::1>[2001:db8::2]:3001", "fd00:10::1 m"}},
		{ids: "N13", service: np(), endpoints: e + "@n1:R", edit: func(c *Cluster, _ *Config) {
			udp, name, port := v1.ProtocolUDP, "u", int32(81)
			c.Services[0].Spec.Ports = append(c.Services[0].Spec.Ports, v1.ServicePort{Name: name, Port: 80, Protocol: udp, NodePort: 3001})
			c.Slices[0].Ports = append(c.Slices[0].Ports, discoveryv1.EndpointPort{Name: &name, Port: &port, Protocol: &udp})
		}, flows: []string{srcExt + toNode, e + " m", srcExt + toNode + "/udp", e + ":81 m"}},
		{ids: "N19", service: svc("s", "172.30.0.41", "np=3002"), endpoints: e + "@n1:R", flows: []string{srcExt + toNode, "PASS", srcExt + ">192.168.0.2:3002", e + " m"}},
	})
}

// TestObjectSelection is group O: which objects and which of their entries count.
func TestObjectSelection(t *testing.T) {
	plain := func() *v1.Service { return svc("s", "172.30.0.41", "") }
	const e = "10.0.1.1@n1:R"
	on := func(ids string, edit func(*Cluster, *Config), flows ...string) story {
		return story{ids: ids, service: plain(), endpoints: e, edit: edit, flows: flows}
	}
	proxyName := map[string]string{"service.kubernetes.io/service-proxy-name": "foo"}
	zero := int32(0)
	runStories(t, []story{
		on("O01", func(c *Cluster, _ *Config) { c.Services[0].Labels = proxyName }, srcPod+toCluster, "PASS"),
		on("O02", func(c *Cluster, _ *Config) {
			c.Slices[0].Labels["service.kubernetes.io/service-proxy-name"] = ""
		}, srcPod+toCluster, "REJECT"),
		on("O04", func(c *Cluster, _ *Config) {
			c.Services[0].Spec.ClusterIP, c.Services[0].Spec.Ports[0].NodePort = "None", 3001
		}, srcPod+toCluster, "PASS", srcExt+toNode, "PASS"),
		on("O05", func(c *Cluster, _ *Config) { c.Services[0].Spec.Type = v1.ServiceTypeExternalName }, srcPod+toCluster, "PASS"),
		on("O07", func(c *Cluster, _ *Config) { c.Slices[0].Ports[0].Name = nil }, srcPod+toCluster, "REJECT"),
		on("O08 nil", func(c *Cluster, _ *Config) { c.Slices[0].Ports[0].Port = nil }, srcPod+toCluster, "REJECT"),
		on("O08 zero", func(c *Cluster, _ *Config) { c.Slices[0].Ports[0].Port = &zero }, srcPod+toCluster, "REJECT"),
		on("O10", func(c *Cluster, _ *Config) {
			c.Slices[0].Endpoints[0].Addresses = []string{"10.0.1.1", "10.0.1.2"}
		}, srcPod+toCluster, "10.0.1.1 u"),
		on("O11", func(c *Cluster, _ *Config) {
			again := eps(c.Services[0], e)
			again.Name = "s-2"
			c.Slices = append(c.Slices, again)
		}, srcPod+toCluster, "10.0.1.1 u"),
		on("O14", func(c *Cluster, _ *Config) { c.Slices[0].AddressType = discoveryv1.AddressTypeFQDN }, srcPod+toCluster, "REJECT"),
		on("slice of a Service with a longer name", func(c *Cluster, _ *Config) {
			c.Slices[0].Labels[discoveryv1.LabelServiceName] = "s2"
		}, srcPod+toCluster, "REJECT"),
		{ids: "O16 O17", service: plain(), endpoints: "fd00:10::1@n1:R", edit: func(c *Cluster, cfg *Config) {
			spec := &c.Services[0].Spec
			spec.ClusterIP, spec.ClusterIPs = "fd30::41", []string{"fd30::41", "172.30.0.41"}
			spec.IPFamilies = []v1.IPFamily{v1.IPv6Protocol, v1.IPv4Protocol}
			cfg.ClusterCIDRs = append(cfg.ClusterCIDRs, "fd00:10::/64")
		}, flows: []string{srcPod + toCluster, "REJECT", "fd00:10::9%veth1>[fd30::41]:80", "fd00:10::1 u"}},
		{ids: "O19", service: loadBalancer("s", "172.30.0.41", "lb=1.2.3.4 etp=Local"), endpoints: "10.0.1.1", flows: []string{srcExt + toVIP, "DROP"}},
		{ids: "O20", service: svc("s", "172.30.0.41", "itp=Local"), endpoints: "192.168.0.2@n1:R", edit: func(c *Cluster, _ *Config) {
			port := int32(8080)
			c.Slices[0].Ports[0].Port = &port
		}, flows: []string{srcPod + toCluster, "192.168.0.2:8080 u", srcNode + toCluster, "192.168.0.2:8080 m"}},
		{ids: "O22", service: plain(), endpoints: e, edit: func(c *Cluster, _ *Config) {
			other := svc("t", "172.30.0.42", "")
			c.Services, c.Slices = append(c.Services, other), append(c.Slices, eps(other, e))
		}, flows: []string{srcPod + toCluster, "10.0.1.1 u", srcPod + ">172.30.0.42:80", "10.0.1.1 u"}},
		{ids: "O25", service: plain(), endpoints: "10.0.1.1@n1:NR", flows: []string{srcPod + toCluster, "REJECT"}},
		{ids: "O26", service: svc("s", "172.30.0.41", "lb=1.2.3.4"), endpoints: "198.51.100.7", flows: []string{
			srcPod + toCluster, "198.51.100.7 u", srcExt + toVIP, "198.51.100.7 m"}},
	})
}

// TestHairpin is group H, as far as it is about packets.
func TestHairpin(t *testing.T) {
	plain := func() *v1.Service { return svc("s", "172.30.0.41", "") }
	noDetector := func(_ *Cluster, cfg *Config) { cfg.ClusterCIDRs = nil }
	runStories(t, []story{
		{ids: "H01 H05", service: plain(), endpoints: "10.0.0.2@n1:R", flows: []string{srcPod + toCluster, "10.0.0.2 m", srcPod + ">10.0.0.2:80", "PASS"}},
		{ids: "H02", service: plain(), endpoints: "10.0.0.2@n1:R 10.0.0.3@n1:R", flows: []string{srcPod + toCluster, "10.0.0.2 10.0.0.3 mu"}},
		{ids: "H04", service: plain(), endpoints: "10.0.0.2@n1:R", edit: noDetector, flows: []string{srcPod + toCluster, "10.0.0.2 m"}},
	})
}

// TestDecisions checks what the contract leaves open and package doc decides.
func TestDecisions(t *testing.T) {
	old, older := metav1.Unix(2000, 0), metav1.Unix(1000, 0)
	claim := func(namespace, name, ip string, created metav1.Time) *v1.Service {
		s := svc(name, ip, "ext=192.168.99.11")
		s.Namespace, s.CreationTimestamp = namespace, created
		return s
	}
	c, cfg := fixture()
	a, b, other := claim("a-b", "x", "172.30.0.41", old), claim("a", "z", "172.30.0.42", old), claim("z", "z", "172.30.0.43", older)
	for _, s := range []*v1.Service{a, b, other} {
		c.Slices = append(c.Slices, eps(s, "10.0.1."+strings.TrimPrefix(s.Spec.ClusterIP, "172.30.0.")+"@n1:R"))
	}
	c.Services = []*v1.Service{a, b}
	check(t, "smaller namespace wins", c, cfg, srcExt+toExternal, "10.0.1.42 m", srcPod+toCluster, "10.0.1.41 u")
	c.Services = []*v1.Service{a, b, other}
	check(t, "older wins", c, cfg, srcExt+toExternal, "10.0.1.43 m")

	runStories(t, []story{
		{ids: "node in the cluster CIDR is a pod", service: svc("s", "172.30.0.41", ""), endpoints: "10.0.1.1@n1:R",
			edit:  func(_ *Cluster, cfg *Config) { cfg.ClusterCIDRs = []string{"192.168.0.0/16"} },
			flows: []string{srcNode + toCluster, "10.0.1.1 u", srcPod + toCluster, "10.0.1.1 m"}},
		{ids: "no frontend and no endpoint on special addresses", service: svc("s", "172.30.0.41", "ext=127.0.0.5 ext=224.0.0.1 lb=0.0.0.0"), endpoints: "127.0.0.1@n1:R 0.0.0.0@n1:R 10.0.1.1@n1:R",
			flows: []string{srcPod + toCluster, "10.0.1.1 u", srcLo + ">127.0.0.5:80", "PASS", srcExt + ">224.0.0.1:80", "PASS"}},
		{ids: "local duplicate replaces a remote one", service: svc("s", "172.30.0.41", "itp=Local"), endpoints: "10.0.1.1@n2:R 10.0.1.1@n1:R 10.0.1.1@n1:NR",
			flows: []string{srcPod + toCluster, "10.0.1.1 u"}},
		{ids: "the smaller slice name wins among remote duplicates", service: svc("s", "172.30.0.41", ""), endpoints: "10.0.1.1@n2:NR", edit: func(c *Cluster, _ *Config) {
			first := eps(c.Services[0], "10.0.1.1@n2:R")
			first.Name = "s-0"
			c.Slices = append(c.Slices, first)
		}, flows: []string{srcPod + toCluster, "10.0.1.1 u"}},
		{ids: "external IP on the node beats a node port", service: svc("s", "172.30.0.41", "ext=192.168.0.2"), edit: func(c *Cluster, _ *Config) {
			other := svc("t", "172.30.0.42", "np=80")
			c.Services, c.Slices = append(c.Services, other), append(c.Slices, eps(other, "10.0.1.1@n1:R"))
		}, flows: []string{srcExt + ">192.168.0.2:80", "REJECT", srcExt + ">192.168.1.2:80", "10.0.1.1 m"}},
	})
}

// TestParse checks the reading of addresses and CIDRs, which the cases above take for granted.
func TestParse(t *testing.T) {
	for text, want := range map[string]string{
		"1.2.3.4": "1.2.3.4", "010.008.000.255": "10.8.0.255", "::1": "::1", "::ffff:1.2.3.4": "1.2.3.4",
		"": "", " 1.2.3.4": "", "1.2.3": "", "1.2.3.256": "", "1.2.3.-4": "", "0x1.2.3.4": "", "fe80::1%eth0": "", "foo": "",
	} {
		if a, ok := parseAddr(text); ok != (want != "") || ok && a.String() != want {
			t.Errorf("parseAddr(%q) = %v, %v; want %q", text, a, ok, want)
		}
	}
	for text, want := range map[string]string{
		"10.1.2.3/8": "10.0.0.0/8", "010.0.0.0/08": "10.0.0.0/8", "fd00::1/64": "fd00::/64", "1.2.3.4/0": "0.0.0.0/0",
		"1.2.3.4": "", "1.2.3.4/33": "", "/8": "", "1.2.3.4/": "", "fd00::/129": "",
	} {
		if p, ok := parsePrefix(text); ok != (want != "") || ok && p.String() != want {
			t.Errorf("parsePrefix(%q) = %v, %v; want %q", text, p, ok, want)
		}
	}
}

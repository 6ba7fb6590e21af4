package oracle

import (
	"fmt"

	v1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func (d dice) service(i int) *v1.Service {
	s := &v1.Service{ObjectMeta: serviceName(i)}
	s.CreationTimestamp = metav1.Unix(pick(d, int64(1000), 1000, 2000, 3000), 0)
	s.Spec.Type = pick(d, v1.ServiceTypeClusterIP, v1.ServiceTypeNodePort, v1.ServiceTypeNodePort, v1.ServiceTypeLoadBalancer, v1.ServiceTypeLoadBalancer)
	if !d.opt.ForKernel && d.one(15) {
		s.Spec.Type = pick(d, v1.ServiceTypeExternalName, "")
	}
	if d.one(20) {
		s.Labels = map[string]string{pick(d, "service.kubernetes.io/service-proxy-name", "service.kubernetes.io/headless"): pick(d, "", "x")}
	}
	d.clusterIPsOf(s)
	d.portsOf(s)
	d.externalsOf(s)
	if d.one(3) {
		p := pick(d, v1.ServiceInternalTrafficPolicyLocal, v1.ServiceInternalTrafficPolicyLocal, v1.ServiceInternalTrafficPolicyCluster)
		s.Spec.InternalTrafficPolicy = &p
	}
	s.Spec.ExternalTrafficPolicy = pick(d, "", v1.ServiceExternalTrafficPolicyCluster, v1.ServiceExternalTrafficPolicyLocal, v1.ServiceExternalTrafficPolicyLocal)
	if s.Spec.ExternalTrafficPolicy == v1.ServiceExternalTrafficPolicyLocal && d.one(2) {
		s.Spec.HealthCheckNodePort = pick(d, int32(31000), 31001, 0)
	}
	switch d.Intn(6) {
	case 0:
		s.Spec.SessionAffinity = v1.ServiceAffinityClientIP
		sec := pick(d, int32(10), 10800)
		s.Spec.SessionAffinityConfig = &v1.SessionAffinityConfig{ClientIP: &v1.ClientIPConfig{TimeoutSeconds: &sec}}
	case 1:
		s.Spec.SessionAffinity = v1.ServiceAffinityClientIP
		s.Spec.SessionAffinityConfig = pick(d, nil, &v1.SessionAffinityConfig{}, &v1.SessionAffinityConfig{ClientIP: &v1.ClientIPConfig{}})
	}
	return s
}

// clusterIPsOf sets clusterIP, clusterIPs and ipFamilies: single and dual stack, in both orders,
// and inconsistent ones.
func (d dice) clusterIPsOf(s *v1.Service) {
	families := []v1.IPFamily{v1.IPv4Protocol, v1.IPv6Protocol}
	spec := &s.Spec
	i := d.Intn(len(clusterIPs[0]))
	first := d.fam()
	spec.ClusterIP = clusterIPs[first][i]
	spec.ClusterIPs = []string{spec.ClusterIP}
	switch d.Intn(5) {
	case 0: // an object from before dual stack
		if d.one(2) {
			spec.ClusterIPs = nil
		}
	case 1, 2:
		spec.IPFamilies = []v1.IPFamily{families[first]}
	default:
		spec.ClusterIPs = append(spec.ClusterIPs, clusterIPs[1-first][i])
		spec.IPFamilies = []v1.IPFamily{families[first], families[1-first]}
	}
	if d.opt.ForKernel || !d.one(10) {
		return
	}
	switch d.Intn(4) {
	case 0:
		spec.ClusterIP, spec.ClusterIPs = v1.ClusterIPNone, []string{v1.ClusterIPNone}
	case 1:
		spec.ClusterIP, spec.ClusterIPs = "", nil
	case 2: // fewer addresses than families
		spec.IPFamilies = []v1.IPFamily{families[first], families[1-first]}
		spec.ClusterIPs = spec.ClusterIPs[:min(1, len(spec.ClusterIPs))]
	case 3: // written as old clients did
		spec.ClusterIP, spec.ClusterIPs, spec.IPFamilies = "172.030.000.001", []string{"172.030.000.001"}, families[:1]
	}
}

func (d dice) portsOf(s *v1.Service) {
	type key struct {
		proto v1.Protocol
		port  int32
	}
	taken := make(map[key]bool)
	for i := range 1 + d.Intn(3) {
		p := v1.ServicePort{Protocol: pick(d, protocols...), Port: pick(d, servicePorts...)}
		if i > 0 || d.one(2) {
			p.Name = fmt.Sprintf("p%d", i)
		}
		if taken[key{p.Protocol, p.Port}] {
			continue
		}
		taken[key{p.Protocol, p.Port}] = true
		if p.Protocol == v1.ProtocolTCP && !d.opt.ForKernel && d.one(10) {
			p.Protocol = ""
		}
		if s.Spec.Type != v1.ServiceTypeClusterIP && !d.one(5) {
			p.NodePort = pick(d, nodePorts...)
		}
		s.Spec.Ports = append(s.Spec.Ports, p)
	}
}

// externalsOf sets external IPs, ingress addresses and source ranges; they collide with one
// another, with cluster IPs of other Services and with addresses of the node.
func (d dice) externalsOf(s *v1.Service) {
	for f := range 2 {
		choices := append([]string{secondIPs[f], nodeIPs[f][0]}, virtualIPs[f]...)
		if !d.opt.ForKernel {
			choices = append(choices, pick(d, clusterIPs[f]...), podIPs[f][0], pick(d, "", " ", "foo", "010.001.002.003", "127.0.0.5", "0.0.0.0", "224.0.0.1", "::1", "ff02::1", "::ffff:1.2.3.4", " 1.2.3.4"))
		}
		if d.one(3) {
			s.Spec.ExternalIPs = append(s.Spec.ExternalIPs, some(d, 2, choices...)...)
		}
		if s.Spec.Type != v1.ServiceTypeLoadBalancer && !d.one(8) {
			continue
		}
		for _, ip := range some(d, 2, choices...) {
			in := v1.LoadBalancerIngress{IP: ip}
			switch d.Intn(5) {
			case 0:
				mode := v1.LoadBalancerIPModeProxy
				in.IPMode = &mode
			case 1:
				mode := v1.LoadBalancerIPModeVIP
				in.IPMode = &mode
			case 2:
				in.Hostname = "lb.example"
			}
			s.Status.LoadBalancer.Ingress = append(s.Status.LoadBalancer.Ingress, in)
		}
	}
	if d.one(2) {
		return
	}
	s.Spec.LoadBalancerSourceRanges = some(d, 3,
		"203.0.113.0/25", " 203.0.113.77/25\t", "2001:db8:203::/64", "192.168.0.0/24", "192.168.1.2/32", "fd00:192::/64", "fd00:193::2/128",
		"10.0.0.0/16", "10.0.0.2/32", "fd00:10::/64", "1.2.3.4/32", "127.0.0.0/8", "::1/128", "0.0.0.0/0", "::/0", "", "10.0.0.0", "foo/8", "010.0.0.0/16", "203.0.113.0/33")
}

func (d dice) slice(s *v1.Service, i int) *discoveryv1.EndpointSlice {
	f := d.fam()
	if a, ok := parseAddr(s.Spec.ClusterIP); ok && d.one(2) {
		f = familyOf(a)
	}
	sl := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: s.Namespace, Name: fmt.Sprintf("%s-%d", s.Name, i), Labels: map[string]string{discoveryv1.LabelServiceName: s.Name}},
		AddressType: []discoveryv1.AddressType{discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv6}[f],
	}
	if d.one(25) {
		sl.Labels[pick(d, "service.kubernetes.io/service-proxy-name", "service.kubernetes.io/headless")] = ""
	}
	if !d.opt.ForKernel && d.one(25) {
		switch d.Intn(3) {
		case 0:
			sl.AddressType = discoveryv1.AddressTypeFQDN
		case 1:
			delete(sl.Labels, discoveryv1.LabelServiceName)
		case 2:
			sl.Labels[discoveryv1.LabelServiceName] = ""
		}
	}
	for _, p := range s.Spec.Ports {
		if !d.one(10) {
			sl.Ports = append(sl.Ports, d.slicePort(p))
		}
	}
	if d.one(6) {
		sl.Ports = append(sl.Ports, d.slicePort(v1.ServicePort{Name: pick(d, "", "p1", "other"), Protocol: pick(d, protocols...)}))
	}
	hints := d.Intn(4)
	for range d.Intn(5) {
		sl.Endpoints = append(sl.Endpoints, d.endpoint(f, hints))
	}
	return sl
}

func (d dice) slicePort(p v1.ServicePort) discoveryv1.EndpointPort {
	name, proto, port := p.Name, p.Protocol, pick(d, int32(8080), 8080, 8080, 80, 9090)
	if proto == "" {
		proto = v1.ProtocolTCP
	}
	out := discoveryv1.EndpointPort{Name: &name, Protocol: &proto, Port: &port}
	if d.opt.ForKernel || !d.one(12) {
		return out
	}
	switch d.Intn(5) {
	case 0:
		out.Name = nil
	case 1:
		out.Port = nil
	case 2:
		port = 0
	case 3:
		if proto == v1.ProtocolTCP {
			out.Protocol = nil
		}
	case 4:
		port = 70000
	}
	return out
}

// endpoint makes an entry. hints is 0 for none, 1 for zones, 2 for zones and nodes, 3 for a mixture
// with gaps.
func (d dice) endpoint(f, hints int) discoveryv1.Endpoint {
	i := d.Intn(len(podIPs[f]))
	addr, node := podIPs[f][i], podNodes[i]
	if d.one(8) { // a pod in the host's network
		i = d.Intn(len(nodeIPs[f]))
		addr, node = nodeIPs[f][i], []string{"n1", "n2", "n3"}[i]
	}
	e := discoveryv1.Endpoint{Addresses: []string{addr}, NodeName: &node}
	if !d.opt.ForKernel {
		d.odd(&e, f)
	}
	d.state(&e)
	if hints == 0 || hints == 3 && d.one(4) {
		return e
	}
	e.Hints = &discoveryv1.EndpointHints{}
	for _, z := range some(d, 2, "zone-a", "zone-b", "zone-a") {
		e.Hints.ForZones = append(e.Hints.ForZones, discoveryv1.ForZone{Name: z})
	}
	if len(e.Hints.ForZones) == 0 && hints != 3 {
		e.Hints.ForZones = []discoveryv1.ForZone{{Name: "zone-a"}}
	}
	if !d.opt.ForKernel && d.one(20) {
		e.Hints.ForZones = []discoveryv1.ForZone{{Name: ""}}
	}
	if hints >= 2 && !d.one(6) {
		e.Hints.ForNodes = []discoveryv1.ForNode{{Name: node}}
		if d.one(4) {
			e.Hints.ForNodes = append(e.Hints.ForNodes, discoveryv1.ForNode{Name: "n1"})
		}
	}
	return e
}

// odd spoils an entry now and then: no node or another one, several or no addresses, the wrong
// family, special addresses.
func (d dice) odd(e *discoveryv1.Endpoint, f int) {
	switch d.Intn(40) {
	case 0, 1:
		e.NodeName = nil
	case 2, 3:
		other := pick(d, "n1", "n2", "")
		e.NodeName = &other
	case 4:
		e.Addresses = nil
	case 5:
		e.Addresses = append(e.Addresses, podIPs[f][1])
	case 6:
		e.Addresses = []string{podIPs[1-f][0]}
	case 7:
		e.Addresses = []string{pick(d, "127.0.0.1", "::1", "0.0.0.0", "ff02::1", "224.0.0.1", "foo", "::ffff:10.0.0.2", "010.000.000.002")}
	case 8:
		e.Addresses = []string{pick(d, virtualIPs[f]...)}
	case 9:
		e.Addresses = []string{pick(d, clusterIPs[f]...)}
	}
}

// state sets the conditions: mostly ready or terminating while serving, sometimes any combination
// with gaps.
func (d dice) state(e *discoveryv1.Endpoint) {
	yes, no := true, false
	switch d.Intn(8) {
	case 0, 1, 2:
		e.Conditions = discoveryv1.EndpointConditions{Ready: &yes, Serving: &yes, Terminating: &no}
	case 3, 4:
		e.Conditions = discoveryv1.EndpointConditions{Ready: &no, Serving: &yes, Terminating: &yes}
	case 5:
		e.Conditions = discoveryv1.EndpointConditions{Ready: &no, Serving: &no, Terminating: &no}
	default:
		e.Conditions = discoveryv1.EndpointConditions{Ready: pick(d, nil, &yes, &no), Serving: pick(d, nil, &yes, &no), Terminating: pick(d, nil, &yes, &no)}
	}
}

package kube

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"

	"github.com/fairlead/fairlead/internal/cluster"
	"github.com/fairlead/fairlead/internal/fwd"
)

// Labels that take a Service or an EndpointSlice away from this proxy, whatever their values are.
const (
	labelProxyName = "service.kubernetes.io/service-proxy-name"
	labelHeadless  = v1.IsHeadlessService
)

// ConvertOptions are the settings that selection and conversion depend on.
type ConvertOptions struct {
	// AllLBIPsAreVIPs ignores ipMode of load balancer addresses (feature gate LoadBalancerIPMode off).
	AllLBIPsAreVIPs bool
	// ServiceProxyName selects the Services that carry label service.kubernetes.io/service-proxy-name with this value,
	// instead of those that carry none.
	ServiceProxyName string
}

// serviceSelector selects Services by their labels, sliceSelector EndpointSlices. With a ServiceProxyName all slices are
// taken, since those that were made by hand need not carry the labels of their Service.
func (c ConvertOptions) serviceSelector() string {
	if c.ServiceProxyName != "" {
		return labelProxyName + "=" + c.ServiceProxyName + ",!" + labelHeadless
	}
	return "!" + labelProxyName + ",!" + labelHeadless
}

func (c ConvertOptions) sliceSelector() string {
	if c.ServiceProxyName != "" {
		return "!" + labelHeadless
	}
	return c.serviceSelector()
}

// takesService says of labels what serviceSelector selects, takesSlice what sliceSelector does.
func (c ConvertOptions) takesService(labels map[string]string) bool {
	name, named := labels[labelProxyName]
	_, headless := labels[labelHeadless]
	return !headless && name == c.ServiceProxyName && named == (c.ServiceProxyName != "")
}

func (c ConvertOptions) takesSlice(labels map[string]string) bool {
	_, named := labels[labelProxyName]
	_, headless := labels[labelHeadless]
	return !headless && (!named || c.ServiceProxyName != "")
}

// The limits of sessionAffinityConfig.clientIP.timeoutSeconds and its default, from the API's validation.
const (
	defaultAffinitySec = 10800
	maxAffinitySec     = 86400
)

// ConvertService reads a Service. It returns nil where the Service is not handled at all: headless, ExternalName, without a
// name or without a valid cluster IP of a family that it names. Problems name each field that was set aside.
func ConvertService(s *v1.Service, o ConvertOptions) (*cluster.Service, []Problem) {
	return convertService(s, o, nil)
}

func convertService(s *v1.Service, o ConvertOptions, in *interner) (*cluster.Service, []Problem) {
	if s == nil || s.Spec.Type == v1.ServiceTypeExternalName || s.Spec.ClusterIP == "" || s.Spec.ClusterIP == v1.ClusterIPNone {
		return nil, nil
	}
	p := &problems{object: "Service " + s.Namespace + "/" + s.Name}
	if s.Name == "" || s.Namespace == "" {
		p.add("metadata", "name or namespace is missing")
		return nil, p.all()
	}
	ips := clusterIPs(&s.Spec, p)
	if !ips[0].IsValid() && !ips[1].IsValid() {
		return nil, p.all()
	}
	v := &cluster.Service{
		Name:            fwd.Service{Namespace: in.str(s.Namespace), Name: s.Name},
		Type:            serviceType(s.Spec.Type, p),
		ClusterIPs:      ips,
		Ports:           servicePorts(s.Spec.Ports, in, p),
		ExternalIPs:     externalIPs(s.Spec.ExternalIPs, p),
		LoadBalancerIPs: ingressIPs(s.Status.LoadBalancer.Ingress, o, p),
		SourceRanges:    sourceRanges(s.Spec.LoadBalancerSourceRanges, p),
		ExternalLocal:   isLocal("spec.externalTrafficPolicy", s.Spec.ExternalTrafficPolicy, p),
		AffinitySec:     affinity(&s.Spec, p),
		Critical:        critical(s, p),
		Weights:         weights(s.Annotations, p),
	}
	v.Scheduler, v.SchedulerFlags = scheduler(s.Annotations, p)
	if !s.CreationTimestamp.IsZero() {
		v.CreatedUnix = s.CreationTimestamp.Unix()
	}
	if s.Spec.InternalTrafficPolicy != nil {
		v.InternalLocal = isLocal("spec.internalTrafficPolicy", *s.Spec.InternalTrafficPolicy, p)
	}
	if port, ok := optionalPort(s.Spec.HealthCheckNodePort); ok {
		v.HealthCheckNodePort = port
	} else {
		p.add("spec.healthCheckNodePort", portMessage(s.Spec.HealthCheckNodePort))
	}
	return v, p.all()
}

// clusterIPs finds the cluster IP of each family the way kube-proxy does: by the index of the family, and only where the
// Service names no families (written before dual-stack) by looking at the address.
func clusterIPs(spec *v1.ServiceSpec, p *problems) (ips [2]netip.Addr) {
	if len(spec.IPFamilies) == 0 {
		if a, ok := parseAddr(spec.ClusterIP); ok {
			ips[fwd.FamilyOf(a).Index()] = a
		} else {
			p.add("spec.clusterIP", clip(spec.ClusterIP)+" is not an IP address")
		}
		return ips
	}
	for i, family := range spec.IPFamilies {
		if family != v1.IPv4Protocol && family != v1.IPv6Protocol {
			p.item("spec.ipFamilies", i, "", clip(family)+" is not a family")
			continue
		}
		want := 0
		if family == v1.IPv6Protocol {
			want = 1
		}
		if ips[want].IsValid() || i >= len(spec.ClusterIPs) {
			continue
		}
		a, ok := parseAddr(spec.ClusterIPs[i])
		switch {
		case !ok:
			p.item("spec.clusterIPs", i, "", clip(spec.ClusterIPs[i])+" is not an IP address")
		case fwd.FamilyOf(a).Index() != want:
			p.item("spec.clusterIPs", i, "", fmt.Sprintf("%s is not an %s address", a, family))
		default:
			ips[want] = a
		}
	}
	return ips
}

func serviceType(t v1.ServiceType, p *problems) cluster.ServiceType {
	switch t {
	case v1.ServiceTypeNodePort:
		return cluster.TypeNodePort
	case v1.ServiceTypeLoadBalancer:
		return cluster.TypeLoadBalancer
	case v1.ServiceTypeClusterIP, "":
		return cluster.TypeClusterIP
	}
	p.add("spec.type", clip(t)+" is not known, read as ClusterIP")
	return cluster.TypeClusterIP
}

// servicePorts reads and sorts the ports. A name, a port or a node port can be taken once per protocol: the first keeps it.
func servicePorts(ports []v1.ServicePort, in *interner, p *problems) []cluster.ServicePort {
	const list = "spec.ports"
	type nameKey struct {
		name     string
		protocol fwd.Proto
	}
	type portKey struct {
		protocol fwd.Proto
		port     uint16
		nodePort bool
	}
	names, taken := make(map[nameKey]bool, len(ports)), make(map[portKey]bool, len(ports))
	out := make([]cluster.ServicePort, 0, len(ports))
	for i := range ports {
		protocol, ok := protocolOf(ports[i].Protocol)
		if !ok {
			p.item(list, i, ".protocol", clip(ports[i].Protocol)+" is not known")
			continue
		}
		port, ok := optionalPort(ports[i].Port)
		if !ok || port == 0 {
			p.item(list, i, ".port", portMessage(ports[i].Port))
			continue
		}
		if names[nameKey{ports[i].Name, protocol}] {
			p.item(list, i, ".name", clip(ports[i].Name)+" is the name of an earlier port")
			continue
		}
		if taken[portKey{protocol, port, false}] {
			p.item(list, i, ".port", fmt.Sprintf("%d is taken by an earlier port", port))
			continue
		}
		nodePort, ok := optionalPort(ports[i].NodePort)
		if !ok {
			p.item(list, i, ".nodePort", portMessage(ports[i].NodePort))
		} else if nodePort != 0 && taken[portKey{protocol, nodePort, true}] {
			p.item(list, i, ".nodePort", fmt.Sprintf("%d is taken by an earlier port", nodePort))
			nodePort = 0
		}
		names[nameKey{ports[i].Name, protocol}] = true
		taken[portKey{protocol, port, false}] = true
		taken[portKey{protocol, nodePort, true}] = true
		out = append(out, cluster.ServicePort{Name: in.str(ports[i].Name), Protocol: protocol, Port: port, NodePort: nodePort})
	}
	slices.SortFunc(out, func(a, b cluster.ServicePort) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.Port, b.Port))
	})
	return out
}

// externalIPs keeps the order of the object; blank entries are tolerated as kube-proxy does.
func externalIPs(in []string, p *problems) []netip.Addr {
	var out []netip.Addr
	seen := make(map[netip.Addr]bool, len(in))
	for i, s := range in {
		if strings.TrimSpace(s) == "" {
			continue
		}
		a, ok := parseAddr(s)
		if !ok {
			p.item("spec.externalIPs", i, "", clip(s)+" is not an IP address")
			continue
		}
		if !seen[a] {
			seen[a] = true
			out = append(out, a)
		}
	}
	return out
}

// ingressIPs returns the addresses that this node should answer for, sorted; entries with a host name alone have none.
func ingressIPs(in []v1.LoadBalancerIngress, o ConvertOptions, p *problems) []netip.Addr {
	const list = "status.loadBalancer.ingress"
	var out []netip.Addr
	for i := range in {
		if strings.TrimSpace(in[i].IP) == "" {
			continue
		}
		if mode := in[i].IPMode; mode != nil && *mode != v1.LoadBalancerIPModeVIP && !o.AllLBIPsAreVIPs {
			if *mode != v1.LoadBalancerIPModeProxy {
				p.item(list, i, ".ipMode", clip(*mode)+" is not known")
			}
			continue
		}
		a, ok := parseAddr(in[i].IP)
		if !ok {
			p.item(list, i, ".ip", clip(in[i].IP)+" is not an IP address")
			continue
		}
		out = append(out, a)
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return slices.Compact(out)
}

// sourceRanges trims, masks and sorts. That nothing valid remains means no restriction, as with kube-proxy.
func sourceRanges(in []string, p *problems) []netip.Prefix {
	var out []netip.Prefix
	for i, s := range in {
		s = strings.TrimSpace(s)
		if s == "" {
			continue
		}
		prefix, ok := parsePrefix(s)
		if !ok {
			p.item("spec.loadBalancerSourceRanges", i, "", clip(s)+" is not a CIDR")
			continue
		}
		out = append(out, prefix)
	}
	slices.SortFunc(out, comparePrefixes)
	return slices.Compact(out)
}

func comparePrefixes(a, b netip.Prefix) int {
	return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
}

// isLocal reads a traffic policy; the empty one is Cluster.
func isLocal[P ~string](field string, policy P, p *problems) bool {
	switch string(policy) {
	case "Local":
		return true
	case "Cluster", "":
	default:
		p.add(field, clip(policy)+" is not known, read as Cluster")
	}
	return false
}

// affinity returns the seconds of session affinity, 0 for none.
func affinity(spec *v1.ServiceSpec, p *problems) uint32 {
	switch spec.SessionAffinity {
	case v1.ServiceAffinityClientIP:
	case v1.ServiceAffinityNone, "":
		return 0
	default:
		p.add("spec.sessionAffinity", clip(spec.SessionAffinity)+" is not known, read as None")
		return 0
	}
	if spec.SessionAffinityConfig == nil || spec.SessionAffinityConfig.ClientIP == nil ||
		spec.SessionAffinityConfig.ClientIP.TimeoutSeconds == nil {
		return defaultAffinitySec
	}
	sec := *spec.SessionAffinityConfig.ClientIP.TimeoutSeconds
	if sec < 1 || sec > maxAffinitySec {
		p.add("spec.sessionAffinityConfig.clientIP.timeoutSeconds",
			fmt.Sprintf("%d is not from 1 to %d, read as %d", sec, maxAffinitySec, defaultAffinitySec))
		return defaultAffinitySec
	}
	return uint32(sec)
}

// protocolOf reads a protocol; the empty one is TCP.
func protocolOf(p v1.Protocol) (fwd.Proto, bool) {
	switch p {
	case v1.ProtocolTCP, "":
		return fwd.TCP, true
	case v1.ProtocolUDP:
		return fwd.UDP, true
	case v1.ProtocolSCTP:
		return fwd.SCTP, true
	}
	return 0, false
}

// optionalPort reads a port number, 0 for none.
func optionalPort(n int32) (uint16, bool) {
	if n < 0 || n > 65535 {
		return 0, false
	}
	return uint16(n), true
}

func portMessage(n int32) string { return fmt.Sprintf("%d is not from 1 to 65535", n) }

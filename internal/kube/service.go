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

// The default and the maximum of sessionAffinityConfig.clientIP.timeoutSeconds in the API's
// validation.
const (
	defaultAffinitySec = 10800
	maxAffinitySec     = 86400
)

// Service converts a Service. It returns nil if the Service is not handled: headless, ExternalName,
// without a name, or without a valid cluster IP. Problems lists the invalid fields that were
// ignored.
func (c Converter) Service(s *v1.Service) (*cluster.Service, []Problem) {
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
		Name:            fwd.Service{Namespace: c.interned.str(s.Namespace), Name: s.Name},
		Type:            serviceType(s.Spec.Type, p),
		ClusterIPs:      ips,
		Ports:           servicePorts(s.Spec.Ports, c.interned, p),
		ExternalIPs:     externalIPs(s.Spec.ExternalIPs, p),
		LoadBalancerIPs: ingressIPs(s.Status.LoadBalancer.Ingress, c.AllLBIPsAreVIPs, p),
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

// clusterIPs returns the cluster IP of each family. Like kube-proxy it goes by the index in
// ipFamilies; only if the Service has no ipFamilies (from before dual-stack) it looks at the
// address.
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
			p.item("spec.ipFamilies", i, "", clip(family)+" is not an IP family")
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
	p.add("spec.type", clip(t)+" is unknown, using ClusterIP")
	return cluster.TypeClusterIP
}

// servicePorts converts and sorts the ports. A name, a port or a node port can be used once per
// protocol: the first port keeps it.
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
			p.item(list, i, ".protocol", clip(ports[i].Protocol)+" is unknown")
			continue
		}
		port, ok := optionalPort(ports[i].Port)
		if !ok || port == 0 {
			p.item(list, i, ".port", portMessage(ports[i].Port))
			continue
		}
		if names[nameKey{ports[i].Name, protocol}] {
			p.item(list, i, ".name", clip(ports[i].Name)+" is already the name of another port")
			continue
		}
		if taken[portKey{protocol, port, false}] {
			p.item(list, i, ".port", fmt.Sprintf("%d is already used by another port", port))
			continue
		}
		nodePort, ok := optionalPort(ports[i].NodePort)
		if !ok {
			p.item(list, i, ".nodePort", portMessage(ports[i].NodePort))
		} else if nodePort != 0 && taken[portKey{protocol, nodePort, true}] {
			p.item(list, i, ".nodePort", fmt.Sprintf("%d is already used by another port", nodePort))
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

// listOf parses the items of a field and reports the invalid ones as not being what. Like
// kube-proxy it ignores blank items.
func listOf[T any](field, what string, in []string, parse func(string) (T, bool), p *problems) (out []T) {
	for i, s := range in {
		if strings.TrimSpace(s) == "" {
			continue
		}
		if v, ok := parse(s); ok {
			out = append(out, v)
		} else {
			p.item(field, i, "", clip(s)+" is not "+what)
		}
	}
	return out
}

// externalIPs keeps the order of the object and drops duplicates.
func externalIPs(in []string, p *problems) []netip.Addr {
	all := listOf("spec.externalIPs", "an IP address", in, parseAddr, p)
	var out []netip.Addr
	seen := make(map[netip.Addr]bool, len(all))
	for _, a := range all {
		if !seen[a] {
			seen[a] = true
			out = append(out, a)
		}
	}
	return out
}

// ingressIPs returns the load balancer addresses that this node handles, sorted. Entries with only
// a host name have none.
func ingressIPs(in []v1.LoadBalancerIngress, allVIPs bool, p *problems) []netip.Addr {
	const list = "status.loadBalancer.ingress"
	var out []netip.Addr
	for i := range in {
		if strings.TrimSpace(in[i].IP) == "" {
			continue
		}
		if mode := in[i].IPMode; mode != nil && *mode != v1.LoadBalancerIPModeVIP && !allVIPs {
			if *mode != v1.LoadBalancerIPModeProxy {
				p.item(list, i, ".ipMode", clip(*mode)+" is unknown")
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

// sourceRanges returns the source ranges, masked, sorted and without duplicates. As in kube-proxy,
// a list without valid ranges means no restriction.
func sourceRanges(in []string, p *problems) []netip.Prefix {
	trimmed := func(s string) (netip.Prefix, bool) { return parsePrefix(strings.TrimSpace(s)) }
	out := listOf("spec.loadBalancerSourceRanges", "a CIDR", in, trimmed, p)
	slices.SortFunc(out, netip.Prefix.Compare)
	return slices.Compact(out)
}

// isLocal reports whether a traffic policy is Local; empty means Cluster.
func isLocal[P ~string](field string, policy P, p *problems) bool {
	switch string(policy) {
	case "Local":
		return true
	case "Cluster", "":
	default:
		p.add(field, clip(policy)+" is unknown, using Cluster")
	}
	return false
}

// affinity returns the session affinity timeout in seconds, 0 for none.
func affinity(spec *v1.ServiceSpec, p *problems) uint32 {
	switch spec.SessionAffinity {
	case v1.ServiceAffinityClientIP:
	case v1.ServiceAffinityNone, "":
		return 0
	default:
		p.add("spec.sessionAffinity", clip(spec.SessionAffinity)+" is unknown, using None")
		return 0
	}
	if spec.SessionAffinityConfig == nil || spec.SessionAffinityConfig.ClientIP == nil ||
		spec.SessionAffinityConfig.ClientIP.TimeoutSeconds == nil {
		return defaultAffinitySec
	}
	sec := *spec.SessionAffinityConfig.ClientIP.TimeoutSeconds
	if sec < 1 || sec > maxAffinitySec {
		p.add("spec.sessionAffinityConfig.clientIP.timeoutSeconds",
			fmt.Sprintf("%d is not from 1 to %d, using %d", sec, maxAffinitySec, defaultAffinitySec))
		return defaultAffinitySec
	}
	return uint32(sec)
}

// protocolOf converts a protocol; empty means TCP.
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

// optionalPort checks a port number, which may be 0 for none.
func optionalPort(n int32) (uint16, bool) {
	if n < 0 || n > 65535 {
		return 0, false
	}
	return uint16(n), true
}

func portMessage(n int32) string { return fmt.Sprintf("%d is not from 1 to 65535", n) }

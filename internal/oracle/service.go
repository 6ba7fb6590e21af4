package oracle

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"

	"github.com/fairlead/fairlead/internal/fwd"
)

// hidden says that the labels keep an object (Service or EndpointSlice) away from every proxy of
// this kind.
func hidden(labels map[string]string) bool {
	_, other := labels["service.kubernetes.io/service-proxy-name"]
	_, headless := labels["service.kubernetes.io/headless"]
	return other || headless
}

// handled returns the Services that concern a proxy, those first that win a conflict.
func (c *Cluster) handled() []*v1.Service {
	var out []*v1.Service
	for _, s := range c.Services {
		if hidden(s.Labels) || s.Spec.ClusterIP == "" || s.Spec.ClusterIP == v1.ClusterIPNone || s.Spec.Type == v1.ServiceTypeExternalName {
			continue
		}
		out = append(out, s)
	}
	slices.SortFunc(out, func(a, b *v1.Service) int {
		return cmp.Or(
			a.CreationTimestamp.Compare(b.CreationTimestamp.Time),
			cmp.Compare(a.Namespace, b.Namespace),
			cmp.Compare(a.Name, b.Name),
		)
	})
	return out
}

// clusterIP returns the Service's cluster IP of a family; ok is false if the Service is not handled
// in the family.
func clusterIP(s *v1.Service, v4 bool) (addr netip.Addr, ok bool) {
	text := ""
	if len(s.Spec.IPFamilies) == 0 {
		text = s.Spec.ClusterIP
	}
	for i, f := range s.Spec.IPFamilies {
		if (f == v1.IPv4Protocol) == v4 {
			if i < len(s.Spec.ClusterIPs) {
				text = s.Spec.ClusterIPs[i]
			}
			break
		}
	}
	a, ok := parseAddr(text)
	return a, ok && a.Is4() == v4 && forwardable(a)
}

// externalIPs returns the Service's external IPs of a family.
func externalIPs(s *v1.Service, cfg *Config, v4 bool) []netip.Addr {
	if !cfg.gate("AllowServiceExternalIPs") {
		return nil
	}
	var out []netip.Addr
	for _, text := range s.Spec.ExternalIPs {
		if a, ok := parseAddr(text); ok && a.Is4() == v4 && forwardable(a) {
			out = append(out, a)
		}
	}
	return out
}

// ingressIPs returns the load-balancer addresses of a family that the node serves.
func ingressIPs(s *v1.Service, cfg *Config, v4 bool) []netip.Addr {
	var out []netip.Addr
	for _, in := range s.Status.LoadBalancer.Ingress {
		if in.IPMode != nil && *in.IPMode != v1.LoadBalancerIPModeVIP && cfg.gate("LoadBalancerIPMode") {
			continue
		}
		if a, ok := parseAddr(in.IP); ok && a.Is4() == v4 && forwardable(a) {
			out = append(out, a)
		}
	}
	return out
}

// sourceRanges returns the valid loadBalancerSourceRanges of a family.
func sourceRanges(s *v1.Service, v4 bool) []netip.Prefix {
	var out []netip.Prefix
	for _, text := range s.Spec.LoadBalancerSourceRanges {
		if p, ok := parsePrefix(strings.TrimSpace(text)); ok && p.Addr().Is4() == v4 {
			out = append(out, p)
		}
	}
	return out
}

// internalLocal is internalTrafficPolicy Local.
func internalLocal(s *v1.Service) bool {
	return s.Spec.InternalTrafficPolicy != nil && *s.Spec.InternalTrafficPolicy == v1.ServiceInternalTrafficPolicyLocal
}

// externalLocal is externalTrafficPolicy Local on a Service for which it counts.
func externalLocal(s *v1.Service, cfg *Config) bool {
	if s.Spec.ExternalTrafficPolicy != v1.ServiceExternalTrafficPolicyLocal {
		return false
	}
	if s.Spec.Type == v1.ServiceTypeLoadBalancer || s.Spec.Type == v1.ServiceTypeNodePort {
		return true
	}
	// Any address in the field makes the policy count, whatever its family and even if it cannot be
	// a frontend.
	return cfg.gate("AllowServiceExternalIPs") && slices.ContainsFunc(s.Spec.ExternalIPs, func(text string) bool {
		a, ok := parseAddr(text)
		return ok && !a.IsUnspecified()
	})
}

// accessible says whether a port of the Service can be reached from outside of the cluster in a
// family.
func accessible(s *v1.Service, port *v1.ServicePort, cfg *Config, v4 bool) bool {
	return port.NodePort != 0 || len(ingressIPs(s, cfg, v4)) > 0 || len(externalIPs(s, cfg, v4)) > 0
}

// protocol returns the number of a protocol field, TCP where it is empty, and 0 for what no Service
// port can have.
func protocol(p v1.Protocol) fwd.Proto {
	switch p {
	case v1.ProtocolTCP, "":
		return fwd.TCP
	case v1.ProtocolUDP:
		return fwd.UDP
	case v1.ProtocolSCTP:
		return fwd.SCTP
	}
	return 0
}

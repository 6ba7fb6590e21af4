package e2e

import (
	"fmt"
	"math/rand/v2"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
)

// generator creates random API objects with addresses of the lab that the API server accepts.
type generator struct {
	*rand.Rand
	cluster *cluster
}

// one returns true once in n times on average.
func (g *generator) one(n int) bool { return g.IntN(n) == 0 }

func pick[T any](g *generator, from ...T) T { return from[g.IntN(len(from))] }

func (g *generator) services(t *testing.T) []*corev1.Service {
	var all []*corev1.Service
	for i := range randomServices {
		svc := g.cluster.service(t, fmt.Sprintf("random-%d", i), func(s *corev1.Service) { g.service(s, i) })
		g.slices(t, svc)
		all = append(all, svc)
	}
	return all
}

// change changes about half of the Services in some way.
func (g *generator) change(t *testing.T, services []*corev1.Service) {
	t.Helper()
	for _, svc := range services {
		switch g.IntN(6) {
		case 0:
			must(t, g.cluster.client.CoreV1().Services(namespace).Delete(t.Context(), svc.Name, metav1.DeleteOptions{}))
		case 1:
			g.cluster.update(t, svc, g.policies)
		case 2, 3:
			g.slices(t, svc)
		}
	}
}

func (g *generator) service(s *corev1.Service, number int) {
	s.Spec.Type = pick(g, corev1.ServiceTypeClusterIP, corev1.ServiceTypeNodePort, corev1.ServiceTypeLoadBalancer)
	s.Spec.Ports = nil
	for i := range 1 + g.IntN(2) {
		proto := pick(g, corev1.ProtocolTCP, corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP)
		s.Spec.Ports = append(s.Spec.Ports, port(fmt.Sprintf("p%d", i), proto, int32(80+i)))
	}
	if g.one(5) {
		s.Spec.IPFamilyPolicy = ptr.To(corev1.IPFamilyPolicySingleStack)
		s.Spec.IPFamilies = []corev1.IPFamily{pick(g, corev1.IPv4Protocol, corev1.IPv6Protocol)}
	}
	if g.one(3) {
		s.Spec.ExternalIPs = []string{g.balancerIP(number), g.balancerIP(number)}
	}
	if g.one(12) {
		metav1.SetMetaDataLabel(&s.ObjectMeta, "service.kubernetes.io/service-proxy-name", "other")
	}
	if s.Spec.Type == corev1.ServiceTypeLoadBalancer {
		g.balancer(s, number)
	}
	g.policies(s)
}

// balancerIP is usually the Service's own. kube-proxy does not define who wins if two Services have
// the same.
func (g *generator) balancerIP(number int) string {
	if !g.cluster.reference && g.one(4) {
		number = 0
	}
	return balancerIP(g.IntN(2), 100+number).String()
}

func (g *generator) balancer(s *corev1.Service, number int) {
	for range 1 + g.IntN(2) {
		s.Status.LoadBalancer.Ingress = append(s.Status.LoadBalancer.Ingress, corev1.LoadBalancerIngress{
			IP:     g.balancerIP(number),
			IPMode: pick(g, nil, ptr.To(corev1.LoadBalancerIPModeVIP), ptr.To(corev1.LoadBalancerIPModeVIP), ptr.To(corev1.LoadBalancerIPModeProxy)),
		})
	}
	if g.one(3) {
		s.Spec.LoadBalancerSourceRanges = []string{
			pick(g, "203.0.113.0/25", "10.244.1.0/24", "192.168.50.0/24", "0.0.0.0/0"),
			pick(g, "2001:db8:113::/121", "fd00:10:244:1::/64", "203.0.113.128/25"),
		}
	}
}

func (g *generator) policies(s *corev1.Service) {
	s.Spec.InternalTrafficPolicy = ptr.To(pick(g, corev1.ServiceInternalTrafficPolicyCluster,
		corev1.ServiceInternalTrafficPolicyCluster, corev1.ServiceInternalTrafficPolicyLocal))
	if s.Spec.Type != corev1.ServiceTypeClusterIP || len(s.Spec.ExternalIPs) > 0 {
		s.Spec.ExternalTrafficPolicy = pick(g, corev1.ServiceExternalTrafficPolicyCluster, corev1.ServiceExternalTrafficPolicyLocal)
	}
	s.Spec.SessionAffinity = pick(g, corev1.ServiceAffinityNone, corev1.ServiceAffinityNone, corev1.ServiceAffinityClientIP)
	if s.Spec.SessionAffinity == corev1.ServiceAffinityNone {
		s.Spec.SessionAffinityConfig = nil
	}
}

// slices writes up to two slices of each family, which may contain the same endpoint.
func (g *generator) slices(t *testing.T, svc *corev1.Service) {
	t.Helper()
	if g.one(8) {
		g.cluster.endpoints(t, svc)
		return
	}
	for f, kind := range []discoveryv1.AddressType{discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv6} {
		// Any pod may be in any slice. kube-proxy does not define the state of an endpoint in two
		// slices.
		pods := g.Perm(6)
		for i := range pods {
			if !g.cluster.reference {
				pods[i] = g.IntN(6)
			}
		}
		for i := range 2 {
			slice := &discoveryv1.EndpointSlice{
				ObjectMeta: metav1.ObjectMeta{
					Namespace: namespace, Name: fmt.Sprintf("%s-%d-%d", svc.Name, f, i),
					Labels: map[string]string{discoveryv1.LabelServiceName: svc.Name},
				},
				AddressType: kind,
			}
			for j, p := range svc.Spec.Ports {
				if !g.one(10) {
					slice.Ports = append(slice.Ports, discoveryv1.EndpointPort{
						Name: ptr.To(p.Name), Protocol: ptr.To(p.Protocol), Port: ptr.To(int32(podPorts[j])),
					})
				}
			}
			for _, pod := range pods[3*i : 3*i+g.IntN(4)] {
				slice.Endpoints = append(slice.Endpoints, g.endpoint(g.cluster.lab.Pods()[pod].Label, f))
			}
			g.cluster.putSlice(t, slice)
		}
	}
}

func (g *generator) endpoint(pod string, family int) discoveryv1.Endpoint {
	api := g.cluster.apiEndpoint(pick(g, ready(pod), ready(pod), terminating(pod), endpoint{pod: pod, serving: true}), family)
	if g.one(6) {
		api.Conditions = discoveryv1.EndpointConditions{}
	}
	if g.one(8) {
		api.NodeName = nil
	}
	if g.one(2) {
		api.Hints = &discoveryv1.EndpointHints{ForZones: []discoveryv1.ForZone{{Name: pick(g, "zone1", "zone2")}}}
	}
	return api
}

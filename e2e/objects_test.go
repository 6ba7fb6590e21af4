package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"github.com/fairlead/fairlead/e2e/lab"
)

func port(name string, proto corev1.Protocol, number int32) corev1.ServicePort {
	return corev1.ServicePort{Name: name, Protocol: proto, Port: number}
}

// service creates a dual-stack Service with TCP port 80 and the given edits, and deletes it at the
// end of the test. It also writes the status that the edits set.
func (c *cluster) service(t *testing.T, name string, edits ...func(*corev1.Service)) *corev1.Service {
	t.Helper()
	svc := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name},
		Spec: corev1.ServiceSpec{
			IPFamilyPolicy: ptr.To(corev1.IPFamilyPolicyRequireDualStack),
			Ports:          []corev1.ServicePort{port("web", corev1.ProtocolTCP, 80)},
		},
	}
	for _, edit := range edits {
		edit(svc)
	}
	status := svc.Status
	api := c.client.CoreV1().Services(namespace)
	svc, err := api.Create(t.Context(), svc, metav1.CreateOptions{})
	must(t, err)
	t.Cleanup(func() {
		if err := api.Delete(context.Background(), name, metav1.DeleteOptions{}); !apierrors.IsNotFound(err) {
			check(t, err)
		}
	})
	if len(status.LoadBalancer.Ingress) > 0 {
		svc.Status = status
		svc, err = api.UpdateStatus(t.Context(), svc, metav1.UpdateOptions{})
		must(t, err)
	}
	return svc
}

// update changes a Service.
func (c *cluster) update(t *testing.T, svc *corev1.Service, edit func(*corev1.Service)) *corev1.Service {
	t.Helper()
	api := c.client.CoreV1().Services(namespace)
	svc, err := api.Get(t.Context(), svc.Name, metav1.GetOptions{})
	must(t, err)
	edit(svc)
	svc, err = api.Update(t.Context(), svc, metav1.UpdateOptions{})
	must(t, err)
	return svc
}

// endpoint is a pod in an EndpointSlice.
type endpoint struct {
	pod                       string
	ready, serving, finishing bool
	zones                     []string
}

func ready(pod string) endpoint { return endpoint{pod: pod, ready: true, serving: true} }

func terminating(pod string) endpoint { return endpoint{pod: pod, serving: true, finishing: true} }

// readyAll calls ready for several pods.
func readyAll(pods ...string) []endpoint {
	var eps []endpoint
	for _, p := range pods {
		eps = append(eps, ready(p))
	}
	return eps
}

// endpoints replaces the endpoints of all ports of a Service.
func (c *cluster) endpoints(t *testing.T, svc *corev1.Service, eps ...endpoint) {
	t.Helper()
	var names []string
	for _, p := range svc.Spec.Ports {
		names = append(names, p.Name)
	}
	c.endpointsOf(t, svc, names, eps...)
}

// endpointsOf writes the endpoints of some ports of a Service, as one slice for each family.
func (c *cluster) endpointsOf(t *testing.T, svc *corev1.Service, ports []string, eps ...endpoint) {
	t.Helper()
	for _, slice := range c.slices(svc, ports, eps...) {
		c.putSlice(t, slice)
	}
}

// slices returns the endpoints of some ports of a Service, as one slice for each family. The i-th
// port of the Service maps to the i-th of podPorts.
func (c *cluster) slices(svc *corev1.Service, ports []string, eps ...endpoint) []*discoveryv1.EndpointSlice {
	var out []*discoveryv1.EndpointSlice
	for f, kind := range []discoveryv1.AddressType{discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv6} {
		slice := &discoveryv1.EndpointSlice{
			ObjectMeta: metav1.ObjectMeta{
				Namespace: namespace, Name: svc.Name + "-" + strings.ToLower(string(kind)),
				Labels: map[string]string{discoveryv1.LabelServiceName: svc.Name},
			},
			AddressType: kind,
		}
		for i, p := range svc.Spec.Ports {
			for _, name := range ports {
				if name == p.Name {
					slice.Ports = append(slice.Ports, discoveryv1.EndpointPort{
						Name: ptr.To(p.Name), Protocol: ptr.To(p.Protocol), Port: ptr.To(int32(podPorts[i])),
					})
				}
			}
		}
		for _, e := range eps {
			slice.Endpoints = append(slice.Endpoints, c.apiEndpoint(e, f))
		}
		out = append(out, slice)
	}
	return out
}

func (c *cluster) apiEndpoint(e endpoint, family int) discoveryv1.Endpoint {
	node, _, _ := strings.Cut(e.pod, "-")
	api := discoveryv1.Endpoint{
		Addresses:  []string{c.hosts[e.pod].Addrs[family].String()},
		Conditions: discoveryv1.EndpointConditions{Ready: &e.ready, Serving: &e.serving, Terminating: &e.finishing},
		NodeName:   &node,
	}
	if len(e.zones) > 0 {
		api.Hints = &discoveryv1.EndpointHints{}
		for _, z := range e.zones {
			api.Hints.ForZones = append(api.Hints.ForZones, discoveryv1.ForZone{Name: z})
		}
	}
	return api
}

// putSlice creates or replaces a slice. A created slice is deleted at the end of the test.
func (c *cluster) putSlice(t *testing.T, slice *discoveryv1.EndpointSlice) {
	t.Helper()
	api := c.client.DiscoveryV1().EndpointSlices(namespace)
	_, err := api.Update(t.Context(), slice, metav1.UpdateOptions{})
	if !apierrors.IsNotFound(err) {
		must(t, err)
		return
	}
	_, err = api.Create(t.Context(), slice, metav1.CreateOptions{})
	must(t, err)
	t.Cleanup(func() {
		if err := api.Delete(context.Background(), slice.Name, metav1.DeleteOptions{}); !apierrors.IsNotFound(err) {
			check(t, err)
		}
	})
}

// clusterIP returns the Service's address of a family, 0 for IPv4.
func clusterIP(svc *corev1.Service, family int) netip.Addr {
	for _, ip := range svc.Spec.ClusterIPs {
		if a := netip.MustParseAddr(ip); a.Is4() == (family == 0) {
			return a
		}
	}
	panic(fmt.Sprintf("BUG: Service %s has no %s cluster IP", svc.Name, families[family]))
}

// balancerIP returns the n-th address for load balancers and external IPs.
func balancerIP(family, n int) netip.Addr {
	b := lab.BalancerCIDRs[family].Addr().AsSlice()
	b[len(b)-1] = byte(n)
	a, _ := netip.AddrFromSlice(b)
	return a
}

// balanced sets a Service's type to LoadBalancer with the n-th balancer address of each family.
func balanced(n int, policy corev1.ServiceExternalTrafficPolicy) func(*corev1.Service) {
	return func(s *corev1.Service) {
		s.Spec.Type = corev1.ServiceTypeLoadBalancer
		s.Spec.ExternalTrafficPolicy = policy
		for f := range families {
			s.Status.LoadBalancer.Ingress = append(s.Status.LoadBalancer.Ingress, corev1.LoadBalancerIngress{
				IP: balancerIP(f, n).String(), IPMode: ptr.To(corev1.LoadBalancerIPModeVIP),
			})
		}
	}
}

package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/utils/ptr"

	"github.com/fairlead/fairlead/e2e/apiserver"
	"github.com/fairlead/fairlead/e2e/lab"
	"github.com/fairlead/fairlead/e2e/probe"
)

const (
	namespace = "default"
	podPort   = 8080
	// writers is the number of concurrent requests to the API server while Services are created.
	writers = 16
)

// cluster is an API server with Services, and nodes without a proxy.
type cluster struct {
	lab        *lab.Lab
	api        *apiserver.Server
	client     *kubernetes.Clientset
	kubeconfig string
	endpoints  int
	servers    []*probe.Server
}

// newCluster makes a cluster. Close it, also after an error.
func newCluster(ctx context.Context, dir string, nodes, endpoints int) (*cluster, error) {
	c := &cluster{endpoints: endpoints}
	var err error
	if c.lab, err = lab.New(nodes, 3); err != nil {
		return c, err
	}
	for _, p := range c.lab.Pods() {
		s, err := probe.Serve(p, p.Label, p.Addrs[:], []string{"tcp"}, []uint16{podPort})
		if err != nil {
			return c, err
		}
		c.servers = append(c.servers, s)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return c, err
	}
	if c.api, err = apiserver.Start(ctx, apiserver.Config{Dir: dir, Host: c.lab.Fabric, Addr: c.lab.Fabric.Addrs[0], ServiceCIDRs: lab.ServiceCIDRs[:]}); err != nil {
		return c, err
	}
	if c.client, err = c.api.Client(apiserver.Admin); err != nil {
		return c, err
	}
	if c.kubeconfig, err = c.api.Kubeconfig(apiserver.Daemon); err != nil {
		return c, err
	}
	for _, n := range c.lab.Nodes {
		node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: n.Label}, Spec: corev1.NodeSpec{PodCIDR: n.PodCIDRs[0].String()}}
		if node, err = c.client.CoreV1().Nodes().Create(ctx, node, metav1.CreateOptions{}); err != nil {
			return c, err
		}
		for _, a := range n.Addrs {
			node.Status.Addresses = append(node.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: a.String()})
		}
		if _, err = c.client.CoreV1().Nodes().UpdateStatus(ctx, node, metav1.UpdateOptions{}); err != nil {
			return c, err
		}
	}
	return c, nil
}

func (c *cluster) close() error {
	var errs []error
	if c.api != nil {
		errs = append(errs, c.api.Close())
	}
	for _, s := range c.servers {
		errs = append(errs, s.Close())
	}
	if c.lab != nil {
		errs = append(errs, c.lab.Close())
	}
	return errors.Join(errs...)
}

// service creates an IPv4 Service and returns its address.
func (c *cluster) service(ctx context.Context, name string) (netip.AddrPort, error) {
	s, err := c.client.CoreV1().Services(namespace).Create(ctx, &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: corev1.ServiceSpec{
			IPFamilyPolicy: ptr.To(corev1.IPFamilyPolicySingleStack),
			IPFamilies:     []corev1.IPFamily{corev1.IPv4Protocol},
			Ports:          []corev1.ServicePort{{Name: "web", Protocol: corev1.ProtocolTCP, Port: 80}},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		return netip.AddrPort{}, err
	}
	a, err := netip.ParseAddr(s.Spec.ClusterIP)
	return netip.AddrPortFrom(a, 80), err
}

// sliceOf returns an EndpointSlice of a Service, with the port on which pods answer.
func sliceOf(name string, addrs ...netip.Addr) *discoveryv1.EndpointSlice {
	return sliceAt(podPort, name, addrs...)
}

func sliceAt(port int32, name string, addrs ...netip.Addr) *discoveryv1.EndpointSlice {
	s := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{
			Name: name, Labels: map[string]string{discoveryv1.LabelServiceName: name},
			Annotations: map[string]string{corev1.EndpointsLastChangeTriggerTime: time.Now().Format(time.RFC3339Nano)},
		},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: ptr.To("web"), Protocol: ptr.To(corev1.ProtocolTCP), Port: ptr.To(port)}},
	}
	for _, a := range addrs {
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{Addresses: []string{a.String()}, NodeName: ptr.To("elsewhere")})
	}
	return s
}

// fillAddrs returns endpoints of a Service without clients, different ones in each generation.
func (c *cluster) fillAddrs(i, generation int) []netip.Addr {
	out := make([]netip.Addr, c.endpoints)
	for e := range out {
		out[e] = netip.AddrFrom4([4]byte{byte(20 + generation), byte(e), byte(i >> 8), byte(i)})
	}
	return out
}

func fillName(i int) string { return fmt.Sprintf("fill-%05d", i) }

// fill creates Services without clients.
func (c *cluster) fill(ctx context.Context, n int) error {
	return parallel(n, func(i int) error {
		if _, err := c.service(ctx, fillName(i)); err != nil {
			return err
		}
		_, err := c.client.DiscoveryV1().EndpointSlices(namespace).Create(ctx, sliceOf(fillName(i), c.fillAddrs(i, 0)...), metav1.CreateOptions{})
		return err
	})
}

// roll replaces the endpoints of the first n Services without clients.
func (c *cluster) roll(ctx context.Context, n, generation int) error {
	return parallel(n, func(i int) error {
		_, err := c.client.DiscoveryV1().EndpointSlices(namespace).Update(ctx, sliceOf(fillName(i), c.fillAddrs(i, generation)...), metav1.UpdateOptions{})
		return err
	})
}

// point makes a pod the endpoint of a Service.
func (c *cluster) point(ctx context.Context, name string, to netip.Addr) error {
	_, err := c.client.DiscoveryV1().EndpointSlices(namespace).Update(ctx, sliceOf(name, to), metav1.UpdateOptions{})
	return err
}

// parallel calls f for 0 to n-1, some at once, and returns the first error.
func parallel(n int, f func(int) error) error {
	work := make(chan int)
	errs := make(chan error, n)
	var wg sync.WaitGroup
	for range min(writers, n) {
		wg.Go(func() {
			for i := range work {
				if err := f(i); err != nil {
					errs <- err
				}
			}
		})
	}
	for i := range n {
		work <- i
	}
	close(work)
	wg.Wait()
	close(errs)
	return <-errs
}

// Command balancer gives Services of type LoadBalancer an address, as a cloud does: upstream's
// service controller with a cloud whose load balancers are routes of the network namespace that it
// runs in.
//
// An address leads to all nodes, each connection to one of them; with session affinity ClientIP it
// leads to a single node. With externalTrafficPolicy Local only nodes whose health-check node port
// answers 200 count. Without a node, packets vanish silently.
package main

import (
	"context"
	"flag"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	corev1 "k8s.io/api/core/v1"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	cloudprovider "k8s.io/cloud-provider"
	"k8s.io/cloud-provider/controllers/service"
	"k8s.io/component-base/metrics/prometheus/controllers"
	"k8s.io/klog/v2"
)

func main() {
	kubeconfig := flag.String("kubeconfig", "", "kubeconfig file")
	v4 := flag.String("ipv4", "198.51.100.0/24", "addresses of load balancers, IPv4")
	v6 := flag.String("ipv6", "2001:db8:100::/64", "addresses of load balancers, IPv6")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *kubeconfig, *v4, *v6); err != nil {
		klog.ErrorS(err, "balancer")
		os.Exit(1)
	}
}

func run(ctx context.Context, kubeconfig, v4, v6 string) error {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	c := &cloud{balancers: map[string]*balancer{}, used: map[netip.Addr]bool{}}
	for i, text := range []string{v4, v6} {
		if c.pools[i], err = netip.ParsePrefix(text); err != nil {
			return err
		}
	}
	for _, family := range []string{"ipv4", "ipv6"} {
		// Hash ports, too, so that each connection chooses a node.
		if err := os.WriteFile("/proc/sys/net/"+family+"/fib_multipath_hash_policy", []byte("1"), 0); err != nil {
			return err
		}
	}
	factory := informers.NewSharedInformerFactory(client, 0)
	controller, err := service.New(c, client, factory.Core().V1().Services(), factory.Core().V1().Nodes(), "lab", utilfeature.DefaultFeatureGate)
	if err != nil {
		return err
	}
	factory.Start(ctx.Done())
	go c.checkHealth(ctx)
	controller.Run(ctx, 10, controllers.NewControllerManagerMetrics("balancer"))
	return nil
}

// balancer is one Service's addresses and where they lead.
type balancer struct {
	addrs []netip.Addr
	nodes []*corev1.Node
	// check is the health-check node port, or 0.
	check int32
	// sticky says that all connections go to one node.
	sticky bool
}

// cloud is a cloudprovider.Interface that has load balancers and nothing else.
type cloud struct {
	pools [2]netip.Prefix

	mu        sync.Mutex
	balancers map[string]*balancer
	used      map[netip.Addr]bool
}

func (c *cloud) Initialize(cloudprovider.ControllerClientBuilder, <-chan struct{}) {}
func (c *cloud) LoadBalancer() (cloudprovider.LoadBalancer, bool)                  { return c, true }
func (c *cloud) Instances() (cloudprovider.Instances, bool)                        { return nil, false }
func (c *cloud) InstancesV2() (cloudprovider.InstancesV2, bool)                    { return nil, false }
func (c *cloud) Zones() (cloudprovider.Zones, bool)                                { return nil, false }
func (c *cloud) Clusters() (cloudprovider.Clusters, bool)                          { return nil, false }
func (c *cloud) Routes() (cloudprovider.Routes, bool)                              { return nil, false }
func (c *cloud) ProviderName() string                                              { return "lab" }
func (c *cloud) HasClusterID() bool                                                { return true }

func key(s *corev1.Service) string { return s.Namespace + "/" + s.Name }

func (c *cloud) GetLoadBalancerName(_ context.Context, _ string, s *corev1.Service) string {
	return key(s)
}

func (c *cloud) GetLoadBalancer(_ context.Context, _ string, s *corev1.Service) (*corev1.LoadBalancerStatus, bool, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	b, ok := c.balancers[key(s)]
	if !ok {
		return nil, false, nil
	}
	return b.status(), true, nil
}

func (b *balancer) status() *corev1.LoadBalancerStatus {
	status := &corev1.LoadBalancerStatus{}
	for _, a := range b.addrs {
		mode := corev1.LoadBalancerIPModeVIP
		status.Ingress = append(status.Ingress, corev1.LoadBalancerIngress{IP: a.String(), IPMode: &mode})
	}
	return status
}

func (c *cloud) EnsureLoadBalancer(ctx context.Context, _ string, s *corev1.Service, nodes []*corev1.Node) (*corev1.LoadBalancerStatus, error) {
	c.mu.Lock()
	b, ok := c.balancers[key(s)]
	if !ok {
		b = &balancer{}
		for _, family := range s.Spec.IPFamilies {
			a, err := c.allocate(family, s.Spec.LoadBalancerIP)
			if err != nil {
				c.mu.Unlock()
				return nil, err
			}
			b.addrs = append(b.addrs, a)
		}
		c.balancers[key(s)] = b
	}
	c.mu.Unlock()
	return b.status(), c.UpdateLoadBalancer(ctx, "", s, nodes)
}

// allocate takes a free address of the family, or the one that is asked for.
func (c *cloud) allocate(family corev1.IPFamily, wanted string) (netip.Addr, error) {
	pool := c.pools[0]
	if family == corev1.IPv6Protocol {
		pool = c.pools[1]
	}
	if a, err := netip.ParseAddr(wanted); err == nil && pool.Contains(a) && !c.used[a] {
		c.used[a] = true
		return a, nil
	}
	for a := pool.Addr().Next(); pool.Contains(a); a = a.Next() {
		if !c.used[a] {
			c.used[a] = true
			return a, nil
		}
	}
	return netip.Addr{}, fmt.Errorf("no free address in %s", pool)
}

func (c *cloud) UpdateLoadBalancer(_ context.Context, _ string, s *corev1.Service, nodes []*corev1.Node) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	b := c.balancers[key(s)]
	if b == nil {
		return nil
	}
	b.nodes, b.check, b.sticky = nodes, s.Spec.HealthCheckNodePort, s.Spec.SessionAffinity == corev1.ServiceAffinityClientIP
	return b.route(b.healthy())
}

func (c *cloud) EnsureLoadBalancerDeleted(_ context.Context, _ string, s *corev1.Service) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	b := c.balancers[key(s)]
	if b == nil {
		return nil
	}
	if err := b.route(nil); err != nil {
		return err
	}
	for _, a := range b.addrs {
		delete(c.used, a)
	}
	delete(c.balancers, key(s))
	return nil
}

// checkHealth asks health-check node ports each second and moves routes accordingly.
func (c *cloud) checkHealth(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(time.Second):
		}
		c.mu.Lock()
		for name, b := range c.balancers {
			if b.check == 0 {
				continue
			}
			if err := b.route(b.healthy()); err != nil {
				klog.ErrorS(err, "set routes", "service", name)
			}
		}
		c.mu.Unlock()
	}
}

var client = http.Client{Timeout: time.Second, Transport: &http.Transport{DisableKeepAlives: true}}

// healthy returns the nodes that take connections.
func (b *balancer) healthy() []*corev1.Node {
	if b.check == 0 {
		return b.nodes
	}
	ok := make([]bool, len(b.nodes))
	var wg sync.WaitGroup
	for i, n := range b.nodes {
		wg.Go(func() {
			for _, a := range internal(n) {
				if a.Is6() {
					continue
				}
				resp, err := client.Get(fmt.Sprintf("http://%s/healthz", netip.AddrPortFrom(a, uint16(b.check))))
				if err == nil {
					resp.Body.Close()
					ok[i] = resp.StatusCode == http.StatusOK
				}
			}
		})
	}
	wg.Wait()
	var up []*corev1.Node
	for i, n := range b.nodes {
		if ok[i] {
			up = append(up, n)
		}
	}
	return up
}

func internal(n *corev1.Node) []netip.Addr {
	var addrs []netip.Addr
	for _, a := range n.Status.Addresses {
		if ip, err := netip.ParseAddr(a.Address); err == nil && a.Type == corev1.NodeInternalIP {
			addrs = append(addrs, ip)
		}
	}
	return addrs
}

// route makes the kernel send what comes for the addresses to the nodes, or drop it.
func (b *balancer) route(nodes []*corev1.Node) error {
	if b.sticky && len(nodes) > 1 {
		nodes = slices.SortedFunc(slices.Values(nodes), func(x, y *corev1.Node) int { return strings.Compare(x.Name, y.Name) })[:1]
	}
	for _, a := range b.addrs {
		bits := a.BitLen()
		r := &netlink.Route{Dst: &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(bits, bits)}, Protocol: 250}
		for _, n := range nodes {
			for _, via := range internal(n) {
				if via.Is6() == a.Is6() {
					r.MultiPath = append(r.MultiPath, &netlink.NexthopInfo{Gw: via.AsSlice()})
				}
			}
		}
		if len(r.MultiPath) == 0 {
			r.Type = syscall.RTN_BLACKHOLE
		}
		if err := replace(r); err != nil {
			return fmt.Errorf("route %s: %w", a, err)
		}
	}
	return nil
}

// replace makes this the only route to its destination. IPv6 adds a next hop to a route that is
// there, so what is there goes first; but a route that already is as wanted stays.
func replace(r *netlink.Route) error {
	family := netlink.FAMILY_V4
	if r.Dst.IP.To4() == nil {
		family = netlink.FAMILY_V6
	}
	old, err := netlink.RouteListFiltered(family, &netlink.Route{Dst: r.Dst, Protocol: r.Protocol}, netlink.RT_FILTER_DST|netlink.RT_FILTER_PROTOCOL)
	if err != nil {
		return err
	}
	if len(old) == 1 && same(&old[0], r) {
		return nil
	}
	for i := range old {
		if err := netlink.RouteDel(&old[i]); err != nil {
			return err
		}
	}
	return netlink.RouteAdd(r)
}

func same(a, b *netlink.Route) bool {
	hops := func(r *netlink.Route) map[string]bool {
		all := map[string]bool{}
		for _, h := range r.MultiPath {
			all[h.Gw.String()] = true
		}
		if r.Gw != nil {
			all[r.Gw.String()] = true
		}
		return all
	}
	x, y := hops(a), hops(b)
	for h := range x {
		if !y[h] {
			return false
		}
	}
	return len(x) == len(y)
}

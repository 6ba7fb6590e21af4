package e2e

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/fairlead/fairlead/e2e/probe"
	"github.com/fairlead/fairlead/internal/host/hosttest"
)

const guest = "node1-p3"

// testChanges changes objects and checks the effect on new connections.
func testChanges(t *testing.T, c *cluster) {
	t.Run("endpoints come and go", c.endpointsComeAndGo)
	t.Run("an open connection outlives its endpoint", c.openConnectionStays)
	t.Run("Service is deleted and made again", c.serviceIsDeleted)
	t.Run("label service-proxy-name", c.foreignProxy)
	t.Run("ports and types change", c.portsAndTypes)
	t.Run("an endpoint moves from slice to slice", c.sliceToSlice)
	t.Run("one among many", c.oneAmongMany)
}

// gone is the verdict of a connection to a TCP frontend that was in use a moment ago and is no
// longer served. In mode ipvs its address stays until the kernel has forgotten the last connection,
// two minutes after its end (docs/ipvs.md, Draining).
func (c *cluster) gone() probe.Verdict {
	if c.mode == "ipvs" {
		return probe.Refused
	}
	return probe.Lost
}

// expect checks one kind of connection over both families.
func (c *cluster) expect(t *testing.T, svc *corev1.Service, p path) {
	t.Helper()
	for f := range families {
		c.checkPath(t, svc, p, f)
	}
}

func (c *cluster) endpointsComeAndGo(t *testing.T) {
	svc := c.service(t, "rolling")
	p := path{from: guest, to: "cluster", verdict: probe.Refused}
	for _, step := range [][]string{{"node1-p1", "node2-p1"}, {"node2-p1"}, {"node2-p1", "node2-p2"}, {}, {"node1-p1"}} {
		c.endpoints(t, svc, readyAll(step...)...)
		c.settle(t)
		p.by = step
		c.expect(t, svc, p)
	}
	c.endpoints(t, svc, endpoint{pod: "node1-p1"})
	c.settle(t)
	p.by = nil
	c.expect(t, svc, p)
}

func (c *cluster) openConnectionStays(t *testing.T) {
	svc := c.service(t, "long-lived")
	c.endpoints(t, svc, ready("node2-p1"))
	c.settle(t)
	for f, family := range families {
		conn, err := c.dialers[guest].Open(t.Context(), c.target(svc, path{to: "cluster"}, f))
		must(t, err)
		defer conn.Close()
		c.endpoints(t, svc, ready("node1-p1"))
		c.settle(t)
		if r := conn.Ask(t.Context()); r.Server != "node2-p1" {
			t.Errorf("%s: %s, want an answer by the endpoint that has gone", family, r)
		}
		c.endpoints(t, svc, ready("node2-p1"))
		c.settle(t)
	}
}

func (c *cluster) serviceIsDeleted(t *testing.T) {
	svc := c.service(t, "deleted")
	c.endpoints(t, svc, ready("node2-p1"))
	c.settle(t)
	c.expect(t, svc, path{from: guest, to: "cluster", by: []string{"node2-p1"}})

	must(t, c.client.CoreV1().Services(namespace).Delete(t.Context(), svc.Name, metav1.DeleteOptions{}))
	c.settle(t)
	c.expect(t, svc, path{from: guest, to: "cluster", verdict: c.gone()})

	ips := svc.Spec.ClusterIPs
	again := c.service(t, svc.Name, func(s *corev1.Service) { s.Spec.ClusterIP, s.Spec.ClusterIPs = ips[0], ips })
	c.settle(t)
	c.expect(t, again, path{from: guest, to: "cluster", by: []string{"node2-p1"}})
}

func (c *cluster) foreignProxy(t *testing.T) {
	svc := c.service(t, "foreign")
	c.endpoints(t, svc, ready("node2-p1"))
	for range 2 {
		c.settle(t)
		c.expect(t, svc, path{from: guest, to: "cluster", by: []string{"node2-p1"}})
		c.update(t, svc, func(s *corev1.Service) {
			metav1.SetMetaDataLabel(&s.ObjectMeta, "service.kubernetes.io/service-proxy-name", "other")
		})
		c.settle(t)
		c.expect(t, svc, path{from: guest, to: "cluster", verdict: c.gone()})
		c.update(t, svc, func(s *corev1.Service) { s.Labels = nil })
	}
}

func (c *cluster) portsAndTypes(t *testing.T) {
	svc := c.service(t, "changing", balanced(30, corev1.ServiceExternalTrafficPolicyCluster))
	c.endpoints(t, svc, ready("node2-p1"))
	c.settle(t)
	by := []string{"node2-p1"}
	c.expect(t, svc, path{from: "client", to: "node1", by: by, saw: "node1"})

	t.Log("external traffic policy becomes Local")
	local := c.update(t, svc, func(s *corev1.Service) { s.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal })
	c.settle(t)
	c.expect(t, local, path{from: "client", to: "node2", by: by})
	c.expect(t, local, path{from: "client", to: "balancer", verdict: probe.Lost})

	t.Log("port 80 becomes 81")
	moved := c.update(t, svc, func(s *corev1.Service) { s.Spec.Ports[0].Port = 81 })
	c.settle(t)
	c.expect(t, moved, path{from: guest, to: "cluster", by: by})
	closed := probe.Lost
	if c.mode != "iptables" {
		closed = probe.Refused // a cluster IP has no other ports in these modes; in mode ipvs that is difference "other-ports"
	}
	c.expect(t, svc, path{from: guest, to: "cluster", verdict: closed})

	t.Log("type becomes ClusterIP")
	c.update(t, svc, func(s *corev1.Service) {
		s.Spec.Type, s.Spec.ExternalTrafficPolicy, s.Spec.AllocateLoadBalancerNodePorts = corev1.ServiceTypeClusterIP, "", nil
		s.Spec.HealthCheckNodePort = 0
		s.Spec.Ports[0].NodePort = 0
	})
	c.settle(t)
	c.expect(t, moved, path{from: guest, to: "cluster", by: by})
	// The node port is no longer served, so the node itself resets.
	c.expect(t, moved, path{from: "client", to: "node2", verdict: probe.Refused})
}

// sliceToSlice moves an endpoint to another slice, which gets it before the first one loses it, and
// keeps connecting.
func (c *cluster) sliceToSlice(t *testing.T) {
	svc := c.service(t, "moving")
	c.endpoints(t, svc, ready("node2-p1"))
	c.settle(t)
	stop := c.dialOn(t, guest, c.target(svc, path{to: "cluster"}, 0))
	api := c.client.DiscoveryV1().EndpointSlices(namespace)
	old, err := api.Get(t.Context(), svc.Name+"-ipv4", metav1.GetOptions{})
	must(t, err)
	c.putSlice(t, &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: namespace, Name: svc.Name + "-other", Labels: old.Labels},
		AddressType: old.AddressType, Ports: old.Ports, Endpoints: old.Endpoints,
	})
	old.Endpoints = nil
	c.putSlice(t, old)
	c.settle(t)
	if n := stop(); n == 0 {
		t.Error("nothing was dialled during the move")
	}
}

// dialOn keeps connecting until stop is called, at the latest at the end of the test. An unanswered
// connection fails the test. stop returns the number of connections.
func (c *cluster) dialOn(t *testing.T, from string, to probe.Target) (stop func() int) {
	const most = 5 // failures to tell one by one
	done, count := make(chan struct{}), make(chan int)
	go func() {
		n, lost := 0, 0
		for {
			select {
			case <-done:
				if lost > most {
					t.Errorf("from %s: %s: %d of %d connections failed", from, to, lost, n)
				}
				count <- n
				return
			default:
			}
			if n++; hosttest.Current().Slow() {
				time.Sleep(50 * time.Millisecond) // leaves the daemon some of the processor
			}
			if r := c.dialers[from].Dial(context.Background(), to); r.Verdict != probe.Answered {
				if lost++; lost <= most {
					t.Errorf("connection %d from %s: %s: %s", n, from, to, r)
				}
			}
		}
	}()
	stop = sync.OnceValue(func() int { close(done); return <-count })
	t.Cleanup(func() { stop() })
	return stop
}

// oneAmongMany adds and changes one Service among many.
func (c *cluster) oneAmongMany(t *testing.T) {
	many := 150
	if c.mode == "ipvs" { // in user-mode Linux, one would wait for the API server for two minutes
		many = 40
	}
	for i := range many {
		c.endpoints(t, c.service(t, fmt.Sprintf("many-%d", i)), readyAll("node1-p1", "node2-p1", "node2-p2")...)
	}
	c.settle(t)
	svc := c.service(t, "one")
	to := c.target(svc, path{to: "cluster"}, 0)
	for _, pod := range []string{"node2-p1", "node2-p2"} {
		start := time.Now()
		c.endpoints(t, svc, ready(pod))
		ctx, cancel := context.WithTimeout(t.Context(), settleTimeout)
		defer cancel()
		_, err := c.await(ctx, guest, to, func(r probe.Result) bool { return r.Server == pod })
		must(t, err)
		t.Logf("among %d Services, %s answers %v after its slices are written", many, pod, time.Since(start).Round(time.Millisecond))
		if got := c.servers(t, guest, to, 10); !slices.Equal(got, []string{pod}) {
			t.Errorf("after %s had answered, %v did", pod, got)
		}
	}
	c.settle(t)
	c.expect(t, svc, path{from: guest, to: "cluster", by: []string{"node2-p2"}})
}

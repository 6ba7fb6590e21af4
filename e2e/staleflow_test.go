package e2e

import (
	"context"
	"net/netip"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"github.com/fairlead/fairlead/e2e/probe"
)

// testStaleFlows keeps UDP sockets open whose flows the kernel would still send to the first
// endpoint.
func testStaleFlows(t *testing.T, c *cluster) {
	udp := ports(port("dns", corev1.ProtocolUDP, 53))
	edits := []func(*corev1.Service){balanced(40, corev1.ServiceExternalTrafficPolicyCluster), udp}

	t.Run("frontends that go", func(t *testing.T) { testGoneFrontends(t, c) })
	t.Run("an address of the node that goes", func(t *testing.T) { testAddressGone(t, c) })
	t.Run("TCP older than its Service", func(t *testing.T) { testEarlyTCP(t, c) })

	t.Run("the endpoint is replaced", func(t *testing.T) {
		svc := c.service(t, "replaced", edits...)
		c.endpoints(t, svc, ready("node1-p1"))
		c.settle(t)
		var flows []*flow
		for _, p := range []path{
			{from: guest, to: "cluster"}, {from: "node1", to: "cluster"}, {from: guest, to: "node1"},
			{from: "client", to: "node2"}, {from: "client", to: "balancer"},
		} {
			for f := range families {
				fl := c.open(t, svc, p, f)
				fl.await(t, "node1-p1")
				flows = append(flows, fl)
			}
		}
		c.endpoints(t, svc, ready("node2-p1"))
		for _, fl := range flows {
			fl.await(t, "node2-p1")
		}
	})

	t.Run("the flow is older than Service and endpoint", func(t *testing.T) {
		label := func(s *corev1.Service) {
			metav1.SetMetaDataLabel(&s.ObjectMeta, "service.kubernetes.io/service-proxy-name", "other")
		}
		svc := c.service(t, "late", udp, label)
		var flows []*flow
		for f := range families {
			fl := c.open(t, svc, path{from: guest, to: "cluster"}, f)
			ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
			if r := fl.conn.Ask(ctx); r.Verdict != probe.Lost {
				t.Errorf("%s: %s, want it lost", fl.name, r)
			}
			cancel()
			flows = append(flows, fl)
		}
		c.update(t, svc, func(s *corev1.Service) { s.Labels = nil })
		c.settle(t)
		c.endpoints(t, svc, ready("node2-p1"))
		for _, fl := range flows {
			fl.await(t, "node2-p1")
		}
	})

	t.Run("a serving endpoint keeps its flow", func(t *testing.T) {
		svc := c.service(t, "kept", udp)
		c.endpoints(t, svc, ready("node2-p1"))
		c.settle(t)
		fl := c.open(t, svc, path{from: guest, to: "cluster"}, 0)
		fl.await(t, "node2-p1")
		c.endpoints(t, svc, terminating("node2-p1"), ready("node1-p1"))
		c.settle(t)
		want := "node2-p1"
		if c.mode == "ipvs" { // UDP does not drain
			want = "node1-p1"
		}
		if r := fl.conn.Ask(t.Context()); r.Server != want {
			t.Errorf("%s, want an answer by %s", r, want)
		}
	})
}

// testGoneFrontends keeps UDP sockets open to frontends that are removed: no more packets may reach
// the old pod.
func testGoneFrontends(t *testing.T, c *cluster) {
	cluster, node, balancer := path{from: guest, to: "cluster"}, path{from: "client", to: "node2"}, path{from: "client", to: "balancer"}
	api := c.client.CoreV1().Services(namespace)
	remove := func(t *testing.T, svc *corev1.Service) {
		must(t, api.Delete(t.Context(), svc.Name, metav1.DeleteOptions{}))
	}
	status := func(edit func(*corev1.LoadBalancerStatus)) func(*testing.T, *corev1.Service) {
		return func(t *testing.T, svc *corev1.Service) {
			svc, err := api.Get(t.Context(), svc.Name, metav1.GetOptions{})
			must(t, err)
			edit(&svc.Status.LoadBalancer)
			_, err = api.UpdateStatus(t.Context(), svc, metav1.UpdateOptions{})
			must(t, err)
		}
	}
	// another takes the cluster IPs; pods are its endpoints.
	another := func(pods ...string) func(*testing.T, *corev1.Service) {
		return func(t *testing.T, svc *corev1.Service) {
			remove(t, svc)
			ips := svc.Spec.ClusterIPs
			svc = c.service(t, "another", ports(port("dns", corev1.ProtocolUDP, 53)), func(s *corev1.Service) { s.Spec.ClusterIP, s.Spec.ClusterIPs = ips[0], ips })
			c.endpoints(t, svc, readyAll(pods...)...)
		}
	}
	for _, tt := range []struct {
		name   string
		paths  []path
		change func(*testing.T, *corev1.Service)
		// by is the pod that answers afterwards; empty means none.
		by string
	}{
		{"the Service is deleted", []path{cluster, node, balancer}, remove, ""},
		{"no endpoint is left", []path{cluster, node, balancer}, func(t *testing.T, svc *corev1.Service) { c.endpoints(t, svc) }, ""},
		{"the node port changes", []path{node}, func(t *testing.T, svc *corev1.Service) {
			c.update(t, svc, func(s *corev1.Service) {
				// A port of the range that the API server gives out last.
				s.Spec.Ports[0].NodePort = 30001 + (s.Spec.Ports[0].NodePort-30000)%80
			})
		}, ""},
		{"the port changes", []path{cluster, balancer}, func(t *testing.T, svc *corev1.Service) {
			c.update(t, svc, func(s *corev1.Service) { s.Spec.Ports[0].Port = 54 })
		}, ""},
		{"the load-balancer IP moves", []path{balancer}, status(func(s *corev1.LoadBalancerStatus) {
			for f := range s.Ingress {
				s.Ingress[f].IP = balancerIP(f, 61).String()
			}
		}), ""},
		{"the ipMode becomes Proxy", []path{balancer}, status(func(s *corev1.LoadBalancerStatus) {
			for f := range s.Ingress {
				s.Ingress[f].IPMode = ptr.To(corev1.LoadBalancerIPModeProxy)
			}
		}), ""},
		{"another Service without endpoints takes the cluster IP", []path{cluster}, another(), ""},
		{"another Service takes the cluster IP", []path{cluster}, another("node1-p2"), "node1-p2"},
	} {
		for _, down := range []bool{false, true} {
			name := tt.name
			if down {
				name += " while the daemons are down"
			}
			t.Run(name, func(t *testing.T) {
				svc := c.service(t, "going", balanced(60, corev1.ServiceExternalTrafficPolicyCluster), ports(port("dns", corev1.ProtocolUDP, 53)))
				kept := c.service(t, "staying", balanced(62, corev1.ServiceExternalTrafficPolicyCluster), ports(port("dns", corev1.ProtocolUDP, 53)))
				c.endpoints(t, svc, ready("node2-p1"))
				c.endpoints(t, kept, ready("node2-p2"))
				c.settle(t)
				var flows, others []*flow
				for f := range families {
					for _, p := range tt.paths {
						fl, other := c.open(t, svc, p, f), c.open(t, kept, p, f)
						fl.await(t, "node2-p1")
						other.await(t, "node2-p2")
						flows, others = append(flows, fl), append(others, other)
					}
				}
				locals := make(map[*flow]probe.Result)
				for _, other := range others {
					locals[other] = other.conn.Ask(t.Context())
				}
				if down {
					for i := range c.daemons {
						check(t, c.stop(c.daemons[i]))
					}
				}
				tt.change(t, svc)
				if down {
					for i := range c.daemons {
						c.startDaemon(t, i)
						c.synced(t, i)
					}
				}
				c.settle(t)
				for _, fl := range flows {
					if tt.by != "" {
						fl.await(t, tt.by)
					} else {
						fl.awaitNobody(t)
					}
				}
				for _, other := range others {
					if r := other.conn.Ask(t.Context()); r.Server != "node2-p2" || r.Saw != locals[other].Saw {
						t.Errorf("%s, of a frontend that stays: %s, before %s", other.name, r, locals[other])
					}
				}
			})
		}
	}
}

// testAddressGone removes an address with node ports from a node that still receives packets to it.
func testAddressGone(t *testing.T, c *cluster) {
	svc := c.service(t, "moving", balanced(60, corev1.ServiceExternalTrafficPolicyCluster), ports(port("dns", corev1.ProtocolUDP, 53)))
	c.endpoints(t, svc, ready("node2-p1"))
	c.settle(t)
	node := c.lab.Nodes[0]
	extra := [2]string{"198.51.100.77/32", "2001:db8:100::77/128"}
	ip := func(t *testing.T, args ...string) {
		out, err := node.Run(context.WithoutCancel(t.Context()), "ip", args...)
		if err != nil {
			t.Errorf("ip %v: %v\n%s", args, err, out)
		}
	}
	for _, a := range extra {
		ip(t, "addr", "add", a, "dev", "lo")
	}
	// --nodeport-addresses may be "primary", so the removed addresses are in the list of a separate
	// daemon. It has to know them from startup: an address that is added and removed before a
	// daemon notices leaves flows behind.
	c.restart(t, 0, "--nodeport-addresses="+extra[0]+","+extra[1])
	t.Cleanup(func() { c.restart(t, 0) })
	var flows []*flow
	for f := range families {
		to := netip.AddrPortFrom(netip.MustParsePrefix(extra[f]).Addr(), uint16(svc.Spec.Ports[0].NodePort))
		fl := &flow{name: "client to " + to.String()}
		var err error
		fl.conn, err = c.dialers["client"].Open(t.Context(), probe.Target{Proto: "udp", Dst: to})
		must(t, err)
		t.Cleanup(func() { check(t, fl.conn.Close()) })
		fl.await(t, "node2-p1")
		flows = append(flows, fl)
	}
	for f := range families {
		ip(t, "addr", "del", extra[f], "dev", "lo")
	}
	for _, fl := range flows {
		fl.awaitNobody(t)
	}
}

// testEarlyTCP begins to connect before the daemon handles the Service: its SYNs are lost, and a
// retransmitted one makes the connection.
func testEarlyTCP(t *testing.T, c *cluster) {
	svc := c.service(t, "late-tcp", func(s *corev1.Service) {
		metav1.SetMetaDataLabel(&s.ObjectMeta, "service.kubernetes.io/service-proxy-name", "other")
		for f := range families {
			s.Spec.ExternalIPs = append(s.Spec.ExternalIPs, balancerIP(f, 63).String())
		}
	})
	c.endpoints(t, svc, ready("node2-p1"))
	c.settle(t)
	paths := []path{{from: guest, to: "external"}, {from: "node1", to: "external"}}
	if c.mode == "iptables" { // the other modes may drop packets to unknown addresses of service CIDRs
		paths = append(paths, path{from: guest, to: "cluster"})
	}
	results := make(chan probe.Result)
	dials := 0
	for f := range families {
		for _, p := range paths {
			to := c.target(svc, p, f)
			to.Timeout = time.Minute
			dials++
			go func() { results <- c.dialers[p.from].Dial(context.Background(), to) }()
		}
	}
	node := c.lab.Nodes[0]
	for f, family := range families { // the flows are in the table of connections
		for _, p := range paths {
			to := c.target(svc, p, f)
			for {
				out, err := node.Run(t.Context(), "conntrack", "-L", "-f", strings.ToLower(family), "-p", "tcp", "--state", "SYN_SENT", "-d", to.Dst.Addr().String())
				must(t, err)
				want := 1
				if p.to == "external" {
					want = 2
				}
				if strings.Count(out, "SYN_SENT") >= want {
					break
				}
			}
		}
	}
	c.update(t, svc, func(s *corev1.Service) { s.Labels = nil })
	for range dials {
		if r := <-results; r.Server != "node2-p1" {
			t.Errorf("the connection that began before: %s", r)
		}
	}
}

// flow is a UDP socket that stays open.
type flow struct {
	name string
	conn *probe.Conn
}

func (c *cluster) open(t *testing.T, svc *corev1.Service, p path, family int) *flow {
	t.Helper()
	to := c.target(svc, p, family)
	conn, err := c.dialers[p.from].Open(t.Context(), to)
	must(t, err)
	t.Cleanup(func() { check(t, conn.Close()) })
	return &flow{name: p.from + " to " + to.String(), conn: conn}
}

// awaitNobody sends until nothing answers any more.
func (f *flow) awaitNobody(t *testing.T) {
	t.Helper()
	start := time.Now()
	silent := func(timeout time.Duration) bool {
		ctx, cancel := context.WithTimeout(t.Context(), timeout)
		defer cancel()
		return f.conn.Ask(ctx).Verdict != probe.Answered
	}
	// A single lost packet does not count.
	for !silent(50*time.Millisecond) || !silent(500*time.Millisecond) || !silent(500*time.Millisecond) {
		if time.Since(start) > settleTimeout {
			t.Fatalf("%s: still answered after %v", f.name, settleTimeout)
		}
	}
}

// await sends until the pod answers.
func (f *flow) await(t *testing.T, pod string) {
	t.Helper()
	start := time.Now()
	for {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		r := f.conn.Ask(ctx)
		cancel()
		if r.Server == pod {
			return
		}
		if time.Since(start) > settleTimeout {
			t.Fatalf("%s: still %s after %v, want an answer by %s", f.name, r, settleTimeout, pod)
		}
	}
}

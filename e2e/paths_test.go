package e2e

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/utils/ptr"

	"github.com/fairlead/fairlead/e2e/probe"
)

// path is one kind of connection and its expected result.
type path struct {
	name string
	// from is the client host; to is the frontend: "cluster", "balancer", "external", "loopback" or
	// the name of a node for its node port.
	from string
	to   string
	// port is the index of the Service's port.
	port int
	// by lists the pods that answer; each of them has to. If it is empty, verdict is the expected
	// result.
	by      []string
	verdict probe.Verdict
	// saw is the host that the pods see as the source; empty means the client.
	saw string
	// ours is set if Fairlead intentionally differs from kube-proxy.
	ours bool
}

// tries is the number of connections for a path; two equally likely endpoints are both reached
// except once in 10^7 runs.
const tries = 24

// checkPath connects for a path in one family and compares the results.
func (c *cluster) checkPath(t *testing.T, svc *corev1.Service, p path, family int) {
	t.Helper()
	to := c.target(svc, p, family)
	n := tries
	switch len(p.by) {
	case 0:
		n = 2
	case 1:
		n = 6
	}
	if len(p.by) == 0 && p.verdict == probe.Lost {
		to = to.Briefly()
	}
	saw := p.saw
	if saw == "" {
		saw = p.from
	}
	met := map[string]bool{}
	wrong := map[string]int{}
	targets := slices.Repeat([]probe.Target{to}, n)
	if c.mode == "ipvs" && to.Proto != "sctp" && p.to != "loopback" {
		// Services share pods here, and the kernel may choose a source port twice: difference
		// "source-port".
		for i := range targets {
			targets[i].Src = c.freshPort(family)
		}
	}
	for _, r := range c.dialers[p.from].DialAll(t.Context(), targets, n) {
		met[r.Server] = true
		if complaint := c.complaint(r, p, saw); complaint != "" {
			wrong[complaint]++
		}
	}
	for complaint, times := range wrong {
		t.Errorf("from %s: %s: %d of %d times %s", p.from, to, times, n, complaint)
	}
	for _, want := range p.by {
		if !met[want] {
			t.Errorf("from %s: %s: %s was not met in %d connections", p.from, to, want, n)
		}
	}
}

// freshPort returns a source port that was not used for the last few thousand connections, below
// the kernel's range.
func (c *cluster) freshPort(family int) netip.AddrPort {
	const lowest, count = 11000, 18000
	c.sourcePorts++
	return netip.AddrPortFrom([]netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()}[family], uint16(lowest+c.sourcePorts%count))
}

// complaint describes what is wrong with a result, without details that differ between connections.
func (c *cluster) complaint(r probe.Result, p path, saw string) string {
	switch {
	case len(p.by) == 0 && r.Verdict == p.verdict:
		return ""
	case len(p.by) == 0:
		return fmt.Sprintf("%s (%s), want %s", r.Verdict, r.Server, p.verdict)
	case r.Verdict == probe.Failed:
		return fmt.Sprintf("%s, want an answer by one of %v", r, p.by)
	case r.Verdict != probe.Answered || !slices.Contains(p.by, r.Server):
		return fmt.Sprintf("%s (%s), want an answer by one of %v", r.Verdict, r.Server, p.by)
	case c.labelOf(r.Saw.Addr()) != saw:
		return fmt.Sprintf("%s saw %s, want it to see %s", r.Server, c.labelOf(r.Saw.Addr()), saw)
	}
	return ""
}

func (c *cluster) target(svc *corev1.Service, p path, family int) probe.Target {
	sp := svc.Spec.Ports[p.port]
	number := sp.Port
	var a netip.Addr
	switch p.to {
	case "cluster":
		a = clusterIP(svc, family)
	case "balancer":
		a = netip.MustParseAddr(svc.Status.LoadBalancer.Ingress[family].IP)
	case "external":
		a = netip.MustParseAddr(svc.Spec.ExternalIPs[family])
	case "loopback":
		a, number = netip.MustParseAddr("127.0.0.1"), sp.NodePort
	default:
		a, number = c.hosts[p.to].Addrs[family], sp.NodePort
	}
	return probe.Target{Proto: strings.ToLower(string(sp.Protocol)), Dst: netip.AddrPortFrom(a, uint16(number))}
}

// scene is a Service with its endpoints and the paths to it.
type scene struct {
	name      string
	edits     []func(*corev1.Service)
	endpoints []endpoint
	paths     []path
	// v4 skips IPv6.
	v4 bool
}

func (c *cluster) play(t *testing.T, scenes []scene) {
	services := make([]*corev1.Service, len(scenes))
	for i, s := range scenes {
		services[i] = c.service(t, fmt.Sprintf("scene-%d", i), s.edits...)
		c.endpoints(t, services[i], s.endpoints...)
	}
	c.settle(t)
	for i, s := range scenes {
		for _, p := range s.paths {
			for f, family := range families {
				if s.v4 && f == 1 {
					continue
				}
				t.Run(s.name+"/"+p.name+"/"+family, func(t *testing.T) {
					if p.ours && c.reference {
						t.Skip("kube-proxy does otherwise")
					}
					c.checkPath(t, services[i], p, f)
				})
			}
		}
	}
}

func ports(ports ...corev1.ServicePort) func(*corev1.Service) {
	return func(s *corev1.Service) { s.Spec.Ports = ports }
}

func external(n int) func(*corev1.Service) {
	return func(s *corev1.Service) {
		s.Spec.ExternalIPs = []string{balancerIP(0, n).String(), balancerIP(1, n).String()}
	}
}

func internalLocal(s *corev1.Service) {
	s.Spec.InternalTrafficPolicy = ptr.To(corev1.ServiceInternalTrafficPolicyLocal)
}

func ranges(prefixes ...string) func(*corev1.Service) {
	return func(s *corev1.Service) { s.Spec.LoadBalancerSourceRanges = prefixes }
}

func testPaths(t *testing.T, c *cluster) {
	const onePod, otherPod, guest = "node1-p1", "node2-p1", "node1-p3"
	both := []string{onePod, otherPod}
	cluster, local := corev1.ServiceExternalTrafficPolicyCluster, corev1.ServiceExternalTrafficPolicyLocal
	local127 := both // as if the load balancer had sent it
	if c.mode != "iptables" {
		local127 = []string{onePod} // KEP-6032
	}
	c.play(t, []scene{
		{name: "policy Cluster", edits: []func(*corev1.Service){balanced(1, cluster), external(2)}, endpoints: readyAll(both...), paths: []path{
			{name: "pod to cluster IP", from: guest, to: "cluster", by: both},
			{name: "pod of the other node to cluster IP", from: "node2-p3", to: "cluster", by: both},
			{name: "node to cluster IP", from: "node1", to: "cluster", by: both, saw: "node1"},
			{name: "client to cluster IP", from: "client", to: "cluster", by: both, saw: "node1"},
			{name: "client to node port", from: "client", to: "node1", by: both, saw: "node1"},
			{name: "client to node port of the other node", from: "client", to: "node2", by: both, saw: "node2"},
			{name: "client to balancer", from: "client", to: "balancer", by: both, saw: "node1"},
			{name: "client to external IP", from: "client", to: "external", by: both, saw: "node1"},
			{name: "pod to node port", from: guest, to: "node1", by: both, saw: "node1"},
			{name: "pod to node port of the other node", from: guest, to: "node2", by: both, saw: "node2"},
			{name: "pod to balancer", from: guest, to: "balancer", by: both, saw: "node1"},
			{name: "node to own node port", from: "node1", to: "node1", by: both, saw: "node1"},
			{name: "node to balancer", from: "node2", to: "balancer", by: both, saw: "node2"},
		}},
		{name: "policy Local", edits: []func(*corev1.Service){balanced(3, local)}, endpoints: readyAll(both...), paths: []path{
			{name: "client to node port", from: "client", to: "node1", by: []string{onePod}},
			{name: "client to node port of the other node", from: "client", to: "node2", by: []string{otherPod}},
			{name: "client to balancer", from: "client", to: "balancer", by: []string{onePod}},
			{name: "pod to balancer, as if through it", from: guest, to: "balancer", by: both},
			{name: "node to balancer, as if through it", from: "node2", to: "balancer", by: both, saw: "node2"},
			{name: "pod to cluster IP", from: guest, to: "cluster", by: both},
		}},
		{name: "policy Local, endpoints elsewhere", edits: []func(*corev1.Service){balanced(4, local)}, endpoints: readyAll(otherPod), paths: []path{
			{name: "client to node port", from: "client", to: "node1", verdict: probe.Lost},
			{name: "client to balancer", from: "client", to: "balancer", verdict: probe.Lost},
			{name: "client to node port where the endpoint is", from: "client", to: "node2", by: []string{otherPod}},
			{name: "pod to balancer", from: guest, to: "balancer", by: []string{otherPod}},
		}},
		{name: "internal policy Local", edits: []func(*corev1.Service){internalLocal}, endpoints: readyAll(both...), paths: []path{
			{name: "pod of node1", from: guest, to: "cluster", by: []string{onePod}},
			{name: "pod of node2", from: "node2-p3", to: "cluster", by: []string{otherPod}},
		}},
		{name: "internal policy Local, endpoints elsewhere", edits: []func(*corev1.Service){internalLocal}, endpoints: readyAll(otherPod), paths: []path{
			{name: "pod", from: guest, to: "cluster", verdict: probe.Lost},
			{name: "node", from: "node1", to: "cluster", verdict: probe.Lost},
		}},
		{name: "no endpoints", edits: []func(*corev1.Service){balanced(5, cluster), external(6), ports(
			port("tcp", corev1.ProtocolTCP, 80), port("udp", corev1.ProtocolUDP, 80))}, paths: []path{
			{name: "pod, TCP", from: guest, to: "cluster", verdict: probe.Refused},
			{name: "pod, UDP", from: guest, to: "cluster", port: 1, verdict: probe.Refused},
			{name: "node, TCP", from: "node1", to: "cluster", verdict: probe.Refused},
			{name: "client to balancer, TCP", from: "client", to: "balancer", verdict: probe.Refused},
			{name: "client to balancer, UDP", from: "client", to: "balancer", port: 1, verdict: probe.Refused},
			{name: "client to external IP", from: "client", to: "external", verdict: probe.Refused},
			{name: "client to node port", from: "client", to: "node1", port: 1, verdict: probe.Refused},
			{name: "node to balancer", from: "node1", to: "balancer", port: 1, verdict: probe.Refused, ours: true},
		}},
		{name: "source ranges that the client is in", edits: []func(*corev1.Service){balanced(7, cluster),
			ranges("203.0.113.0/25", "2001:db8:113::/121")}, endpoints: readyAll(both...), paths: []path{
			{name: "client to balancer", from: "client", to: "balancer", by: both, saw: "node1"},
			{name: "pod to balancer", from: guest, to: "balancer", verdict: probe.Lost},
			{name: "client to node port", from: "client", to: "node1", by: both, saw: "node1"},
			{name: "pod to cluster IP", from: guest, to: "cluster", by: both},
		}},
		{name: "source ranges that the client is not in", edits: []func(*corev1.Service){balanced(8, local),
			ranges("10.244.0.0/16", "fd00:10:244::/48")}, endpoints: readyAll(both...), paths: []path{
			{name: "client to balancer", from: "client", to: "balancer", verdict: probe.Lost},
			{name: "pod to balancer", from: guest, to: "balancer", by: both},
		}},
		{name: "three protocols on one number", edits: []func(*corev1.Service){balanced(9, cluster), ports(
			port("udp", corev1.ProtocolUDP, 80), port("sctp", corev1.ProtocolSCTP, 80))}, endpoints: readyAll(both...), paths: []path{
			{name: "UDP, pod to cluster IP", from: guest, to: "cluster", by: both},
			{name: "UDP, client to node port", from: "client", to: "node2", by: both, saw: "node2"},
			{name: "SCTP, pod to cluster IP", from: guest, to: "cluster", port: 1, by: both},
			{name: "SCTP, node to cluster IP", from: "node2", to: "cluster", port: 1, by: both, saw: "node2"},
			{name: "SCTP, client to balancer", from: "client", to: "balancer", port: 1, by: both, saw: "node1"},
		}},
		{name: "localhost", v4: true, edits: []func(*corev1.Service){balanced(10, local)}, endpoints: readyAll(both...), paths: []path{
			{name: "node to 127.0.0.1", from: "node1", to: "loopback", by: local127, saw: "node1"},
		}},
		{name: "only terminating endpoints", edits: []func(*corev1.Service){balanced(11, local)},
			endpoints: []endpoint{terminating(onePod), terminating(otherPod)}, paths: []path{
				{name: "pod to cluster IP", from: guest, to: "cluster", by: both},
				{name: "client to balancer", from: "client", to: "balancer", by: []string{onePod}},
			}},
		{name: "ready and terminating endpoints", endpoints: []endpoint{terminating(onePod), ready(otherPod)}, paths: []path{
			{name: "pod to cluster IP", from: guest, to: "cluster", by: []string{otherPod}},
		}},
		{name: "zone hints", endpoints: []endpoint{
			{pod: onePod, ready: true, zones: []string{"zone1"}}, {pod: otherPod, ready: true, zones: []string{"zone2"}}}, paths: []path{
			{name: "pod in zone1", from: guest, to: "cluster", by: []string{onePod}},
			{name: "pod in zone2", from: "node2-p3", to: "cluster", by: []string{otherPod}},
		}},
	})
}

// testHairpin has a pod connect to itself.
func testHairpin(t *testing.T, c *cluster) {
	local := corev1.ServiceExternalTrafficPolicyLocal
	self := []string{"node1-p1"}
	c.play(t, []scene{
		{name: "itself alone", edits: []func(*corev1.Service){balanced(20, local)}, endpoints: readyAll(self...), paths: []path{
			{name: "through the cluster IP", from: self[0], to: "cluster", by: self, saw: "node1"},
			{name: "through the balancer", from: self[0], to: "balancer", by: self, saw: "node1"},
			{name: "through the node port", from: self[0], to: "node1", by: self, saw: "node1"},
			{name: "another pod is seen as it is", from: "node1-p2", to: "cluster", by: self},
		}},
		{name: "UDP and SCTP", edits: []func(*corev1.Service){ports(
			port("udp", corev1.ProtocolUDP, 80), port("sctp", corev1.ProtocolSCTP, 80))}, endpoints: readyAll(self...), paths: []path{
			{name: "UDP", from: self[0], to: "cluster", by: self, saw: "node1"},
			{name: "SCTP", from: self[0], to: "cluster", port: 1, by: self, saw: "node1"},
		}},
	})
}

package e2e

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/fairlead/fairlead/e2e/lab"
	"github.com/fairlead/fairlead/e2e/probe"
	"github.com/fairlead/fairlead/internal/fwd"
	"github.com/fairlead/fairlead/internal/oracle"
)

// rounds is the number of changes and comparisons of the random cluster, randomServices the number
// of its Services.
const (
	rounds         = 2
	randomServices = 24
)

// testOracle creates a random cluster and compares the results of packets with package oracle.
func testOracle(t *testing.T, c *cluster) {
	seed, err := strconv.ParseUint(cmp.Or(os.Getenv("E2E_SEED"), fmt.Sprint(time.Now().UnixNano())), 10, 64)
	must(t, err)
	t.Logf("repeat with E2E_SEED=%d", seed)
	g := &generator{cluster: c, Rand: rand.New(rand.NewPCG(seed, 0))}
	services := g.services(t)
	for round := range rounds {
		if round > 0 {
			g.change(t, services)
		}
		c.settle(t)
		objects := c.objects(t)
		trips := g.trips(objects)
		counts := map[string]int{}
		for i, r := range c.travel(t, trips, objects) {
			verdict := trips[i].compare(t, c, objects, r)
			counts[verdict.String()]++
		}
		t.Logf("round %d: %d packets, %v", round, len(trips), counts)
		for _, v := range []fwd.Verdict{fwd.VerdictForward, fwd.VerdictReject, fwd.VerdictDrop, fwd.VerdictPass} {
			if counts[v.String()] == 0 {
				t.Errorf("round %d: no packet had the verdict %s: the cluster is too plain", round, v)
			}
		}
	}
}

// objects reads the objects of the API server.
func (c *cluster) objects(t *testing.T) *oracle.Cluster {
	t.Helper()
	o := &oracle.Cluster{}
	services, err := c.client.CoreV1().Services("").List(t.Context(), metav1.ListOptions{})
	must(t, err)
	for i := range services.Items {
		o.Services = append(o.Services, &services.Items[i])
	}
	slices, err := c.client.DiscoveryV1().EndpointSlices("").List(t.Context(), metav1.ListOptions{})
	must(t, err)
	for i := range slices.Items {
		o.Slices = append(o.Slices, &slices.Items[i])
	}
	cidrs, err := c.client.NetworkingV1().ServiceCIDRs().List(t.Context(), metav1.ListOptions{})
	must(t, err)
	for i := range cidrs.Items {
		o.ServiceCIDRs = append(o.ServiceCIDRs, &cidrs.Items[i])
	}
	nodes, err := c.client.CoreV1().Nodes().List(t.Context(), metav1.ListOptions{})
	must(t, err)
	for i := range nodes.Items {
		o.Nodes = append(o.Nodes, &nodes.Items[i])
	}
	return o
}

// trip is the first packet of a connection and the host that sends it.
type trip struct {
	from  lab.Host
	proto fwd.Proto
	src   netip.Addr
	dst   netip.AddrPort
}

// travel connects for all trips, concurrently for different hosts, and returns the results in the
// order of the trips.
func (c *cluster) travel(t *testing.T, trips []trip, objects *oracle.Cluster) []probe.Result {
	results := make([]probe.Result, len(trips))
	byHost := map[string][]int{}
	for i, tr := range trips {
		byHost[tr.from.Label] = append(byHost[tr.from.Label], i)
	}
	var wg sync.WaitGroup
	for host, indices := range byHost {
		wg.Go(func() {
			var targets []probe.Target
			for _, i := range indices {
				tr := trips[i]
				to := probe.Target{Proto: tr.proto.String(), Src: netip.AddrPortFrom(tr.src, 0), Dst: tr.dst}
				if tr.expectsNothing(c, objects) {
					to = to.Briefly()
				}
				targets = append(targets, to)
			}
			for j, r := range c.dialers[host].DialAll(t.Context(), targets, 6) {
				results[indices[j]] = r
			}
		})
	}
	wg.Wait()
	return results
}

// hop is a packet as one node sees it.
type hop struct {
	node *lab.Node
	cfg  *oracle.Config
	in   string
}

// way lists the nodes that the packet passes until one handles it.
func (c *cluster) way(tr trip) []hop {
	var hops []hop
	add := func(n *lab.Node, in string) {
		cfg := &oracle.Config{
			NodeName: n.Label, NFTables: c.mode == "nftables", LocalhostNodePorts: true,
			ClusterCIDRs: []string{lab.PodCIDRs[0].String(), lab.PodCIDRs[1].String()},
		}
		hops = append(hops, hop{node: n, in: in, cfg: cfg})
	}
	for _, n := range c.lab.Nodes {
		if n.Label == tr.from.Label {
			add(n, "")
		}
		for _, p := range n.Pods {
			if p.Label == tr.from.Label {
				add(n, p.Link)
			}
		}
	}
	for _, n := range c.lab.Nodes {
		f := fwd.FamilyOf(tr.dst.Addr()).Index()
		if n.Addrs[f] == tr.dst.Addr() && (len(hops) == 0 || hops[0].node != n) {
			add(n, "eth0")
		}
	}
	if len(hops) == 0 {
		// The fabric routes packets from the client to service addresses to the first node.
		add(c.lab.Nodes[0], "eth0")
	}
	return hops
}

// judge asks the oracle about the trip: about the packet at the node that handles it, or the last
// one.
func (tr trip) judge(c *cluster, objects *oracle.Cluster) (fwd.Packet, oracle.Answer, hop) {
	packet := fwd.Packet{Src: tr.src, Dst: tr.dst, Proto: tr.proto}
	var answer oracle.Answer
	var at hop
	for _, at = range c.way(tr) {
		packet.InInterface = at.in
		answer = oracle.Judge(objects, at.cfg, packet)
		if answer.Verdict != fwd.VerdictPass {
			break
		}
	}
	return packet, answer, at
}

// expectsNothing reports whether no answer is expected, so that a short timeout is enough.
func (tr trip) expectsNothing(c *cluster, objects *oracle.Cluster) bool {
	_, answer, at := tr.judge(c, objects)
	switch answer.Verdict {
	case fwd.VerdictDrop:
		return true
	case fwd.VerdictPass:
		return tr.leaves(at.node)
	case fwd.VerdictForward:
		return tr.repliesGetLost(c, answer, at.node)
	}
	return false
}

// compare asks the oracle about the trip and reports a difference from the result.
func (tr trip) compare(t *testing.T, c *cluster, objects *oracle.Cluster, got probe.Result) fwd.Verdict {
	t.Helper()
	packet, answer, at := tr.judge(c, objects)
	otherPort := c.mode == "ipvs" && answer.Verdict == fwd.VerdictPass && isVIP(objects, at.cfg, tr.dst.Addr())
	if !tr.agrees(c, answer, at.node, otherPort, got) && !tr.repliesGetLost(c, answer, at.node) && !c.decidesOtherwise(answer, at, got) {
		oracle.Disagreement(t, "", objects, at.cfg, packet, answer.String(), fmt.Sprintf("dialled from %s: %s", tr.from.Label, got))
	}
	return answer.Verdict
}

// isVIP reports whether the address has a frontend. In mode ipvs packets to its other ports are
// rejected: difference "other-ports".
func isVIP(objects *oracle.Cluster, cfg *oracle.Config, a netip.Addr) bool {
	for _, svc := range objects.Services {
		for _, p := range svc.Spec.Ports {
			proto, err := fwd.ParseProto(string(p.Protocol))
			if err != nil {
				panic("BUG: " + err.Error())
			}
			packet := fwd.Packet{Src: lab.ClientCIDRs[fwd.FamilyOf(a).Index()].Addr(), Dst: netip.AddrPortFrom(a, uint16(p.Port)), Proto: proto}
			if oracle.Judge(objects, cfg, packet).Verdict != fwd.VerdictPass {
				return true
			}
		}
	}
	return false
}

// decidesOtherwise reports two cases in which Fairlead intentionally differs from kube-proxy, which
// does not reject what the node itself sends to an external frontend, and without endpoints rejects
// sources that are not allowed.
func (c *cluster) decidesOtherwise(want oracle.Answer, at hop, got probe.Result) bool {
	return c.reference && (want.Verdict == fwd.VerdictReject && at.in == "" || want.Verdict == fwd.VerdictDrop && got.Verdict == probe.Refused)
}

func (tr trip) agrees(c *cluster, want oracle.Answer, at *lab.Node, otherPort bool, got probe.Result) bool {
	switch want.Verdict {
	case fwd.VerdictDrop:
		return got.Verdict == probe.Lost
	case fwd.VerdictReject:
		return got.Verdict == probe.Refused
	case fwd.VerdictPass:
		if tr.leaves(at) {
			// An address that drains in mode ipvs rejects, too.
			return got.Verdict == probe.Lost && !otherPort || got.Verdict == probe.Refused && c.mode == "ipvs"
		}
		// The packet arrives at a host without a listener. A host without SCTP reports another
		// error.
		return got.Verdict == probe.Refused || tr.proto == fwd.SCTP && got.Verdict != probe.Answered
	}
	saw := tr.src
	masquerade, candidate := want.Masquerade[got.At]
	if masquerade {
		saw = at.Addrs[fwd.FamilyOf(tr.dst.Addr()).Index()]
	}
	return got.Verdict == probe.Answered && candidate && got.Saw.Addr() == saw
}

// leaves reports whether the destination is not an address of the node itself; such a packet, if
// not handled, gets no answer.
func (tr trip) leaves(at *lab.Node) bool {
	return tr.dst.Addr() != at.Addrs[fwd.FamilyOf(tr.dst.Addr()).Index()] && !tr.dst.Addr().IsLoopback()
}

// repliesGetLost reports whether the endpoint may be on the node of the client pod while another
// node forwards and keeps the source. The endpoint's reply then goes to the pod without passing the
// node that has to translate it back. This follows from the rules if a pod connects to another
// node's node port with external traffic policy Local.
func (tr trip) repliesGetLost(c *cluster, want oracle.Answer, at *lab.Node) bool {
	home, _, isPod := strings.Cut(tr.from.Label, "-")
	if !isPod || home == at.Label {
		return false
	}
	for _, e := range want.Endpoints {
		node, _, _ := strings.Cut(c.labelOf(e.Addr()), "-")
		if node == home && !want.Masquerade[e] {
			return true
		}
	}
	return false
}

// trips makes packets to every frontend of every Service, and some to other addresses.
func (g *generator) trips(objects *oracle.Cluster) []trip {
	var trips []trip
	for _, svc := range objects.Services {
		if !strings.HasPrefix(svc.Name, "random-") {
			continue
		}
		for _, p := range svc.Spec.Ports {
			proto, err := fwd.ParseProto(string(p.Protocol))
			if err != nil {
				panic("BUG: " + err.Error())
			}
			for _, dst := range g.frontends(svc, p) {
				for range 2 {
					trips = append(trips, g.trip(proto, dst))
				}
				if g.IntN(8) == 0 {
					trips = append(trips, g.trip(proto, netip.AddrPortFrom(dst.Addr(), dst.Port()+1000)))
				}
			}
			if p.NodePort != 0 && g.cluster.mode == "iptables" {
				node := g.cluster.lab.Nodes[g.IntN(2)]
				lo := netip.MustParseAddr("127.0.0.1")
				trips = append(trips, trip{from: node.Host, proto: proto, src: lo, dst: netip.AddrPortFrom(lo, uint16(p.NodePort))})
			}
		}
	}
	return trips
}

func (g *generator) frontends(svc *corev1.Service, p corev1.ServicePort) []netip.AddrPort {
	ips := append([]string{}, svc.Spec.ClusterIPs...)
	ips = append(ips, svc.Spec.ExternalIPs...)
	for _, i := range svc.Status.LoadBalancer.Ingress {
		ips = append(ips, i.IP)
	}
	var dsts []netip.AddrPort
	for _, ip := range ips {
		if a, err := netip.ParseAddr(ip); err == nil {
			dsts = append(dsts, netip.AddrPortFrom(a, uint16(p.Port)))
		}
	}
	if p.NodePort != 0 {
		for _, n := range g.cluster.lab.Nodes {
			dsts = append(dsts, netip.AddrPortFrom(n.Addrs[0], uint16(p.NodePort)), netip.AddrPortFrom(n.Addrs[1], uint16(p.NodePort)))
		}
	}
	return dsts
}

// trip chooses a source for a destination.
func (g *generator) trip(proto fwd.Proto, dst netip.AddrPort) trip {
	l := g.cluster.lab
	hosts := []lab.Host{l.Client, l.Client, l.Nodes[0].Host, l.Nodes[1].Host}
	for _, p := range l.Pods() {
		hosts = append(hosts, p.Host)
	}
	from := hosts[g.IntN(len(hosts))]
	f := fwd.FamilyOf(dst.Addr()).Index()
	src := from.Addrs[f]
	if from.More != nil && g.IntN(2) == 0 {
		src = from.More[f]
	}
	return trip{from: from, proto: proto, src: src, dst: dst}
}

// testOwnedByNodes has Services that claim addresses of others: the node's own, as an external IP
// and in the status of a load balancer, and those of the load balancer's host. Everything that they
// do not serve works as before, also if another program translates it.
func testOwnedByNodes(t *testing.T, c *cluster) {
	node, client := c.lab.Nodes[0], c.lab.Client
	c.serveOnNodes(t)
	onClient, err := probe.Serve(client, "client", client.Addrs[:], []string{"tcp", "udp"}, []uint16{hostPort})
	must(t, err)
	t.Cleanup(func() { check(t, onClient.Close()) })
	both := ports(port("web", corev1.ProtocolTCP, 80), port("dns", corev1.ProtocolUDP, 80))
	balancedTo := func(addrs [2]netip.Addr) func(*corev1.Service) {
		return func(s *corev1.Service) {
			s.Spec.Type = corev1.ServiceTypeLoadBalancer
			for _, a := range addrs {
				s.Status.LoadBalancer.Ingress = append(s.Status.LoadBalancer.Ingress, corev1.LoadBalancerIngress{IP: a.String()})
			}
		}
	}
	own := c.service(t, "on-node", both, balancedTo(node.Addrs), func(s *corev1.Service) {
		s.Spec.ExternalIPs = []string{node.Addrs[0].String(), node.Addrs[1].String()}
	})
	second := c.service(t, "on-node-too", ports(port("web", corev1.ProtocolTCP, 81)), func(s *corev1.Service) {
		s.Spec.ExternalIPs = []string{node.Addrs[0].String(), node.Addrs[1].String()}
	})
	virtual := c.service(t, "virtual", both, balanced(70, corev1.ServiceExternalTrafficPolicyCluster))
	services := []*corev1.Service{own, second, virtual}
	// If VIPs are local, an address of another host that Services claim can no longer be reached
	// (address-of-others).
	localVIPs := c.mode == "ipvs" && c.vips != "mark"
	if !localVIPs {
		services = append(services, c.service(t, "on-balancer", both, balancedTo(client.Addrs)))
	}
	for _, svc := range services {
		c.endpoints(t, svc, ready("node1-p1"))
	}
	const theirs = 7777 // which another program translates
	for f := range families {
		tool := []string{"iptables-", "ip6tables-"}[f] + c.userland
		to := netip.AddrPortFrom(c.hosts["node1-p2"].Addrs[f], podPorts[0]).String()
		for _, proto := range []string{"tcp", "udp"} {
			for _, dst := range []netip.Addr{node.Addrs[f], balancerIP(f, 70)} {
				rule := []string{"PREROUTING", "-d", dst.String(), "-p", proto, "--dport", strconv.Itoa(theirs), "-j", "DNAT", "--to-destination", to}
				change := func(do string) {
					if out, err := node.Run(context.WithoutCancel(t.Context()), tool, append([]string{"-w", "-t", "nat", do}, rule...)...); err != nil {
						t.Errorf("%s %s %v: %v\n%s", tool, do, rule, err, out)
					}
				}
				change("-A")
				t.Cleanup(func() { change("-D") })
			}
		}
	}
	c.settle(t)

	verify := func(when string, claimed bool) {
		t.Helper()
		answers := func(from, proto string, dst netip.Addr, port uint16, server string) {
			t.Helper()
			to := probe.Target{Proto: proto, Dst: netip.AddrPortFrom(dst, port)}
			if r := c.dialers[from].Dial(t.Context(), to); r.Server != server {
				t.Errorf("%s: from %s: %s: %s, want an answer by %s", when, from, to, r, server)
			}
		}
		for f := range families {
			for _, proto := range []string{"tcp", "udp"} {
				for _, from := range []string{"client", guest, "node1"} {
					answers(from, proto, node.Addrs[f], hostPort, "node1")
					if claimed {
						answers(from, proto, node.Addrs[f], 80, "node1-p1")
					}
				}
				for _, from := range []string{"client", guest} {
					answers(from, proto, node.Addrs[f], theirs, "node1-p2")
				}
				answers("client", proto, balancerIP(f, 70), theirs, "node1-p2")
				for _, from := range []string{guest, "node1"} {
					answers(from, proto, client.Addrs[f], hostPort, "client")
				}
			}
			if claimed {
				answers("client", "tcp", node.Addrs[f], 81, "node1-p1")
				answers("client", "tcp", node.Addrs[f], uint16(own.Spec.Ports[0].NodePort), "node1-p1")
			}
			if code, _ := get(t, client, netip.AddrPortFrom(node.Addrs[f], 10256), "/livez"); code != 200 {
				t.Errorf("%s: %s: /livez answers %d", when, node.Addrs[f], code)
			}
		}
	}
	verify("while Services claim the addresses", true)
	for _, svc := range services[:2] {
		must(t, c.client.CoreV1().Services(namespace).Delete(t.Context(), svc.Name, metav1.DeleteOptions{}))
	}
	c.settle(t)
	verify("afterwards", false)
}

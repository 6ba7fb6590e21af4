package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/fairlead/fairlead/e2e/apiserver"
	"github.com/fairlead/fairlead/e2e/daemon"
	"github.com/fairlead/fairlead/e2e/lab"
	"github.com/fairlead/fairlead/e2e/probe"
	"github.com/fairlead/fairlead/internal/backend/ipvs"
	"github.com/fairlead/fairlead/internal/host/hosttest"
	"github.com/fairlead/fairlead/internal/host/ipset"
	hostipvs "github.com/fairlead/fairlead/internal/host/ipvs"
)

// drained is the timeout for what waits for connections to end: closed ones count for shortFin, and
// the daemon checks after 1, 2, 4, 8 and 15 seconds.
const (
	drained  = time.Minute
	shortFin = 3 * time.Second
)

// TestIPVSCorners tests known problems of IPVS with Services, case by case, with packets.
func TestIPVSCorners(t *testing.T) {
	lab.RequireKernel(t)
	hosttest.Need(t, hosttest.IPVS, hosttest.Dummy)
	c := newCluster(t, daemonCommand(t), "ipvs", "legacy", "--ipvs-tcpfin-timeout="+shortFin.String())
	c.vips = "address"
	c.serveOnNodes(t)
	corners := []struct {
		name string
		run  func(*testing.T)
		// address is set for tests of VIPs that are addresses, and for tests that do not depend on
		// --ipvs-vip.
		address bool
	}{
		{"host daemons are not reachable on a VIP", c.hostDaemons, false},
		{"an address of the node is a VIP", c.nodeAddressAsVIP, false},
		{"source ranges never flap open", c.sourceRangesNeverOpen, false},
		{"policies of DROP", c.policiesOfDrop, false},
		{"host-network pods", c.hostNetworkPods, false},
		{"policy Local has a short circuit", c.shortCircuit, false},
		{"ARP for VIPs", c.arp, false},
		{"node ports on localhost", c.localhost, true},
		{"a source port is used again and again", c.portReuse, true},
		{"one source port at two VIPs with one endpoint", c.sourcePortTwice, true},
		{"schedulers and weights", c.schedulers, true},
		{"TCP older than its Service", c.staleTCP, true},
		{"an endpoint that comes back", c.endpointComesBack, false},
		{"a pod that has ended", c.podHasEnded, true},
		{"a removed Service", c.removedService, false},
		{"a thousand external IPs", c.thousandIPs, true},
		{"a restart writes nothing", c.restartWritesNothing, false},
		{"sets that are full", c.fullSets, true},
		{"virtual servers of others", c.othersServers, true},
		{"kube-proxy's virtual servers are taken over", c.takeOver, true},
	}
	for _, vips := range []string{"address", "route", "mark"} {
		t.Run(vips, func(t *testing.T) {
			if vips != c.vips {
				t.Run("change from "+c.vips, func(t *testing.T) { c.changeOfVIPs(t, vips) })
			}
			for _, corner := range corners {
				if corner.address && vips != "address" {
					continue
				}
				t.Run(corner.name, func(t *testing.T) {
					start := time.Now()
					corner.run(t)
					t.Logf("took %v", time.Since(start).Round(time.Second))
					if t.Failed() {
						c.logState(t)
					}
				})
			}
		})
	}
	t.Run("a VIP is never the source of other packets", c.sourceIsNoVIP)
}

// changeOfVIPs restarts the daemons with another --ipvs-vip. A connection to a removed Service
// continues, so its address stays as the old setting created it. Its removal, as the last address
// of its device, must not remove anything that the new setting created.
func (c *cluster) changeOfVIPs(t *testing.T, vips string) {
	removed := c.service(t, "drains-until-"+vips)
	c.endpoints(t, removed, ready("node2-p1"))
	steady := c.service(t, "steady-until-"+vips)
	c.endpoints(t, steady, ready("node1-p1"))
	c.settle(t)
	var open []*probe.Conn
	for f := range families {
		open = append(open, c.openTo(t, guest, c.target(removed, path{to: "cluster"}, f), "node2-p1"))
	}
	must(t, c.client.CoreV1().Services(namespace).Delete(t.Context(), removed.Name, metav1.DeleteOptions{}))
	c.settle(t)
	c.useVIPs(t, vips)
	c.settle(t)
	for f, o := range open {
		if r := o.Ask(t.Context()); r.Server != "node2-p1" {
			t.Errorf("%s: the open connection: %s", families[f], r)
		}
		check(t, o.Close())
	}
	node := c.lab.Nodes[0]
	c.nothingDrains(t, node)
	left, err := node.Run(t.Context(), "ip", "-o", "address", "show", "dev", ipvs.Device)
	must(t, err)
	if left != "" {
		t.Fatalf("addresses on %s are left:\n%s", ipvs.Device, left)
	}
	for range 2 { // the second reading of the kernel has begun after the address went
		since := c.metric(t, node, "fairlead_last_verified_timestamp_seconds")
		c.awaitMetric(t, node, "fairlead_last_verified_timestamp_seconds", func(v float64) bool { return v > since })
	}
	if v := c.metric(t, node, "fairlead_drifted_objects_total"); v != 0 {
		t.Errorf("%v objects had to be repaired", v)
	}
	c.expect(t, steady, path{from: guest, to: "cluster", by: []string{"node1-p1"}})
}

// restart stops a daemon and starts it with additional flags for this run.
func (c *cluster) restart(t *testing.T, node int, flags ...string) {
	t.Helper()
	check(t, c.stop(c.daemons[node]))
	own := c.flags
	c.flags = append(slices.Clone(own), flags...)
	defer func() { c.flags = own }()
	c.startDaemon(t, node)
	c.synced(t, node)
}

func (c *cluster) synced(t *testing.T, node int) {
	t.Helper()
	// Also during a test's cleanup.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), settleTimeout)
	defer cancel()
	must(t, c.daemons[node].AwaitLog(ctx, "msg=synced"))
}

// Ports of nodes: a program of the node serves hostPort on all addresses; podPorts are those of
// host-network pods.
const hostPort = 9999

// serveOnNodes starts servers on both nodes: a host daemon on all addresses of both families, and a
// host-network pod on its own.
func (c *cluster) serveOnNodes(t *testing.T) {
	t.Helper()
	for _, n := range c.lab.Nodes {
		daemon, err := probe.Serve(n, n.Label, []netip.Addr{netip.IPv6Unspecified()}, []string{"tcp", "udp"}, []uint16{hostPort})
		must(t, err)
		pod, err := probe.Serve(n, n.Label, n.Addrs[:], []string{"tcp", "udp"}, podPorts)
		must(t, err)
		t.Cleanup(func() { check(t, errors.Join(daemon.Close(), pod.Close())) })
	}
}

// hostDaemons connects to ports of VIPs that no Service has. In mode mark such a port is left to
// the network if the address is in no service CIDR: nothing answers there.
func (c *cluster) hostDaemons(t *testing.T) {
	svc := c.service(t, "web", balanced(70, corev1.ServiceExternalTrafficPolicyCluster), external(71))
	c.endpoints(t, svc, ready("node2-p1"))
	c.settle(t)
	for f := range families {
		own := probe.Target{Proto: "tcp", Dst: netip.AddrPortFrom(c.lab.Nodes[0].Addrs[f], hostPort)}
		if r := c.dialers["client"].Dial(t.Context(), own); r.Server != "node1" {
			t.Errorf("%s: %s, want an answer by the host daemon", own, r)
		}
		for _, to := range []string{"cluster", "balancer", "external"} {
			vip := c.target(svc, path{to: to}, f).Dst.Addr()
			for _, from := range []string{guest, "node1", "client"} {
				for _, proto := range []string{"tcp", "udp"} {
					for _, port := range []uint16{hostPort, hostPort - 1} {
						want := probe.Refused
						if c.vips == "mark" && to != "cluster" {
							want = probe.Lost
						}
						c.becomesAtOnce(t, from, probe.Target{Proto: proto, Dst: netip.AddrPortFrom(vip, port)}, want)
					}
				}
			}
		}
	}
}

// becomesAtOnce connects once.
func (c *cluster) becomesAtOnce(t *testing.T, from string, to probe.Target, want probe.Verdict) {
	t.Helper()
	if want == probe.Lost {
		to = to.Briefly()
	}
	if r := c.dialers[from].Dial(t.Context(), to); r.Verdict != want {
		t.Errorf("from %s: %s: %s, want %s", from, to, r, want)
	}
}

// nodeAddressAsVIP gives a Service an external IP that is an address of the first node, and removes
// it again.
func (c *cluster) nodeAddressAsVIP(t *testing.T) {
	node := c.lab.Nodes[0]
	svc := c.service(t, "on-node", func(s *corev1.Service) {
		s.Spec.ExternalIPs = []string{node.Addrs[0].String(), node.Addrs[1].String()}
	})
	// If VIPs are local, the second node has this one, too: its pods' replies do not reach the
	// first node.
	by := "node1-p1"
	if c.vips == "mark" {
		by = "node2-p1"
	}
	c.endpoints(t, svc, ready(by))
	c.settle(t)
	own := func(when string) {
		t.Helper()
		for f := range families {
			for _, port := range []uint16{hostPort, 10256} {
				to := netip.AddrPortFrom(node.Addrs[f], port)
				if port == hostPort {
					c.becomesAtOnce(t, "client", probe.Target{Proto: "tcp", Dst: to}, probe.Answered)
				} else if code, _ := get(t, c.lab.Client, to, "/livez"); code != 200 {
					t.Errorf("%s %s answers %d", when, to, code)
				}
			}
		}
		if out, err := node.Run(t.Context(), "ip", "-o", "address", "show", "dev", "eth0"); err != nil || !strings.Contains(out, node.Addrs[0].String()) {
			t.Errorf("%s eth0 has %s (%v)", when, out, err)
		}
	}
	for _, from := range []string{"client", guest, "node1"} {
		c.expect(t, svc, path{from: from, to: "external", by: []string{by}, saw: "node1"})
	}
	own("while it is a VIP")
	must(t, c.client.CoreV1().Services(namespace).Delete(t.Context(), svc.Name, metav1.DeleteOptions{}))
	c.settle(t)
	own("afterwards")
}

// neverAnswered keeps connecting until stop is called. An answer fails the test.
func (c *cluster) neverAnswered(t *testing.T, from string, to probe.Target) (stop func() int) {
	ctx, cancel := context.WithCancel(context.Background())
	count := make(chan int)
	go func() {
		n := 0
		for ; ctx.Err() == nil; n++ {
			if r := c.dialers[from].Dial(ctx, to); r.Verdict == probe.Answered {
				t.Errorf("connection %d from %s: %s: %s", n, from, to, r)
			}
		}
		count <- n
	}()
	return func() int { cancel(); return <-count }
}

// sourceRangesNeverOpen keeps connecting from a forbidden source while everything else about the
// Service changes.
func (c *cluster) sourceRangesNeverOpen(t *testing.T) {
	narrow := ranges("203.0.113.128/25", "2001:db8:113::80/121")
	edits := []func(*corev1.Service){
		balanced(72, corev1.ServiceExternalTrafficPolicyCluster), narrow, ports(port("tcp", corev1.ProtocolTCP, 80), port("udp", corev1.ProtocolUDP, 80)),
	}
	svc := c.service(t, "guarded", edits...)
	var stops []func() int
	for f := range families {
		for _, from := range []string{"client", "node1", guest} {
			for i := range svc.Spec.Ports {
				to := c.target(svc, path{to: "balancer", port: i}, f)
				to.Timeout = 100 * time.Millisecond
				stops = append(stops, c.neverAnswered(t, from, to))
			}
		}
	}
	allowed := func() {
		t.Helper()
		for f := range families {
			to := c.target(svc, path{to: "balancer"}, f)
			to.Src = netip.AddrPortFrom(c.lab.Client.More[f], 0)
			c.becomes(t, "client", to, probe.Answered)
		}
	}
	for _, step := range []func(){
		func() { c.endpoints(t, svc, ready("node1-p1")) },
		func() {
			c.update(t, svc, func(s *corev1.Service) {
				s.Spec.LoadBalancerSourceRanges = append(s.Spec.LoadBalancerSourceRanges, "203.0.113.64/26")
			})
		},
		func() { c.endpoints(t, svc, readyAll("node2-p1", "node2-p2")...) },
		func() { c.update(t, svc, narrow) },
		func() {
			c.update(t, svc, func(s *corev1.Service) { s.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal })
			c.endpoints(t, svc, readyAll("node1-p1", "node2-p2")...)
		},
		func() {
			must(t, c.client.CoreV1().Services(namespace).Delete(t.Context(), svc.Name, metav1.DeleteOptions{}))
			c.settle(t)
			svc = c.service(t, "guarded", edits...)
		},
		func() { c.restart(t, 0) },
	} {
		step()
		allowed()
		c.settle(t)
	}
	for _, stop := range stops {
		if n := stop(); n < 10 {
			t.Errorf("only %d connections", n)
		}
	}
}

// policiesOfDrop sets all policies of table filter on the first node to DROP. Its firewall accepts
// only traffic to the API server and packets of the node's own connections.
func (c *cluster) policiesOfDrop(t *testing.T) {
	node := c.lab.Nodes[0]
	legacy := func(f int, args ...string) {
		t.Helper()
		_, err := node.Run(context.Background(), []string{"iptables-legacy", "ip6tables-legacy"}[f], append([]string{"-w"}, args...)...)
		must(t, err)
	}
	both := c.service(t, "behind-firewall", balanced(73, corev1.ServiceExternalTrafficPolicyCluster))
	c.endpoints(t, both, readyAll("node1-p1", "node2-p1")...)
	local := c.service(t, "local-behind-firewall", balanced(74, corev1.ServiceExternalTrafficPolicyLocal))
	c.endpoints(t, local, ready("node1-p1"))
	c.settle(t)
	rules := [][]string{
		{"INPUT", "-i", "lo"}, {"OUTPUT", "-o", "lo"}, {"INPUT", "-i", "eth0", "-s", ""}, {"OUTPUT", "-o", "eth0", "-d", ""},
		{"INPUT", "-m", "conntrack", "--ctstate", "RELATED,ESTABLISHED"}, {"OUTPUT", "-m", "conntrack", "--ctstate", "RELATED,ESTABLISHED"},
	}
	for f := range families {
		for _, r := range rules {
			r = slices.Clone(r)
			if i := slices.Index(r, ""); i >= 0 {
				r[i] = c.lab.Fabric.Addrs[f].String()
			}
			legacy(f, append(append([]string{"-A"}, r...), "-j", "ACCEPT")...)
			t.Cleanup(func() { legacy(f, append(append([]string{"-D"}, r...), "-j", "ACCEPT")...) })
		}
		for _, chain := range []string{"INPUT", "OUTPUT", "FORWARD"} {
			legacy(f, "-P", chain, "DROP")
			t.Cleanup(func() { legacy(f, "-P", chain, "ACCEPT") })
		}
	}
	two := []string{"node1-p1", "node2-p1"}
	for _, p := range []path{
		{from: "client", to: "node1", by: two, saw: "node1"}, {from: "client", to: "balancer", by: two, saw: "node1"},
		{from: guest, to: "cluster", by: two}, {from: guest, to: "node1", by: two, saw: "node1"}, {from: "node1", to: "cluster", by: two, saw: "node1"},
	} {
		c.expect(t, both, p)
	}
	c.expect(t, local, path{from: "client", to: "balancer", by: two[:1]})
	c.expect(t, local, path{from: "node1-p1", to: "balancer", by: two[:1], saw: "node1"})
	for f := range families {
		at := netip.AddrPortFrom(node.Addrs[f], uint16(local.Spec.HealthCheckNodePort))
		if code, text := get(t, c.lab.Client, at, "/"); code != 200 {
			t.Errorf("health-check node port %s: %d %s", at, code, text)
		}
		c.becomesAtOnce(t, "client", probe.Target{Proto: "tcp", Dst: netip.AddrPortFrom(node.Addrs[f], hostPort)}, probe.Lost)
	}
}

// hostNetworkPods are endpoints with the addresses of nodes.
func (c *cluster) hostNetworkPods(t *testing.T) {
	svc := c.service(t, "host-network", balanced(75, corev1.ServiceExternalTrafficPolicyCluster), ports(
		port("tcp", corev1.ProtocolTCP, 80), port("udp", corev1.ProtocolUDP, 80)))
	c.endpoints(t, svc, readyAll("node1", "node2")...)
	c.settle(t)
	for i := range svc.Spec.Ports {
		for f := range families {
			for from, to := range map[string]string{guest: "cluster", "client": "balancer", "node1": "cluster", "node2": "node2"} {
				target := c.target(svc, path{to: to, port: i}, f)
				if got := c.servers(t, from, target, 12); !slices.Equal(got, []string{"node1", "node2"}) {
					t.Errorf("from %s: %s: met %v", from, target, got)
				}
			}
		}
	}
}

// shortCircuit has a Service whose cluster IP does not have all endpoints either, so that pods and
// the node reach those on other nodes through an additional virtual server.
func (c *cluster) shortCircuit(t *testing.T) {
	svc := c.service(t, "all-local", balanced(76, corev1.ServiceExternalTrafficPolicyLocal), internalLocal, ports(
		port("tcp", corev1.ProtocolTCP, 80), port("udp", corev1.ProtocolUDP, 80)))
	two := []string{"node1-p1", "node2-p1"}
	c.endpoints(t, svc, readyAll(two...)...)
	c.settle(t)
	for i := range svc.Spec.Ports {
		c.expect(t, svc, path{from: guest, to: "balancer", port: i, by: two})
		c.expect(t, svc, path{from: "node1", to: "balancer", port: i, by: two, saw: "node1"})
		c.expect(t, svc, path{from: guest, to: "node1", port: i, by: two})
		c.expect(t, svc, path{from: "node1", to: "node1", port: i, by: two, saw: "node1"})
		c.expect(t, svc, path{from: guest, to: "cluster", port: i, by: two[:1]})
		c.expect(t, svc, path{from: "client", to: "balancer", port: i, by: two[:1]})
	}
	c.endpoints(t, svc, ready("node2-p1"))
	c.settle(t)
	for i := range svc.Spec.Ports {
		c.expect(t, svc, path{from: guest, to: "balancer", port: i, by: two[1:]})
		c.expect(t, svc, path{from: "node1", to: "balancer", port: i, by: two[1:], saw: "node1"})
		c.expect(t, svc, path{from: "client", to: "balancer", port: i, verdict: probe.Lost})
		c.expect(t, svc, path{from: "client", to: "node1", port: i, verdict: probe.Lost})
		c.expect(t, svc, path{from: "client", to: "node2", port: i, by: two[1:]})
		c.expect(t, svc, path{from: guest, to: "cluster", port: i, verdict: probe.Lost})
	}
}

// arp asks the nodes' network which node has a VIP.
func (c *cluster) arp(t *testing.T) {
	svc := c.service(t, "asked-for", balanced(77, corev1.ServiceExternalTrafficPolicyCluster))
	c.endpoints(t, svc, ready("node1-p1"))
	c.settle(t)
	vip := c.target(svc, path{to: "balancer"}, 0).Dst.Addr().String()
	_, err := c.lab.Fabric.Run(t.Context(), "ip", "route", "add", vip+"/32", "dev", "br0")
	must(t, err)
	back := sync.OnceFunc(func() { // the way to the first node again
		_, err := c.lab.Fabric.Run(context.Background(), "ip", "route", "delete", vip+"/32", "dev", "br0")
		check(t, err)
	})
	t.Cleanup(back)
	fabric := probe.NewDialer(c.lab.Fabric)
	answered := func() bool {
		t.Helper()
		_, _ = c.lab.Fabric.Run(t.Context(), "ip", "neigh", "flush", "to", vip)
		// An unknown address becomes unreachable after three ARP requests, one per second.
		fabric.Dial(t.Context(), probe.Target{Proto: "tcp", Dst: netip.AddrPortFrom(netip.MustParseAddr(vip), 80)})
		out, err := c.lab.Fabric.Run(t.Context(), "ip", "neigh", "show", "to", vip)
		must(t, err)
		t.Logf("who has %s: %s", vip, out)
		return strings.Contains(out, "lladdr")
	}
	if got, want := answered(), c.vips != "mark"; got != want {
		t.Errorf("the nodes answer: %t, want %t", got, want)
	}
	if c.vips == "mark" {
		return
	}
	sysctls := []string{"net.ipv4.conf.all.arp_ignore", "net.ipv4.conf.all.arp_announce"}
	for i, n := range c.lab.Nodes {
		c.restart(t, i, "--ipvs-strict-arp")
		t.Cleanup(func() {
			for _, name := range sysctls {
				_, err := n.Run(context.Background(), "sh", "-c", "echo 0 >/proc/sys/"+strings.ReplaceAll(name, ".", "/"))
				check(t, err)
			}
			c.restart(t, i)
		})
	}
	if answered() {
		t.Error("the nodes answer with --ipvs-strict-arp")
	}
	back()
	c.expect(t, svc, path{from: "client", to: "balancer", by: []string{"node1-p1"}, saw: "node1"})
}

// localhost connects to node ports on both loopback addresses.
func (c *cluster) localhost(t *testing.T) {
	svc := c.service(t, "localhost", balanced(78, corev1.ServiceExternalTrafficPolicyCluster))
	two := []string{"node1-p1", "node2-p1"}
	c.endpoints(t, svc, readyAll(two...)...)
	c.settle(t)
	for _, lo := range []string{"127.0.0.1", "::1"} {
		to := probe.Target{Proto: "tcp", Dst: netip.AddrPortFrom(netip.MustParseAddr(lo), uint16(svc.Spec.Ports[0].NodePort))}
		c.becomes(t, "node1", to, probe.Answered) // the forwarder listens after the sync
		if got := c.servers(t, "node1", to, 24); !slices.Equal(got, two) {
			t.Errorf("%s: met %v", lo, got)
		}
	}
}

// portReuse keeps connecting from a few source ports while endpoints change. Connections are reset,
// so that the client forgets them. A dropped SYN is retransmitted, and counted.
func (c *cluster) portReuse(t *testing.T) {
	svc := c.service(t, "busy", balanced(79, corev1.ServiceExternalTrafficPolicyCluster))
	all := readyAll("node1-p1", "node1-p2", "node2-p1")
	c.endpoints(t, svc, all...)
	c.settle(t)
	const times, sourcePorts = 400, 20
	for _, from := range []string{guest, "client", "node1"} {
		for f, family := range families {
			to := c.target(svc, path{to: "balancer"}, f)
			again := uint32(0)
			for i := range times {
				if i%(times/4) == times/8 {
					c.endpoints(t, svc, all[(i/(times/4))%2:]...)
				}
				n, err := c.exchangeFrom(t.Context(), from, uint16(40000+i%sourcePorts), to)
				if err != nil {
					t.Fatalf("connection %d from %s, %s: %v", i, from, family, err)
				}
				again += n
			}
			if again > times/20 {
				t.Errorf("from %s, %s: %d packets of %d connections had to be sent again", from, family, again, times)
			}
		}
	}
}

// sourcePortTwice has connections from one source port to two Services with the same endpoint,
// which cannot tell them apart. The younger one works; for the older one see difference
// "source-port".
func (c *cluster) sourcePortTwice(t *testing.T) {
	var both []*corev1.Service
	for _, name := range []string{"first", "second"} {
		svc := c.service(t, name)
		c.endpoints(t, svc, ready("node2-p1"))
		both = append(both, svc)
	}
	c.settle(t)
	for f, family := range families {
		for _, ended := range []bool{false, true} {
			port := uint16(45000 + 2*f)
			if ended {
				port++
			}
			first, err := c.dialFrom(t.Context(), guest, port, c.target(both[0], path{to: "cluster"}, f))
			must(t, err)
			defer first.Close()
			if err := exchange(first); err != nil {
				t.Errorf("%s: the first: %v", family, err)
			}
			if ended {
				check(t, first.Close())
			}
			if _, err := c.exchangeFrom(t.Context(), guest, port, c.target(both[1], path{to: "cluster"}, f)); err != nil {
				t.Errorf("%s: the second, the first having ended: %t: %v", family, ended, err)
			}
		}
	}
}

// exchangeFrom connects from a source port, exchanges one question and resets the connection. It
// returns the number of retransmissions.
func (c *cluster) exchangeFrom(ctx context.Context, from string, port uint16, to probe.Target) (again uint32, err error) {
	conn, err := c.dialFrom(ctx, from, port, to)
	if err != nil {
		return 0, err
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, errors.Join(err, conn.Close())
	}
	err = errors.Join(conn.SetLinger(0), exchange(conn))
	controlled := raw.Control(func(fd uintptr) {
		if info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
			again = info.Total_retrans
		}
	})
	return again, errors.Join(err, controlled, conn.Close())
}

// dialFrom connects from a source port that other connections may use, too.
func (c *cluster) dialFrom(ctx context.Context, from string, port uint16, to probe.Target) (*net.TCPConn, error) {
	reuse := func(_, _ string, raw syscall.RawConn) error {
		var err error
		return errors.Join(raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1) }), err)
	}
	d := net.Dialer{LocalAddr: &net.TCPAddr{Port: int(port)}, Control: reuse, Timeout: probe.DefaultTimeout}
	var conn net.Conn
	err := c.hosts[from].Do(func() (err error) {
		conn, err = d.DialContext(ctx, "tcp", to.Dst.String())
		return err
	})
	if err != nil {
		return nil, err
	}
	return conn.(*net.TCPConn), nil
}

// exchange exchanges one question over a connection.
func exchange(conn net.Conn) error {
	if err := conn.SetDeadline(time.Now().Add(probe.DefaultTimeout)); err != nil {
		return err
	}
	if _, err := conn.Write([]byte("1\n")); err != nil {
		return err
	}
	buf := make([]byte, 256)
	n, err := conn.Read(buf)
	if err == nil && !bytes.HasPrefix(buf[:n], []byte("1 ")) {
		err = fmt.Errorf("answer %q", buf[:n])
	}
	return err
}

// schedulers tests the annotations of docs/services.md.
func (c *cluster) schedulers(t *testing.T) {
	annotated := func(key, value string) func(*corev1.Service) {
		return func(s *corev1.Service) { metav1.SetMetaDataAnnotation(&s.ObjectMeta, "fairlead.dev/"+key, value) }
	}
	node := c.lab.Nodes[0]
	settings := func(svc *corev1.Service, f int) hostipvs.Settings {
		t.Helper()
		return virtualServers(t, node)[serverAt(clusterIP(svc, f), 80)].Settings
	}
	two := readyAll("node1-p1", "node2-p1")
	weighted := c.service(t, "weighted", annotated("weights", "node:node1=3, *=1"))
	hashed := c.service(t, "hashed", annotated("scheduler", "sh"))
	spread := c.service(t, "spread", annotated("scheduler", "mh"), annotated("scheduler-flags", "port"))
	fewest := c.service(t, "fewest", annotated("scheduler", "lc"))
	wrong := c.service(t, "wrong", annotated("scheduler", "no such thing"))
	missing := c.service(t, "missing", annotated("scheduler", "twos"))
	for _, svc := range []*corev1.Service{weighted, hashed, spread, fewest, wrong, missing} {
		c.endpoints(t, svc, two...)
	}
	c.settle(t)
	for f, family := range families {
		counts := map[string]int{}
		for range 24 {
			counts[c.dialers[guest].Dial(t.Context(), c.target(weighted, path{to: "cluster"}, f)).Server]++
		}
		if !maps.Equal(counts, map[string]int{"node1-p1": 18, "node2-p1": 6}) || settings(weighted, f).Scheduler != "wrr" {
			t.Errorf("%s: weights 3 and 1 share 24 connections as %v, by %+v", family, counts, settings(weighted, f))
		}
		if got := c.servers(t, guest, c.target(hashed, path{to: "cluster"}, f), 12); len(got) != 1 {
			t.Errorf("%s: by sh one client meets %v", family, got)
		}
		if s := settings(hashed, f); s.Scheduler != "sh" || s.Flags&hostipvs.Fallback == 0 {
			t.Errorf("%s: %+v, want sh with fallback", family, s)
		}
		if got := c.servers(t, guest, c.target(spread, path{to: "cluster"}, f), 40); len(got) != 2 {
			t.Errorf("%s: by mh with the flag port 40 connections meet %v", family, got)
		}
		if s := settings(spread, f); s.Scheduler != "mh" || s.Flags&hostipvs.Fallback == 0 {
			t.Errorf("%s: %+v, want mh with fallback", family, s)
		}
		if s := settings(fewest, f); s.Scheduler != "lc" {
			t.Errorf("%s: %+v, want lc", family, s)
		}
		if s := settings(wrong, f); s.Scheduler != "rr" {
			t.Errorf("%s: %+v in place of nonsense, want rr", family, s)
		}
		c.expect(t, wrong, path{from: guest, to: "cluster", by: []string{"node1-p1", "node2-p1"}})
		c.expect(t, missing, path{from: guest, to: "cluster", by: []string{"node1-p1", "node2-p1"}})
	}
	c.awaitEvent(t, wrong.Name, "FairleadBadField")
	if s := settings(missing, 0); s.Scheduler != "twos" { // kernels from 5.10 may have it
		c.awaitEvent(t, missing.Name, "SchedulerMissing")
	}
	t.Log("schedulers change under an open connection")
	open, err := c.dialers[guest].Open(t.Context(), c.target(hashed, path{to: "cluster"}, 0))
	must(t, err)
	defer open.Close()
	c.update(t, hashed, annotated("scheduler", "wlc"))
	c.settle(t)
	if s := settings(hashed, 0); s.Scheduler != "wlc" {
		t.Errorf("%+v, want wlc", s)
	}
	if r := open.Ask(t.Context()); r.Verdict != probe.Answered {
		t.Errorf("the open connection: %s", r)
	}
}

// awaitEvent waits for an Event about a Service.
func (c *cluster) awaitEvent(t *testing.T, service, reason string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), settleTimeout)
	defer cancel()
	for {
		events, err := c.client.CoreV1().Events(namespace).List(ctx, metav1.ListOptions{FieldSelector: "involvedObject.name=" + service})
		if err == nil && slices.ContainsFunc(events.Items, func(e corev1.Event) bool { return e.Reason == reason }) {
			return
		}
		select {
		case <-ctx.Done():
			t.Errorf("Service %s has no Event %s (%v)", service, reason, err)
			return
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// staleTCP begins to connect before the daemon handles the Service: its SYNs are lost, and a
// retransmitted one makes the connection.
func (c *cluster) staleTCP(t *testing.T) {
	svc := c.service(t, "late-tcp", func(s *corev1.Service) {
		metav1.SetMetaDataLabel(&s.ObjectMeta, "service.kubernetes.io/service-proxy-name", "other")
	})
	c.endpoints(t, svc, ready("node2-p1"))
	c.settle(t)
	results := make(chan probe.Result)
	for f := range families {
		to := c.target(svc, path{to: "cluster"}, f)
		to.Timeout = time.Minute
		go func() { results <- c.dialers[guest].Dial(context.Background(), to) }()
	}
	for f := range families { // the flow is in the table of connections
		for {
			out, err := c.lab.Nodes[0].Run(t.Context(), "conntrack", "-L", "-f", strings.ToLower(families[f]), "-d", clusterIP(svc, f).String())
			must(t, err)
			if strings.Contains(out, clusterIP(svc, f).String()) {
				break
			}
		}
	}
	c.update(t, svc, func(s *corev1.Service) { s.Labels = nil })
	for range families {
		if r := <-results; r.Server != "node2-p1" {
			t.Errorf("the connection that began before: %s", r)
		}
	}
}

// endpointComesBack removes an endpoint with an open connection and adds it again.
func (c *cluster) endpointComesBack(t *testing.T) {
	svc := c.service(t, "back-again")
	c.endpoints(t, svc, readyAll("node1-p1", "node2-p1")...)
	c.settle(t)
	node := c.lab.Nodes[0]
	for f, family := range families {
		to := c.target(svc, path{to: "cluster"}, f)
		open := c.openTo(t, guest, to, "node2-p1")
		ask := func(when string) {
			t.Helper()
			if r := open.Ask(t.Context()); r.Server != "node2-p1" {
				t.Errorf("%s, %s: the open connection: %s", family, when, r)
			}
		}
		v := serverAt(clusterIP(svc, f), 80)
		c.endpoints(t, svc, ready("node1-p1"))
		c.settle(t)
		if got := c.weights(t, node, v); !maps.Equal(got, map[string]uint32{"node1-p1": 1, "node2-p1": 0}) {
			t.Errorf("%s: weights %v while one drains", family, got)
		}
		ask("while it drains")
		if got := c.servers(t, guest, to, 10); !slices.Equal(got, []string{"node1-p1"}) {
			t.Errorf("%s: new connections meet %v", family, got)
		}
		c.endpoints(t, svc, readyAll("node1-p1", "node2-p1")...)
		c.settle(t)
		if got := c.weights(t, node, v); !maps.Equal(got, map[string]uint32{"node1-p1": 1, "node2-p1": 1}) {
			t.Errorf("%s: weights %v after it came back", family, got)
		}
		ask("after it came back")
		c.expect(t, svc, path{from: guest, to: "cluster", by: []string{"node1-p1", "node2-p1"}})
	}
}

// openTo opens connections until the pod answers one, and returns that one.
func (c *cluster) openTo(t *testing.T, from string, to probe.Target, pod string) *probe.Conn {
	t.Helper()
	for range 20 {
		conn, err := c.dialers[from].Open(t.Context(), to)
		must(t, err)
		if r := conn.Ask(t.Context()); r.Server == pod {
			t.Cleanup(func() { _ = conn.Close() })
			return conn
		}
		check(t, conn.Close())
	}
	t.Fatalf("from %s: %s: %s was not met", from, to, pod)
	return nil
}

// podHasEnded removes an endpoint for good: its connections are soon reset.
func (c *cluster) podHasEnded(t *testing.T) {
	svc := c.service(t, "ending")
	c.endpoints(t, svc, readyAll("node1-p1", "node2-p1")...)
	c.settle(t)
	open := c.openTo(t, guest, c.target(svc, path{to: "cluster"}, 0), "node2-p1")
	c.endpoints(t, svc, ready("node1-p1"), terminating("node2-p1"))
	c.settle(t)
	if r := open.Ask(t.Context()); r.Server != "node2-p1" {
		t.Errorf("while the pod shuts down: %s", r)
	}
	c.endpoints(t, svc, ready("node1-p1"))
	ctx, cancel := context.WithTimeout(t.Context(), drained)
	defer cancel()
	for {
		r := open.Ask(ctx)
		if r.Verdict != probe.Answered {
			if !errors.Is(r.Err, syscall.ECONNRESET) {
				t.Errorf("after the pod has ended: %s, want a reset", r)
			}
			break
		}
		select {
		case <-ctx.Done():
			t.Fatalf("the connection to a pod that has ended goes on: %s", r)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// removedService deletes a Service with an open connection. Nothing is left once the connection has
// ended.
func (c *cluster) removedService(t *testing.T) {
	svc := c.service(t, "removed", balanced(80, corev1.ServiceExternalTrafficPolicyCluster))
	c.endpoints(t, svc, ready("node2-p1"))
	c.settle(t)
	var open []*probe.Conn
	for f := range families {
		for from, to := range map[string]string{guest: "cluster", "client": "balancer"} {
			open = append(open, c.openTo(t, from, c.target(svc, path{to: to}, f), "node2-p1"))
		}
	}
	must(t, c.client.CoreV1().Services(namespace).Delete(t.Context(), svc.Name, metav1.DeleteOptions{}))
	c.settle(t)
	c.expect(t, svc, path{from: guest, to: "cluster", verdict: probe.Refused})
	for i, o := range open {
		if r := o.Ask(t.Context()); r.Server != "node2-p1" {
			t.Errorf("open connection %d of a removed Service: %s", i, r)
		}
		check(t, o.Close())
	}
	ctx, cancel := context.WithTimeout(t.Context(), drained)
	defer cancel()
	for f := range families {
		to := c.target(svc, path{to: "balancer"}, f)
		v := serverAt(to.Dst.Addr(), to.Dst.Port())
		for {
			if _, there := virtualServers(t, c.lab.Nodes[0])[v]; !there {
				break
			}
			select {
			case <-ctx.Done():
				t.Fatalf("%v is still there", v)
			case <-time.After(200 * time.Millisecond):
			}
		}
		if _, err := c.await(ctx, "client", to.Briefly(), func(r probe.Result) bool { return r.Verdict == probe.Lost }); err != nil {
			t.Errorf("the address of a removed Service stays: %v", err)
		}
	}
}

// thousandIPs gives one Service five hundred external IPs of each family.
func (c *cluster) thousandIPs(t *testing.T) {
	const each = 500
	ip := func(i, f int) netip.Addr {
		if f == 0 {
			return netip.AddrFrom4([4]byte{172, 30, byte(i >> 8), byte(i)})
		}
		return netip.MustParseAddr(fmt.Sprintf("fd00:172:30::%x", i))
	}
	svc := c.service(t, "thousand", func(s *corev1.Service) {
		for i := 1; i <= each; i++ {
			s.Spec.ExternalIPs = append(s.Spec.ExternalIPs, ip(i, 0).String(), ip(i, 1).String())
		}
	})
	c.endpoints(t, svc, ready("node1-p1"))
	c.settleWithin(t, 5*time.Minute)
	var targets []probe.Target
	for i := 1; i <= each; i++ {
		for f := range families {
			// All connections reach one endpoint, and the kernel may choose a source port twice:
			// difference "source-port".
			targets = append(targets, probe.Target{Proto: "tcp", Src: c.freshPort(f), Dst: netip.AddrPortFrom(ip(i, f), 80)})
		}
	}
	failed := 0
	for i, r := range c.dialers[guest].DialAll(t.Context(), targets, 8) {
		if r.Server != "node1-p1" {
			if failed++; failed < 5 {
				t.Errorf("%s: %s", targets[i], r)
			}
		}
	}
	if failed > 0 {
		t.Errorf("%d of %d were not answered", failed, len(targets))
	}
}

// restartWritesNothing compares the kernel's state before and after a restart, and checks the new
// process' metrics for writes.
func (c *cluster) restartWritesNothing(t *testing.T) {
	svc := c.service(t, "still", balanced(81, corev1.ServiceExternalTrafficPolicyLocal), ranges("203.0.113.0/25"))
	c.endpoints(t, svc, readyAll("node1-p1", "node2-p1")...)
	c.settle(t)
	node := c.lab.Nodes[0]
	c.nothingDrains(t, node)
	before := dataplaneOf(t, node)
	c.restart(t, 0)
	c.awaitMetric(t, node, "fairlead_last_verified_timestamp_seconds", func(v float64) bool { return v > 0 })
	if after := dataplaneOf(t, node); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
	for _, name := range []string{"fairlead_objects_written_total", "fairlead_objects_deleted_total", "fairlead_drifted_objects_total"} {
		if v := c.metric(t, node, name); v != 0 {
			t.Errorf("%s: %v", name, v)
		}
	}
}

// nothingDrains waits until the node's kernel has nothing of removed Services.
func (c *cluster) nothingDrains(t *testing.T, n *lab.Node) {
	t.Helper()
	c.awaitMetric(t, n, "fairlead_ipvs_draining_objects", func(v float64) bool { return v == 0 })
}

// metric returns the sum of a metric's values.
func (c *cluster) metric(t *testing.T, n *lab.Node, name string) float64 {
	t.Helper()
	_, text := get(t, n.Host, netip.MustParseAddrPort("127.0.0.1:10249"), "/metrics")
	sum, found := 0.0, false
	for line := range strings.Lines(text) {
		rest, ok := strings.CutPrefix(line, name)
		if !ok || rest[0] != ' ' && rest[0] != '{' {
			continue
		}
		words := strings.Fields(rest)
		v, err := strconv.ParseFloat(words[len(words)-1], 64)
		must(t, err)
		sum, found = sum+v, true
	}
	if !found {
		t.Fatalf("there is no metric %s", name)
	}
	return sum
}

func (c *cluster) awaitMetric(t *testing.T, n *lab.Node, name string, right func(float64) bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*drained)
	defer cancel()
	for {
		v := c.metric(t, n, name)
		if right(v) {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("%s is still %v", name, v)
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// fullSets creates sets in advance that have room for two elements.
func (c *cluster) fullSets(t *testing.T) {
	svc := c.service(t, "crowded", balanced(82, corev1.ServiceExternalTrafficPolicyCluster), external(83),
		ranges("203.0.113.10/32", "203.0.113.130/32", "203.0.113.64/26", "2001:db8:113::/121"))
	c.endpoints(t, svc, ready("node2-p1"))
	c.settle(t)
	node := c.lab.Nodes[0]
	sets := ourSets(t, node)
	check(t, c.stop(c.daemons[0]))
	_, err := node.Run(t.Context(), c.binary, "cleanup")
	must(t, err)
	const room = 2
	setsOf(t, node, func(k *ipset.Kernel) error {
		for _, s := range sets {
			s.MaxElem = room
			if err := k.Create(t.Context(), s.Set); err != nil {
				return err
			}
		}
		return nil
	})
	c.startDaemon(t, 0)
	c.synced(t, 0)
	c.settle(t)
	for _, p := range []path{
		{from: "client", to: "balancer"}, {from: "client", to: "external"}, {from: "client", to: "node1"}, {from: "client", to: "cluster"},
	} {
		p.by, p.saw = []string{"node2-p1"}, "node1"
		c.expect(t, svc, p)
	}
	elements := map[string]int{}
	for _, s := range sets {
		elements[s.Name] = len(s.Entries)
	}
	grown := 0
	for _, s := range ourSets(t, node) {
		if s.MaxElem > room {
			grown++
		}
		if len(s.Entries) < elements[s.Name]-2 { // barriers come and go
			t.Errorf("set %s has %d elements, and had %d", s.Name, len(s.Entries), elements[s.Name])
		}
	}
	if grown == 0 {
		t.Errorf("no set of %d has grown", len(sets))
	}
}

// othersServers has virtual servers of another program in addition to those of Services.
func (c *cluster) othersServers(t *testing.T) {
	node := c.lab.Nodes[0]
	foreign := func(addr string, flags hostipvs.Flags) hostipvs.Server {
		return hostipvs.Server{
			VirtualServer: hostipvs.VirtualServer{Protocol: unix.IPPROTO_TCP, Addr: netip.MustParseAddrPort(addr)},
			Settings:      hostipvs.Settings{Scheduler: "wlc", Flags: flags},
			Reals: []hostipvs.RealState{{RealServer: hostipvs.RealServer{
				Addr: netip.AddrPortFrom(c.hosts["node1-p2"].Addrs[0], podPorts[0]), Weight: 7}}},
		}
	}
	// The second is on the device and has a flag as ours have: only its network says whose it is.
	alone, excluded, claimed := foreign("172.31.0.1:80", 0), foreign("172.29.0.1:80", 0x20), foreign("172.31.0.2:80", 0)
	putServers(t, node, alone, excluded, claimed)
	_, err := node.Run(t.Context(), "ip", "address", "add", "172.29.0.1/32", "dev", ipvs.Device)
	must(t, err)
	stay := func(when string) {
		t.Helper()
		now := virtualServers(t, node)
		for _, want := range []hostipvs.Server{alone, excluded, claimed} {
			got := now[want.VirtualServer]
			if got.Settings.Scheduler != "wlc" || len(got.Reals) != 1 || got.Reals[0].RealServer != want.Reals[0].RealServer {
				t.Errorf("%s: %v is %+v", when, want.VirtualServer, got)
			}
		}
		if out, err := node.Run(t.Context(), "ip", "-o", "address", "show", "dev", ipvs.Device); err != nil || !strings.Contains(out, "172.29.0.1/32") {
			t.Errorf("%s: the excluded address is not there: %s (%v)", when, out, err)
		}
		to := probe.Target{Proto: "tcp", Dst: excluded.VirtualServer.Addr}
		if r := c.dialers[guest].Dial(t.Context(), to); r.Server != "node1-p2" {
			t.Errorf("%s: %s: %s", when, to, r)
		}
	}
	exclude := "--ipvs-exclude-cidrs=172.29.0.0/16"
	c.restart(t, 0, exclude)
	stay("after a start")
	svc := c.service(t, "claims", func(s *corev1.Service) { s.Spec.ExternalIPs = []string{"172.31.0.2"} })
	c.endpoints(t, svc, ready("node2-p1"))
	other := c.service(t, "beside")
	c.endpoints(t, other, ready("node2-p1"))
	c.settle(t)
	stay("while a Service claims one")
	c.expect(t, other, path{from: guest, to: "cluster", by: []string{"node2-p1"}})
	c.awaitEvent(t, svc.Name, "Quarantined")
	must(t, c.client.CoreV1().Services(namespace).Delete(t.Context(), svc.Name, metav1.DeleteOptions{}))
	c.settle(t)
	stay("after that Service")
	check(t, c.stop(c.daemons[0]))
	_, err = node.Run(t.Context(), c.binary, "cleanup", exclude)
	must(t, err)
	stay("after cleanup")
	if n := len(virtualServers(t, node)); n != 3 {
		t.Errorf("%d virtual servers after cleanup", n)
	}
	ipvsOf(t, node, func(k *hostipvs.Kernel) error {
		var ops []hostipvs.Op
		for _, s := range []hostipvs.Server{alone, excluded, claimed} {
			ops = append(ops, hostipvs.Op{Verb: hostipvs.DelServer, Server: s.VirtualServer})
		}
		return errors.Join(k.Apply(t.Context(), ops)...)
	})
	c.startDaemon(t, 0)
	c.synced(t, 0)
}

// takeOver has a kube-proxy in mode ipvs serve the first node, and then Fairlead in its place.
func (c *cluster) takeOver(t *testing.T) {
	peer, err := apiserver.Binary("kube-proxy")
	must(t, err)
	svc := c.service(t, "taken-over", balanced(84, corev1.ServiceExternalTrafficPolicyCluster))
	c.endpoints(t, svc, readyAll("node1-p1", "node2-p1")...)
	node := c.lab.Nodes[0]
	check(t, c.stop(c.daemons[0]))
	_, err = node.Run(t.Context(), c.binary, "cleanup")
	must(t, err)
	kubeconfig, err := c.api.Kubeconfig(apiserver.Daemon)
	must(t, err)
	old, err := daemon.Start(node, "env", "PATH="+userlandPath(t, "legacy"), peer, "--proxy-mode=ipvs", "--kubeconfig="+kubeconfig,
		"--hostname-override="+node.Label, "--conntrack-max-per-core=0", "--conntrack-tcp-timeout-established=0", "--conntrack-tcp-timeout-close-wait=0",
		"--cluster-cidr="+lab.PodCIDRs[0].String()+","+lab.PodCIDRs[1].String())
	must(t, err)
	killed := false
	defer func() {
		if !killed {
			check(t, old.Kill())
		}
	}()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	var open []*probe.Conn
	var stops []func() int
	for f := range families {
		for from, to := range map[string]string{guest: "cluster", "client": "balancer"} {
			target := c.target(svc, path{to: to}, f)
			if _, err := c.await(ctx, from, target.Briefly(), func(r probe.Result) bool { return r.Verdict == probe.Answered }); err != nil {
				t.Fatalf("kube-proxy does not serve: %v\n%s", err, old.Log())
			}
			open = append(open, c.openTo(t, from, target, "node2-p1"))
			stops = append(stops, c.dialOn(t, from, target))
		}
	}
	check(t, old.Kill())
	killed = true
	c.startDaemon(t, 0)
	c.synced(t, 0)
	c.settle(t)
	said, err := node.Run(t.Context(), c.binary, "cleanup", "--kube-proxy")
	must(t, err)
	t.Logf("cleanup says\n%s", said)
	c.settle(t)
	for _, stop := range stops {
		if n := stop(); n < 10 {
			t.Errorf("only %d connections meanwhile", n)
		}
	}
	for i, o := range open {
		if r := o.Ask(t.Context()); r.Server != "node2-p1" {
			t.Errorf("open connection %d: %s", i, r)
		}
	}
	c.expect(t, svc, path{from: "client", to: "node1", by: []string{"node1-p1", "node2-p1"}, saw: "node1"})
	if m := kubeProxys.FindString(stateOf(t, node, "legacy")); m != "" {
		t.Errorf("%s is left of kube-proxy", m)
	}
}

// sourceIsNoVIP leaves the second node no address but one on a device that is younger than
// kube-ipvs0, and has a pod reach itself. It is the last case: the node is cut off by it.
func (c *cluster) sourceIsNoVIP(t *testing.T) {
	const late = "192.0.2.50"
	node := c.lab.Nodes[1]
	c.useVIPs(t, "address")
	svc := c.service(t, "mirror")
	c.endpoints(t, svc, ready("node2-p1"))
	c.settle(t)
	for _, args := range []string{
		"link add late type dummy", "link set late up", "address add " + late + "/24 dev late",
		"address delete " + node.Addrs[0].String() + "/24 dev eth0", "route add " + c.hosts["node2-p1"].Addrs[0].String() + "/32 dev " + node.Pods[0].Link,
	} {
		_, err := node.Run(t.Context(), "ip", strings.Fields(args)...)
		must(t, err)
	}
	r := c.dialers["node2-p1"].Dial(t.Context(), c.target(svc, path{to: "cluster"}, 0))
	if r.Server != "node2-p1" || r.Saw.Addr().String() != late {
		t.Errorf("%s, want it to see %s", r, late)
	}
}

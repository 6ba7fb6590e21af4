package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/fairlead/fairlead/e2e/apiserver"
	"github.com/fairlead/fairlead/e2e/daemon"
	"github.com/fairlead/fairlead/e2e/lab"
	"github.com/fairlead/fairlead/e2e/probe"
	"github.com/fairlead/fairlead/internal/host/hosttest"
)

// namespace is the namespace of all objects of the tests. The API server creates it.
const namespace = "default"

// podPorts are the ports that every pod serves, with all protocols.
var podPorts = []uint16{8080, 8081}

var families = []string{"IPv4", "IPv6"}

// cluster is two nodes with three pods each, a client, an API server and a daemon on each node.
type cluster struct {
	lab      *lab.Lab
	api      *apiserver.Server
	client   *kubernetes.Clientset
	mode     string
	vips     string // of mode ipvs: address, route or mark
	userland string // of iptables, which kubelet's hint names
	binary   string
	flags    []string
	daemons  []*daemon.Daemon
	hosts    map[string]lab.Host
	dialers  map[string]*probe.Dialer
	barriers int
	// sourcePorts counts the calls of freshPort.
	sourcePorts int
	// reference is set if E2E_DAEMON is tested.
	reference bool
}

// TestCluster runs all groups of cases against a cluster of each dataplane.
func TestCluster(t *testing.T) {
	lab.RequireKernel(t)
	command := daemonCommand(t)
	groups := []struct {
		name string
		run  func(*testing.T, *cluster)
	}{
		{"paths", testPaths},
		{"hairpin", testHairpin},
		{"affinity", testAffinity},
		{"changes", testChanges},
		{"stale flows", testStaleFlows},
		{"service CIDRs", testServiceCIDRs},
		{"oracle", testOracle},
		{"what nodes own", testOwnedByNodes},
		{"health", testHealth},
		{"life", testLife},
		{"switch of modes", testSwitch},
		{"VIP modes", testVIPModes},
	}
	for _, plane := range []struct {
		name, mode, userland string
		needs                []hosttest.Feature
	}{
		{"nft", "iptables", "nft", []hosttest.Feature{hosttest.NFTables}},
		{"legacy", "iptables", "legacy", nil},
		{"nftables", "nftables", "nft", []hosttest.Feature{hosttest.NFTables}},
		{"ipvs", "ipvs", "legacy", []hosttest.Feature{hosttest.IPVS, hosttest.Dummy}},
	} {
		t.Run(plane.name, func(t *testing.T) {
			if plane.mode != "ipvs" && hosttest.Current() == hosttest.WithIPVS {
				t.Skip("runs in make test-kernel")
			}
			hosttest.Need(t, plane.needs...)
			c := newCluster(t, command, plane.mode, plane.userland)
			for _, g := range groups {
				t.Run(g.name, func(t *testing.T) {
					start := time.Now()
					g.run(t, c)
					t.Logf("took %v", time.Since(start).Round(time.Second))
					if t.Failed() {
						c.logState(t)
					}
				})
			}
		})
	}
}

// daemonCommand is what runs on nodes: the binary, built here, or the command line in E2E_DAEMON.
// That may be kube-proxy, to see whether a test asks for more than Kubernetes does:
//
//	E2E_DAEMON='/path/to/kube-proxy --conntrack-max-per-core=0'
func daemonCommand(t *testing.T) []string {
	t.Helper()
	if other := strings.Fields(os.Getenv("E2E_DAEMON")); len(other) > 0 {
		return other
	}
	binary, err := daemon.Build(t.Context(), t.TempDir())
	must(t, err)
	return []string{binary}
}

// newCluster starts everything. The flags are added to those of all daemons.
func newCluster(t *testing.T, command []string, mode, userland string, flags ...string) *cluster {
	t.Helper()
	l := lab.ForTest(t, 2, 3)
	c := &cluster{
		lab: l, mode: mode, userland: userland, binary: command[0], hosts: map[string]lab.Host{}, dialers: map[string]*probe.Dialer{},
		reference: os.Getenv("E2E_DAEMON") != "",
	}
	c.addHosts(t)
	c.startAPI(t)

	kubeconfig, err := c.api.Kubeconfig(apiserver.Daemon)
	must(t, err)
	c.flags = append(command[1:],
		"--proxy-mode="+mode, "--kubeconfig="+kubeconfig, "--iptables-min-sync-period=20ms", "--iptables-sync-period=3s",
		"--cluster-cidr="+lab.PodCIDRs[0].String()+","+lab.PodCIDRs[1].String(),
	)
	switch mode {
	case "nftables":
		c.flags = append(c.flags, "--nodeport-addresses=primary,localhost")
	case "ipvs":
		c.flags = append(c.flags, "--nodeport-addresses=primary,localhost", "--ipvs-sync-period=3s", "--ipvs-min-sync-period=20ms")
	}
	c.flags = append(c.flags, flags...)
	c.daemons = make([]*daemon.Daemon, len(l.Nodes))
	for i, n := range l.Nodes {
		must(t, daemon.Hint(t.Context(), n, userland))
		c.startDaemon(t, i)
	}
	t.Cleanup(func() {
		for _, d := range c.daemons {
			check(t, c.stop(d))
		}
	})
	return c
}

// startAPI starts an API server and creates the lab's nodes in it.
func (c *cluster) startAPI(t *testing.T) {
	t.Helper()
	var flags []string
	if c.mode == "iptables" && c.userland == "legacy" { // one API server is as they were before they streamed their objects
		flags = append(flags, "--feature-gates=WatchList=false")
	}
	var err error
	c.api, err = apiserver.Start(t.Context(), apiserver.Config{
		Dir: t.TempDir(), Host: c.lab.Fabric, Addr: c.lab.Fabric.Addrs[0], ServiceCIDRs: lab.ServiceCIDRs[:], Flags: flags,
	})
	must(t, err)
	t.Cleanup(func() { check(t, c.api.Close()) })
	c.client, err = c.api.Client(apiserver.Admin)
	must(t, err)
	c.addNodes(t)
}

// stop stops a daemon as the kubelet does. kube-proxy does not handle SIGTERM.
func (c *cluster) stop(d *daemon.Daemon) error {
	if c.reference {
		return d.Kill()
	}
	return d.Stop()
}

func (c *cluster) startDaemon(t *testing.T, node int) {
	t.Helper()
	n := c.lab.Nodes[node]
	d, err := daemon.Start(n, c.binary, append([]string{"--hostname-override=" + n.Label}, c.flags...)...)
	must(t, err)
	c.daemons[node] = d
}

// addHosts creates dialers for all hosts and servers in all pods.
func (c *cluster) addHosts(t *testing.T) {
	t.Helper()
	all := []lab.Host{c.lab.Client}
	for _, n := range c.lab.Nodes {
		all = append(all, n.Host)
	}
	for _, p := range c.lab.Pods() {
		all = append(all, p.Host)
		s, err := probe.Serve(p, p.Label, p.Addrs[:], []string{"tcp", "udp", "sctp"}, podPorts)
		must(t, err)
		t.Cleanup(func() { check(t, s.Close()) })
	}
	for _, h := range all {
		c.hosts[h.Label] = h
		c.dialers[h.Label] = probe.NewDialer(h)
	}
}

func (c *cluster) addNodes(t *testing.T) {
	t.Helper()
	for i := range c.lab.Nodes {
		want := c.node(i)
		node, err := c.client.CoreV1().Nodes().Create(t.Context(), want.DeepCopy(), metav1.CreateOptions{})
		must(t, err)
		node.Status.Addresses = want.Status.Addresses
		_, err = c.client.CoreV1().Nodes().UpdateStatus(t.Context(), node, metav1.UpdateOptions{})
		must(t, err)
	}
}

// node returns the Node object of a node of the lab.
func (c *cluster) node(i int) *corev1.Node {
	n := c.lab.Nodes[i]
	node := &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: n.Label, Labels: map[string]string{corev1.LabelTopologyZone: fmt.Sprintf("zone%d", i+1)}},
		Spec:       corev1.NodeSpec{PodCIDR: n.PodCIDRs[0].String(), PodCIDRs: []string{n.PodCIDRs[0].String(), n.PodCIDRs[1].String()}},
	}
	for _, a := range n.Addrs {
		node.Status.Addresses = append(node.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: a.String()})
	}
	return node
}

// settleTimeout is how long daemons may take to serve what was written. A process takes at least 20
// ms to start in user-mode Linux and 50 ms in an emulated machine, and a daemon runs many at
// startup.
var settleTimeout = 20 * time.Second

func init() {
	if hosttest.Current().Slow() {
		settleTimeout = 90 * time.Second
	}
}

// settle returns when both daemons serve everything that was written before. It adds a Service with
// one port that has an endpoint and one that has none: once the first answers and the second is
// refused, the node has synced past it. In mode ipvs a sync has many steps, and deletions are the
// last ones. So there the Service is deleted again, by another sync.
func (c *cluster) settle(t *testing.T) {
	t.Helper()
	c.settleWithin(t, settleTimeout)
}

func (c *cluster) settleWithin(t *testing.T, timeout time.Duration) {
	t.Helper()
	c.barriers++
	svc := c.service(t, fmt.Sprintf("barrier-%d", c.barriers), func(s *corev1.Service) {
		s.Spec.Ports = []corev1.ServicePort{port("open", corev1.ProtocolUDP, 80), port("closed", corev1.ProtocolUDP, 81)}
	})
	c.endpointsOf(t, svc, []string{"open"}, ready("node1-p1"))
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	defer cancel()
	await := func(port uint16, right func(probe.Verdict) bool) {
		t.Helper()
		for _, n := range c.lab.Nodes {
			for f := range families {
				to := probe.Target{Proto: "udp", Dst: netip.AddrPortFrom(clusterIP(svc, f), port), Timeout: 50 * time.Millisecond}
				if _, err := c.await(ctx, n.Label, to, func(r probe.Result) bool { return right(r.Verdict) }); err != nil {
					c.logState(t)
					t.Fatalf("%s does not serve what has been written: %v", n.Label, err)
				}
			}
		}
	}
	await(80, func(v probe.Verdict) bool { return v == probe.Answered })
	await(81, func(v probe.Verdict) bool { return v == probe.Refused })
	if c.mode == "ipvs" {
		must(t, c.client.CoreV1().Services(namespace).Delete(t.Context(), svc.Name, metav1.DeleteOptions{}))
		await(80, func(v probe.Verdict) bool { return v != probe.Answered })
	}
}

// await connects until the result is right and returns how long it took. The error contains the
// last wrong result.
func (c *cluster) await(ctx context.Context, from string, to probe.Target, right func(probe.Result) bool) (time.Duration, error) {
	start := time.Now()
	if to.Timeout == 0 {
		to.Timeout = 2 * time.Second // one that gets lost is only one of many
	}
	for {
		r := c.dialers[from].Dial(ctx, to)
		if right(r) {
			return time.Since(start), nil
		}
		select {
		case <-ctx.Done():
			return 0, fmt.Errorf("from %s: %s: still %s after %v", from, to, r, time.Since(start).Round(time.Millisecond))
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// becomes connects until the verdict is as given.
func (c *cluster) becomes(t *testing.T, from string, to probe.Target, want probe.Verdict) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), settleTimeout)
	defer cancel()
	if _, err := c.await(ctx, from, to, func(r probe.Result) bool { return r.Verdict == want }); err != nil {
		t.Errorf("%v, want %s", err, want)
	}
}

// logState logs what helps to understand a failure.
func (c *cluster) logState(t *testing.T) {
	t.Helper()
	for i, d := range c.daemons {
		lines := strings.Split(strings.TrimSpace(d.Log()), "\n")
		t.Logf("log of the daemon on node%d, its last lines:\n%s", i+1, strings.Join(lines[max(0, len(lines)-25):], "\n"))
	}
}

// labelOf returns the name of the host with the address, or the address.
func (c *cluster) labelOf(a netip.Addr) string {
	for label, h := range c.hosts {
		if a == h.Addrs[0] || a == h.Addrs[1] {
			return label
		}
	}
	return a.String()
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil && !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/fairlead/fairlead/e2e/daemon"
	"github.com/fairlead/fairlead/e2e/lab"
	"github.com/fairlead/fairlead/e2e/probe"
	"github.com/fairlead/fairlead/internal/backend/ipvs"
	"github.com/fairlead/fairlead/internal/backend/nftables"
	"github.com/fairlead/fairlead/internal/fwd"
	"github.com/fairlead/fairlead/internal/host/hosttest"
)

// testSwitch restarts a daemon in the other mode and back while connections are made. None is lost,
// an open one continues, and nothing of the old mode stays.
func testSwitch(t *testing.T, c *cluster) {
	if c.reference {
		t.Skip("kube-proxy cleans up first and programs afterwards")
	}
	svc := c.service(t, "switched", balanced(60, corev1.ServiceExternalTrafficPolicyCluster))
	c.endpoints(t, svc, readyAll("node1-p1", "node2-p1")...)
	c.settle(t)
	open, err := c.dialers[guest].Open(t.Context(), c.target(svc, path{to: "cluster"}, 0))
	must(t, err)
	defer open.Close()

	original := c.flags
	defer func() { c.flags = original }()
	modes := map[string][]string{"iptables": {"nftables", "iptables"}, "nftables": {"iptables", "nftables"}, "ipvs": {"iptables", "ipvs"}}[c.mode]
	for _, mode := range modes {
		c.switchTo(t, svc, guest, append(withoutMode(original), "--proxy-mode="+mode), c.settle)
		if r := open.Ask(t.Context()); r.Verdict != probe.Answered {
			t.Errorf("to %s: the open connection: %s", mode, r)
		}
		switch {
		case mode == "nftables":
			c.awaitRulesWithout(t, "FAIRLEAD", "FAIRLEAD")
			c.nothingInIPTables(t)
		case mode == "ipvs":
			// Mode iptables names the Service's addresses in its rules.
			c.awaitRulesWithout(t, clusterIP(svc, 0).String(), clusterIP(svc, 1).String())
		case c.mode == "ipvs":
			// The virtual servers drain because of the open connection and recently closed ones.
			c.awaitWeights(t, c.lab.Nodes[0], svc, map[string]uint32{"node1-p1": 0, "node2-p1": 0})
		default:
			c.awaitNoNFTables(t)
		}
		c.expect(t, svc, path{from: guest, to: "cluster", by: []string{"node1-p1", "node2-p1"}})
	}
}

// withoutMode returns the flags without the mode.
func withoutMode(flags []string) []string {
	return slices.DeleteFunc(slices.Clone(flags), func(s string) bool { return strings.HasPrefix(s, "--proxy-mode=") })
}

// switchTo restarts the first node's daemon with other flags while a pod and the external client
// keep connecting to the Service. No connection may be lost. served returns when the daemon serves
// everything.
func (c *cluster) switchTo(t *testing.T, svc *corev1.Service, from string, flags []string, served func(*testing.T)) {
	t.Helper()
	var stops []func() int
	for f := range families {
		stops = append(stops, c.dialOn(t, from, c.target(svc, path{to: "cluster"}, f)), c.dialOn(t, "client", c.target(svc, path{to: "node1"}, f)))
	}
	check(t, c.stop(c.daemons[0]))
	c.flags = flags
	c.startDaemon(t, 0)
	must(t, c.daemons[0].AwaitLog(t.Context(), "msg=synced"))
	served(t)
	for _, stop := range stops {
		if n := stop(); n < 10 {
			t.Errorf("with %v: only %d connections meanwhile", flags, n)
		}
	}
}

// awaitRulesWithout waits until the IPv4 and IPv6 rules on the first node do not contain these
// texts. The old mode's rules are removed after the new ones were verified, a moment after they
// serve.
func (c *cluster) awaitRulesWithout(t *testing.T, texts ...string) {
	t.Helper()
	for f, tool := range []string{"iptables-", "ip6tables-"} {
		for deadline := time.Now().Add(hosttest.Patience); ; time.Sleep(20 * time.Millisecond) {
			rules, err := c.lab.Nodes[0].Run(t.Context(), tool+c.userland+"-save")
			must(t, err)
			if !strings.Contains(rules, texts[f]) {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("rules of the old mode are left:\n%s", rules)
			}
		}
	}
}

// awaitNoNFTables waits until the first node has no table of mode nftables.
func (c *cluster) awaitNoNFTables(t *testing.T) {
	t.Helper()
	for deadline := time.Now().Add(hosttest.Patience); ; time.Sleep(20 * time.Millisecond) {
		tables, err := c.lab.Nodes[0].Run(t.Context(), "nft", "list", "tables")
		must(t, err)
		if !strings.Contains(tables, " fairlead") {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("tables of the old mode are left:\n%s", tables)
		}
	}
}

// nothingInIPTables checks that the first node has no chains of Fairlead, and still those of the
// kubelet.
func (c *cluster) nothingInIPTables(t *testing.T) {
	t.Helper()
	for _, tool := range []string{"iptables-", "ip6tables-"} {
		rules, err := c.lab.Nodes[0].Run(t.Context(), tool+c.userland+"-save")
		must(t, err)
		if strings.Contains(rules, "FAIRLEAD") || !strings.Contains(rules, "KUBE-IPTABLES-HINT") {
			t.Errorf("%s%s has:\n%s", tool, c.userland, rules)
		}
	}
}

// removeNFTables removes the tables of mode nftables on the first node and returns their number.
func (c *cluster) removeNFTables(t *testing.T) int {
	t.Helper()
	n := 0
	must(t, c.lab.Nodes[0].Do(func() error {
		for _, f := range fwd.Families {
			there, err := nftables.Remove(t.Context(), f, 0)
			if err != nil {
				return err
			}
			if there {
				n++
			}
		}
		return nil
	}))
	return n
}

// TestSwitchesOfIPVS restarts a daemon in mode ipvs after another mode, and then in that other mode
// again, with the nft userland of iptables. This needs a kernel with IPVS and nf_tables. New
// connections are made in the meantime and none is lost, an open one continues, and the old mode's
// objects are removed when their connections have ended. The daemon reads files, because an API
// server takes minutes to start where this runs.
func TestSwitchesOfIPVS(t *testing.T) {
	lab.RequireKernel(t)
	hosttest.Need(t, hosttest.IPVS, hosttest.Dummy, hosttest.NFTables)
	command := daemonCommand(t)
	for _, tt := range []struct{ other, vips string }{{"nftables", "address"}, {"nftables", "mark"}, {"iptables", "mark"}} {
		t.Run(tt.other+" and ipvs with "+tt.vips, func(t *testing.T) {
			s := newSwitched(t, command[0], "--ipvs-vip="+tt.vips)
			s.start(t, tt.other)
			for _, mode := range []string{"ipvs", tt.other} {
				start := time.Now()
				s.change(t, mode)
				t.Logf("to %s took %v", mode, time.Since(start).Round(time.Second))
				if t.Failed() {
					s.logState(t)
					return
				}
			}
		})
	}
}

// switched is a cluster whose first node runs a daemon that reads files, with one Service.
type switched struct {
	*cluster
	svc *corev1.Service
	by  []string // the pods that serve
	// common are the flags without the mode.
	common []string
}

func newSwitched(t *testing.T, binary string, flags ...string) *switched {
	t.Helper()
	s := &switched{by: []string{"node1-p1", "node2-p1"}, cluster: &cluster{
		lab: lab.ForTest(t, 2, 2), userland: "nft", binary: binary,
		hosts: map[string]lab.Host{}, dialers: map[string]*probe.Dialer{}, daemons: make([]*daemon.Daemon, 1),
	}}
	s.addHosts(t)
	must(t, daemon.Hint(t.Context(), s.lab.Nodes[0], s.userland))
	s.svc = &corev1.Service{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Service"},
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "switched"},
		Spec: corev1.ServiceSpec{
			ClusterIP: "10.96.0.60", ClusterIPs: []string{"10.96.0.60", "fd00:10:96::60"}, IPFamilies: []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol},
			Ports: []corev1.ServicePort{{Name: "web", Protocol: corev1.ProtocolTCP, Port: 80, NodePort: 30060}},
		},
	}
	balanced(60, corev1.ServiceExternalTrafficPolicyCluster)(s.svc)
	s.common = append([]string{
		"--objects=" + s.writeObjects(t, s.svc, readyAll(s.by...)), "--cluster-cidr=" + lab.PodCIDRs[0].String() + "," + lab.PodCIDRs[1].String(),
		"--nodeport-addresses=primary,localhost", "--ipvs-tcpfin-timeout=" + shortFin.String(), "--conntrack-max-per-core=0",
	}, flags...)
	return s
}

// switchClient is the pod that connects.
const switchClient = "node1-p2"

func (s *switched) modeFlags(mode string) []string {
	return append(slices.Clone(s.common), "--proxy-mode="+mode)
}

// start starts the daemon.
func (s *switched) start(t *testing.T, mode string) {
	t.Helper()
	s.mode, s.flags = mode, s.modeFlags(mode)
	s.startDaemon(t, 0)
	t.Cleanup(func() { check(t, s.daemons[0].Kill()) })
	s.synced(t, 0)
	s.served(t)
}

// served waits until the Service is served.
func (s *switched) served(t *testing.T) {
	t.Helper()
	for f := range families {
		s.becomes(t, switchClient, s.target(s.svc, path{to: "cluster"}, f), probe.Answered)
	}
}

// change restarts the daemon in another mode.
func (s *switched) change(t *testing.T, mode string) {
	t.Helper()
	var open []*probe.Conn
	for f := range families {
		open = append(open, s.openTo(t, switchClient, s.target(s.svc, path{to: "cluster"}, f), s.by[1]))
	}
	// Keep connecting until nothing of the old mode is left. The daemon removes the old mode's
	// objects after it has verified its own, and those of mode ipvs when no connection needs them.
	s.switchTo(t, s.svc, switchClient, s.modeFlags(mode), func(t *testing.T) {
		t.Helper()
		s.served(t)
		t.Logf("%s serves", mode)
		for f, o := range open {
			if r := o.Ask(t.Context()); r.Server != s.by[1] {
				t.Errorf("%s: the open connection: %s", families[f], r)
			}
			check(t, o.Close())
		}
		s.awaitNothingOf(t, s.mode, s.svc)
		t.Logf("nothing of %s is left", s.mode)
	})
	s.mode = mode
	for _, p := range []path{
		{from: switchClient, to: "cluster", by: s.by}, {from: "client", to: "node1", by: s.by, saw: "node1"}, {from: "client", to: "balancer", by: s.by, saw: "node1"},
	} {
		s.expect(t, s.svc, p)
	}
}

// awaitNothingOf waits until the first node has nothing of a previous mode.
func (c *cluster) awaitNothingOf(t *testing.T, mode string, svc *corev1.Service) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*drained) // it is a matter of seconds where the processor is not emulated
	defer cancel()
	for {
		left := c.leftOf(t, mode, svc)
		if left == "" {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("left of mode %s:\n%s", mode, left)
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// leftOf returns what the first node still has of a mode, as text. Reading may fail while something
// is removed; the result then contains the error.
func (c *cluster) leftOf(t *testing.T, mode string, svc *corev1.Service) string {
	t.Helper()
	node := c.lab.Nodes[0]
	var left []string
	lines := func(texts []string, command string, args ...string) {
		t.Helper()
		out, err := node.Run(t.Context(), command, args...)
		if err != nil {
			left = append(left, fmt.Sprintf("%s: %v\n", command, err))
		}
		for line := range strings.Lines(out) {
			if slices.ContainsFunc(texts, func(s string) bool { return strings.Contains(line, s) }) {
				left = append(left, command+": "+line)
			}
		}
	}
	switch mode {
	case "nftables":
		lines([]string{"fairlead"}, "nft", "list", "tables")
	case "iptables":
		// Mode iptables names the Service's addresses in its rules.
		lines([]string{clusterIP(svc, 0).String()}, "iptables-"+c.userland+"-save")
		lines([]string{clusterIP(svc, 1).String()}, "ip6tables-"+c.userland+"-save")
	case "ipvs":
		// Chains that mode iptables does not have.
		own := []string{":FAIRLEAD-FROM-POD ", ":FAIRLEAD-GUARD ", ":FAIRLEAD-DIVERT "}
		lines(own, "iptables-"+c.userland+"-save")
		lines(own, "ip6tables-"+c.userland+"-save")
		lines([]string{ipvs.Device}, "ip", "-o", "link")
		err := node.Do(func() error {
			found, closeAll, err := ipvs.Leftovers(t.Context(), nil)
			defer closeAll()
			for _, l := range found {
				left = append(left, fmt.Sprintf("%s: %d virtual servers, %d VIPs, %d sets, %d chains, %d other\n", l.Family, l.Servers, l.VIPs, l.Sets, l.Chains, l.Other))
			}
			return err
		})
		if err != nil {
			left = append(left, err.Error())
		}
	}
	return strings.Join(left, "")
}

// writeObjects writes a Service, its endpoints and all nodes to a file and returns its path.
func (c *cluster) writeObjects(t *testing.T, svc *corev1.Service, eps []endpoint) string {
	t.Helper()
	var names []string
	for _, p := range svc.Spec.Ports {
		names = append(names, p.Name)
	}
	objects := []any{svc}
	for _, s := range c.slices(svc, names, eps...) {
		s.TypeMeta = metav1.TypeMeta{APIVersion: discoveryv1.SchemeGroupVersion.String(), Kind: "EndpointSlice"}
		objects = append(objects, s)
	}
	for i := range c.lab.Nodes {
		n := c.node(i)
		n.TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "Node"}
		objects = append(objects, n)
	}
	var text []byte
	for _, o := range objects {
		one, err := json.Marshal(o)
		must(t, err)
		text = append(append(text, one...), '\n')
	}
	file := filepath.Join(t.TempDir(), "objects.json")
	must(t, os.WriteFile(file, text, 0o644))
	return file
}

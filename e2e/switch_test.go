package e2e

import (
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/fairlead/fairlead/e2e/probe"
	"github.com/fairlead/fairlead/internal/backend/nftables"
	"github.com/fairlead/fairlead/internal/fwd"
)

// testSwitch restarts a daemon in the other mode and back while connections are made. None is lost, one that is open goes
// on, and nothing of the old mode stays.
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
		var stops []func() int
		for f := range families {
			stops = append(stops, c.dialOn(t, guest, c.target(svc, path{to: "cluster"}, f)), c.dialOn(t, "client", c.target(svc, path{to: "node1"}, f)))
		}
		check(t, c.stop(c.daemons[0]))
		c.flags = append(slices.DeleteFunc(slices.Clone(original), func(s string) bool { return strings.HasPrefix(s, "--proxy-mode=") }), "--proxy-mode="+mode)
		c.startDaemon(t, 0)
		must(t, c.daemons[0].AwaitLog(t.Context(), "msg=synced"))
		c.settle(t)
		for _, stop := range stops {
			if n := stop(); n < 10 {
				t.Errorf("to %s: only %d connections meanwhile", mode, n)
			}
		}
		if r := open.Ask(t.Context()); r.Verdict != probe.Answered {
			t.Errorf("to %s: the open connection: %s", mode, r)
		}
		switch {
		case mode == "nftables":
			c.nothingInIPTables(t)
		case mode == "ipvs":
			// Mode iptables names the Service's addresses in its rules.
			for f, tool := range []string{"iptables-", "ip6tables-"} {
				rules, err := c.lab.Nodes[0].Run(t.Context(), tool+c.userland+"-save")
				must(t, err)
				if strings.Contains(rules, clusterIP(svc, f).String()) {
					t.Errorf("mode ipvs left rules of mode iptables:\n%s", rules)
				}
			}
		case c.mode == "ipvs":
			// The virtual servers drain: the open connection, and those that ended a moment ago, are theirs.
			c.awaitWeights(t, c.lab.Nodes[0], svc, map[string]uint32{"node1-p1": 0, "node2-p1": 0})
		default:
			if n := c.removeNFTables(t); n != 0 {
				t.Errorf("mode iptables left %d tables of mode nftables", n)
			}
		}
		c.expect(t, svc, path{from: guest, to: "cluster", by: []string{"node1-p1", "node2-p1"}})
	}
}

// nothingInIPTables checks that the first node has no chain of ours, and still what is the kubelet's.
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

// removeNFTables removes the tables of mode nftables on the first node and returns how many there were.
func (c *cluster) removeNFTables(t *testing.T) int {
	t.Helper()
	n := 0
	must(t, c.lab.Nodes[0].Do(func() error {
		for _, f := range fwd.Families {
			there, err := nftables.Remove(t.Context(), f, false)
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

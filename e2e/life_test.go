package e2e

import (
	"context"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/fairlead/fairlead/e2e/probe"
)

// testLife ends and restarts processes and takes rules away. It comes last.
func testLife(t *testing.T, c *cluster) {
	svc := c.service(t, "steady", balanced(50, corev1.ServiceExternalTrafficPolicyCluster))
	c.endpoints(t, svc, readyAll("node1-p1", "node2-p1")...)
	c.settle(t)

	t.Run("a restart loses nothing", func(t *testing.T) {
		for _, end := range []struct {
			name string
			end  func() error
		}{{"SIGTERM", func() error { return c.stop(c.daemons[0]) }}, {"SIGKILL", func() error { return c.daemons[0].Kill() }}} {
			open, err := c.dialers[guest].Open(t.Context(), c.target(svc, path{to: "cluster"}, 0))
			must(t, err)
			defer open.Close()
			var stops []func() int
			for f := range families {
				stops = append(stops, c.dialOn(t, guest, c.target(svc, path{to: "cluster"}, f)), c.dialOn(t, "client", c.target(svc, path{to: "node1"}, f)))
			}
			check(t, end.end())
			c.startDaemon(t, 0)
			c.settle(t)
			for _, stop := range stops {
				if n := stop(); n < 10 {
					t.Errorf("%s: only %d connections during the restart", end.name, n)
				}
			}
			if r := open.Ask(t.Context()); r.Verdict != probe.Answered {
				t.Errorf("%s: the open connection: %s", end.name, r)
			}
		}
	})

	t.Run("what has changed while it was down", func(t *testing.T) {
		gone := c.service(t, "gone-meanwhile")
		c.endpoints(t, gone, ready("node2-p1"))
		c.settle(t)
		check(t, c.stop(c.daemons[0]))
		must(t, c.client.CoreV1().Services(namespace).Delete(t.Context(), gone.Name, metav1.DeleteOptions{}))
		added := c.service(t, "added-meanwhile")
		c.endpoints(t, added, ready("node2-p1"))
		c.expect(t, svc, path{from: guest, to: "cluster", by: []string{"node1-p1", "node2-p1"}})
		c.startDaemon(t, 0)
		c.settle(t)
		for f := range families { // it had no connections, so it does not drain in mode ipvs
			c.becomes(t, guest, c.target(gone, path{to: "cluster"}, f).Briefly(), probe.Lost)
		}
		c.expect(t, added, path{from: guest, to: "cluster", by: []string{"node2-p1"}})
	})

	t.Run("flushed rules come back", func(t *testing.T) {
		switch c.mode {
		case "nftables":
			c.removeNFTables(t)
		case "ipvs":
			c.flushIPVS(t)
		}
		// As a firewall does that loads its own rules: all chains go at once. The hint is the
		// kubelet's, which puts it back.
		const nothing = "*nat\nCOMMIT\n*filter\nCOMMIT\n*mangle\n:KUBE-IPTABLES-HINT - [0:0]\nCOMMIT\n"
		for _, tool := range []string{"iptables-" + c.userland + "-restore", "ip6tables-" + c.userland + "-restore"} {
			cmd := c.lab.Nodes[0].Command(t.Context(), tool, "-w")
			cmd.Stdin = strings.NewReader(nothing)
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("%s: %v: %s", tool, err, out)
			}
		}
		for f := range families {
			to := c.target(svc, path{to: "cluster"}, f)
			ctx, cancel := context.WithTimeout(t.Context(), settleTimeout)
			defer cancel()
			took, err := c.await(ctx, guest, to, func(r probe.Result) bool { return r.Verdict == probe.Answered })
			if err != nil {
				c.logState(t)
				t.Fatal(err)
			}
			t.Logf("%s is back after %v", families[f], took)
		}
		c.settle(t)
		c.expect(t, svc, path{from: "client", to: "node1", by: []string{"node1-p1", "node2-p1"}, saw: "node1"})
	})

	t.Run("the API server is away", func(t *testing.T) {
		if c.userland == "legacy" || c.mode != "iptables" {
			t.Skip("the same in all dataplanes, and it may take a minute")
		}
		must(t, c.api.Close())
		c.expect(t, svc, path{from: guest, to: "cluster", by: []string{"node1-p1", "node2-p1"}})
		must(t, c.api.Run(t.Context()))
		start := time.Now()
		c.endpoints(t, svc, ready("node2-p2"))
		c.settleWithin(t, 2*time.Minute)
		t.Logf("changes arrive again after %v", time.Since(start).Round(time.Millisecond))
		c.expect(t, svc, path{from: guest, to: "cluster", by: []string{"node2-p2"}})
	})

	t.Run("cleanup leaves nothing of ours", func(t *testing.T) {
		if c.reference {
			t.Skip("kube-proxy leaves some behind")
		}
		check(t, c.stop(c.daemons[0]))
		_, err := c.lab.Nodes[0].Run(t.Context(), c.binary, "cleanup")
		must(t, err)
		c.nothingInIPTables(t)
		if c.mode == "ipvs" {
			c.nothingOfIPVS(t)
		} else if n := c.removeNFTables(t); n != 0 {
			t.Errorf("cleanup left %d tables of nf_tables", n)
		}
		c.expect(t, svc, path{from: guest, to: "cluster", verdict: probe.Lost})
		c.startDaemon(t, 0)
		c.settle(t)
	})
}

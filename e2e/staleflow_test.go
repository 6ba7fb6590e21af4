package e2e

import (
	"context"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/fairlead/fairlead/e2e/probe"
)

// testStaleFlows keeps UDP sockets open, whose flows the kernel would send to where their first packet went.
func testStaleFlows(t *testing.T, c *cluster) {
	udp := ports(port("dns", corev1.ProtocolUDP, 53))
	edits := []func(*corev1.Service){balanced(40, corev1.ServiceExternalTrafficPolicyCluster), udp}

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

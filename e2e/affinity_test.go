package e2e

import (
	"net/netip"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/fairlead/fairlead/e2e/probe"
)

// servers connects several times and returns the servers that answered, sorted, without duplicates.
func (c *cluster) servers(t *testing.T, from string, to probe.Target, times int) []string {
	t.Helper()
	var names []string
	for range times {
		r := c.dialers[from].Dial(t.Context(), to)
		if r.Verdict != probe.Answered {
			t.Errorf("from %s: %s: %s", from, to, r)
			continue
		}
		names = append(names, r.Server)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

func testAffinity(t *testing.T, c *cluster) {
	all := []string{"node1-p1", "node1-p2", "node2-p1"}
	svc := c.service(t, "sticky", func(s *corev1.Service) {
		s.Spec.Type = corev1.ServiceTypeNodePort
		s.Spec.SessionAffinity = corev1.ServiceAffinityClientIP
	})
	c.endpoints(t, svc, readyAll(all...)...)
	c.settle(t)
	for f, family := range families {
		t.Run("one client meets one endpoint/"+family, func(t *testing.T) {
			to := c.target(svc, path{to: "cluster"}, f)
			first := c.servers(t, "node2-p3", to, 12)
			if len(first) != 1 {
				t.Errorf("one client met %v", first)
			}
			through := c.servers(t, "node2-p3", c.target(svc, path{to: "node2"}, f), 6)
			if c.mode == "ipvs" { // difference "affinity": each address and port has its own
				if len(through) != 1 {
					t.Errorf("through the node port one client met %v", through)
				}
			} else if !slices.Equal(through, first) {
				t.Errorf("through the cluster IP it is %v and through the node port %v", first, through)
			}
		})
	}
	c.update(t, svc, func(s *corev1.Service) {
		s.Spec.SessionAffinity = corev1.ServiceAffinityNone
		s.Spec.SessionAffinityConfig = nil
	})
	c.settle(t)
	for f, family := range families {
		t.Run("without affinity it meets all/"+family, func(t *testing.T) {
			to := probe.Target{Proto: "tcp", Dst: netip.AddrPortFrom(clusterIP(svc, f), 80)}
			if got := c.servers(t, "node2-p3", to, 60); !slices.Equal(got, all) {
				t.Errorf("60 connections met %v, want %v", got, all)
			}
		})
	}
}

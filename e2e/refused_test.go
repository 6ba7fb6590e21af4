package e2e

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/fairlead/fairlead/e2e/probe"
)

// TestRefusedAtOnce: the kernel limits ICMP errors to one client to six and then one per second,
// but not resets. So a client that keeps connecting to a Service without endpoints is refused every
// time without a delay.
func TestRefusedAtOnce(t *testing.T) {
	onPlanes(t, "iptables nftables ipvs", func(t *testing.T, s *stage) {
		empty := service{number: 21}
		other := service{number: 22}
		s.write(t, nil, empty, other)
		s.start(t)
		// The lab turns this off; these are the kernel's defaults.
		s.onNode(t, "sysctl -q -w net.ipv4.icmp_ratelimit=1000 net.ipv6.icmp.ratelimit=1000")
		const times = 60
		node := s.lab.Nodes[0]
		for _, from := range []struct {
			label string
			in    probe.Entrance
		}{{"a pod", node.Pods[0]}, {"the client", s.lab.Client}, {"the node", node}} {
			for f := range families {
				targets := []netip.AddrPort{netip.AddrPortFrom(empty.clusterIP(f), 80), netip.AddrPortFrom(empty.balancer(f), 80), netip.AddrPortFrom(node.Addrs[f], empty.nodePort())}
				if s.mode == "nftables" || s.mode == "ipvs" && s.name != "ipvs-mark" { // there only in a service CIDR, of which the file has none
					targets = append(targets, netip.AddrPortFrom(other.clusterIP(f), 81)) // not a port of the Service
				}
				for _, to := range targets {
					results := probe.NewDialer(from.in).DialAll(t.Context(), slices.Repeat([]probe.Target{{Proto: "tcp", Dst: to}}, times), times)
					refused := 0
					for _, r := range results {
						if r.Verdict == probe.Refused {
							refused++
						}
					}
					if refused != times {
						t.Errorf("from %s to %s: %d of %d connections are refused", from.label, to, refused, times)
					}
				}
			}
		}
	})
}

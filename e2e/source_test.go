package e2e

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/fairlead/fairlead/e2e/lab"
	"github.com/fairlead/fairlead/e2e/probe"
)

// TestMasqueradeSource: with --masquerade-source=node masqueraded connections come from the node's
// own address where the kernel would choose another one: a VIP on the interface, which in IPv6 is
// the newest address, or an unrouted link address while the node's own is on lo. It follows changes
// of the Node.
func TestMasqueradeSource(t *testing.T) {
	onPlanes(t, "iptables nftables ipvs", func(t *testing.T, s *stage) {
		node, client := s.lab.Nodes[0], s.lab.Client
		local, remote := node.Pods[0].Host, s.lab.Nodes[1].Pods[0].Host
		own := []netip.Addr{netip.MustParseAddr("192.168.50.201"), netip.MustParseAddr("fd00:192:168:50::c9")}
		vip := []netip.Addr{netip.MustParseAddr("192.168.50.202"), netip.MustParseAddr("fd00:192:168:50::ca")}
		for f := range families {
			// The node's own address is on lo, and the others know the way; the VIP is the newest
			// address of the interface.
			s.onNode(t, fmt.Sprintf("ip address add %s dev lo", netip.PrefixFrom(own[f], own[f].BitLen())))
			s.onNode(t, fmt.Sprintf("ip address add %s dev eth0", netip.PrefixFrom(vip[f], lab.NodeCIDRs[f].Bits())))
			for _, h := range []lab.Host{s.lab.Fabric, s.lab.Nodes[1].Host} {
				_, err := h.Run(t.Context(), "ip", "route", "add", own[f].String(), "via", node.Addrs[f].String())
				must(t, err)
			}
		}
		nodeAddrs := func(addrs []netip.Addr) func(*lab.Node) []netip.Addr {
			return func(n *lab.Node) []netip.Addr {
				if n == node {
					return addrs
				}
				return n.Addrs[:]
			}
		}
		there, hairpin := service{number: 16, endpoints: []lab.Host{remote}}, service{number: 17, endpoints: []lab.Host{local}}
		s.write(t, nodeAddrs(own), there, hairpin)
		s.start(t, "--masquerade-source=node")
		s.serve(t, remote, "tcp")
		s.serve(t, local, "tcp")
		comesFrom := func(from lab.Host, to probe.Target, want netip.Addr) {
			t.Helper()
			r := probe.NewDialer(from).Dial(t.Context(), to)
			if r.Verdict != probe.Answered || r.Saw.Addr() != want {
				t.Errorf("from %s to %s: %s, saw %s, want it to see %s", from.Label, to, r, r.Saw, want)
			}
		}
		all := func(want []netip.Addr) {
			t.Helper()
			for f := range families {
				comesFrom(client, there.target(there.balancer(f)), want[f])
				comesFrom(client, there.target(want[f]), want[f]) // node ports are served at the primary address
				comesFrom(node.Host, there.target(there.clusterIP(f)), want[f])
				comesFrom(local, hairpin.target(hairpin.clusterIP(f)), want[f])
			}
		}
		all(own)

		s.write(t, nodeAddrs(node.Addrs[:]), there, hairpin)
		for f := range families {
			s.await(t, client, there.target(there.balancer(f)), func(r probe.Result) bool { return r.Saw.Addr() == node.Addrs[f] })
		}
		all(node.Addrs[:])
	})
}

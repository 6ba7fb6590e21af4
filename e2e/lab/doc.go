// Package lab builds small clusters of network namespaces on one machine: nodes with pods, an
// external client, and the network between them. It takes well under two seconds. It does not know
// Services or Fairlead.
//
//	pod p1 ── veth-p1 ┐                                  ┌ veth-p1 ── pod p1
//	pod p2 ── veth-p2 ┤ node1 ── eth0 ┐      ┌ eth0 ── node2 ┤
//	pod p3 ── veth-p3 ┘               br0  br0               └ …
//	                                  └ fabric ┘
//	                                      └── client, outside of the cluster
//
// Every link is a veth pair and every neighbour entry is permanent, so that nothing waits for ARP,
// neighbour discovery or duplicate address detection. Pods are routed, not bridged: a pod has one
// address of each family and a default route to a gateway on its link, as with Calico.
//
// Invariants:
//
//  1. A lab changes only its own namespaces, whose names begin with "fl-lab". Close removes them.
//     The next run removes what a killed run left; it recognizes that by the process id in the
//     name.
//  2. Only nodes handle service addresses: the fabric routes packets from the client to
//     ServiceCIDRs and BalancerCIDRs to one node, and drops those from nodes. So a packet that no
//     node has handled is never answered.
//  3. ICMP errors are not rate limited, so that every rejection is visible.
//
// Tests and the demo use it, as root. Tests: FAIRLEAD_KERNEL_TESTS=1 go test ./e2e/lab.
package lab

// Package lab builds small clusters out of network namespaces: nodes with pods, a client outside, and the network
// between them, on one machine, in well under two seconds. It knows nothing of Services and nothing of Fairlead.
//
//	pod p1 ── veth-p1 ┐                                  ┌ veth-p1 ── pod p1
//	pod p2 ── veth-p2 ┤ node1 ── eth0 ┐      ┌ eth0 ── node2 ┤
//	pod p3 ── veth-p3 ┘               br0  br0               └ …
//	                                  └ fabric ┘
//	                                      └── client, outside of the cluster
//
// Every link is a veth pair and every neighbour entry is permanent, so that there is no ARP, no neighbour discovery and
// no duplicate address detection to wait for. Pods are routed, not bridged: a pod has one address of each family and a
// default route to a gateway on its link, as with Calico.
//
// Invariants:
//
//  1. Nothing is made outside of the lab's own namespaces, whose names begin with "fl-lab", and Close removes them all.
//     What a killed run has left is removed by the next one, which knows it by the process id in the name.
//  2. Nobody but a node treats service addresses: the fabric routes those of ServiceCIDRs and BalancerCIDRs that come from the client to
//     one node and drops those that come from nodes. A packet that no node has handled is therefore never answered.
//  3. ICMP errors are not rate limited, so that a rejected packet is always seen to be rejected.
//
// It is used by tests and by the demo, as root. Tests: FAIRLEAD_KERNEL_TESTS=1 go test ./e2e/lab.
package lab

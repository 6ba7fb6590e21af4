// Package oracle is a plain reading of the Kubernetes Service rules, for tests only: given the API
// objects of a cluster, a node's settings and one packet, Judge says what must happen to the
// packet. It shares no code with the product, so the same error would have to be made twice to go
// unnoticed.
//
//	Random ─► Cluster, Config, packets ─┬► Judge (scans the objects, once for each packet) ─► Answer ─┐
//	                                    └► kube ─► compile ─► fwd.Table.Lookup ─► FromOutcome ─► Answer ┴► equal?
//	                                                                         not equal ─► Shrink ─► Disagreement (replay file)
//
// The reference is the iptables mode of kube-proxy. Where that leaves something open, these are our
// decisions:
//
//  1. Two Services claim one key: the older wins, then the smaller namespace, then the smaller
//     name. To the loser the frontend does not exist. Within a Service: cluster IP, external IP,
//     load-balancer IP, node port, then order of ports.
//  2. An address that is unspecified, loopback or multicast is never a frontend and never an
//     endpoint.
//  3. An endpoint that several slices name: a local one wins, then the smallest slice name. Within
//     a slice the position means nothing (slices are compared sorted): ready wins, then serving,
//     then not terminating, then the smaller node name and hints.
//  4. A source outside of loadBalancerSourceRanges is dropped, with or without endpoints; a
//     frontend without endpoints rejects packets of the node itself too.
//  5. A source that the detector recognises counts as a pod even if it is an address of the node.
//  6. `primary` in the node-port addresses, in a family in which the node has no address, serves
//     node ports on none of it.
//
// Invariants: only these value types are shared with the product: Packet, Verdict, Proto and
// Outcome of package fwd; the code is simple rather than fast; the same seed gives the same
// cluster.
//
// Product code never imports this package. Its own test is the table of cases in catalogue_test.go.
package oracle

// Command bench compares Fairlead with kube-proxy, one after the other, on equal nodes with the
// same API server.
//
//	etcd, kube-apiserver ─► N Services of E endpoints ─► proxy on a fresh node (network namespace)
//	                                                        │
//	a pod of the node ─► connections through Services ◄─────┘   what a client observes, not what a proxy reports
//
// For each proxy and mode it measures (measure.go):
//
//   - cold start: from the start of the process until the first and the last Service answer; and
//     the proxy's own figure for its first sync, which does not include process startup and listing
//     the objects
//   - one change: from the API server's response to a write of one endpoint to the first connection
//     that reaches it
//   - a rolling update: many EndpointSlices at once, until a change written after them is
//     effective; and its CPU time
//   - CPU time for a change, including child processes; peak and steady memory
//   - how long the xtables lock was held, how many bytes the API server sent
//   - a restart with nothing changed: until the proxy has synced, and the number of writes to the
//     kernel
//   - new connections per second between two pods, directly and through the last Service,
//     interleaved with the same on a node that has one rule but no proxy
//
// It prints a table with ratios and writes CSV, which hack/bench/plot draws. It has no pass or
// fail: figures depend on the machine and its other load. "make bench" runs it. On a kernel without
// IPVS, mode ipvs is measured in user-mode Linux; its figures are then not comparable with those of
// other modes.
package main

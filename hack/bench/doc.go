// Command bench measures Fairlead beside kube-proxy, one after the other, on nodes of the same kind, from the same API server.
//
//	etcd, kube-apiserver ─► N Services of E endpoints ─► proxy on a fresh node (network namespace)
//	                                                        │
//	a pod of the node ─► connections through Services ◄─────┘   what a client notices, not what a proxy says of itself
//
// For each proxy and mode it measures (measure.go):
//
//   - cold start: from the start of the process to the moment at which the first and the last Service answer;
//     and how long the proxy says that its first programming of the kernel took, without its start and the API server's list
//   - one change: from the API server's answer to a write of one endpoint to the first connection that reaches the new one
//   - a rolling update: many EndpointSlices at once, until a change written after them is in force; and its CPU time
//   - CPU time for a change, child processes included; memory, peak and steady
//   - how long the lock of iptables was held, how many bytes the API server sent
//   - a restart with nothing changed: until the rules are known to be right again, and how often the kernel was written to
//   - new connections in a second between two pods, without a Service and through the last Service, interleaved with the same
//     on a node that has a rule of its own but no proxy
//
// It prints a table with ratios and writes CSV; hack/bench/plot draws it. It judges nothing: figures depend on the machine
// and on what else that does. "make bench" runs it; mode ipvs is measured in user-mode Linux where the kernel has no IPVS, so
// its figures compare with each other, and not with those of other modes.
package main

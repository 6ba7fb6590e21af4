// Package staleflow removes UDP flows from connection tracking that would keep traffic away from endpoints that serve.
//
// NAT is decided by a flow's first packet. A UDP client that keeps its source port keeps its flow for ever, be it to an
// endpoint that is gone, or to nowhere because the Service had no endpoints when it began.
//
//	fwd.Changes ─► Builder.Update ─► Snapshot ─► Plan ─► Worker.Submit ┄┄► Worker.Run ─► conntrack: dump, judge, delete
//	                                              └► Stale(flow)  (pure)                  └► Pass: counts, duration
//
// The caller calls Update for all changes, and Snapshot and Submit after a sync that succeeded: rules are written before
// flows are removed, or the next packet would bring the same flow back. After the first sync of a process, and after
// rules were repaired that others removed, it submits Snapshot(true), which judges all flows; otherwise Snapshot(false),
// which holds only the families in which a UDP Service changed and is empty mostly.
//
// Rules, those of kube-proxy since Kubernetes 1.33:
//
//  1. Only UDP. Flows of TCP and SCTP are never removed.
//  2. A flow is stale if its original destination is a frontend of a service port that has serving endpoints, and its
//     reply source, address and port, is none of them. Traffic policy, topology and readiness do not count: a flow to an
//     endpoint that serves stays.
//  3. Flows of service ports without serving endpoints stay: there is nothing better for them.
//  4. A node port counts only on addresses of this node on which node ports are served, so that flows of others that
//     happen to have that destination port stay.
//  5. A flow without NAT in a zone of its own stays: some CNIs (OVS) keep the packet as it was before NAT in such zones.
//  6. Flows of removed frontends stay, as in kube-proxy, unless Builder.RemoveGone asks for their removal.
//
// The whole plan of a family is judged and not only what changed: the cost is the dump, and judging all of it also
// mends what came to be while rules were missing. One pass runs at a time, off the path of syncs, in constant memory,
// for at most a fifth of the time; plans that come meanwhile are merged. A pass that fails waits for the next Submit.
//
// Package reconcile and commands import it. Tested against a naive reading of the rules over random changes and flows, and,
// with FAIRLEAD_KERNEL_TESTS=1 as root, on the kernel.
package staleflow

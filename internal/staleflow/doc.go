// Package staleflow removes flows from connection tracking that would keep traffic away from endpoints that serve, or send
// it to endpoints that the client no longer has a way to.
//
// NAT is decided by a flow's first packet. A UDP client that keeps its source port keeps its flow for ever, be it to an
// endpoint that is gone, to one of a Service that is gone, or to nowhere because the Service had no endpoints when it began.
//
//	fwd.Changes ─► Builder.Update ─► Snapshot ─► Plan ─► Worker.Submit ┄┄► Worker.Run ─► conntrack: dump, judge, delete
//	kernel's keys ─► Builder.Found ┘             └► Stale(flow)  (pure)      ↺ retry   └► Pass: counts, duration
//
// The caller calls Update for all changes, and Snapshot and Submit after a sync that succeeded: rules are written before
// flows are removed, or the next packet would bring the same flow back. A family whose rules could not be written is left
// out of the Snapshot. After the first sync of a process, and after rules were repaired that others removed, it asks for a
// Snapshot of everything; otherwise for one that holds only the families in which a Service changed, and is empty mostly.
//
// Rules, those of kube-proxy since Kubernetes 1.38 and a few more:
//
//  1. A UDP flow is stale if its original destination is a frontend, and its reply source, address and port, is none of the
//     endpoints that serve behind it. Traffic policy, topology and readiness do not count: a flow to an endpoint that
//     serves stays.
//  2. A flow without NAT to a frontend without serving endpoints stays: there is nothing better for it. One with NAT is
//     stale, so that the client is told that nothing serves.
//  3. A UDP flow with NAT is stale if its frontend is gone, whether or not the Service is: the frontend was removed since the
//     last pass, and the flow goes to an endpoint that it had since then; or it was in the kernel when this process began
//     (Builder.Found) and is not in the table. The address may be another Service's by now, or nobody's.
//  4. A node port counts only on addresses of this node on which node ports are served, so that flows of others that
//     happen to have that destination port stay. A flow with NAT to an endpoint of the node port on any other address is
//     stale: that address was the node's, or served node ports.
//  5. A flow without NAT in a zone of its own stays: some CNIs (OVS) keep the packet as it was before NAT in such zones.
//  6. A TCP connection without NAT that waits for its first answer is stale if its destination is a frontend that began to
//     forward since the last pass, or that forwards at all where everything is looked at: its SYN was older than the rules,
//     and the kernel would send all repetitions the same way. Other flows of TCP, and all of SCTP, are never removed.
//
// Not known, and so left alone: flows of frontends that went while no process ran, where another mode or kube-proxy had
// made them, and of those that went in the moment before a process was killed. They last as long as their client sends.
// A flow that another program translated for the very address and port of a frontend may count as stale; its next packet
// makes it again.
//
// The whole plan of a family is judged and not only what changed: the cost is the dump, and judging all of it also
// mends what came to be while rules were missing. One pass runs at a time, off the path of syncs, in constant memory,
// for at most a fifth of the time; plans that come meanwhile are merged. A pass that fails, or that the kernel interrupts, is
// repeated by itself after a growing time.
//
// Package reconcile and commands import it. Tested against a naive reading of the rules over random changes and flows, and,
// with FAIRLEAD_KERNEL_TESTS=1 as root, on the kernel.
package staleflow

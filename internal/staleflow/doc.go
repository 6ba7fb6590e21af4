// Package staleflow removes entries from connection tracking, flows, that keep traffic away from
// endpoints that serve, or send it to endpoints that must not get it.
//
// NAT is decided by the first packet of a flow. A UDP client that keeps its source port keeps its
// flow forever, even to an endpoint or a Service that was deleted, or to nowhere because the
// Service had no endpoints when the flow began.
//
//	fwd.Changes   ─► Builder.Update ┐
//	kernel's keys ─► Builder.Found  ┴► Snapshot ─► Plan: Stale(flow) (pure)
//	Plan ─► Worker.Submit ─► Run: conntrack dump, Stale, delete; retry ─► Pass
//
// The caller calls Update for all changes, and Snapshot and Submit after a sync that succeeded:
// rules are written before flows are removed, or the next packet would add the same flow again. A
// family whose rules could not be written is left out of the Snapshot. After the first sync of a
// process, and after it repaired rules that others deleted, it takes a Snapshot of everything;
// otherwise a Snapshot has only the families in which a Service changed, and is usually empty.
//
// The rules are those of kube-proxy since Kubernetes 1.38, and a few more:
//
//  1. A UDP flow is stale if its original destination is a frontend, and its reply source, address
//     and port, is not one of the frontend's serving endpoints. Traffic policy, topology and
//     readiness do not matter: a flow to a serving endpoint stays.
//  2. A flow without NAT to a frontend without serving endpoints stays: it has no better
//     destination. One with NAT is stale, so that the client gets an error.
//  3. A UDP flow with NAT is stale if its frontend was deleted, with or without its Service: either
//     the frontend was deleted since the last pass, and the flow goes to an endpoint that it had
//     since then, or it was in the kernel when this process started (Builder.Found) and is not in
//     the table. Its address may belong to another Service now, or to nobody.
//  4. A node port counts only on addresses of this node that serve node ports, so that other flows
//     that happen to have the same destination port stay. A flow with NAT to an endpoint of the
//     node port on another address is stale: the address was one of the node, or served node ports.
//  5. A flow without NAT in a zone other than the default stays: some CNIs (OVS) use zones for the
//     packet before NAT.
//  6. A TCP connection without NAT that waits for its first answer is stale if its destination is a
//     frontend that began to forward since the last pass, or any that forwards if the plan is for
//     everything: its SYN was older than the rules, and the kernel would send all retransmissions
//     the same way. Other TCP flows, and all of SCTP, are never removed.
//
// Some stale flows are not found: those of frontends that were deleted while no process ran, if
// another mode or kube-proxy had written them, and of frontends that were deleted just before a
// process was killed. They last as long as their client sends. A flow that another program
// translated for the address and port of a frontend may count as stale; its next packet adds it
// again.
//
// A pass checks all frontends of a family and not only those that changed: its cost is the dump,
// and checking all of them also repairs what went wrong while rules were missing. One pass runs at
// a time, independently of syncs, in constant memory, for at most a fifth of the time; plans that
// are submitted meanwhile are merged. A pass that fails or that the kernel interrupts is retried
// with growing pauses.
//
// Package reconcile and commands import it. Tested against a naive implementation of the rules over
// random changes and flows, and, with FAIRLEAD_KERNEL_TESTS=1 as root, on the kernel.
package staleflow

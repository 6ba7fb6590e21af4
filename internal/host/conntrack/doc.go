// Package conntrack reads and deletes entries of the kernel's connection tracking table over netlink. Which entries are
// stale it does not know.
//
//	Dump(family, protocol) ◄── kernel, 32 KiB at a time ──► Flow ─► yield
//	DumpTo(protocol, destination) ◄── the same, of one destination
//	DumpOpening(family) ◄── the same, TCP connections without an answer
//	Delete(flows) ──► kernel, hundreds of requests in one send
//	tests: Fake, a table in memory
//
// Invariants:
//
//  1. Memory is constant whatever the size of the table: a Dump holds one buffer, and the caller decides what it keeps.
//     (A proxy that loaded the table took 12 GB on a node with many flows.)
//  2. A Delete names its flow by original tuple, zone and id, so a flow that took the place of the one that was dumped is
//     left alone. A flow that is gone already is no error.
//  3. The kernel is asked to leave out other protocols (Linux 5.8); what it sends all the same is left out here.
//
// Flows come and go during a Dump. One that the kernel interrupts, because the table was resized, says so and is of use
// all the same.
//
// Package staleflow and mode ipvs import it. Tested with messages recorded and made up, by fuzzing the decoder, and, with
// FAIRLEAD_KERNEL_TESTS=1 as root, on the kernel. See linux/netfilter/nfnetlink_conntrack.h.
package conntrack

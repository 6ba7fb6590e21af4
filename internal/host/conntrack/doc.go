// Package conntrack reads and deletes entries of the kernel's connection tracking table over
// netlink. It does not know which entries are stale.
//
//	Dump(query) ◄── kernel, 32 KiB at a time ──► Flow ─► yield
//	Delete(flows) ──► kernel, hundreds of requests in one send
//
// Invariants:
//
//  1. Memory is constant whatever the size of the table: a Dump holds one buffer, and the caller
//     decides what it keeps. (A proxy that loaded the whole table took 12 GB on a node with many
//     flows.)
//  2. A Delete names its flow by original tuple, zone and id, so a flow that took the place of a
//     dumped one is left alone. Deleting a flow that no longer exists is not an error.
//  3. The kernel is asked to send only what the query selects (Linux 5.8); Dump drops what it sends
//     nevertheless.
//
// Flows come and go during a Dump. A Dump that the kernel interrupts because the table was resized
// reports that it is not complete; what it yielded is valid.
//
// Package staleflow and mode ipvs import it. Tested with messages recorded and made up, by fuzzing
// the decoder, and, with FAIRLEAD_KERNEL_TESTS=1 as root, on the kernel. See
// linux/netfilter/nfnetlink_conntrack.h.
package conntrack

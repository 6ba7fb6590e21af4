// Package nlbatch sends many netlink requests in one system call and says of each whether it succeeded.
//
//	Do(requests) ─► [ hundreds of messages in one send ] ─► kernel ─► errors by sequence number ─► one error per request
//	Dump(request), Get(request) ─► kernel ─► messages
//
// It is for kernel interfaces that carry out each message by itself: rtnetlink, ipset, generic netlink. (nf_tables has
// transactions, see package nft.) The libraries send one message and wait for its answer, which costs several times as
// much.
//
// Invariants:
//
//  1. A request that fails does not keep others from being carried out, and its error is not taken for another's.
//  2. Only the last request of a send asks for an answer; of the others the kernel answers those that fail. The answers to
//     one send always fit into the socket's buffer.
//  3. An answer to an earlier call, one that was given up, is never taken for an answer to this one.
//
// Packages below internal/host import it. Tested with messages made up, by fuzzing, and, with FAIRLEAD_KERNEL_TESTS=1 as
// root, on the kernel. See netlink(7) and linux/netlink.h.
package nlbatch

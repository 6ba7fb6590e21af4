// Package netlink talks netlink with the kernel: sockets, sequence numbers, messages and
// attributes. The packages that import it, ipset, ipvs, link, nft and conntrack, know what the
// messages mean.
//
//	Do(requests) ─► kernel, hundreds of messages in one send ─► one error per request
//	Transact(requests) ─► kernel, all or nothing ─► the first refusal
//	Dump(request) ─► kernel, 32 KiB at a time ─► yield; List and Get collect
//	Subscribe(groups) ◄── kernel, and a call when messages may have been missed
//
// Invariants:
//
//  1. A request of a Do that fails does not prevent the others, and its error is never reported for
//     another one.
//  2. Only the last request of a send asks for an answer; the kernel answers the others only if
//     they fail. The answers to one send of a Do always fit into the socket's buffer.
//  3. An answer to an earlier request is never taken for the answer to a later one: answers are
//     matched by sequence number and port, and numbers are not reused (before they wrap). A socket
//     in which an answer may be left (after an overrun, a timeout, a context that ended midway, an
//     error of yield, a malformed message) is closed, and the next call opens another one in the
//     same network namespace.
//  4. A subscription that fails for whatever reason is renewed; only the end of the context ends
//     it.
//
// The libraries lack this. github.com/mdlayher/netlink (1.11) stops receiving at the first error
// and drops the rest of the datagram, ignores NLM_F_DUMP_INTR, takes an answer left from an earlier
// request for a failure of the current one, and leaves it to the caller to replace a socket, count
// the answers of a batch and renew a subscription. vishvananda/netlink/nl (1.3) sends one message
// per call and waits for its answer, which takes several times as long, and it has no transactions.
// Rare single calls (devices) use the latter.
//
// Packages below internal/host import it. Tested with constructed messages, by fuzzing, and, with
// FAIRLEAD_KERNEL_TESTS=1 as root, on the kernel. See netlink(7), linux/netlink.h and
// linux/netfilter/nfnetlink.h.
package netlink

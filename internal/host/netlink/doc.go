// Package netlink talks netlink with the kernel: sockets, sequence numbers, messages and attributes. What they mean is for
// the packages that import it, which are encodings: ipset, ipvs, link, nft, conntrack.
//
//	Do(requests) ─► [ hundreds of messages in one send ] ─► kernel ─► errors by sequence number ─► one error per request
//	Transact(messages) ─► kernel, all or nothing ─► the first refusal, by the number of its message
//	Dump(request) ─► kernel, 32 KiB at a time ─► yield; List and Get collect
//	Subscribe(groups) ◄── kernel, message by message, and a call where some may have been missed
//
// Invariants:
//
//  1. A request that fails does not keep others of a Do from being carried out, and its error is not taken for another's.
//  2. Only the last request of a send asks for an answer; of the others the kernel answers those that fail. The answers to
//     one send of a Do always fit into the socket's buffer.
//  3. An answer to an earlier request is never taken for an answer to this one: answers are matched by sequence number and
//     port, no number is used twice (before they wrap), and a socket in which an answer may be left over (it was overrun, the
//     kernel did not answer in time, the context ended midway, yield failed, a message was malformed) is closed and the next
//     call opens another, in the network namespace of the first.
//  4. Whatever a subscription fails of, it is made again; only the end of the context ends it.
//
// The libraries do less. github.com/mdlayher/netlink (1.11) ends a receive at the first error and drops the rest of the
// datagram, ignores NLM_F_DUMP_INTR, takes an answer left over from an earlier request for a failure of the present one, and
// leaves it to the caller to replace a socket, to count answers of a batch, and to subscribe again. vishvananda/netlink/nl
// (1.3) sends one message per call and waits for its answer, which takes several times as long, and neither knows transactions.
// Single calls that are rare (devices) are made with the latter.
//
// Packages below internal/host import it. Tested with messages made up, by fuzzing, and, with FAIRLEAD_KERNEL_TESTS=1 as
// root, on the kernel. See netlink(7), linux/netlink.h and linux/netfilter/nfnetlink.h.
package netlink

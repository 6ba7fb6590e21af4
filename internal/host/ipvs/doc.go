// Package ipvs reads and writes the kernel's tables of virtual and real servers (IPVS) over netlink. What is a virtual
// server of ours and what is another program's it does not know.
//
//	Apply(operations) ─► checks ─► package netlink, 500 in one system call ─► kernel ─► one error per operation
//	Read ─► one dump of virtual servers + one reading of /proc/net/ip_vs ─► Content ─► Format: as ipvsadm-save
//	List, RealServers ─► a dump ─► settings and counters, connections
//	tests: Fake, the tables in memory
//
// Invariants:
//
//  1. Values are plain and comparable. What was written is read back equal, to the bit: Prefix 0 is the whole address,
//     the flag that the kernel sets by itself is left out, weights have 32 bits.
//  2. An operation that fails does not keep others from being carried out, and its error names it. Where an answer was lost
//     the error is ENOBUFS, never silence.
//  3. Kernel and Fake refuse the same with the same error number; a test carries out random operations on both.
//  4. What the kernel would take though no packet is ever forwarded by it (persistence for 0 seconds, port 0 without
//     persistence, other protocols than TCP, UDP and SCTP) is refused before it gets there.
//  5. Read holds off writes of the same Kernel and begins anew if others write meanwhile; it never returns half of it.
//
// Not kept: thresholds of real servers and persistence engines, which are written as none; types of tunnels. Marks are only
// reported. There are no notifications: the kernel sends none.
//
// It is a small encoder of its own and does not use github.com/moby/ipvs, because the library
//
//   - sends one message and waits for its answer, which costs several times as much for each real server (benchmark
//     KernelAddReals);
//   - reads weights as 16 bits, so that 70000 comes back as 4464 and would be written again for ever;
//   - knows counters of 32 bits, which wrap, and not how many clients a real server holds by persistence;
//   - waits for an answer without a timeout;
//   - does not report that the kernel has no IPVS: it runs modprobe, logs a line and goes on.
//
// Weights, connections and addresses of all real servers come from /proc because a dump for each virtual server takes
// several times as long. GET_DEST remains for a few, and for what only it tells.
//
// Packages below internal/backend import it. Tested with text and messages made up, by fuzzing both, and, with
// FAIRLEAD_KERNEL_TESTS=1 as root, on a kernel with IPVS (make test-ipvs). See linux/ip_vs.h and ipvsadm(8).
package ipvs

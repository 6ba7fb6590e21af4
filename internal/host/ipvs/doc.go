// Package ipvs reads and writes the virtual and real servers of the kernel's load balancer (IPVS)
// over netlink. It does not know which virtual servers are ours.
//
//	Apply(operations) ─► checks ─► package netlink, 500 in one system call ─► kernel ─► one error per operation
//	Read ─► one dump of virtual servers + one read of /proc/net/ip_vs ─► Content
//	List, RealServers ─► a dump ─► settings, connections
//	FormatServer, FormatReal ─► the options of ipvsadm
//	tests: package ipvsfake, the table in memory
//
// Invariants:
//
//  1. Values are plain and comparable. What was written is read back equal, bit for bit: Prefix 0
//     means the whole address, the flag that the kernel sets itself is hidden, weights have 32
//     bits.
//  2. An operation that fails does not prevent others, and its error names it. If an answer was
//     lost, the error is ENOBUFS.
//  3. Kernel and ipvsfake refuse the same operations with the same error number; a test runs random
//     operations on both.
//  4. What the kernel would accept although it never forwards a packet is refused before:
//     persistence for 0 seconds, port 0 without persistence, other protocols than TCP, UDP and
//     SCTP.
//  5. Read excludes writes of the same Kernel and starts over if others write meanwhile; it never
//     returns a partial table.
//
// Thresholds of real servers and persistence engines are written as none, tunnel types are not
// supported, and virtual servers for firewall marks are ignored. The kernel sends no notifications.
//
// The package does not use github.com/moby/ipvs. That library
//
//   - sends one message and waits for the answer, which costs several times as much per real server
//     (benchmark KernelAddReals);
//   - reads weights as 16 bits, so that 70000 becomes 4464 and would be written again forever;
//   - waits for an answer without a timeout;
//   - does not report that the kernel has no IPVS: it runs modprobe, logs a line and continues.
//
// Weights, connections and addresses of all real servers come from /proc, because one dump for each
// virtual server takes several times as long. RealServers dumps those of one virtual server.
//
// Packages below internal/backend and package kubeproxy import it. It is tested with recorded text
// and made-up messages, by fuzzing both decoders, and, with FAIRLEAD_KERNEL_TESTS=1 as root, on a
// kernel with IPVS (make test-ipvs). See linux/ip_vs.h and ipvsadm(8).
package ipvs

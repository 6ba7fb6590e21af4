// Package ipset reads and writes ip_set, the kernel's sets of addresses and ports that iptables
// rules match on, over netlink. It does not know what the sets are for.
//
//	List(prefix) ◄── kernel: names, then one dump for each matching set
//	Apply(changes) ──► kernel, hundreds of entries in one send ──► an error for each refused entry
//	tests: package ipsetfake, sets in memory
//
// Invariants:
//
//  1. The package runs no program: ipset may be missing or too old for the kernel, and each call
//     costs a process.
//  2. A refused entry does not prevent others from being written, and its error names it. The
//     package sends one message for each entry, because the kernel stops at the first error in a
//     message with a list of entries.
//  3. Entries that do not fit the type of their set are refused before the kernel sees them. This
//     includes what the kernel would interpret differently: a network with host bits, or a prefix
//     of length 0 (write two of length 1 instead).
//
// The package does not use github.com/vishvananda/netlink, which has no batches, sends a protocol
// with entries of bitmap:port (the kernel refuses that), cannot read a set without its entries, and
// writes to the standard logger for each set that it lists.
//
// Packages below internal/backend and package kubeproxy import it. It is tested with made-up
// messages and a fuzzed decoder; one test suite runs against ipsetfake and, with
// FAIRLEAD_KERNEL_TESTS=1 as root, against the kernel. See linux/netfilter/ipset/ip_set.h and
// ipset(8).
package ipset

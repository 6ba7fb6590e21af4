// Package ipset reads and writes sets of addresses and ports, which iptables rules ask, over netlink. What the sets are
// for it does not know.
//
//	List(prefix) ◄── kernel: names, then one dump for each of ours
//	Apply(changes) ──► kernel, hundreds of entries in one send ──► an error for each entry that was refused
//	Save, Parse: the same as text, as the program ipset prints it
//	tests: Fake, sets in memory
//
// Invariants:
//
//  1. No program is run: ipset may be missing or too old for the kernel, and costs a process each time.
//  2. An entry that the kernel refuses keeps no other from being written, and its error names it. The package writes one
//     message for each entry: with a list of entries in one message the kernel gives up at the first error.
//  3. What does not fit the type of a set is refused before the kernel sees it, among it what the kernel would take as
//     something else: a network with host bits, a prefix of length 0 (write two of length 1 instead).
//
// It does not use the library that package link uses. That one opens no batches, sends a protocol with entries of
// bitmap:port, which the kernel refuses, cannot read a set without its entries, and writes lines to the standard logger
// for each set that it lists.
//
// Packages below internal/backend import it. Tested as text and with the Fake, by fuzzing the decoder and the parser, and,
// with FAIRLEAD_KERNEL_TESTS=1 as root, on the kernel. See linux/netfilter/ipset/ip_set.h and ipset(8).
package ipset

// Package instance names what belongs to one Fairlead in the kernel, so that several can work on
// one node.
//
// An instance is a value of --service-proxy-name. The instance without a name has the names that
// are in all documents:
//
//	                                  without a name   with a name
//	chains, sets, lists of xt_recent  FAIRLEAD-…       FL-ABCDE-…
//	table of nf_tables                fairlead         fairlead-abcde
//	device of virtual IPs             kube-ipvs0       kube-ipvs-abcde
//	flags of virtual servers          flag-3           flag-3, and the number from bit 6 on
//	routing table, metric of routes   9650, none       1<<25 and the number
//
// abcde stands for 25 bits of a hash of the name. Names may be longer than the kernel allows, and
// because all prefixes have the same length, all limits on lengths hold. Two names with the same
// hash are one instance to the kernel, and to package nodelock, which lets only one of them run.
//
// Invariants:
//
//  1. An ID is a value; no package keeps one in a global variable.
//  2. No name that a user chose gets into the kernel.
//  3. No name of one instance is a name of another.
//
// Backends, the lock and commands import it. It imports nothing. See docs/operations.md.
package instance

// Package nft reads and writes one table of nf_tables over netlink, without the program nft.
//
//	[]Op ─► requests ─► kernel: all or nothing ─► *Error of the first refusal
//	kernel ─► dumps of chains, rules, sets, elements ─► Content
//
// Rules are lists of expressions in the kernel's encoding (expr.go), so that what is read compares
// equal to what was written. Sets carry the userdata from which nft(8) knows their types
// (typeof.go): nft can list them, and load its own listing again.
//
// Why not github.com/google/nftables: it does not write userdata for typeof, without which nft can
// neither check nor reload a map with a random number in its key; it asks for an answer to every
// message of a batch; and it needs two more modules.
//
// Invariants:
//
//  1. Only the table that was passed to Open is read or written. Usable checks operations on
//     another one, which is never added.
//  2. A Commit is one transaction of the kernel.
//  3. Attributes that newer kernels add to an expression are ignored when it is read.
//
// Backends import it. Its strict fake is internal/backend/nftables/nftsim. The encoding is tested
// here; the tests of internal/backend/nftables test it in the kernel, and against what nft makes of
// the same text.
//
// See linux/netfilter/nf_tables.h, nft(8), and libnftnl's udata.h for userdata.
package nft

// Package nft reads and writes one table of nf_tables over netlink, without the program nft.
//
//	[]Op ─► encode (one buffer) ─► package netlink ─► kernel: all or nothing ─► *Error of the first refusal
//	kernel ─► dumps of chains, rules, sets, elements ─► Content
//
// Rules are lists of expressions in the kernel's own encoding (expr.go), so that what was read compares equal to what was
// written. Sets carry the userdata by which nft(8) knows their types (typeof.go): nft lists what is written here, and takes
// its own listing back.
//
// Why not github.com/google/nftables: it writes no userdata for typeof, without which nft can neither check nor reload a
// map with a random number in its key; it asks for an answer to every message of a batch; and it needs two more modules.
// What is here is as large as what is used of it.
//
// Invariants:
//
//  1. No table but the one that Open names is read or written; Usable asks about one that is never made.
//  2. A Commit is one transaction of the kernel.
//  3. What a newer kernel adds to an expression is left out when it is read; what we write is read back as it was.
//
// Backends import it. The strict stand-in for the kernel is internal/backend/nftables/nftsim. Tested in the kernel and
// against what nft makes of the same text, by the tests of internal/backend/nftables; the encoding here.
//
// See linux/netfilter/nf_tables.h, nft(8), and libnftnl's udata.h for userdata.
package nft

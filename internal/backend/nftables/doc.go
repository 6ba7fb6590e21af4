// Package nftables programs the forwarding table with nf_tables: a table "fairlead" in each of the
// families ip and ip6, written over netlink, without the program nft. No other table is read or
// written.
//
// There is a chain for each shape of frontend, not for each Service. What differs is an element of
// a map:
//
//	nat-prerouting, nat-output ─► services:
//	    vips {address, protocol, port} ─► chain of the shape ─► DNAT
//	    local address: nodeports {protocol, port} ─► …
//	    cluster-ips: wrong port ─► reject
//	    service-cidrs: no Service's address ─► drop
//	chain of a shape, e.g. CcC_pool-10: not from a pod: set the mark ─► pool-10
//	chain of a pool's size, e.g. pool-10:
//	    dnat to (address, protocol, port, random mod 10) map @endpoints
//	nat-postrouting: translated, and marked or to its own source ─► masquerade
//
// A packet for a Service takes two lookups, one for no Service takes one, however many Services
// there are. The name of a shape has a letter for each class of source, outside, pod and host: c
// and l for the pools of the cluster and of this node (upper case: masquerade), x for drop and r
// for reject; then the pools with their sizes. "pool-10" alone is the shape that treats all sources
// alike. The prefixes "from-" and "sources-" accept only sources in the set.
//
// The chains of pools of common sizes always exist (commonSizes): adding a rule to a full map costs
// a walk through the map, but adding an endpoint costs a walk through all such rules. Apart from
// its elements, a change costs a validation: when a map element with a jump verdict is added, the
// kernel checks all verdicts of the table, 0.1 to 0.3 ms for 1000. Deleting verdicts, and changing
// endpoints, costs none.
//
// An endpoint has one index in its pool, or as many as its weight, or one in each level that its
// weight has a power of two for (pool.go). Indexes are assigned so that adding or removing an
// endpoint changes few of them. Session affinity needs chains for each Service (compiler.affinity);
// the clients are elements of one dynamic set.
//
// Packets are rejected and dropped in the nat chains too, which see the first packet of each
// connection: one lookup serves both, and a verdict can never disagree with the DNAT.
//
// The kernel decides as fwd.Table.Lookup does, without exception. It differs from mode iptables as
// kube-proxy's nftables mode does: nothing is accepted on behalf of the host's firewall, and
// INVALID packets are not dropped. Source and destination of a packet are compared byte by byte, as
// pairs in a set of all pairs of equal bytes (lang.hairpin).
//
// Invariants:
//
//  1. What is rendered depends only on the table, not on the order in which Services were added.
//  2. Text and netlink are made from the same values (rule.go). The expressions are those that nft
//     makes from the text, so that what is read compares equal to what is wanted, and a restart
//     without changes writes nothing.
//  3. A frontend is changed together with its endpoints in one transaction.
//  4. Names that users chose get into the kernel only as hashes.
//  5. If the kernel refuses something, the Services that it belongs to are found without writing
//     anything (refusal.go).
//
// Commands and the loop import it. Tested by golden files, by the conformance suite on a table in
// memory (nftsim), and in the kernel, where nft must make the same of the rendered text and of its
// own listing.
//
// See nft(8), KEP-3866, and linux/netfilter/nf_tables.h.
package nftables

// Package nftables programs the forwarding table with nf_tables: a table "fairlead" in each of the families ip and ip6,
// written over netlink, without the program nft. No other table is read or written.
//
// Chains stand for shapes, not for Services. What varies is an element of a map:
//
//	nat-prerouting, nat-output ─► services ─┬─ vips {address, protocol, port} ──► chain of the shape ─► DNAT
//	                                        ├─ local address ─► nodeports {protocol, port} ─► …
//	                                        ├─ cluster-ips: wrong port ─► reject
//	                                        └─ service-cidrs: no Service's address ─► drop
//	chain of a shape, e.g. CcC_pool-10:       not from a pod: set the mark ─► pool-10
//	chain of a pool's size, e.g. pool-10:     dnat to (address, protocol, port, random mod 10) map @endpoints
//	nat-postrouting ─► translated, and the mark set or to its own source ─► masquerade
//
// A packet for a Service meets two look-ups, one for no Service one, however many Services there are. In the name of a
// shape a letter stands for each class of source, outside, pod and host: c and l for the pools of the cluster and of this
// node (with a capital: masquerade), x for drop and r for reject; then follow the pools with their sizes. "pool-10" alone is
// the shape in which all are treated alike. Prefix "from-" and "sources-": only sources in the set come through.
//
// The chains of pools of the usual sizes are always there (commonSizes), since a rule that comes to a full map costs a walk
// through the map; but an endpoint that comes costs a walk through all such rules. What a change costs beyond its elements is a validation: wherever a verdict that leads to a chain comes
// to a map, the kernel looks at all verdicts of the table, 0.1 to 0.3 ms for 1000. Removing verdicts, and whatever is done
// to endpoints, costs none.
//
// An endpoint has one index of its pool, or as many as its weight, or one in each of the levels that the weights' powers of
// two make (pool.go); the indexes are arranged so that an endpoint more or less changes few of them. Session affinity needs
// chains of the Service's own (compiler.affinity): the clients are elements of one dynamic set.
//
// Rejecting and dropping is done in the nat chains as well, which see the first packet of each connection: one look-up
// serves both purposes, and a verdict can never disagree with the DNAT beside it.
//
// The kernel decides as fwd.Table.Lookup does, without exception. From mode iptables it differs as kube-proxy's nftables mode
// does: nothing is accepted on behalf of the host's firewall, and INVALID packets are not dropped. Source and
// destination of a packet are compared byte by byte, as pairs in a set of all pairs of equal bytes (lang.hairpin).
//
// Invariants:
//
//  1. What is rendered depends on the table alone, not on the order in which Services came.
//  2. Text and netlink are made of the same values (rule.go); the expressions are those that nft makes of the text, so that
//     what was read compares equal to what is wanted, and a restart with nothing changed writes nothing.
//  3. A frontend with its endpoints is changed in one transaction.
//  4. No name that a user chose gets into the kernel but hashed.
//  5. Where the kernel refuses something, the Services that it belongs to are named (refusal.go), without writing anything.
//
// Commands and the loop import it. Tested by golden files, by the conformance suite over a table in memory (nftsim), and in
// the kernel, where nft must make the same of the rendered text and of its own listing.
//
// See nft(8), KEP-3866, and linux/netfilter/nf_tables.h.
package nftables

// Package iptables programs the forwarding table with iptables, in either userland (legacy, nft)
// and for both families.
//
// The first packet of a connection takes this path. Later packets follow connection tracking and
// only meet the first rule of FAIRLEAD-FORWARD:
//
//	nat PREROUTING, OUTPUT ─► FAIRLEAD-SERVICES ─┬─ tree by virtual IP ─────► F ─► (P | S) ─► DNAT
//	                                             └─ local address ─► FAIRLEAD-NODEPORTS, tree by port ─► F ─► …
//	filter INPUT, FORWARD, OUTPUT ─► FAIRLEAD-INPUT/-FORWARD/-OUTPUT ─► FAIRLEAD-FILTER: not DNATed and to a frontend?
//	                                 trees as in nat, but only of what is rejected or dropped ─► REJECT, DROP
//	nat POSTROUTING ─► FAIRLEAD-POSTROUTING: after DNAT, mark set or source = destination ─► MASQUERADE
//
// Trees (tree.go) branch on four bits of address, protocol and port at a time, so that no chain has
// more than sixteen dispatch rules. A packet that is not for a Service usually takes one comparison
// in each table.
//
// F-<hash> holds the routes by source class, then the pool. P-<hash> is a pool that several chains
// jump to, S-<hash> a part of a large pool. E-<hash> and Q-<hash> test source ranges. R-<hash>
// rejects or drops by source class. The frontends of a service port share these chains, and the
// xt_recent lists that implement session affinity.
//
// Invariants:
//
//  1. Fairlead only writes chains whose names begin with FAIRLEAD-, and jumps to them in built-in
//     chains.
//  2. The rendered rules depend on the table and the options, not on the order in which Services
//     were added (golden files, and "incremental equals scratch" in the conformance suite).
//  3. Rules are written exactly as iptables-save prints them, so that rules that were read compare
//     equal to the rendered ones. A restart with nothing changed writes nothing.
//  4. A sync is one iptables-restore --noflush per family, with only the chains that changed. With
//     the nft userland, a very large sync writes new chains in advance, in several restores
//     (order.go).
//  5. A name that a user chose only gets into a rule as a hash, or as a comment of harmless
//     characters.
//
// Commands and the loop import it. It is tested by golden files, by the conformance suite over an
// interpreter of rules (rulesim), and in the kernel with both userlands.
//
// See iptables(8), iptables-extensions(8), and docs/iptables.md.
package iptables

// Package iptables programs the forwarding table with iptables, in either userland (legacy, nft) and for both families.
//
// The way of the first packet of a connection; later packets follow conntrack and meet none of this but the first rule of
// FAIRLEAD-FORWARD:
//
//	nat PREROUTING, OUTPUT ─► FAIRLEAD-SERVICES ─┬─ tree by virtual IP ─────► F ─► (P | S) ─► DNAT
//	                                             └─ local address ─► FAIRLEAD-NODEPORTS, tree by port ─► F ─► …
//	filter INPUT, FORWARD, OUTPUT ─► FAIRLEAD-INPUT/-FORWARD/-OUTPUT ─► FAIRLEAD-FILTER: not DNATed but to a frontend?
//	                                 trees as in nat, only of what is rejected or dropped ─► REJECT, DROP
//	nat POSTROUTING ─► FAIRLEAD-POSTROUTING: after DNAT, mark set or source = destination ─► MASQUERADE
//
// Trees (tree.go) split by four bits of address, protocol and port, so that no chain is longer than sixteen dispatch
// rules. A packet for no Service is usually done after one comparison in each table.
//
// F-<hash> holds the routes by class of source, then the pool. P-<hash> is a pool that several places go to, S-<hash> a
// part of a large one. E-<hash> and Q-<hash> test source ranges; R-<hash> rejects or drops by class.
// The frontends of a service port share these chains, and the lists of xt_recent that keep session affinity.
//
// Invariants:
//
//  1. Only chains whose names begin with FAIRLEAD- are written, and in built-in chains only jumps to them.
//  2. What is rendered depends on table and options alone, not on the order in which Services came (golden files, and
//     "incremental equals scratch" in the conformance suite).
//  3. Rules are written token for token as iptables-save prints them, so that what was read compares equal to what is
//     wanted, and a restart with nothing changed writes nothing.
//  4. A sync is one iptables-restore --noflush for each family, with the chains that changed and no others. Only with the
//     nft userland, and only where there are very many of them, new chains are written ahead in pieces (order.go).
//  5. No name that a user chose gets into a rule but hashed, or as a comment of harmless characters.
//
// Commands and the loop import it. Tested by golden files, by the conformance suite over an interpreter of rules
// (rulesim), and in the kernel with both userlands.
//
// See iptables(8), iptables-extensions(8), and docs/iptables.md.
package iptables

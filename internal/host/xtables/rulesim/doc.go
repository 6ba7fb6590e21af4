// Package rulesim interprets iptables rules for tests. It accepts the input of iptables-restore,
// refuses what iptables or the kernel would refuse, and returns what the rules do with the first
// packet of a connection. Its Tables take the place of xtables.Tables.
//
//	iptables-restore input ─► Parse, Restore ─► Ruleset ─► Save: the text iptables-save would print
//	                                               │
//	                                               └─► Run(Host, Packet) ─► every possible Result with its probability
//
// It simulates the nat, filter and mangle tables of one address family, and a packet in conntrack
// state NEW. Sets of ip_set and virtual servers of IPVS are part of the Host; IPVS has the same
// place among the tables as in the kernel. If a rule or IPVS chooses at random, rulesim follows all
// branches, so the result is the set of all outcomes and does not depend on chance. It is written
// from iptables(8), iptables-extensions(8) and experiments with iptables 1.8.9. It shares no code
// with the renderer, so that a mistake in one is found by the other.
//
// Invariants:
//
//  1. It refuses every match, target and option that it does not know, and every malformed or
//     out-of-range argument. It refuses what either of the two userlands (legacy, nft) refuses, and
//     what they truncate silently.
//  2. A section of the input takes effect completely at its COMMIT, or not at all.
//  3. The probabilities of the Results of one packet add up to 1.
//
// Not simulated: source ports, packets other than the first of a connection, reverse-path and
// martian filters, the address that masquerading chooses (later rules still see the old source),
// whether a route exists, and the maximum number of entries of a recent list or a set. Of IPVS:
// persistence, existing connections (a scheduler that uses them is simulated as one that uses
// weights), virtual servers for marks, and forwarding methods other than masquerading.
//
// Only tests import it; of this module it imports the value types of package fwd, and xtables,
// whose Interface Tables implements. It is tested by tables of rules and packets, by a fuzz target
// for the parser, and, if user namespaces and iptables are available, by comparing what both
// userlands refuse and save.
package rulesim

// Package rulesim interprets iptables rules for tests: it takes what iptables-restore would take, refuses what iptables
// or the kernel would refuse, and says what the rules do with the first packet of a connection.
//
//	iptables-restore input ─► Parse, Restore ─► Ruleset ─► Save: the text iptables-save would print
//	                                               │
//	                                               └─► Run(Host, Packet) ─► every possible Result with its probability
//
// It knows the nat, filter and mangle tables of one address family and a packet in conntrack state NEW. Sets of ip_set and
// virtual servers of IPVS are part of the Host; IPVS has its place among the tables as in the kernel. Where a rule or IPVS
// chooses at random, all branches are followed, so that the answer is the set of all outcomes and does not depend on
// luck. It is written from iptables(8), iptables-extensions(8) and trials of iptables 1.8.9, and shares no code with the
// renderer, so that an error must be made twice to go unseen.
//
// Invariants:
//
//  1. What is not understood is refused: every match, target and option that this package does not know, every
//     malformed or out-of-range argument. What either of the two userlands (legacy, nft) refuses is refused, and what
//     they cut short without a word is refused too.
//  2. A section of the input takes effect as a whole at its COMMIT, or not at all.
//  3. The probabilities of the Results of one packet add up to 1.
//
// Not modelled: source ports, packets that are not the first of a connection, reverse-path and martian filters, the
// address that masquerading chooses (later rules still see the old source), whether a route exists, the limits on the
// number of entries of a recent list or a set; of IPVS persistence, what connections there are (a scheduler that goes by
// them is taken for one that goes by weight), virtual servers for marks and other ways of forwarding than masquerading.
//
// Only tests import it; of this module it imports the value types of package fwd, and xtables, whose Interface Tables implements. Tested by tables of rules and
// packets, by a fuzz target for the parser, and, where user namespaces and iptables are there, by giving the same input
// to both userlands and comparing what they refuse and what they save.
package rulesim

// Package fwd is the forwarding table: what one node does with each packet to a Service, as plain
// values.
//
//	compile ─► Fragment ─► Table.Put ─► Changes ─► backends (kernel), health servers, stale-flow plan
//	                          │
//	                          └► Table.Lookup(packet) ─► Outcome        (fairlead trace, the reference of all tests)
//
// The table holds decisions, not policy: package compile has already applied traffic policies,
// topology hints, terminating endpoints, detectors of local pods and masquerade options. What
// remains for each frontend is one Route per class of source, and the pools that routes choose
// from. A renderer therefore has no "if policy".
//
// Invariants:
//
//  1. The address family is part of every key; the two families never share an object.
//  2. Values are sorted and free of duplicates, so equal meaning is equal value.
//  3. At most one Service owns a Key. Among claimants the oldest Service wins, then the smaller
//     namespace/name; the others wait. When the owner leaves, the same Changes name the next one.
//  4. The cost of Put and Remove is that of the fragment, whatever the size of the table.
//  5. A fragment that is put twice changes nothing the second time.
//
// The package imports the standard library alone and holds no logger, clock, context or goroutine.
// A Table belongs to one goroutine; the values it hands out are immutable.
package fwd

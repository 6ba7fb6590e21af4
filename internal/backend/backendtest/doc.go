// Package backendtest is the conformance suite that every backend passes, whatever kernel facility
// it programs.
//
//	random header, fragments ─► fwd.Table ─┬─► Changes ─► backend under test ─► its kernel ─► Subject.Judge(packet)
//	                                       │                                                         │ must be equal
//	                                       └─► Table.Lookup(packet) ◄────────────────────────────────┘
//
// A backend's own tests supply a Subject: the backend together with a kernel, real or simulated,
// that can be asked about packets, made to fail and looked into. Run does the rest. What is checked
// (checks.go):
//
//  1. Lookup: the kernel decides about every packet as fwd.Table.Lookup does, with the right
//     probabilities.
//  2. Incremental equals scratch: after random changes, failed writes, failed readings of one
//     family and restarts the kernel holds what a fresh backend would have written, and in between
//     no packet goes to an endpoint that no table names. FAIRLEAD_SUITE_STEPS=5000 makes as many
//     changes for each seed.
//  3. A second Apply, and a restart without a change, write nothing.
//  4. Drift is found and repaired; clean-up removes all that is ours and nothing else; removed
//     Services leave nothing.
//  5. A small change touches a number of objects that does not depend on the size of the pool or of
//     the table.
//  6. A node that is programmed in pieces does what the Services so far ask for, and what an
//     earlier run left is not taken for nothing.
//  7. A family that cannot be read keeps what it has in the kernel, and the other one is brought up
//     to date.
//  8. Session affinity is per client and service port, shared by all frontends of the port, and
//     ends in time.
//
// Each check is a function of a Subject and a seed that returns an error, so that the suite is
// tested itself: against a reference backend that is right, and against ones with a bug each, which
// it must catch. Randomness comes from the seed that names the subtest; running that subtest again
// replays it.
//
// Only tests import this package; it imports backend and fwd.
package backendtest

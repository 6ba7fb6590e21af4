// Package backend is the contract between the loop and a kernel dataplane, and the engine that the
// dataplanes share.
//
//	fwd.Changes ─► Renderer (pure) ─► delta.Tracker ─► Plan ─► Target (effects) ─► kernel
//	                                      ▲                       │
//	                                      └── what succeeded ─────┘◄── Observe: what was read
//
// A backend supplies a Renderer, which returns the desired objects for what changed, and a Target,
// which reads the kernel and writes a plan. The Engine does the rest in one code path: first write,
// changes, retries, repair of drift, and cleanup.
//
// A Backend that is also a Tender has work that becomes due over time: virtual servers keep a
// removed endpoint until its connections have ended.
//
// A Backend is for one address family, and the loop drives each separately: a failure of one does
// not stop the other. Families holds those of a node. Open opens them, also later if a family fails
// at startup for a reason that may pass.
//
// Invariants:
//
//  1. Update never touches the kernel; Apply writes only differences between the desired and the
//     actual state.
//  2. What could not be written stays pending for a later Apply. After a failed write the kernel is
//     read before the same object is written again.
//  3. A second Apply without an Update in between writes nothing.
//  4. Only objects that the Target's Read returned or that the Engine wrote are ever deleted.
//
// A Backend belongs to one goroutine; only a Reading's Read may run in another. Tested by package
// backendtest, whose suite every backend passes.
package backend

// Package backend is the contract between the loop and a kernel dataplane, and the engine that the dataplanes share.
//
//	fwd.Changes ─► Renderer (pure) ─► delta.Tracker ─► Plan ─► Target (effects) ─► kernel
//	                                      ▲                       │
//	                                      └── what succeeded ─────┘◄── Observe: what was read
//
// A backend supplies a Renderer, which says for each changed thing which keyed objects are wanted now, and a Target,
// which reads the kernel and writes a plan. The Engine does the rest in one code path: first programming, changes, retry
// of what failed, repair of what others changed, and clean-up.
//
// A Backend that is a Tender too has work that time makes due: virtual servers keep an endpoint that is gone until its
// connections are.
//
// A Backend, and its Engine, is of one address family, and the loop drives each by itself: what fails in one family does not stop
// the other. Families are both of a node.
//
// Invariants:
//
//  1. Update never touches the kernel; Apply writes only what differs from what is believed to be there.
//  2. What could not be written stays pending and is written by a later Apply. What a failed write may have left is
//     read before it is written again.
//  3. A second Apply without an Update between writes nothing.
//  4. Only objects that the Target's Read returned or that the Engine wrote are ever deleted.
//
// A Backend belongs to one goroutine; only a Reading's Read may run in another. Tested by package backendtest, whose suite
// every backend passes.
package backend

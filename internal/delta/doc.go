// Package delta compares desired and actual values by key.
//
//	desired (SetDesired, DeleteDesired) ┐
//	                                    ├─► Pending: keys to write, keys to delete
//	actual  (SetActual, ReplaceActual)  ┘
//
// The first sync, changes, retries, repair of drift and cleanup are one code path: they differ only
// in what is actual (nothing, what was written, what was read) and desired (everything, what
// changed, nothing). There is no "full sync" flag.
//
// Invariants:
//
//  1. A key is pending exactly when desired and actual differ in it.
//  2. Actual changes only when the caller reports a successful write or a reading of the kernel.
//
// Not for: deciding the order of writes (package backend), or any input or output. It imports only
// the standard library. A Tracker belongs to one goroutine.
package delta

// Package delta tracks keyed values that are wanted against what is believed to be there.
//
//	desired (SetDesired, DeleteDesired) ┐
//	                                    ├─► Pending: keys to write, keys to delete
//	actual  (SetActual, ReplaceActual)  ┘
//
// First sync, incremental sync, retry after a failure, repair of drift and clean-up are one code path over it: they
// differ in what is believed actual (nothing, what was written, what was read) and what is desired (all, what changed,
// nothing). There is no flag that says "write everything".
//
// Invariants:
//
//  1. A key is pending exactly when desired and actual differ in it.
//  2. Actual advances only when the caller says that a write succeeded or that the kernel was read.
//
// Not for: deciding the order of writes (package backend), or any input or output. It imports the standard library alone.
// A Tracker belongs to one goroutine.
package delta

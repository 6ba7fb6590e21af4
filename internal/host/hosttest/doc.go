// Package hosttest gives tests a network namespace of their own on the kernel of this machine.
//
//	test ─► Netns(t) ─► skip, or a thread in a fresh namespace with lo up ─► sockets and children of this goroutine
//
// Invariants:
//
//  1. Without FAIRLEAD_KERNEL_TESTS=1 such a test is skipped and says so; with it, a test never skips: what is missing
//     fails it.
//  2. The namespace has no name and ends with the test, however that ends.
//
// Only tests import the package.
package hosttest

// Package hosttest gives tests a network namespace of their own on the kernel of this machine.
//
//	test ─► Need(t, IPVS) ─► skip, or the kernel has it
//	     ─► Netns(t) ─► skip, or a thread in a fresh namespace with lo up ─► sockets and children of this goroutine
//
// No kernel has all that is tested: the kernel tests run on the machine's own (make test-kernel), and those packages that
// IPVS concerns run once more where that is (make test-ipvs), inside user-mode Linux if need be; hack/uml has no nftables.
//
// Invariants:
//
//  1. Without FAIRLEAD_KERNEL_TESTS=1 such a test is skipped and says so; with it, what is missing fails a test.
//     A feature that it named in Need skips it, but only if the other run covers it: every test runs in one of the two.
//  2. The namespace has no name and ends with the test, however that ends.
//
// Only tests import the package.
package hosttest

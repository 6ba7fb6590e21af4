// Package hosttest gives each test a network namespace on the kernel of this machine.
//
//	test ─► Need(t, IPVS) ─► skip, or the kernel has it
//	     ─► Netns(t) ─► skip, or a thread in a new namespace with lo up ─► sockets and children of this goroutine
//
// The kernel tests run on three kernels, each of which may lack features; make test runs all:
//
//	run               kernel                                     what runs there
//	make test-kernel  the machine's own                          everything, except what needs IPVS if it has none
//	make test-ipvs    the machine's if it has IPVS, otherwise    tests of IPVS
//	                  user-mode Linux, which has no nf_tables
//	make test-vm      Debian's, emulated, with all features      tests that need IPVS and nf_tables, since it is slow
//
// Invariants:
//
//  1. Without FAIRLEAD_KERNEL_TESTS=1 such a test is skipped; with it, a test fails if something is missing. It is skipped
//     for lack of a feature named in Need only if the kernel of another run has all that it needs: every test runs in one of
//     the three, and the message names which. The tests of a run are listed in the Makefile.
//  2. The namespace has no name and is deleted at the end of the test, even if the test is killed.
//
// Only tests import the package.
package hosttest

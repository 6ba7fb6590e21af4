// Package hosttest gives tests a network namespace of their own on the kernel of this machine.
//
//	test ─► Need(t, IPVS) ─► skip, or the kernel has it
//	     ─► Netns(t) ─► skip, or a thread in a fresh namespace with lo up ─► sockets and children of this goroutine
//
// The kernel tests run on three kernels, each with what the others may lack; make test is all three:
//
//	run               kernel                                     what runs there
//	make test-kernel  the machine's own                          all, but what needs IPVS if it has none
//	make test-ipvs    the machine's if it has IPVS, or else      what IPVS concerns
//	                  user-mode Linux, which has no nf_tables
//	make test-vm      Debian's, emulated, which has everything   what needs IPVS and nf_tables at once, for it is slow
//
// Invariants:
//
//  1. Without FAIRLEAD_KERNEL_TESTS=1 such a test is skipped and says so; with it, what is missing fails a test.
//     A feature that it named in Need skips it, but only if another run's kernel has all that it needs: every test runs in
//     one of the three, and the message names which. A run's list of tests is in the Makefile.
//  2. The namespace has no name and ends with the test, however that ends.
//
// Only tests import the package.
package hosttest

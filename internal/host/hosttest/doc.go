// Package hosttest gives each test a network namespace on the kernel of this machine.
//
//	Need(t, IPVS) ─► skip, or the kernel has it
//	Netns(t) ─► skip, or the goroutine is in a new namespace with lo up
//
// The kernel tests run on three kernels, each of which may lack features; make test runs all:
//
//	run               kernel                              tests
//	make test-kernel  the machine's own                   all, except of IPVS if it has none
//	make test-ipvs    the machine's if it has IPVS, or    of IPVS
//	                  user-mode Linux (no nf_tables)
//	make test-vm      Debian's, emulated (slow)           that need IPVS and nf_tables
//
// Invariants:
//
//  1. Without FAIRLEAD_KERNEL_TESTS=1 such a test is skipped; with it, a test fails if something is
//     missing. It is skipped for lack of a feature named in Need only if the kernel of another run
//     has all that it needs: every test runs in one of the three, and the message names which. The
//     tests of a run are listed in the Makefile.
//  2. The namespace has no name and is deleted at the end of the test, even if the test is killed.
//
// Only tests import the package.
package hosttest

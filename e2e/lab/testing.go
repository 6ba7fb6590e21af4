package lab

import (
	"os"
	"testing"
)

// RequireKernel skips the test unless FAIRLEAD_KERNEL_TESTS=1 is set. If it is set, a test that
// cannot run has to fail, so that a green run has tested the kernel.
func RequireKernel(t testing.TB) {
	t.Helper()
	if os.Getenv("FAIRLEAD_KERNEL_TESTS") != "1" {
		t.Skip("SKIPPED: needs root and changes network namespaces; run it with FAIRLEAD_KERNEL_TESTS=1 (make test does)")
	}
	if os.Geteuid() != 0 {
		t.Fatal("FAIRLEAD_KERNEL_TESTS=1 is set, but this is not root")
	}
}

// ForTest makes a lab and removes it at the end of the test.
func ForTest(t testing.TB, nodes, podsPerNode int) *Lab {
	t.Helper()
	RequireKernel(t)
	l, err := New(nodes, podsPerNode)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Errorf("remove the lab: %v", err)
		}
	})
	return l
}

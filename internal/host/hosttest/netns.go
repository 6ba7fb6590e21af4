package hosttest

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Env is the environment variable that enables kernel tests.
const Env = "FAIRLEAD_KERNEL_TESTS"

// Patience is how long a test waits for something that should happen at once. It is long because
// test machines are busy.
const Patience = 2 * time.Minute

// Netns moves the calling goroutine into a new network namespace, with lo up, until the goroutine
// ends. Its child processes are in the namespace too; other goroutines, including those of t.Run,
// are not. The test fails if a program is missing.
func Netns(t testing.TB, programs ...string) {
	t.Helper()
	requireEnv(t)
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			t.Fatalf("kernel test: %v", err)
		}
	}
	// A thread that is locked when its goroutine ends exits, so that no other goroutine ever runs
	// in the namespace.
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatalf("kernel test: create a network namespace (needs root): %v", err)
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatalf("kernel test: %v", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		t.Fatalf("kernel test: set lo up: %v", err)
	}
}

// requireEnv skips a test unless kernel tests are enabled.
func requireEnv(t testing.TB) {
	t.Helper()
	if os.Getenv(Env) != "1" {
		t.Skipf("kernel test: needs root and %s=1", Env)
	}
}

// Run runs a program in the namespace of the calling goroutine and fails the test if it fails.
func Run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
	return string(out)
}

// run runs a program in the namespace of the calling goroutine.
func run(name string, args ...string) error {
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %v: %w\n%s", name, args, err, out)
	}
	return nil
}

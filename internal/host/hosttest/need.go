package hosttest

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"sync"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The environment variables, in addition to Env, that say which run of the kernel tests this is, if
// not make test-kernel.
const (
	// EnvIPVS is 1 in make test-ipvs.
	EnvIPVS = "FAIRLEAD_IPVS_TESTS"
	// EnvVM is 1 in make test-vm.
	EnvVM = "FAIRLEAD_VM_TESTS"
)

// Target is a make target that runs kernel tests on one kernel.
type Target string

// The targets; all are part of make test.
const (
	OnMachine Target = "test-kernel"
	WithIPVS  Target = "test-ipvs"
	InVM      Target = "test-vm"
)

// Current returns the target that runs this process.
func Current() Target {
	switch {
	case os.Getenv(EnvVM) == "1":
		return InVM
	case os.Getenv(EnvIPVS) == "1":
		return WithIPVS
	}
	return OnMachine
}

// Slow reports whether the kernel may be ten times slower than the machine's own, which timeouts
// must allow for.
func (t Target) Slow() bool { return t != OnMachine }

// Feature is a feature that not every kernel has.
type Feature struct {
	name string
	// probe tries the feature, once, in a new network namespace.
	probe func() error
	// runs are the targets whose kernel has the feature, the one with most tests of it first.
	runs []Target
}

// The targets whose kernels have a feature.
var (
	withIPVS     = []Target{WithIPVS, InVM}
	withNFTables = []Target{OnMachine, InVM}
)

// The features that tests may need.
var (
	// IPVS is the virtual server table.
	IPVS = Feature{name: "IPVS", runs: withIPVS, probe: once(func() error {
		module("ip_vs")
		_, err := netlink.GenlFamilyGet("IPVS")
		return err
	})}
	// Dummy is links of type dummy.
	Dummy = Feature{name: "dummy links", runs: withIPVS, probe: once(func() error {
		module("dummy")
		return netlink.LinkAdd(&netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Name: "fl-probe"}})
	})}
	// SCTP is sockets for SCTP.
	SCTP = Feature{name: "SCTP sockets", runs: withIPVS, probe: once(func() error {
		module("sctp")
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_SCTP)
		if err != nil {
			return err
		}
		return unix.Close(fd)
	})}
	// NFTables is tables of the families ip, ip6 and inet, and iptables-nft.
	NFTables = Feature{name: "nftables", runs: withNFTables, probe: once(func() error { return run("nft", "add", "table", "inet", "fl-probe") })}
	// Zones is conntrack zones.
	Zones = Feature{name: "conntrack zones", runs: withNFTables, probe: once(func() error {
		return run("iptables-legacy", "-t", "raw", "-A", "PREROUTING", "-j", "CT", "--zone", "1")
	})}
)

// Need skips or fails a kernel test unless the kernel has the features. It is skipped if another
// make target runs on a kernel that has all of them, and the message names that target. Like Netns
// it skips the test unless kernel tests were requested. The calling goroutine stays in its network
// namespace.
func Need(t testing.TB, features ...Feature) {
	t.Helper()
	requireEnv(t)
	for _, f := range features {
		err := f.probe()
		if err == nil {
			continue
		}
		why := fmt.Sprintf("kernel test: this kernel has no %s: %v", f.name, err)
		runs := suitable(features)
		switch {
		case slices.Contains(f.runs, Current()):
			t.Fatal(why)
		case len(runs) == 0:
			t.Fatal(why + "; no make target runs tests on a kernel with all features that this test needs")
		default:
			t.Skipf("%s\n*** SKIPPED here. Run it with: make %s", why, runs[0])
		}
	}
}

// suitable returns the targets whose kernels have all of the features.
func suitable(features []Feature) []Target {
	runs := slices.Clone(features[0].runs)
	for _, f := range features[1:] {
		runs = slices.DeleteFunc(runs, func(r Target) bool { return !slices.Contains(f.runs, r) })
	}
	return runs
}

// once returns a probe that runs once, in a new network namespace, and remembers its result.
func once(try func() error) func() error {
	return sync.OnceValue(func() error {
		done := make(chan error)
		go func() {
			runtime.LockOSThread()
			// The thread returns to its namespace instead of exiting, which would kill the
			// processes that it started with PR_SET_PDEATHSIG, perhaps another test's server.
			own, err := os.Open("/proc/thread-self/ns/net")
			if err == nil {
				defer own.Close()
				err = unix.Unshare(unix.CLONE_NEWNET)
			}
			if err == nil {
				err = try()
				if unix.Setns(int(own.Fd()), unix.CLONE_NEWNET) == nil {
					runtime.UnlockOSThread()
				}
			}
			done <- err
		}()
		return <-done
	})
}

// module loads a kernel module if it exists. Errors do not matter: the feature may be built in, and
// the probe finds out.
func module(name string) { _ = exec.Command("modprobe", "-q", name).Run() }

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

// The environment variables that say which run of the kernel tests this is, if not make test-kernel. They are set beside Env.
const (
	// EnvIPVS is set to 1 on a kernel that was chosen because it has IPVS (make test-ipvs).
	EnvIPVS = "FAIRLEAD_IPVS_TESTS"
	// EnvVM is set to 1 on a kernel that was chosen because it has everything, in an emulated machine (make test-vm).
	EnvVM = "FAIRLEAD_VM_TESTS"
)

// Target is a make target that runs kernel tests on one kernel.
type Target string

// All of them are part of make test.
const (
	OnMachine Target = "test-kernel"
	WithIPVS  Target = "test-ipvs"
	InVM      Target = "test-vm"
)

// Current is the target whose run this process is part of.
func Current() Target {
	switch {
	case os.Getenv(EnvVM) == "1":
		return InVM
	case os.Getenv(EnvIPVS) == "1":
		return WithIPVS
	}
	return OnMachine
}

// Slow says that the kernel may take ten times as long as the machine's own, which timeouts have to allow for.
func (t Target) Slow() bool { return t != OnMachine }

// Feature is something that not every kernel has.
type Feature struct {
	name string
	// probe tries the real thing, once, in a network namespace of its own.
	probe func() error
	// runs are those whose kernel has the feature, the one that tests most with it first.
	runs []Target
}

// Where features are.
var (
	withIPVS     = []Target{WithIPVS, InVM}
	withNFTables = []Target{OnMachine, InVM}
)

// What tests may need.
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
	// NFTables is tables of the families ip, ip6 and inet, and iptables-nft with them.
	NFTables = Feature{name: "nftables", runs: withNFTables, probe: once(func() error { return run("nft", "add", "table", "inet", "fl-probe") })}
	// Zones is conntrack zones.
	Zones = Feature{name: "conntrack zones", runs: withNFTables, probe: once(func() error {
		return run("iptables-legacy", "-t", "raw", "-A", "PREROUTING", "-j", "CT", "--zone", "1")
	})}
)

// Need lets a kernel test run only on a kernel that has the features: each is tried. On another one the test is skipped
// if a run on a kernel that has all of them is one make target away, and the message names that target; in that run it fails.
// Otherwise the rules are those of Netns. The calling goroutine stays in its network namespace.
func Need(t testing.TB, features ...Feature) {
	t.Helper()
	asked(t)
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
			t.Fatal(why + "; no make target runs tests on a kernel that has all that this one needs")
		default:
			t.Skipf("%s\n*** SKIPPED here. Run it with: make %s", why, runs[0])
		}
	}
}

// suitable are the runs whose kernels have all of the features.
func suitable(features []Feature) []Target {
	runs := slices.Clone(features[0].runs)
	for _, f := range features[1:] {
		runs = slices.DeleteFunc(runs, func(r Target) bool { return !slices.Contains(f.runs, r) })
	}
	return runs
}

// once returns a probe that runs in a fresh network namespace the first time and remembers what came of it.
func once(try func() error) func() error {
	return sync.OnceValue(func() error {
		done := make(chan error)
		go func() {
			runtime.LockOSThread()
			// The thread goes back to its own namespace: one that ends takes along what it has started and what is to end with its
			// parent, which may be another test's server.
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

// module loads a kernel module if there is one by that name. Whether it helped is for the probe to say: the feature may be
// built in.
func module(name string) { _ = exec.Command("modprobe", "-q", name).Run() }

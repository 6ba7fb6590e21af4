package hosttest

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// EnvIPVS is the environment variable that says that these tests run on a kernel that was chosen because it has IPVS
// (make test-ipvs). It is set beside Env.
const EnvIPVS = "FAIRLEAD_IPVS_TESTS"

// Feature is something that not every kernel has.
type Feature struct {
	name string
	// probe tries the real thing, once, in a network namespace of its own.
	probe func() error
	// ipvs says that make test-ipvs runs on a kernel that has the feature; if not, make test-kernel does.
	ipvs bool
}

// What tests may need.
var (
	// IPVS is the virtual server table.
	IPVS = Feature{name: "IPVS", ipvs: true, probe: once(func() error {
		module("ip_vs")
		_, err := netlink.GenlFamilyGet("IPVS")
		return err
	})}
	// Dummy is links of type dummy.
	Dummy = Feature{name: "dummy links", ipvs: true, probe: once(func() error {
		module("dummy")
		return netlink.LinkAdd(&netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Name: "fl-probe"}})
	})}
	// SCTP is sockets for SCTP.
	SCTP = Feature{name: "SCTP sockets", ipvs: true, probe: once(func() error {
		module("sctp")
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_SCTP)
		if err != nil {
			return err
		}
		return unix.Close(fd)
	})}
	// NFTables is tables of the families ip, ip6 and inet, and iptables-nft with them.
	NFTables = Feature{name: "nftables", probe: once(func() error { return run("nft", "add", "table", "inet", "fl-probe") })}
	// Zones is conntrack zones.
	Zones = Feature{name: "conntrack zones", probe: once(func() error {
		return run("iptables-legacy", "-t", "raw", "-A", "PREROUTING", "-j", "CT", "--zone", "1")
	})}
)

// Need lets a kernel test run only on a kernel that has the features: each is tried. On another one the test is skipped
// if a run on a suitable kernel is one make target away, and the message names that target; in that run it fails.
// Otherwise the rules are those of Netns. The calling goroutine stays in its network namespace.
func Need(t testing.TB, features ...Feature) {
	t.Helper()
	asked(t)
	for _, f := range features {
		err := f.probe()
		if err == nil {
			continue
		}
		if why := fmt.Sprintf("kernel test: this kernel has no %s: %v", f.name, err); f.ipvs == (os.Getenv(EnvIPVS) == "1") {
			t.Fatal(why)
		} else if f.ipvs {
			t.Skipf("%s\n*** SKIPPED here. Run it with: make test-ipvs", why)
		} else {
			t.Skipf("%s\n*** SKIPPED here. Run it with: make test-kernel", why)
		}
	}
}

// once returns a probe that runs in a fresh network namespace the first time and remembers what came of it.
func once(try func() error) func() error {
	return sync.OnceValue(func() error {
		done := make(chan error)
		go func() {
			// A thread that is locked when its goroutine ends is destroyed, and the namespace with it.
			runtime.LockOSThread()
			err := unix.Unshare(unix.CLONE_NEWNET)
			if err == nil {
				err = try()
			}
			done <- err
		}()
		return <-done
	})
}

// module loads a kernel module if there is one by that name. Whether it helped is for the probe to say: the feature may be
// built in.
func module(name string) { _ = exec.Command("modprobe", "-q", name).Run() }

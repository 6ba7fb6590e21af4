package xtables

import (
	"context"
	"errors"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/fairlead/fairlead/internal/host/hosttest"
)

// need skips a test of a flavour that the kernel does not support.
func need(t *testing.T, fl Flavour) {
	t.Helper()
	if fl == NFT {
		hosttest.Need(t, hosttest.NFTables)
	}
}

func saved(t *testing.T, x Interface, table string) Table {
	t.Helper()
	chains, err := x.Read(t.Context(), table)
	if err != nil || chains == nil {
		t.Fatalf("table %s: %v, %v", table, chains, err)
	}
	return chains
}

// Reading a table must not create it: each table costs every packet a little.
func TestReadingMakesNoTable(t *testing.T) {
	for _, ipv6 := range []bool{false, true} {
		t.Run(Legacy.command(ipv6, ""), func(t *testing.T) {
			need(t, Legacy)
			hosttest.Netns(t, "iptables-legacy")
			x, err := New(Legacy, ipv6)
			if err != nil {
				t.Fatal(err)
			}
			for range 2 {
				if chains, err := x.Read(t.Context(), "mangle"); err != nil || chains != nil {
					t.Fatalf("reading a table that there is not: %v, %v", chains, err)
				}
			}
			if err := x.Restore(t.Context(), []byte("*mangle\n:X - [0:0]\nCOMMIT\n")); err != nil {
				t.Fatal(err)
			}
			if _, there := saved(t, x, "mangle")["X"]; !there {
				t.Error("a chain that was made cannot be read")
			}
		})
	}
}

func TestKernelFeatures(t *testing.T) {
	for _, fl := range []Flavour{Legacy, NFT} {
		for _, ipv6 := range []bool{false, true} {
			t.Run(fl.command(ipv6, ""), func(t *testing.T) {
				need(t, fl)
				hosttest.Netns(t, "iptables-legacy", "iptables-nft")
				x, err := New(fl, ipv6)
				if err != nil {
					t.Fatal(err)
				}
				if err := x.Usable(t.Context()); err != nil {
					t.Error(err)
				}
				if !x.RandomFully() || x.Version() == "0.0.0" {
					t.Errorf("version %s, random fully %v", x.Version(), x.RandomFully())
				}
				if lacking, err := Lacking(t.Context(), x, "FAIRLEAD-PROBE", []Need{NeedBPF}); err != nil || len(lacking) > 0 {
					t.Errorf("no match bpf: %v, %v", lacking, err)
				}
				if tab := saved(t, x, "nat"); len(tab) != 4 {
					t.Errorf("probes left something: %v", tab)
				}
				if rules := x.Rules(t.Context(), "nat", "A"); rules != nil {
					t.Errorf("rules of no chain: %q", rules)
				}
				if err := x.Restore(t.Context(), []byte("*nat\n:A - [0:0]\n:B - [0:0]\n-A A -p tcp -j B\n-A A -j RETURN\nCOMMIT\n")); err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff([]string{"-p tcp -j B", "-j RETURN"}, x.Rules(t.Context(), "nat", "A")); diff != "" {
					t.Errorf("rules (-want +got):\n%s", diff)
				}
				if rules := x.Rules(t.Context(), "nat", "B"); rules == nil || len(rules) > 0 {
					t.Errorf("rules of an empty chain: %q", rules)
				}
			})
		}
	}
}

func TestWhitespaceCommentOfOthers(t *testing.T) {
	need(t, NFT)
	hosttest.Netns(t, "iptables-legacy", "iptables-nft")
	for _, fl := range []Flavour{Legacy, NFT} {
		hosttest.Run(t, fl.command(false, ""), "-t", "nat", "-A", "OUTPUT", "-m", "comment", "--comment", "a\n-A OUTPUT \"x\"\nCOMMIT", "-j", "ACCEPT")
		x, err := New(fl, false)
		if err != nil {
			t.Fatal(err)
		}
		want := []string{"-m comment --comment \"a\n-A OUTPUT \\\"x\\\"\nCOMMIT\" -j ACCEPT"}
		if diff := cmp.Diff(want, saved(t, x, "nat")["OUTPUT"].Rules); diff != "" {
			t.Errorf("%s (-want +got):\n%s", fl, diff)
		}
	}
}

func TestDetectOnKernel(t *testing.T) {
	need(t, NFT)
	hosttest.Netns(t, "iptables-legacy", "iptables-nft", "ip6tables-legacy")
	detect := func(want Flavour) {
		t.Helper()
		got, why, err := Detect(t.Context(), Host{})
		if err != nil || got != want {
			t.Fatalf("got %q (%s), %v; want %q", got, why, err, want)
		}
	}
	detect(NFT)
	if out := hosttest.Run(t, "iptables-legacy-save"); strings.Contains(out, "*") {
		t.Errorf("looking created a legacy table:\n%s", out)
	}
	hosttest.Run(t, "iptables-legacy", "-A", "INPUT", "-j", "ACCEPT")
	detect(Legacy)
	hosttest.Run(t, "iptables-nft", "-A", "INPUT", "-j", "ACCEPT")
	detect(NFT)
	hosttest.Run(t, "ip6tables-legacy", "-t", "mangle", "-N", "KUBE-IPTABLES-HINT")
	detect(Legacy)
	hosttest.Run(t, "iptables-nft", "-t", "mangle", "-N", "KUBE-KUBELET-CANARY")
	detect(NFT)
}

func TestLockIsAwaited(t *testing.T) {
	hosttest.Netns(t, "iptables-legacy")
	lock := filepath.Join(t.TempDir(), "lock")
	t.Setenv("XTABLES_LOCKFILE", lock)
	fd, err := syscall.Open(lock, syscall.O_CREAT|syscall.O_RDWR|syscall.O_CLOEXEC, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(fd)
	if err := syscall.Flock(fd, syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	x, err := New(Legacy, false)
	if err != nil {
		t.Fatal(err)
	}
	input := []byte("*nat\nCOMMIT\n")

	var re *RestoreError
	if err := x.Restore(t.Context(), input); !errors.As(err, &re) || !re.Transient {
		t.Errorf("lock held all along: got %v, want a transient error", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if err := x.Restore(ctx, input); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("end of the context: got %v", err)
	}
	time.AfterFunc(500*time.Millisecond, func() { syscall.Flock(fd, syscall.LOCK_UN) })
	if err := x.Restore(t.Context(), input); err != nil {
		t.Errorf("lock released: %v", err)
	}
}

func TestPermission(t *testing.T) {
	hosttest.Netns(t, "iptables-legacy", "iptables-nft", "setpriv")
	for _, fl := range []Flavour{Legacy, NFT} {
		// setpriv takes the place of the program, so that the real program runs without the
		// capability.
		dir := t.TempDir()
		path, err := exec.LookPath(fl.command(false, ""))
		if err != nil {
			t.Fatal(err)
		}
		script(t, filepath.Join(dir, "iptables"), `exec setpriv --bounding-set -all --inh-caps -all --reuid 65534 --clear-groups `+path+` "$@"`)
		x, err := New(fl, false)
		if err != nil {
			t.Fatal(err)
		}
		x.main = filepath.Join(dir, "iptables")
		if err := x.Usable(t.Context()); !errors.Is(err, ErrPermission) {
			t.Errorf("%s: got %v", fl, err)
		}
	}
}

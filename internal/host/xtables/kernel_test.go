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

// realities are inputs whose effect all flavours and the Fake must agree on. They run one after another on one set of
// tables.
var realities = []struct {
	name  string
	input string
	fails bool
}{
	{"chain and rule", "*nat\n:A - [0:0]\n-A A -d 10.0.0.1/32 -j ACCEPT\nCOMMIT\n", false},
	{"declaring flushes", "*nat\n:A - [0:0]\n-A A -d 10.0.0.2/32 -j ACCEPT\nCOMMIT\n", false},
	{"adding without declaring appends", "*nat\n-A A -d 10.0.0.3/32 -j ACCEPT\nCOMMIT\n", false},
	{"jump to an unknown chain", "*nat\n:B - [0:0]\n-A B -j NOPE\nCOMMIT\n", true},
	{"goto an unknown chain", "*nat\n:B - [0:0]\n-A B -g NOPE\nCOMMIT\n", true},
	{"jump before the declaration", "*nat\n:B - [0:0]\n-A B -j C\n:C - [0:0]\nCOMMIT\n", true},
	{"jump after the declaration", "*nat\n:B - [0:0]\n:C - [0:0]\n-A B -j C\nCOMMIT\n", false},
	{"jump to a chain that is there", "*nat\n-A A -j C\nCOMMIT\n", false},
	{"unknown chain", "*nat\n-A NOPE -j ACCEPT\nCOMMIT\n", true},
	{"remove an unknown chain", "*nat\n-X NOPE\nCOMMIT\n", true},
	{"remove a chain in use", "*nat\n-X C\nCOMMIT\n", true},
	{"remove a chain with rules", "*nat\n:D - [0:0]\n-A D -j ACCEPT\nCOMMIT\n*nat\n-X D\nCOMMIT\n", true},
	{"flush and remove", "*nat\n-F D\n-X D\nCOMMIT\n", false},
	{"declare and remove", "*nat\n:B - [0:0]\n-D A -j C\n:C - [0:0]\n-X B\n-X C\nCOMMIT\n", false},
	{"remove in the order of use", "*nat\n:E - [0:0]\n:F - [0:0]\n-A E -j F\nCOMMIT\n*nat\n:E - [0:0]\n:F - [0:0]\n-X F\n-X E\nCOMMIT\n", false},
	{"remove a kernel chain", "*nat\n-X OUTPUT\nCOMMIT\n", true},
	{"insert at the top", "*nat\n-I A -d 10.0.0.9/32 -j ACCEPT\nCOMMIT\n", false},
	{"insert at a number", "*nat\n-I A 2 -d 10.0.0.8/32 -j ACCEPT\nCOMMIT\n", false},
	{"insert at the end", "*nat\n:G - [0:0]\n-I G 1 -j ACCEPT\n-I G 2 -j RETURN\nCOMMIT\n", false},
	{"insert behind the end", "*nat\n-I G 4 -j ACCEPT\nCOMMIT\n", true},
	{"delete a rule", "*nat\n-D A -d 10.0.0.8/32 -j ACCEPT\nCOMMIT\n", false},
	{"delete a rule that is not there", "*nat\n-D A -d 10.0.0.8/32 -j ACCEPT\nCOMMIT\n", true},
	{"kernel chains are not flushed by declaring", "*nat\n-A OUTPUT -d 10.1.0.1/32 -j A\nCOMMIT\n*nat\n:OUTPUT ACCEPT [0:0]\nCOMMIT\n", false},
	{"loop that nothing reaches", "*nat\n:L1 - [0:0]\n:L2 - [0:0]\n-A L1 -j L2\n-A L2 -j L1\nCOMMIT\n", false},
	{"loop", "*nat\n-A OUTPUT -j L1\nCOMMIT\n", true},
	{"name of 28 bytes", "*nat\n:N234567890123456789012345678 - [0:0]\nCOMMIT\n", false},
	{"name of 29 bytes", "*nat\n:N2345678901234567890123456789 - [0:0]\nCOMMIT\n", true},
	{"no COMMIT", "*nat\n:P - [0:0]\n", true},
	{"a failing table leaves the one before", "*nat\n:Q - [0:0]\nCOMMIT\n*filter\n:R - [0:0]\n-A NOPE -j ACCEPT\nCOMMIT\n", true},
	{"a failing line leaves nothing of its table", "*nat\n:S - [0:0]\n-A S -j ACCEPT\n-A NOPE -j ACCEPT\nCOMMIT\n", true},
	{"DNAT in POSTROUTING", "*nat\n-A POSTROUTING -p udp -j DNAT --to-destination 10.2.0.1:53\nCOMMIT\n", true},
	{"DNAT reached from POSTROUTING", "*nat\n:T - [0:0]\n-A T -p udp -j DNAT --to-destination 10.2.0.1:53\n-A POSTROUTING -j T\nCOMMIT\n", true},
	{"DNAT reached from OUTPUT", "*nat\n:T - [0:0]\n-A T -p udp -j DNAT --to-destination 10.2.0.1:53\n-A OUTPUT -j T\nCOMMIT\n", false},
	{"DNAT in filter", "*filter\n:T - [0:0]\n-A T -p udp -j DNAT --to-destination 10.2.0.1:53\nCOMMIT\n*filter\n-A INPUT -j T\nCOMMIT\n", true},
	{"REJECT in filter", "*filter\n:U - [0:0]\n-A U -j REJECT --reject-with icmp-port-unreachable\n-A FORWARD -j U\nCOMMIT\n", false},
	{"MASQUERADE in POSTROUTING", "*nat\n:V - [0:0]\n-A V -j MASQUERADE\n-A POSTROUTING -j V\nCOMMIT\n", false},
	{"mark and comment", "*nat\n:W - [0:0]\n-A W -m comment --comment \"a -j NOPE \\\"b\\\" c\" -j MARK --set-xmark 0x4000/0x4000\nCOMMIT\n", false},
}

// need lets a test with a flavour run where the kernel has it.
func need(t *testing.T, fl Flavour) {
	t.Helper()
	if fl == NFT {
		hosttest.Need(t, hosttest.NFTables)
	}
}

func TestRealities(t *testing.T) {
	for _, fl := range []Flavour{Legacy, NFT} {
		t.Run(string(fl), func(t *testing.T) {
			need(t, fl)
			hosttest.Netns(t, "iptables-legacy", "iptables-nft")
			real, err := New(fl, false)
			if err != nil {
				t.Fatal(err)
			}
			fake := NewFake()
			if err := real.Restore(t.Context(), []byte("*nat\nCOMMIT\n*filter\nCOMMIT\n")); err != nil { // the fake has all tables
				t.Fatal(err)
			}
			for _, r := range realities {
				for name, x := range map[string]Interface{"real": real, "fake": fake} {
					err := x.Restore(t.Context(), []byte(r.input))
					var re *RestoreError
					switch {
					case r.fails != (err != nil):
						t.Errorf("%s: %s: got error %v, want error: %v", r.name, name, err, r.fails)
					case err != nil && !errors.As(err, &re):
						t.Errorf("%s: %s: %T is no RestoreError", r.name, name, err)
					case err != nil && (re.Transient || re.Line == 0):
						t.Errorf("%s: %s: transient or without a line: %+v", r.name, name, re)
					}
				}
				for _, table := range []string{"nat", "filter"} {
					want, got := saved(t, real, table), saved(t, fake, table)
					if diff := cmp.Diff(want, got); diff != "" {
						t.Fatalf("%s: the fake differs from the kernel in table %s (-kernel +fake):\n%s", r.name, table, diff)
					}
				}
			}
		})
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

// A table that is only looked at must not come to be: each one costs every packet a little.
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
		// setpriv takes the place of the program, so that the real program runs without the capability.
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

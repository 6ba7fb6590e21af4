package ipset_test

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	library "github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/internal/host/hosttest"
	. "github.com/fairlead/fairlead/internal/host/ipset"
)

// TestKernelForeignSets reads sets that somebody else made with settings that this package does not
// know.
func TestKernelForeignSets(t *testing.T) {
	k := open(t)
	timeout := uint32(300)
	for name, o := range map[string]struct {
		typ  string
		opts library.IpsetCreateOptions
	}{
		"f-timeout": {"hash:ip,port", library.IpsetCreateOptions{Timeout: &timeout, MaxElements: 65536}},
		"f-extra":   {"hash:ip", library.IpsetCreateOptions{Comments: true, Counters: true, MaxElements: 65536}},
		"f-netport": {"hash:net,port", library.IpsetCreateOptions{MaxElements: 65536}},
		"f-range":   {"bitmap:port", library.IpsetCreateOptions{PortFrom: 0, PortTo: 1023}},
	} {
		if err := library.IpsetCreate(name, o.typ, o.opts); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
	protocol, port := uint8(unix.IPPROTO_TCP), uint16(80)
	if err := library.IpsetAdd("f-timeout", &library.IPSetEntry{IP: []byte{10, 0, 0, 1}, Protocol: &protocol, Port: &port, Timeout: &timeout}); err != nil {
		t.Fatal(err)
	}
	if err := library.IpsetAdd("f-netport", &library.IPSetEntry{IP: []byte{10, 0, 0, 0}, CIDR: 8, Protocol: &protocol, Port: &port}); err != nil {
		t.Fatal(err)
	}
	got, err := k.List(t.Context(), "f-")
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, c := range got {
		names = append(names, c.Name+" "+string(c.Type))
		switch c.Name {
		case "f-timeout":
			if len(c.Entries) != 1 || c.Entries[0].String() != "10.0.0.1,tcp:80" {
				t.Errorf("%s has %v", c.Name, c.Entries)
			}
		default:
			if len(c.Entries) != 0 {
				t.Errorf("%s has %v", c.Name, c.Entries)
			}
		}
	}
	if want := "f-extra hash:ip, f-netport hash:net,port, f-range bitmap:port, f-timeout hash:ip,port"; strings.Join(names, ", ") != want {
		t.Errorf("got %s, want %s", names, want)
	}
	for _, tt := range []struct {
		set  Set
		says string
	}{
		{Set{Name: "f-timeout", Type: HashIPPort, MaxElem: 65536}, "timeout 300"},
		{Set{Name: "f-extra", Type: HashIP, MaxElem: 65536}, "extensions 0x18"},
		{Set{Name: "f-range", Type: BitmapPort}, "a range that is not all ports"},
	} {
		if err := k.Create(t.Context(), tt.set); !errors.Is(err, ErrExist) || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("create %s: %v, want %q", tt.set.Name, err, tt.says)
		}
	}
}

// TestKernelInUse holds a set by a rule.
func TestKernelInUse(t *testing.T) {
	hosttest.Netns(t, "iptables-legacy")
	k, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	load(t, k, "create a hash:ip family inet maxelem 1\nadd a 10.0.0.1\n")
	hosttest.Run(t, "iptables-legacy", "-A", "INPUT", "-m", "set", "--match-set", "a", "dst", "-j", "DROP")
	if err := k.Destroy(t.Context(), "a"); !errors.Is(err, ErrInUse) {
		t.Errorf("got %v, want ErrInUse", err)
	}
	if err := Grow(t.Context(), k, "a", 10); err != nil { // what a rule uses can be swapped
		t.Error(err)
	}
	if got, want := save(t, k, ""), "create a hash:ip family inet hashsize 1024 maxelem 10\nadd a 10.0.0.1\n"; got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
	hosttest.Run(t, "iptables-legacy", "-F", "INPUT")
	if err := k.Destroy(t.Context(), "a"); err != nil {
		t.Error(err)
	}
}

// TestKernelMatches asks the kernel with packets' addresses whether it understood the entries: the
// library's test command is an independent writer.
func TestKernelMatches(t *testing.T) {
	k := open(t)
	load(t, k, everyType)
	tcp, port := uint8(unix.IPPROTO_TCP), uint16(80)
	in := func(set string, e *library.IPSetEntry) bool {
		t.Helper()
		ok, err := library.IpsetTest(set, e)
		if err != nil {
			t.Fatal(err)
		}
		return ok
	}
	frontend := netip.MustParseAddr("192.0.2.1").AsSlice()
	for _, tt := range []struct {
		client string
		want   bool
	}{{"10.1.2.3", true}, {"192.0.2.7", true}, {"127.0.0.1", true}, {"200.0.0.1", true}} {
		if got := in("fl-port-net", &library.IPSetEntry{IP: frontend, Protocol: &tcp, Port: &port, IP2: netip.MustParseAddr(tt.client).AsSlice(), CIDR2: 32}); got != tt.want {
			t.Errorf("%s: got %v", tt.client, got)
		}
	}
	pod := []byte{10, 0, 0, 1}
	if !in("fl-port-ip", &library.IPSetEntry{IP: pod, Protocol: &tcp, Port: &port, IP2: pod}) {
		t.Error("hash:ip,port,ip")
	}
}

// BenchmarkAdd adds and deletes 1000 entries: with the library, in single calls, in batches.
// Compare the three.
func BenchmarkAdd(b *testing.B) {
	const n = 1000
	s := Set{Name: "bench", Type: HashIPPort, MaxElem: DefaultMaxElem}
	var add, del []Change
	a := netip.MustParseAddr("10.96.0.1")
	for range n {
		e := Entry{Addr: a, Proto: unix.IPPROTO_TCP, Port: 443}
		add, del = append(add, Change{Set: s, Entry: e}), append(del, Change{Set: s, Entry: e, Del: true})
		a = a.Next()
	}
	run := func(name string, do func(b *testing.B, k *Kernel, changes []Change)) {
		b.Run(name, func(b *testing.B) {
			k := open(b)
			if err := k.Create(b.Context(), s); err != nil {
				b.Fatal(err)
			}
			for b.Loop() {
				do(b, k, add)
				do(b, k, del)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/2/n, "ns/entry")
		})
	}
	apply := func(b *testing.B, k *Kernel, changes []Change) {
		if failed, err := k.Apply(b.Context(), changes); err != nil || failed != nil {
			b.Fatal(err, failed)
		}
	}
	run("library", func(b *testing.B, _ *Kernel, changes []Change) {
		h, err := library.NewHandle(unix.NETLINK_NETFILTER)
		if err != nil {
			b.Fatal(err)
		}
		defer h.Close()
		for _, ch := range changes {
			e := &library.IPSetEntry{IP: ch.Entry.Addr.AsSlice(), Protocol: &ch.Entry.Proto, Port: &ch.Entry.Port}
			if ch.Del {
				err = h.IpsetDel(s.Name, e)
			} else {
				err = h.IpsetAdd(s.Name, e)
			}
			if err != nil {
				b.Fatal(err)
			}
		}
	})
	run("single", func(b *testing.B, k *Kernel, changes []Change) {
		for i := range changes {
			apply(b, k, changes[i:i+1])
		}
	})
	run("batch", apply)
}

// BenchmarkList reads a set of 5000 entries.
func BenchmarkList(b *testing.B) {
	s := Set{Name: "bench", Type: HashIPPort, MaxElem: DefaultMaxElem}
	k := open(b)
	if err := k.Create(b.Context(), s); err != nil {
		b.Fatal(err)
	}
	var changes []Change
	a := netip.MustParseAddr("10.96.0.1")
	for range 5000 {
		changes = append(changes, Change{Set: s, Entry: Entry{Addr: a, Proto: unix.IPPROTO_TCP, Port: 443}})
		a = a.Next()
	}
	if failed, err := k.Apply(b.Context(), changes); err != nil || failed != nil {
		b.Fatal(err, failed)
	}
	for b.Loop() {
		if _, err := k.List(b.Context(), "bench"); err != nil {
			b.Fatal(err)
		}
	}
}

func TestExists(t *testing.T) {
	k := open(t)
	s := Set{Name: "there", Type: HashIPPort, MaxElem: DefaultMaxElem}
	if err := k.Create(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]bool{"there": true, "ther": false, "none": false} {
		if got, err := k.Exists(t.Context(), name); got != want || err != nil {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
}

// TestKernelSizes: the numbers of entries of sets with a prefix, after each change.
func TestKernelSizes(t *testing.T) {
	ctx := context.Background()
	k := open(t)
	one, two, other := Set{Name: "OURS-1", Type: HashIP, MaxElem: DefaultMaxElem}, Set{Name: "OURS-2", Type: HashIP, IPv6: true, MaxElem: DefaultMaxElem}, Set{Name: "THEIRS", Type: HashIP, MaxElem: DefaultMaxElem}
	for _, s := range []Set{one, two, other} {
		if err := k.Create(ctx, s); err != nil {
			t.Fatal(err)
		}
	}
	apply := func(changes ...Change) {
		t.Helper()
		if failed, err := k.Apply(ctx, changes); err != nil || len(failed) > 0 {
			t.Fatal(failed, err)
		}
	}
	want := func(want map[string]uint32) {
		t.Helper()
		got, err := k.Sizes(ctx, "OURS-")
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
	}
	entry := func(a string) Entry { return Entry{Addr: netip.MustParseAddr(a)} }
	want(map[string]uint32{"OURS-1": 0, "OURS-2": 0})
	apply(Change{Set: one, Entry: entry("192.0.2.1")}, Change{Set: one, Entry: entry("192.0.2.2")}, Change{Set: two, Entry: entry("2001:db8::1")}, Change{Set: other, Entry: entry("192.0.2.1")})
	want(map[string]uint32{"OURS-1": 2, "OURS-2": 1})
	apply(Change{Set: one, Entry: entry("192.0.2.1"), Del: true})
	want(map[string]uint32{"OURS-1": 1, "OURS-2": 1})
}

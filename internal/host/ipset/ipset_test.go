package ipset_test

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/internal/host/hosttest"
	. "github.com/fairlead/fairlead/internal/host/ipset"
	"github.com/fairlead/fairlead/internal/host/ipset/ipsetfake"
)

// forEach runs a test on package ipsetfake and, where kernel tests are asked for, on the kernel;
// what both do is the contract.
func forEach(t *testing.T, test func(t *testing.T, sets Sets)) {
	t.Run("fake", func(t *testing.T) { test(t, &ipsetfake.Sets{}) })
	t.Run("kernel", func(t *testing.T) { test(t, open(t)) })
}

// open returns the sets of a new network namespace.
func open(tb testing.TB) *Kernel {
	tb.Helper()
	hosttest.Netns(tb)
	k, err := Open()
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := k.Close(); err != nil {
			tb.Error(err)
		}
	})
	return k
}

func save(tb testing.TB, sets Sets, prefix string) string {
	tb.Helper()
	c, err := sets.List(tb.Context(), prefix)
	if err != nil {
		tb.Fatal(err)
	}
	return ipsetfake.Save(c)
}

func mustParse(tb testing.TB, text string) []Content {
	tb.Helper()
	c, err := ipsetfake.Parse(text)
	if err != nil {
		tb.Fatal(err)
	}
	return c
}

// load makes the sets of a text.
func load(tb testing.TB, sets Sets, text string) {
	tb.Helper()
	for _, c := range mustParse(tb, text) {
		if err := sets.Create(tb.Context(), c.Set); err != nil {
			tb.Fatal(err)
		}
		var changes []Change
		for _, e := range c.Entries {
			changes = append(changes, Change{Set: c.Set, Entry: e})
		}
		if failed, err := sets.Apply(tb.Context(), changes); err != nil || failed != nil {
			tb.Fatal(err, failed)
		}
	}
}

func mustEntry(tb testing.TB, s Set, text string) Entry {
	tb.Helper()
	e, err := ipsetfake.ParseEntry(s, text)
	if err != nil {
		tb.Fatal(err)
	}
	return e
}

// everyType has each type in each family, with entries at the edges.
const everyType = `create fl-bitmap bitmap:port range 0-65535
add fl-bitmap 0
add fl-bitmap 8080
add fl-bitmap 65535
create fl-ip hash:ip family inet hashsize 1024 maxelem 65536
add fl-ip 0.0.0.1
add fl-ip 10.96.0.1
add fl-ip 255.255.255.255
create fl-ip6 hash:ip family inet6 hashsize 1024 maxelem 65536
add fl-ip6 ::1
add fl-ip6 fd00:96::1
create fl-port hash:ip,port family inet hashsize 1024 maxelem 65536
add fl-port 0.0.0.1,tcp:0
add fl-port 10.96.0.1,tcp:443
add fl-port 10.96.0.10,tcp:53
add fl-port 10.96.0.10,udp:53
add fl-port 10.96.0.10,sctp:65535
create fl-port-ip hash:ip,port,ip family inet hashsize 1024 maxelem 7
add fl-port-ip 10.0.0.1,tcp:80,10.0.0.1
add fl-port-ip 10.0.0.1,sctp:80,10.0.0.2
create fl-port-ip6 hash:ip,port,ip family inet6 hashsize 1024 maxelem 65536
add fl-port-ip6 fd00::1,udp:80,fd00::1
create fl-port-net hash:ip,port,net family inet hashsize 1024 maxelem 65536
add fl-port-net 192.0.2.1,tcp:80,0.0.0.0/1
add fl-port-net 192.0.2.1,tcp:80,10.0.0.0/8
add fl-port-net 192.0.2.1,tcp:80,192.0.2.7
add fl-port-net 192.0.2.1,tcp:80,128.0.0.0/1
create fl-port-net6 hash:ip,port,net family inet6 hashsize 1024 maxelem 65536
add fl-port-net6 2001:db8::1,tcp:80,8000::/1
add fl-port-net6 2001:db8::1,tcp:80,fd00::7
create fl-port6 hash:ip,port family inet6 hashsize 1024 maxelem 65536
add fl-port6 fd00:96::1,udp:53
`

// sorted is a text as Save writes it, which is what List returns.
func sorted(tb testing.TB, text string) string { return ipsetfake.Save(mustParse(tb, text)) }

func TestEveryType(t *testing.T) {
	forEach(t, func(t *testing.T, sets Sets) {
		load(t, sets, everyType)
		if err := sets.Create(t.Context(), Set{Name: "other", Type: HashIP, MaxElem: 1}); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(sorted(t, everyType), save(t, sets, "fl-")); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
		load(t, sets, strings.Join(strings.Split(everyType, "\n")[:1], "\n")) // the same once more
		var del []Change
		for _, c := range mustParse(t, everyType) {
			for _, e := range c.Entries {
				del = append(del, Change{Set: c.Set, Entry: e, Del: true})
			}
		}
		if failed, err := sets.Apply(t.Context(), del); err != nil || failed != nil {
			t.Fatal(err, failed)
		}
		if got := save(t, sets, "fl-"); strings.Contains(got, "add") {
			t.Errorf("left:\n%s", got)
		}
		for _, c := range mustParse(t, everyType) {
			if err := sets.Destroy(t.Context(), c.Name); err != nil {
				t.Error(err)
			}
		}
		if got, want := save(t, sets, ""), "create other hash:ip family inet hashsize 1024 maxelem 1\n"; got != want {
			t.Errorf("got\n%swant\n%s", got, want)
		}
	})
}

// TestFailuresOfEntries mixes changes that succeed with those that do not.
func TestFailuresOfEntries(t *testing.T) {
	const before = `create a hash:ip,port family inet hashsize 1024 maxelem 3
add a 10.0.0.1,tcp:1
create b hash:ip,port,net family inet6 hashsize 1024 maxelem 65536
`
	tests := []struct {
		set, entry string
		del        bool
		want       error
	}{
		{"a", "10.0.0.1,tcp:1", false, ErrExist},
		{"a", "10.0.0.2,tcp:2", false, nil},
		{"a", "10.0.0.9,tcp:2", true, ErrMissing},
		{"a", "10.0.0.3,udp:2", false, nil},
		{"a", "10.0.0.4,tcp:2", false, ErrFull},
		{"none", "10.0.0.4,tcp:2", false, ErrNoSet},
		{"none", "10.0.0.4,tcp:2", true, ErrNoSet},
		{"a", "10.0.0.1,tcp:1", true, nil},
		{"a", "10.0.0.4,tcp:2", false, nil},
		{"b", "fd00::1,tcp:1,fd00::/8", false, nil},
		{"b", "fd00::1,tcp:1,fd00::/8", false, ErrExist},
		{"b", "fd00::1,tcp:1,fd00::/9", true, ErrMissing},
	}
	const after = `create a hash:ip,port family inet hashsize 1024 maxelem 3
add a 10.0.0.2,tcp:2
add a 10.0.0.3,udp:2
add a 10.0.0.4,tcp:2
create b hash:ip,port,net family inet6 hashsize 1024 maxelem 65536
add b fd00::1,tcp:1,fd00::/8
`
	forEach(t, func(t *testing.T, sets Sets) {
		load(t, sets, before)
		types := map[string]Set{
			"a": {Name: "a", Type: HashIPPort}, "none": {Name: "none", Type: HashIPPort}, "b": {Name: "b", Type: HashIPPortNet, IPv6: true},
		}
		var changes []Change
		for _, tt := range tests {
			s := types[tt.set]
			changes = append(changes, Change{Set: s, Entry: mustEntry(t, s, tt.entry), Del: tt.del})
		}
		failed, err := sets.Apply(t.Context(), changes)
		if err != nil {
			t.Fatal(err)
		}
		got := make(map[int]error)
		for _, f := range failed {
			got[f.Index] = f.Err
		}
		for i, tt := range tests {
			if !errors.Is(got[i], tt.want) || (got[i] == nil) != (tt.want == nil) {
				t.Errorf("change %d, %s %s: got %v, want %v", i, tt.set, tt.entry, got[i], tt.want)
			}
			if got[i] != nil && !(strings.Contains(got[i].Error(), tt.entry) && strings.Contains(got[i].Error(), tt.set)) {
				t.Errorf("change %d: %q does not say which", i, got[i])
			}
		}
		if diff := cmp.Diff(after, save(t, sets, "")); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	})
}

func TestSetErrors(t *testing.T) {
	ctx := context.Background()
	forEach(t, func(t *testing.T, sets Sets) {
		load(t, sets, everyType)
		tests := []struct {
			name string
			do   func() error
			want error
			says string
		}{
			{"create the same", func() error { return sets.Create(ctx, Set{Name: "fl-ip", Type: HashIP, MaxElem: 65536}) }, nil, ""},
			{"another size", func() error { return sets.Create(ctx, Set{Name: "fl-ip", Type: HashIP, MaxElem: 9}) }, ErrExist, "maxelem 65536, want 9"},
			{"another type", func() error { return sets.Create(ctx, Set{Name: "fl-ip", Type: HashIPPort, MaxElem: 65536}) }, ErrExist, "type hash:ip, want hash:ip,port"},
			{"another family", func() error { return sets.Create(ctx, Set{Name: "fl-ip", Type: HashIP, IPv6: true, MaxElem: 65536}) }, ErrExist,
				"family inet, want inet6"},
			{"a bitmap instead", func() error { return sets.Create(ctx, Set{Name: "fl-ip", Type: BitmapPort}) }, ErrExist, "type hash:ip, want bitmap:port"},
			{"unknown type", func() error { return sets.Create(ctx, Set{Name: "x", Type: "hash:none", MaxElem: 1}) }, ErrInvalid, "hash:none"},
			{"long name", func() error { return sets.Create(ctx, Set{Name: strings.Repeat("x", 32), Type: HashIP, MaxElem: 1}) }, ErrInvalid, "name"},
			{"longest name", func() error { return sets.Create(ctx, Set{Name: strings.Repeat("x", 31), Type: HashIP, MaxElem: 1}) }, nil, ""},
			{"no elements", func() error { return sets.Create(ctx, Set{Name: "x", Type: HashIP}) }, ErrInvalid, "0 entries"},
			{"destroy nothing", func() error { return sets.Destroy(ctx, "none") }, ErrNoSet, "none"},
			{"swap with nothing", func() error { return sets.Swap(ctx, "fl-ip", "none") }, ErrNoSet, "none"},
			{"grow nothing", func() error { return Grow(ctx, sets, "fl", 1) }, ErrNoSet, "fl"},
		}
		for _, tt := range tests {
			err := tt.do()
			if !errors.Is(err, tt.want) || (err == nil) != (tt.want == nil) {
				t.Errorf("%s: got %v, want %v", tt.name, err, tt.want)
			}
			if err != nil && !strings.Contains(err.Error(), tt.says) {
				t.Errorf("%s: %q does not say %q", tt.name, err, tt.says)
			}
		}
		for _, pair := range [][2]string{{"fl-ip", "fl-ip6"}, {"fl-ip", "fl-port"}} {
			if err := sets.Swap(ctx, pair[0], pair[1]); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), "differ in type or family") {
				t.Errorf("swap %v: %v", pair, err)
			}
		}
	})
}

func TestGrow(t *testing.T) {
	const before = `create a hash:ip,port family inet hashsize 1024 maxelem 2
add a 10.0.0.1,tcp:1
add a 10.0.0.2,tcp:1
create a-longer-name hash:ip,port family inet hashsize 1024 maxelem 2
`
	forEach(t, func(t *testing.T, sets Sets) {
		load(t, sets, before)
		// What an attempt that was cut off left.
		if err := sets.Create(t.Context(), Set{Name: "fairlead-grow-inet", Type: HashIP, MaxElem: 1}); err != nil {
			t.Fatal(err)
		}
		if err := Grow(t.Context(), sets, "a", 100000); err != nil {
			t.Fatal(err)
		}
		want := strings.Replace(before, "maxelem 2", "maxelem 100000", 1)
		if diff := cmp.Diff(want, save(t, sets, "")); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
		// Where the entries do not fit all is as it was.
		if err := Grow(t.Context(), sets, "a", 1); !errors.Is(err, ErrFull) {
			t.Errorf("got %v, want ErrFull", err)
		}
		if diff := cmp.Diff(want, save(t, sets, "")); diff != "" {
			t.Errorf("after a failure (-want +got):\n%s", diff)
		}
	})
}

// TestLargeSets needs several sends and several messages of a list.
func TestLargeSets(t *testing.T) {
	forEach(t, func(t *testing.T, sets Sets) {
		const n = 20000
		s := Set{Name: "large", Type: HashIPPort, IPv6: true, MaxElem: n}
		if err := sets.Create(t.Context(), s); err != nil {
			t.Fatal(err)
		}
		var changes []Change
		a := netip.MustParseAddr("fd00::1")
		for i := range n {
			changes = append(changes, Change{Set: s, Entry: Entry{Addr: a, Proto: unix.IPPROTO_UDP, Port: uint16(i)}})
			a = a.Next()
		}
		// Every entry twice: half of the messages fail.
		failed, err := sets.Apply(t.Context(), append(changes[:n:n], changes...))
		if err != nil || len(failed) != n {
			t.Fatalf("%v, %d failed, want %d", err, len(failed), n)
		}
		for i, f := range failed {
			if f.Index != n+i || !errors.Is(f.Err, ErrExist) {
				t.Fatalf("failure %d: %d, %v", i, f.Index, f.Err)
			}
		}
		got, err := sets.List(t.Context(), "large")
		if err != nil || len(got) != 1 || len(got[0].Entries) != n {
			t.Fatalf("%v, %d sets", err, len(got))
		}
		for i, e := range got[0].Entries {
			if e != changes[i].Entry {
				t.Fatalf("entry %d: got %v, want %v", i, e, changes[i].Entry)
			}
		}
		if err := Grow(t.Context(), sets, "large", 2*n); err != nil {
			t.Fatal(err)
		}
	})
}

// TestInvalidEntries are refused without the kernel.
func TestInvalidEntries(t *testing.T) {
	a, a6 := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1")
	p := netip.MustParsePrefix
	tests := []struct {
		name  string
		typ   Type
		ipv6  bool
		entry Entry
		says  string
	}{
		{"no address", HashIP, false, Entry{}, "fields"},
		{"port too much", HashIP, false, Entry{Addr: a, Port: 1}, "no port"},
		{"protocol too much", HashIP, false, Entry{Addr: a, Proto: 6}, "fields"},
		{"no protocol", HashIPPort, false, Entry{Addr: a, Port: 1}, "fields"},
		{"icmp", HashIPPort, false, Entry{Addr: a, Proto: 1, Port: 1}, "protocol"},
		{"v6 in v4", HashIP, false, Entry{Addr: a6}, "family"},
		{"v4 in v6", HashIP, true, Entry{Addr: a}, "family"},
		{"mapped", HashIP, true, Entry{Addr: netip.MustParseAddr("::ffff:10.0.0.1")}, "family"},
		{"zone", HashIP, true, Entry{Addr: netip.MustParseAddr("fe80::1%eth0")}, "family"},
		{"zero", HashIP, false, Entry{Addr: netip.IPv4Unspecified()}, "unspecified"},
		{"zero in v6", HashIPPort, true, Entry{Addr: netip.IPv6Unspecified(), Proto: 6, Port: 1}, "unspecified"},
		{"everything", HashIPPortNet, false, Entry{Addr: a, Proto: 6, Port: 1, Net: p("0.0.0.0/0")}, "length 0"},
		{"everything in v6", HashIPPortNet, true, Entry{Addr: a6, Proto: 6, Port: 1, Net: p("::/0")}, "length 0"},
		{"host bits", HashIPPortNet, false, Entry{Addr: a, Proto: 6, Port: 1, Net: p("10.0.0.1/8")}, "host bits"},
		{"network as address", HashIPPortIP, false, Entry{Addr: a, Proto: 6, Port: 1, Net: p("10.0.0.0/8")}, "where an address belongs"},
		{"networks differ in family", HashIPPortNet, false, Entry{Addr: a, Proto: 6, Port: 1, Net: p("fd00::/8")}, "family"},
		{"address in a bitmap", BitmapPort, false, Entry{Addr: a, Port: 1}, "fields"},
		{"unknown type", "list:set", false, Entry{Addr: a}, "unknown type"},
	}
	forEach(t, func(t *testing.T, sets Sets) {
		for _, tt := range tests {
			ch := Change{Set: Set{Name: "x", Type: tt.typ, IPv6: tt.ipv6}, Entry: tt.entry}
			failed, err := sets.Apply(t.Context(), []Change{ch})
			if err != nil || len(failed) != 1 || !errors.Is(failed[0].Err, ErrInvalid) || !strings.Contains(failed[0].Err.Error(), tt.says) {
				t.Errorf("%s: %v %v, want %q", tt.name, err, failed, tt.says)
			}
		}
	})
}

func TestParse(t *testing.T) {
	if diff := cmp.Diff(sorted(t, everyType), ipsetfake.Save(mustParse(t, sorted(t, everyType)))); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	// What newer versions of ipset print.
	got := mustParse(t, "create x hash:ip family inet hashsize 2048 maxelem 5 bucketsize 12 initval 0x6e4d6f52\n")
	if want := (Set{Name: "x", Type: HashIP, MaxElem: 5}); len(got) != 1 || got[0].Set != want {
		t.Errorf("got %v, want %v", got, want)
	}
	const a = "create a hash:ip family inet maxelem 1\n"
	for _, tt := range []struct {
		text string
		want error
	}{
		{"add a 10.0.0.1", ErrNoSet},
		{a + a, ErrExist},
		{a + "add a 10.0.0.1\nadd a 10.0.0.1", ErrExist},
		{a + "add a 10.0.0.1\nadd a 10.0.0.2", ErrFull},
		{a + "add a fd00::1", ErrInvalid},
		{a + "add a 10.0.0.1,tcp:1", ErrInvalid},
		{a + "del a 10.0.0.1", ErrInvalid},
		{"create a hash:ip family inet maxelem 1 timeout 5", ErrInvalid},
		{"create a hash:ip family inet maxelem", ErrInvalid},
		{"create a hash:ip family inet", ErrInvalid},
		{"create a hash:ip family inet maxelem -1", ErrInvalid},
		{"create a list:set size 8", ErrInvalid},
		{"create a bitmap:port range 0-1023", ErrInvalid},
		{"create p hash:ip,port family inet maxelem 1\nadd p 10.0.0.1,icmp:1", ErrInvalid},
		{"create p hash:ip,port family inet maxelem 1\nadd p 10.0.0.1,tcp:65536", ErrInvalid},
		{"create p hash:ip,port family inet maxelem 1\nadd p 10.0.0.1", ErrInvalid},
		{"create p hash:ip,port,net family inet maxelem 1\nadd p 10.0.0.1,tcp:1", ErrInvalid},
		{"create p bitmap:port range 0-65535\nadd p x", ErrInvalid},
	} {
		if _, err := ipsetfake.Parse(tt.text); !errors.Is(err, tt.want) {
			t.Errorf("%q: got %v, want %v", tt.text, err, tt.want)
		}
	}
}

func TestFake(t *testing.T) {
	var f ipsetfake.Sets
	f.Load(everyType)
	if diff := cmp.Diff(sorted(t, everyType), f.Dump()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	f.Use("fl-ip", 1)
	if err := f.Destroy(t.Context(), "fl-ip"); !errors.Is(err, ErrInUse) {
		t.Errorf("destroy a set in use: %v", err)
	}
	ip := Set{Name: "fl-ip", Type: HashIP}
	broken := errors.New("broken")
	f.FailChange = func(c Change) error {
		if c.Entry.Addr == netip.MustParseAddr("10.0.0.2") {
			return broken
		}
		return nil
	}
	failed, err := f.Apply(t.Context(), []Change{
		{Set: ip, Entry: mustEntry(t, ip, "10.0.0.1")}, {Set: ip, Entry: mustEntry(t, ip, "10.0.0.2")},
		{Set: ip, Entry: mustEntry(t, ip, "10.0.0.1"), Del: true},
		{Set: Set{Name: "fl-ip", Type: HashIPPort}, Entry: mustEntry(t, Set{Type: HashIPPort}, "10.0.0.1,tcp:1")},
	})
	if err != nil || len(failed) != 2 || !errors.Is(failed[0].Err, broken) || failed[0].Index != 1 || !errors.Is(failed[1].Err, ErrInvalid) {
		t.Errorf("%v, %v", failed, err)
	}
	want := map[string]int{"apply": 1, "added": 1, "deleted": 1, "destroy": 1}
	if diff := cmp.Diff(want, f.Counts()); diff != "" {
		t.Errorf("counts (-want +got):\n%s", diff)
	}
	f.Fail = func(op string) error { return broken }
	for op, err := range map[string]error{
		"create": f.Create(t.Context(), ip), "destroy": f.Destroy(t.Context(), "fl-port"), "swap": f.Swap(t.Context(), "fl-ip", "fl-port"),
	} {
		if !errors.Is(err, broken) {
			t.Errorf("%s: %v", op, err)
		}
	}
	if _, err := f.List(t.Context(), ""); !errors.Is(err, broken) {
		t.Errorf("list: %v", err)
	}
	if _, err := f.Apply(t.Context(), nil); !errors.Is(err, broken) {
		t.Errorf("apply: %v", err)
	}
}

// FuzzParse checks that what was read can be written and read again.
func FuzzParse(f *testing.F) {
	f.Add(everyType)
	f.Add("create x hash:ip family inet hashsize 2048 maxelem 5 bucketsize 12 initval 0x6e4d6f52\n#x\n")
	f.Fuzz(func(t *testing.T, text string) {
		sets, err := ipsetfake.Parse(text)
		if err != nil {
			return
		}
		out := ipsetfake.Save(sets)
		again, err := ipsetfake.Parse(out)
		if err != nil || ipsetfake.Save(again) != out {
			t.Errorf("%q became %q: %v", text, out, err)
		}
	})
}

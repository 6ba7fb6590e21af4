package ipset

import (
	"context"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
)

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

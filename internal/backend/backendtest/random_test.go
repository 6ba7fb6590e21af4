package backendtest

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/fairlead/fairlead/internal/fwd"
)

// TestRandomTables checks that fragments are valid, and that in the tables of the Lookup check
// everything occurs that a backend could get wrong.
func TestRandomTables(t *testing.T) {
	seen := make(map[string]bool)
	for seed := range uint64(12) {
		r := random(seed)
		table := &fwd.Table{}
		table.SetHeader(randomHeader(r))
		h := table.Header()
		for i := range 1 + r.IntN(40) {
			f := randomFragment(r, i)
			if err := f.Validate(); err != nil {
				t.Fatalf("seed %d, Service %d: %v", seed, i, err)
			}
			before := len(table.Conflicts())
			table.Put(f)
			seen[fmt.Sprintf("lost key %v", len(table.Conflicts()) > before)] = true
			for _, p := range f.Pools {
				seen[fmt.Sprintf("pool of %d", len(p.Endpoints))] = true
				seen[fmt.Sprintf("affinity %v", p.AffinitySec > 0)] = true
				seen[fmt.Sprintf("weights %v", slices.ContainsFunc(p.Endpoints, func(e fwd.Endpoint) bool { return e.Weight > 1 }))] = true
			}
		}
		for _, p := range randomPackets(r, table, 400) {
			if fwd.FamilyOf(p.Src) != fwd.FamilyOf(p.Dst.Addr()) || (p.InInterface == "") != h.IsLocal(p.Src) {
				t.Fatalf("seed %d: impossible packet %+v", seed, p)
			}
			o := table.Lookup(p)
			seen[fmt.Sprintf("%v %v", o.Class, o.Verdict)] = true
			seen[fmt.Sprintf("%v %v %v", fwd.FamilyOf(p.Src), p.Proto, o.Verdict)] = true
			seen[o.Reason.String()[:5]] = true
			if o.Owner != (fwd.ServicePort{}) {
				seen[fmt.Sprintf("node port %v, loopback %v", o.Key.IsNodePort(), p.Dst.Addr().IsLoopback())] = true
			}
			if slices.ContainsFunc(o.Endpoints, func(e fwd.Endpoint) bool { return e.Addr.Addr() == p.Src }) {
				seen[fmt.Sprintf("hairpin, masquerade %v", o.Masquerade)] = true
			}
		}
	}
	want := []string{"lost key true", "pool of 1", "pool of 2", "pool of 33", "pool of 300", "affinity true", "affinity false", "weights true", "weights false",
		"sourc", "loopb", "node port true, loopback true", "node port true, loopback false", "node port false, loopback false",
		"hairpin, masquerade true", "hairpin, masquerade false"}
	for _, v := range []fwd.Verdict{fwd.VerdictPass, fwd.VerdictDrop, fwd.VerdictReject, fwd.VerdictForward} {
		for c := range fwd.NumClasses {
			want = append(want, fmt.Sprintf("%v %v", c, v))
		}
		for _, f := range fwd.Families {
			for _, p := range []fwd.Proto{fwd.TCP, fwd.UDP, fwd.SCTP} {
				want = append(want, fmt.Sprintf("%v %v %v", f, p, v))
			}
		}
	}
	for _, w := range want {
		if !seen[w] {
			t.Errorf("never occurs: %s", w)
		}
	}
}

func TestNth(t *testing.T) {
	for _, tc := range []struct {
		prefix string
		n      int
		want   string
	}{
		{"10.96.0.0/12", 1, "10.96.0.1"},
		{"10.96.0.0/12", 2000, "10.96.7.208"},
		{"203.0.113.72/29", 6, "203.0.113.78"},
		{"192.168.0.200/24", 55, "192.168.0.55"},
		{"fd00:244::/32", 65535, "fd00:244::ffff"},
	} {
		if got := nth(netip.MustParsePrefix(tc.prefix), tc.n); got != netip.MustParseAddr(tc.want) {
			t.Errorf("address %d of %s: got %s, want %s", tc.n, tc.prefix, got, tc.want)
		}
	}
}

package backendtest

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/fairlead/fairlead/internal/fwd"
)

// valid checks the invariants of a fragment, which every backend may rely on.
func valid(f *fwd.Fragment) error {
	used := make(map[fwd.PoolKey]bool)
	for i, fe := range f.Frontends {
		if i > 0 && f.Frontends[i-1].Key.Compare(fe.Key) >= 0 {
			return fmt.Errorf("frontends out of order at %v", fe.Key)
		}
		if fe.Owner.Service != f.Owner || fe.Owner.Proto != fe.Key.Proto {
			return fmt.Errorf("frontend %v of %v in the fragment of %v", fe.Key, fe.Owner, f.Owner)
		}
		for j, a := range fe.Sources {
			if a != a.Masked() || a.Bits() == 0 || fwd.FamilyOf(a.Addr()) != fe.Key.Family {
				return fmt.Errorf("frontend %v: source %v", fe.Key, a)
			}
			if j > 0 && (fe.Sources[j-1].Compare(a) >= 0 || fe.Sources[j-1].Overlaps(a)) {
				return fmt.Errorf("frontend %v: sources %v", fe.Key, fe.Sources)
			}
		}
		for _, r := range fe.Routes {
			if r.Action == fwd.Forward {
				used[fe.Pool(r)] = true
			} else if r.Masquerade || r.Scope != fwd.Cluster {
				return fmt.Errorf("frontend %v: route %+v", fe.Key, r)
			}
		}
	}
	for i, p := range f.Pools {
		if i > 0 && f.Pools[i-1].Key.Compare(p.Key) >= 0 || !used[p.Key] || len(p.Endpoints) == 0 {
			return fmt.Errorf("pool %+v: out of order, not used, or empty", p.Key)
		}
		delete(used, p.Key)
		for j, e := range p.Endpoints {
			if e.Weight < 1 || e.Weight > 65535 || fwd.FamilyOf(e.Addr.Addr()) != p.Key.Family || j > 0 && p.Endpoints[j-1].Addr.Compare(e.Addr) >= 0 {
				return fmt.Errorf("pool %+v: endpoint %+v", p.Key, e)
			}
		}
	}
	if len(used) > 0 {
		return fmt.Errorf("pools missing: %v", used)
	}
	return nil
}

// TestRandomTables checks that fragments are valid, and that in the tables of the Lookup check everything occurs that a
// backend could get wrong.
func TestRandomTables(t *testing.T) {
	seen := make(map[string]bool)
	for seed := range uint64(12) {
		r := random(seed)
		table := &fwd.Table{}
		table.SetHeader(randomHeader(r))
		h := table.Header()
		for i := range 1 + r.IntN(40) {
			f := randomFragment(r, i)
			if err := valid(f); err != nil {
				t.Fatalf("seed %d, Service %d: %v", seed, i, err)
			}
			seen[fmt.Sprintf("lost key %v", len(table.Put(f).Conflicts) > 0)] = true
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

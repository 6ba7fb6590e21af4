package conntrackfake

import (
	"context"
	"errors"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/fairlead/fairlead/internal/host/conntrack"
)

// TestTable: a query finds the flows that it selects, and a flow is deleted only by its own id.
func TestTable(t *testing.T) {
	ap := netip.MustParseAddrPort
	var x Table
	x.Add(
		conntrack.Flow{Proto: 17, OrigSrc: ap("10.0.0.1:1000"), OrigDst: ap("10.96.0.10:53"), ReplySrc: ap("10.1.0.5:5353")},
		conntrack.Flow{Proto: 17, OrigSrc: ap("10.0.0.1:1000"), OrigDst: ap("10.96.0.10:53"), ReplySrc: ap("10.96.0.10:53"), Zone: 7},
		conntrack.Flow{Proto: 17, OrigSrc: ap("[fd00::1]:65535"), OrigDst: ap("[fd00:96::a]:53"), ReplySrc: ap("[fd01::5]:53"), OrigZone: 9},
		conntrack.Flow{Proto: 6, OrigSrc: ap("10.0.0.1:1000"), OrigDst: ap("10.96.0.10:53"), ReplySrc: ap("10.1.0.5:5353")},
		conntrack.Flow{Proto: 6, OrigSrc: ap("10.0.0.1:1000"), OrigDst: ap("10.96.0.11:53"), ReplySrc: ap("10.96.0.11:53"), Opening: true},
	)
	list := func(q conntrack.Query) (out []conntrack.Flow) {
		if _, err := x.Dump(t.Context(), q, func(f conntrack.Flow) bool { out = append(out, f); return true }); err != nil {
			t.Fatal(err)
		}
		return out
	}
	for _, tt := range []struct {
		q    conntrack.Query
		want int
	}{
		{conntrack.Query{Proto: 17}, 2}, {conntrack.Query{Proto: 17, IPv6: true}, 1}, {conntrack.Query{Proto: 6}, 2},
		{conntrack.Query{Proto: 6, Opening: true}, 1}, {conntrack.Query{Proto: 6, Dst: ap("10.96.0.11:53")}, 1},
	} {
		if got := list(tt.q); len(got) != tt.want {
			t.Errorf("%+v: got %v", tt.q, got)
		}
	}
	stale := list(conntrack.Query{Proto: 17})
	stale[1].ID = 99 // another flow took its place
	if n, err := x.Delete(t.Context(), stale); n != 1 || err != nil {
		t.Errorf("deleted %d, %v", n, err)
	}
	if diff := cmp.Diff([]int{2}, x.Batches()); diff != "" || len(x.Flows()) != 4 {
		t.Errorf("%d flows left, batches %s", len(x.Flows()), diff)
	}
	x.Fail = func(*conntrack.Query) error { return context.Canceled }
	if _, err := x.Delete(t.Context(), stale); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

package nftables

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/fairlead/fairlead/internal/backend/nftables/nftsim"
	"github.com/fairlead/fairlead/internal/fwd"
	"github.com/fairlead/fairlead/internal/host/nft"
)

// recorder records the transactions of a table, one line each.
type recorder struct {
	*nftsim.Table
	commits []string
}

func (r *recorder) Commit(ctx context.Context, ops []nft.Op) error {
	var parts []string
	for _, o := range ops {
		s := o.String()
		if n := len(o.Elements); n > 0 {
			s = fmt.Sprintf("%s: %d", s, n)
		}
		parts = append(parts, s)
	}
	r.commits = append(r.commits, strings.Join(parts, "; "))
	return r.Table.Commit(ctx, ops)
}

// TestTransactions shows what is written for changes of one Service.
func TestTransactions(t *testing.T) {
	frag := func(endpoints int, affinity uint32) *fwd.Fragment {
		f := sampleFragment(0, endpoints)
		f.Frontends = slices.DeleteFunc(f.Frontends, func(fe fwd.Frontend) bool { return fe.Key.Family == fwd.IPv6 || fe.Key.IsNodePort() })
		f.Pools = slices.DeleteFunc(f.Pools, func(p fwd.Pool) bool { return p.Key.Family == fwd.IPv6 })
		f.Pools[0].AffinitySec = affinity
		return f
	}
	other := frag(2, 0)
	other.Pools[0].Endpoints[1].Addr = other.Pools[0].Endpoints[0].Addr
	other.Pools[0].Endpoints = other.Pools[0].Endpoints[:1]
	replaced := frag(2, 0)
	replaced.Pools[0].Endpoints = append(replaced.Pools[0].Endpoints[:1], samplePool(replaced.Pools[0].Key, 0, 3).Endpoints[2])
	tests := []struct {
		name string
		put  *fwd.Fragment
		want []string
	}{
		{"a Service is added", frag(2, 0), []string{
			"add chain CcC_pool-2; add rules to chain CcC_pool-2; add elements to set cluster-ips: 1; " +
				"add elements to set vips: 1; add elements to set endpoints: 2"}},
		{"an endpoint takes the place of another", replaced, []string{
			"delete elements of set endpoints: 1; add elements to set endpoints: 1"}},
		{"one endpoint is deleted", other, []string{
			"add chain CcC_pool-1; add rules to chain CcC_pool-1; delete elements of set vips: 1; delete elements of set endpoints: 2; " +
				"add elements to set vips: 1; add elements to set endpoints: 1",
			"flush chain CcC_pool-2; delete chain CcC_pool-2"}},
		{"the Service is deleted", nil, []string{
			"delete elements of set vips: 1; delete elements of set endpoints: 1",
			"flush chain CcC_pool-1; delete chain CcC_pool-1; delete elements of set cluster-ips: 1"}},
	}
	rec := &recorder{Table: nftsim.New(fwd.IPv4)}
	b := New(map[fwd.Family]nft.Interface{fwd.IPv4: rec}, nil)
	var table fwd.Table
	b.Update(table.SetHeader(everyShape().Header()))
	ctx := context.Background()
	if _, err := b.Apply(ctx); err != nil {
		t.Fatal(err)
	}
	for _, tt := range tests {
		rec.commits = nil
		if tt.put == nil {
			b.Update(table.Remove(fwd.Service{Namespace: "default", Name: "svc-0"}))
		} else {
			b.Update(table.Put(tt.put))
		}
		if _, err := b.Apply(ctx); err != nil {
			t.Fatalf("%s: %v", tt.name, err)
		}
		if diff := cmp.Diff(tt.want, rec.commits); diff != "" {
			t.Errorf("%s:\n%s", tt.name, diff)
		}
	}
}

// TestStepsAreBounded: if many Services with session affinity, which have chains of their own, are
// added at once, the size of a transaction does not grow with their number, so that none is too
// large for the socket.
func TestStepsAreBounded(t *testing.T) {
	const chunk = 500
	table := &fwd.Table{}
	for i := range 300 {
		f := sampleFragment(i, 20)
		for j := range f.Pools {
			f.Pools[j].AffinitySec = 10
		}
		table.Put(f)
	}
	p := plan{Upserts: objectsOf(fwd.IPv4, table), Actual: func(ID) (Object, bool) { return Object{}, false }}
	all := 0
	for i, s := range steps(fwd.IPv4, p, chunk) {
		n := 0
		for _, o := range s.ops {
			n += len(o.Rules) + len(o.Elements)
			if o.Kind == nft.AddChain {
				n++
			}
		}
		if n > chunk+100 { // and the sets
			t.Errorf("transaction %d writes %d", i, n)
		}
		all += len(s.completes)
	}
	if all != len(p.Upserts) {
		t.Errorf("%d of %d objects are completed", all, len(p.Upserts))
	}
}

// TestMalformed: a table with our name that somebody else made is replaced in one transaction, and
// cleaned up.
func TestMalformed(t *testing.T) {
	ctx := context.Background()
	odd := nft.Set{Name: setVIPs, Key: []nft.Field{nft.DestPort}}
	foreign := []nft.Op{{Kind: nft.AddTable}, {Kind: nft.AddSet, Name: odd.Name, Set: odd}, {Kind: nft.AddChain, Name: "x"},
		{Kind: nft.AddRules, Name: "x", Rules: []nft.Rule{{nft.In(setVIPs, 0)}}}}
	table := nftsim.New(fwd.IPv4)
	if err := table.Commit(ctx, foreign); err != nil {
		t.Fatal(err)
	}
	b := New(map[fwd.Family]nft.Interface{fwd.IPv4: table}, nil)
	if _, err := b.Observe(ctx); err != nil {
		t.Fatal(err)
	}
	give(b, everyShape())
	if _, err := b.Apply(ctx); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(values(objectsOf(fwd.IPv4, everyShape())), readAll(t, fwd.IPv4, table)); diff != "" {
		t.Error(diff)
	}
	if err := table.Commit(ctx, append([]nft.Op{{Kind: nft.DelTable}}, foreign...)); err != nil {
		t.Fatal(err)
	}
	if err := New(map[fwd.Family]nft.Interface{fwd.IPv4: table}, nil).Cleanup(ctx); err != nil {
		t.Fatal(err)
	}
	if c, err := table.Read(ctx); err != nil || c.Exists {
		t.Errorf("after cleanup the table exists (%v), %v", c.Exists, err)
	}
}

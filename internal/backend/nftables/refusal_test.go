package nftables

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/internal/backend"
	"github.com/fairlead/fairlead/internal/backend/nftables/nftsim"
	"github.com/fairlead/fairlead/internal/fwd"
	"github.com/fairlead/fairlead/internal/host/hosttest"
	"github.com/fairlead/fairlead/internal/host/nft"
)

// quarantined applies a table and takes out whom the kernel refuses, as the loop does; it returns their names.
func quarantined(t *testing.T, b backend.Backend, table *fwd.Table) []string {
	t.Helper()
	var out []string
	for range 10 {
		_, err := b.Apply(context.Background())
		if err == nil {
			return out
		}
		var fe *backend.FamilyError
		if !errors.As(err, &fe) || !fe.Refused || len(fe.Culprits) == 0 {
			t.Fatalf("nobody is named: %v", err)
		}
		for _, s := range fe.Culprits {
			out = append(out, s.Name)
			b.Update(table.Remove(s))
		}
	}
	t.Fatalf("there is no end to it: %v", out)
	return nil
}

// TestCulprits: whatever object of a Service is refused, that Service is named, and with it alone taken out all others are
// written, at the start and later.
func TestCulprits(t *testing.T) {
	element := func(set, key string) func(nft.Op) bool {
		return func(o nft.Op) bool {
			for _, e := range o.Elements {
				if o.Kind == nft.AddElements && o.Name == set && strings.HasPrefix(e.Key, key) {
					return true
				}
			}
			return false
		}
	}
	named := func(kind nft.OpKind, prefix string) func(nft.Op) bool {
		return func(o nft.Op) bool { return o.Kind == kind && strings.HasPrefix(o.Name, prefix) }
	}
	vip := func(i byte) string { return string([]byte{10, 96, 0, i}) }
	tests := []struct {
		name   string
		refuse func(nft.Op) bool
		want   []string
	}{
		{"a verdict", element(setVIPs, vip(7)), []string{"svc-7"}},
		{"an endpoint", element(setEndpoints, vip(9)), []string{"svc-9"}},
		{"two of them", func(o nft.Op) bool { return element(setEndpoints, vip(3))(o) || element(setVIPs, vip(30))(o) }, []string{"svc-3", "svc-30"}},
		{"a node port", element(setNodePorts, string([]byte{132, 0, 0, 0, 30008 >> 8, 30008 & 0xff})), []string{"svc-8"}},
		{"a chain of session affinity", named(nft.AddRules, "affinity-"), []string{"svc-44", "svc-47"}},
		{"the chain of a shape", named(nft.AddRules, "xcC_"), []string{"svc-40"}},
		{"a chain behind that", named(nft.AddRules, "pool-1-bit"), []string{"svc-49"}},
		{"a set of source ranges", named(nft.AddSet, "sources-"), []string{"svc-43", "svc-44", "svc-45"}},
	}
	for _, tt := range tests {
		for _, later := range []bool{false, true} {
			sim := nftsim.New(fwd.IPv4)
			refuse := func(o nft.Op) unix.Errno {
				if tt.refuse(o) {
					return unix.EINVAL
				}
				return 0
			}
			b := New(map[fwd.Family]nft.Interface{fwd.IPv4: sim}, 20)
			table := everyShape()
			if later {
				var empty fwd.Table
				b.Update(empty.SetHeader(table.Header()))
				if _, err := b.Apply(context.Background()); err != nil {
					t.Fatal(err)
				}
			}
			sim.Refuse = refuse
			give(b, table)
			if diff := cmp.Diff(tt.want, quarantined(t, b, table), cmpopts.SortSlices(strings.Compare)); diff != "" {
				t.Errorf("%s, later %v (-want +got):\n%s", tt.name, later, diff)
			}
			if diff := cmp.Diff(values(objectsOf(fwd.IPv4, table)), readAll(t, fwd.IPv4, sim)); diff != "" {
				t.Errorf("%s, later %v: the others are not there (-want +got):\n%s", tt.name, later, diff)
			}
		}
	}
}

// Where the kernel refuses what is nobody's, nobody is blamed.
func TestNobodyIsToBlame(t *testing.T) {
	for _, name := range []string{chainServices, chainPostrouting, setEqualBytes, setClusterIPs} {
		sim := nftsim.New(fwd.IPv4)
		sim.Refuse = func(o nft.Op) unix.Errno {
			if o.Name == name {
				return unix.EOPNOTSUPP
			}
			return 0
		}
		b := New(map[fwd.Family]nft.Interface{fwd.IPv4: sim}, 0)
		give(b, everyShape())
		_, err := b.Apply(context.Background())
		var fe *backend.FamilyError
		if !errors.As(err, &fe) || !fe.Refused || len(fe.Culprits) != 0 {
			t.Errorf("%s: %v blames %v", name, err, fe.Culprits)
		}
	}
}

// TestKernelCulprits: the kernel refuses source ranges that overlap, and those of one Service do, which no Service from the
// compiler can have.
func TestKernelCulprits(t *testing.T) {
	hosttest.Netns(t, "nft")
	tab := kernel(t)[fwd.IPv4]
	b := New(map[fwd.Family]nft.Interface{fwd.IPv4: tab}, 0)
	table := everyShape()
	bad := sampleFragment(60, 3)
	for i := range bad.Frontends {
		if bad.Frontends[i].Key.Family == fwd.IPv4 {
			bad.Frontends[i].Sources = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("10.1.0.0/16")}
		}
	}
	table.Put(bad)
	give(b, table)
	if diff := cmp.Diff([]string{"svc-60"}, quarantined(t, b, table)); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(values(objectsOf(fwd.IPv4, table)), readAll(t, fwd.IPv4, tab)); diff != "" {
		t.Errorf("the others are not there (-want +got):\n%s", diff)
	}
}

package nftables

import (
	"context"
	"fmt"
	"testing"

	"github.com/fairlead/fairlead/internal/fwd"
	"github.com/fairlead/fairlead/internal/host/nft"
)

// discard takes every transaction and holds nothing.
type discard struct{}

func (discard) Read(context.Context) (nft.Content, error) { return nft.Content{}, nil }
func (discard) Commit(context.Context, []nft.Op) error    { return nil }
func (discard) Check(context.Context, []nft.Op) error     { return nil }

// BenchmarkLoad renders and orders, without a kernel, all elements of Services of 10 endpoints in one family.
func BenchmarkLoad(b *testing.B) {
	for _, n := range []int{1000, 10000, 50000} {
		b.Run(fmt.Sprintf("%dServices", n), func(b *testing.B) {
			frags := make([]*fwd.Fragment, n)
			for i := range frags {
				frags[i] = sampleFragment(i, 10)
			}
			b.ReportAllocs()
			for b.Loop() {
				be := New(map[fwd.Family]nft.Interface{fwd.IPv4: discard{}}, 0)
				table := &fwd.Table{}
				be.Update(table.SetHeader(fwd.Header{MasqueradeBit: 14}))
				for _, f := range frags {
					be.Update(table.Put(f))
				}
				if _, err := be.Apply(context.Background()); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N)/float64(n), "µs/Service")
		})
	}
}

// BenchmarkChange renders and orders, without a kernel, one changed Service among many.
func BenchmarkChange(b *testing.B) {
	for _, n := range []int{1000, 10000, 50000} {
		b.Run(fmt.Sprintf("%dServices", n), func(b *testing.B) {
			be := New(map[fwd.Family]nft.Interface{fwd.IPv4: discard{}}, 0)
			table := &fwd.Table{}
			be.Update(table.SetHeader(fwd.Header{MasqueradeBit: 14}))
			for i := range n {
				be.Update(table.Put(sampleFragment(i, 10)))
			}
			if _, err := be.Apply(context.Background()); err != nil {
				b.Fatal(err)
			}
			versions := []*fwd.Fragment{sampleFragment(n/2, 9), sampleFragment(n/2, 10)}
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				be.Update(table.Put(versions[i%2]))
				if _, err := be.Apply(context.Background()); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

package iptables

import (
	"context"
	"fmt"
	"net/netip"
	"testing"

	"github.com/fairlead/fairlead/internal/fwd"
)

// discard takes every restore and holds nothing.
type discard struct{ bytes int }

func (d *discard) Save(context.Context, string) ([]byte, error) { return nil, nil }
func (d *discard) Restore(_ context.Context, input []byte) error {
	d.bytes += len(input)
	return nil
}

func benchHeader() fwd.Header {
	return fwd.Header{Detector: [2]fwd.Detector{{Prefix: netip.MustParsePrefix("10.244.0.0/16")}},
		NodePorts: [2]fwd.NodePortAddrs{{All: true, Loopback: true}}, MasqueradeBit: 14}
}

// BenchmarkLoad renders and writes, without a kernel, all rules of Services of 10 endpoints in one family.
func BenchmarkLoad(b *testing.B) {
	for _, n := range []int{1000, 10000, 50000} {
		b.Run(fmt.Sprintf("%dServices", n), func(b *testing.B) {
			frags := make([]*fwd.Fragment, n)
			for i := range frags {
				frags[i] = plainFragment(i, 10)
			}
			b.ReportAllocs()
			d := &discard{}
			for b.Loop() {
				be := New(map[fwd.Family]FamilyOptions{fwd.IPv4: {Tables: d, HairpinBPF: true, RandomFully: true, DropInvalid: true}})
				table := &fwd.Table{}
				be.Update(table.SetHeader(benchHeader()))
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

// BenchmarkChange renders and writes, without a kernel, one changed Service among many.
func BenchmarkChange(b *testing.B) {
	for _, n := range []int{1000, 10000, 50000} {
		b.Run(fmt.Sprintf("%dServices", n), func(b *testing.B) {
			d := &discard{}
			be := New(map[fwd.Family]FamilyOptions{fwd.IPv4: {Tables: d, HairpinBPF: true, RandomFully: true, DropInvalid: true}})
			table := &fwd.Table{}
			be.Update(table.SetHeader(benchHeader()))
			for i := range n {
				be.Update(table.Put(plainFragment(i, 10)))
			}
			if _, err := be.Apply(context.Background()); err != nil {
				b.Fatal(err)
			}
			versions := []*fwd.Fragment{plainFragment(n/2, 9), plainFragment(n/2, 10)}
			b.ReportAllocs()
			d.bytes = 0
			for i := 0; b.Loop(); i++ {
				be.Update(table.Put(versions[i%2]))
				if _, err := be.Apply(context.Background()); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(d.bytes)/float64(b.N), "bytes/change")
		})
	}
}

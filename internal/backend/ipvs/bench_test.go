package ipvs

import (
	"fmt"
	"testing"

	"github.com/fairlead/fairlead/internal/fwd"
)

// benchServices returns a table of Services with a cluster IP, two node ports and a load balancer's IP each.
func benchServices(n int) (*fwd.Table, *follower) {
	table, f := &fwd.Table{}, newFollower(RenderOptions{HairpinBPF: true})
	f.take(table.SetHeader(smallNode()))
	for i := range n {
		f.take(table.Put(plain(i)))
	}
	return table, f
}

// BenchmarkRenderAll renders all Services at once.
func BenchmarkRenderAll(b *testing.B) {
	table, _ := benchServices(10000)
	b.ReportAllocs()
	for b.Loop() {
		objectsOf(fwd.IPv4, RenderOptions{HairpinBPF: true}, table)
	}
}

// BenchmarkRenderOne renders a change of one of many Services.
func BenchmarkRenderOne(b *testing.B) {
	for _, n := range []int{100, 10000} {
		b.Run(fmt.Sprintf("of%d", n), func(b *testing.B) {
			table, f := benchServices(n)
			a, other := plain(7), plain(7)
			other.Pools[0].Endpoints = []fwd.Endpoint{{Addr: other.Pools[0].Endpoints[0].Addr, Weight: 2}}
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				frag := a
				if i%2 == 0 {
					frag = other
				}
				f.take(table.Put(frag))
			}
		})
	}
}

package benchtest

import (
	"flag"
	"testing"

	"github.com/fairlead/fairlead/internal/fwd"
)

// Fragments of different Services have nothing in common, and each has what benchmarks say that it
// has.
func TestFragments(t *testing.T) {
	size := Size{Services: 300, Endpoints: 5}
	var table fwd.Table
	table.SetHeader(Header())
	endpoints, local := make(map[fwd.Endpoint]bool), 0
	for _, f := range Fragments(size) {
		if ch := table.Put(f); len(ch.Services) != 1 || len(table.Conflicts()) > 0 {
			t.Fatalf("%s: %+v", f.Owner, ch)
		}
		if len(f.Frontends) != 1 || len(f.Pools) != 1 || !ServiceCIDR.Contains(f.Frontends[0].Key.Addr) {
			t.Fatalf("%s: %+v", f.Owner, f)
		}
		for _, e := range f.Pools[0].Endpoints {
			endpoints[e] = true
			if !PodCIDR.Contains(e.Addr.Addr()) {
				t.Errorf("%s: endpoint %s", f.Owner, e.Addr)
			}
			if e.Local {
				local++
			}
		}
	}
	if services, frontends := table.Len(); services != size.Services || frontends != size.Services || len(endpoints) != size.Services*size.Endpoints {
		t.Errorf("%d Services, %d frontends, %d endpoints; want %s", services, frontends, len(endpoints), size)
	}
	if want := size.Services * size.Endpoints / nodes; local != want {
		t.Errorf("%d endpoints on the node, want %d", local, want)
	}
}

// sink keeps what is allocated on the heap.
var sink []*[64]byte

// What prepare allocates is not counted, what run allocates is.
func TestPerService(t *testing.T) {
	times := flag.Lookup("test.benchtime").Value
	was := times.String()
	defer times.Set(was)
	if err := times.Set("3x"); err != nil {
		t.Fatal(err)
	}
	const services = 1000
	allocate := func(n int) {
		sink = make([]*[64]byte, n)
		for i := range sink {
			sink[i] = new([64]byte)
		}
	}
	res := testing.Benchmark(func(b *testing.B) {
		PerService(b, services, func() func() {
			allocate(50 * services)
			return func() { allocate(2 * services) }
		})
	})
	if res.N != 3 {
		t.Fatalf("%d runs, want 3", res.N)
	}
	// A slice of pointers is one object; a little is allocated by the runtime and by others.
	if got := res.Extra["allocs/Service"]; got < 2 || got > 2.5 {
		t.Errorf("%v allocations for each Service, want 2", got)
	}
	if got, want := res.Extra["B/Service"], 2*(64.0+8); got < want || got > 1.2*want {
		t.Errorf("%v bytes for each Service, want %v", got, want)
	}
}

package benchtest

import (
	"testing"

	"github.com/fairlead/fairlead/internal/backend"
	"github.com/fairlead/fairlead/internal/fwd"
)

// filled is a new backend that was told of a whole cluster, and the table behind it.
func filled(newBackend func() backend.Backend, fragments []*fwd.Fragment) (backend.Backend, *fwd.Table) {
	table := &fwd.Table{}
	b := newBackend()
	b.Update(table.SetHeader(Header()))
	for _, f := range fragments {
		b.Update(table.Put(f))
	}
	return b, table
}

// Render measures how a backend makes objects of a whole cluster. newBackend makes one for IPv4 alone.
func Render(b *testing.B, newBackend func() backend.Backend) {
	for _, size := range Sizes {
		b.Run(size.String(), func(b *testing.B) {
			fragments := Fragments(size)
			PerService(b, size.Services, func() func() {
				be, _ := filled(newBackend, fragments)
				return func() { be.Bare() } // asks for what is wanted, so that it is rendered, and writes nothing
			})
		})
	}
}

// Apply measures how a backend writes the objects of a whole cluster, which are rendered already.
func Apply(b *testing.B, newBackend func() backend.Backend) {
	for _, size := range Sizes {
		b.Run(size.String(), func(b *testing.B) {
			fragments := Fragments(size)
			PerService(b, size.Services, func() func() {
				be, _ := filled(newBackend, fragments)
				be.Bare()
				return func() { apply(b, be, size.Services) }
			})
		})
	}
}

// Change measures how a backend renders and writes that one of many Services loses an endpoint or gets it back.
func Change(b *testing.B, newBackend func() backend.Backend) {
	for _, size := range Sizes {
		b.Run(size.String(), func(b *testing.B) {
			be, table := filled(newBackend, Fragments(size))
			apply(b, be, size.Services)
			middle := size.Services / 2
			versions := []*fwd.Fragment{Fragment(middle, size.Endpoints), Fragment(middle, size.Endpoints)}
			less := &versions[0].Pools[0].Endpoints
			*less = (*less)[:size.Endpoints-1]
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				be.Update(table.Put(versions[i%2]))
				apply(b, be, 1)
			}
		})
	}
}

// apply fails the benchmark if there is less to write than so many objects.
func apply(b *testing.B, be backend.Backend, atLeast int) {
	b.Helper()
	if res, err := be.Apply(b.Context()); err != nil || res.Written+res.Deleted < atLeast {
		b.Fatalf("%+v: %v", res, err)
	}
}

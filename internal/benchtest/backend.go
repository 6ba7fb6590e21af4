package benchtest

import (
	"testing"

	"github.com/fairlead/fairlead/internal/backend"
	"github.com/fairlead/fairlead/internal/fwd"
)

// changes are those of a table that a whole cluster is put into, and the table.
func changes(fragments []*fwd.Fragment) ([]fwd.Changes, *fwd.Table) {
	table := &fwd.Table{}
	out := []fwd.Changes{table.SetHeader(Header())}
	for _, f := range fragments {
		out = append(out, table.Put(f))
	}
	return out, table
}

// render makes a backend render all changes, whether it does that when it is told of them or when
// it is asked what it wants. Nothing is written.
func render(be backend.Backend, all []fwd.Changes) {
	for _, ch := range all {
		be.Update(ch)
	}
	be.Bare()
}

// Render measures how a backend makes objects of a whole cluster. newBackend makes one for IPv4
// alone.
func Render(b *testing.B, newBackend func() backend.Backend) {
	for _, size := range Sizes {
		b.Run(size.String(), func(b *testing.B) {
			all, _ := changes(Fragments(size))
			PerService(b, size.Services, func() func() {
				be := newBackend()
				return func() { render(be, all) }
			})
		})
	}
}

// Apply measures how a backend writes the objects of a whole cluster, which are rendered already.
func Apply(b *testing.B, newBackend func() backend.Backend) {
	for _, size := range Sizes {
		b.Run(size.String(), func(b *testing.B) {
			all, _ := changes(Fragments(size))
			PerService(b, size.Services, func() func() {
				be := newBackend()
				render(be, all)
				return func() { apply(b, be, size.Services) }
			})
		})
	}
}

// Change measures how a backend renders and writes that one of many Services loses an endpoint or
// gets it back.
func Change(b *testing.B, newBackend func() backend.Backend) {
	for _, size := range Sizes {
		b.Run(size.String(), func(b *testing.B) {
			all, table := changes(Fragments(size))
			be := newBackend()
			render(be, all)
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

package backend

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"strings"
	"testing"

	"github.com/fairlead/fairlead/internal/fwd"
)

// memory is a Target and a Renderer of one object for each Service.
type memory map[fwd.Service]string

func (m memory) Read(context.Context) (map[fwd.Service]string, error) { return maps.Clone(m), nil }

func (m memory) Write(_ context.Context, p Plan[fwd.Service, string], done func(fwd.Service)) error {
	for s, v := range p.Upserts {
		m[s] = v
		done(s)
	}
	for s := range p.Deletes {
		delete(m, s)
		done(s)
	}
	return nil
}

func (m memory) Render(ch fwd.Changes) (out []Edit[fwd.Service, string]) {
	for _, s := range ch.Services {
		out = append(out, Edit[fwd.Service, string]{Key: s.Owner, Value: "rules", Delete: s.New == nil})
	}
	return out
}

func (m memory) engine(f fwd.Family) Backend {
	return NewEngine[fwd.Service, string](f, m, m, func(a, b string) bool { return a == b })
}

var errBusy = errors.New("lock held")

// TestOpen: a family that cannot be opened yet is opened by a later reading and then gets what it
// missed; one that the machine does not have is left out; there must be one.
func TestOpen(t *testing.T) {
	ctx, log := t.Context(), &strings.Builder{}
	kernels := [2]memory{{}, {{Name: "left"}: "rules"}}
	failure := [2]error{nil, errBusy}
	open := func(context.Context) (Families, error) {
		return Open(ctx, slog.New(slog.NewTextHandler(log, nil)), func(_ context.Context, f fwd.Family) (Backend, error) {
			return kernels[f.Index()].engine(f), failure[f.Index()]
		}, func(err error) bool { return errors.Is(err, errBusy) })
	}
	b, err := open(ctx)
	if err != nil || b[0] == nil || b[1] == nil {
		t.Fatalf("%v, %v", b, err)
	}
	service := func(name string) *fwd.Fragment {
		return &fwd.Fragment{Owner: fwd.Service{Name: name}, CreatedUnix: 1, Leaving: nil, HealthCheck: fwd.HealthCheck{Port: 1}}
	}
	var table fwd.Table
	b.Update(table.Put(service("a")))
	b.Update(table.Put(service("b")))
	b.Update(table.Remove(fwd.Service{Name: "a"}))
	if _, err := b[1].Observe(ctx); !errors.Is(err, errBusy) {
		t.Errorf("read before it is open: %v", err)
	}
	var fe *FamilyError
	if _, err := b[1].Apply(ctx); !errors.As(err, &fe) || fe.Family != fwd.IPv6 || fe.Refused {
		t.Errorf("written before it is open: %v", err)
	}
	failure[1] = nil
	r := b[1].Begin()
	if err := r.Read(ctx); err != nil {
		t.Fatal(err)
	}
	b.Update(table.Put(service("c")))
	if _, ok := r.Accept(); !ok {
		t.Error("the first reading is void")
	}
	b.Update(table.Put(service("d")))
	if _, err := b[1].Apply(ctx); err != nil {
		t.Fatal(err)
	}
	if want := (memory{{Name: "b"}: "rules", {Name: "c"}: "rules", {Name: "d"}: "rules"}); !maps.Equal(kernels[1], want) {
		t.Errorf("kernel %v, want %v", kernels[1], want)
	}

	failure[1] = errors.New("no such table")
	if b, err = open(ctx); err != nil || b[0] == nil || b[1] != nil {
		t.Errorf("a family that the machine does not have: %v, %v", b, err)
	}
	if n := strings.Count(log.String(), "address family is not available"); n != 1 {
		t.Errorf("%d warnings\n%s", n, log)
	}
	failure[0] = errBusy
	if _, err = open(ctx); !errors.Is(err, errBusy) {
		t.Errorf("no family opens: %v", err)
	}
}

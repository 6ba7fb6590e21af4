package backend

import (
	"context"
	"errors"
	"time"

	"github.com/fairlead/fairlead/internal/fwd"
)

// Families holds the Backends of a node by fwd.Family.Index; nil for a family that the node does
// not serve. The loop drives each separately. As a Backend, for tests and tools, Families forwards
// each call to all of them, even if one fails.
type Families [2]Backend

// served returns the Backends of the families that the node serves.
func (f Families) served() []Backend {
	var out []Backend
	for _, b := range f {
		if b != nil {
			out = append(out, b)
		}
	}
	return out
}

// Served returns, by fwd.Family.Index, which families the node serves.
func (f Families) Served() [2]bool { return [2]bool{f[0] != nil, f[1] != nil} }

// Update implements Backend.
func (f Families) Update(ch fwd.Changes) {
	for _, b := range f.served() {
		b.Update(ch)
	}
}

// Apply implements Backend. It plans each family after the previous one is written, so that only
// one plan is in memory.
func (f Families) Apply(ctx context.Context) (Result, error) {
	var sum Result
	var errs []error
	for _, b := range f.served() {
		res, err := b.Apply(ctx)
		sum, errs = sum.Add(res), append(errs, err)
	}
	return sum, errors.Join(errs...)
}

// Tend implements Tender.
func (f Families) Tend(ctx context.Context, now time.Time) (next time.Time) {
	for _, b := range f.served() {
		if t, ok := b.(Tender); ok {
			if at := t.Tend(ctx, now); next.IsZero() || !at.IsZero() && at.Before(next) {
				next = at
			}
		}
	}
	return next
}

// Observe implements Backend.
func (f Families) Observe(ctx context.Context) (int, error) {
	drifted := 0
	var errs []error
	for _, b := range f.served() {
		n, err := b.Observe(ctx)
		drifted, errs = drifted+n, append(errs, err)
	}
	return drifted, errors.Join(errs...)
}

// Bare implements Backend.
func (f Families) Bare() bool {
	for _, b := range f.served() {
		if !b.Bare() {
			return false
		}
	}
	return true
}

// Begin implements Backend.
func (f Families) Begin() Reading {
	var out readings
	for _, b := range f.served() {
		out = append(out, b.Begin())
	}
	return out
}

// Cleanup implements Backend.
func (f Families) Cleanup(ctx context.Context) error {
	var errs []error
	for _, b := range f.served() {
		errs = append(errs, b.Cleanup(ctx))
	}
	return errors.Join(errs...)
}

type readings []Reading

func (rs readings) Read(ctx context.Context) error {
	var errs []error
	for _, r := range rs {
		errs = append(errs, r.Read(ctx))
	}
	return errors.Join(errs...)
}

func (rs readings) Accept() (drifted int, ok bool) {
	ok = true
	for _, r := range rs {
		n, accepted := r.Accept()
		drifted, ok = drifted+n, ok && accepted
	}
	return drifted, ok
}

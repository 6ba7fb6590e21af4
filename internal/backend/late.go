package backend

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"time"

	"github.com/fairlead/fairlead/internal/fwd"
)

// Open opens the families of a node. One that the kernel or its tools do not support is left out,
// with a warning. One that fails for a reason that may pass (transient) is opened later, by a
// reading of the kernel, so that the loop retries it. At least one family must open.
func Open(ctx context.Context, log *slog.Logger, open func(context.Context, fwd.Family) (Backend, error), transient func(error) bool) (Families, error) {
	var out Families
	var errs []error
	for _, f := range fwd.Families {
		b, err := open(ctx, f)
		if err == nil {
			out[f.Index()] = b
		} else {
			errs = append(errs, fmt.Errorf("%s: %w", f, err))
		}
	}
	if len(errs) == len(fwd.Families) {
		return out, errors.Join(errs...)
	}
	for _, f := range fwd.Families {
		if out[f.Index()] != nil {
			continue
		}
		if err := errs[0]; transient(err) {
			log.Warn("address family cannot be opened yet, retrying", "error", err)
			out[f.Index()] = newLate(f, open)
		} else {
			log.Warn("address family is not available", "error", err)
		}
	}
	return out, nil
}

// late is the Backend of a family that is not open yet: the first reading that succeeds opens it.
type late struct {
	family fwd.Family
	open   func(context.Context, fwd.Family) (Backend, error)
	// backend is nil until a reading was accepted; until then the other fields hold what it has to
	// know.
	backend  Backend
	header   *fwd.Header
	services map[fwd.Service]*fwd.Fragment
	vips     map[netip.Addr]fwd.VIP
}

var _ Tender = (*late)(nil)

func newLate(f fwd.Family, open func(context.Context, fwd.Family) (Backend, error)) *late {
	return &late{family: f, open: open, services: make(map[fwd.Service]*fwd.Fragment), vips: make(map[netip.Addr]fwd.VIP)}
}

// Update implements Backend.
func (l *late) Update(ch fwd.Changes) {
	if l.backend != nil {
		l.backend.Update(ch)
		return
	}
	if ch.Header != nil {
		l.header = ch.Header
	}
	for _, s := range ch.Services {
		if s.New != nil {
			l.services[s.Owner] = s.New
		} else {
			delete(l.services, s.Owner)
		}
	}
	for _, v := range ch.VIPs {
		if v.Gone {
			delete(l.vips, v.VIP.Addr)
		} else {
			l.vips[v.VIP.Addr] = v.VIP
		}
	}
}

// accept goes on with an open Backend.
func (l *late) accept(b Backend) {
	ch := fwd.Changes{Header: l.header}
	for owner, f := range l.services {
		ch.Services = append(ch.Services, fwd.ServiceChange{Owner: owner, New: f})
	}
	for _, v := range l.vips {
		ch.VIPs = append(ch.VIPs, fwd.VIPChange{VIP: v})
	}
	b.Update(ch)
	l.backend, l.header, l.services, l.vips = b, nil, nil, nil
}

// Apply implements Backend.
func (l *late) Apply(ctx context.Context) (Result, error) {
	if l.backend == nil {
		return Result{}, &FamilyError{Family: l.family, Err: errors.New("not open")}
	}
	return l.backend.Apply(ctx)
}

// Bare implements Backend.
func (l *late) Bare() bool { return l.backend != nil && l.backend.Bare() }

// Tend implements Tender.
func (l *late) Tend(ctx context.Context, now time.Time) time.Time {
	if t, ok := l.backend.(Tender); ok {
		return t.Tend(ctx, now)
	}
	return time.Time{}
}

// Observe implements Backend.
func (l *late) Observe(ctx context.Context) (int, error) {
	r := l.Begin()
	if err := r.Read(ctx); err != nil {
		return 0, err
	}
	drifted, _ := r.Accept()
	return drifted, nil
}

// Begin implements Backend.
func (l *late) Begin() Reading {
	if l.backend != nil {
		return l.backend.Begin()
	}
	return &lateReading{late: l}
}

// Cleanup implements Backend.
func (l *late) Cleanup(ctx context.Context) error {
	if _, err := l.Observe(ctx); err != nil {
		return err
	}
	return l.backend.Cleanup(ctx)
}

// lateReading opens a Backend and reads the kernel.
type lateReading struct {
	Reading
	late    *late
	backend Backend
}

// Read implements Reading.
func (r *lateReading) Read(ctx context.Context) error {
	b, err := r.late.open(ctx, r.late.family)
	if err != nil {
		return &FamilyError{Family: r.late.family, Err: fmt.Errorf("open: %w", err)}
	}
	r.backend, r.Reading = b, b.Begin()
	return r.Reading.Read(ctx)
}

// Accept implements Reading.
func (r *lateReading) Accept() (drifted int, ok bool) {
	if r.Reading == nil || r.late.backend != nil {
		return 0, false
	}
	r.late.accept(r.backend)
	return r.Reading.Accept()
}

package backend

import (
	"context"
	"errors"
	"time"

	"github.com/fairlead/fairlead/internal/fwd"
)

// Join makes one Backend of those of the families. Each does its work whether or not another one fails.
func Join(families ...Backend) Backend { return joined(families) }

type joined []Backend

func (j joined) Update(ch fwd.Changes) {
	for _, b := range j {
		b.Update(ch)
	}
}

// Apply plans each family when the one before it is written, so that there are never two plans in memory.
func (j joined) Apply(ctx context.Context) (Result, error) {
	var sum Result
	var errs []error
	for _, b := range j {
		res, err := b.Apply(ctx)
		sum, errs = sum.Add(res), append(errs, err)
	}
	return sum, errors.Join(errs...)
}

// Tend implements Tender for those that are one.
func (j joined) Tend(ctx context.Context, now time.Time) (next time.Time) {
	for _, b := range j {
		if t, ok := b.(Tender); ok {
			if at := t.Tend(ctx, now); next.IsZero() || !at.IsZero() && at.Before(next) {
				next = at
			}
		}
	}
	return next
}

func (j joined) Observe(ctx context.Context) (int, error) {
	drifted := 0
	var errs []error
	for _, b := range j {
		n, err := b.Observe(ctx)
		drifted, errs = drifted+n, append(errs, err)
	}
	return drifted, errors.Join(errs...)
}

func (j joined) Bare() bool {
	for _, b := range j {
		if !b.Bare() {
			return false
		}
	}
	return true
}

func (j joined) Begin() Reading {
	readings := make(joinedReading, len(j))
	for i, b := range j {
		readings[i] = b.Begin()
	}
	return readings
}

func (j joined) Cleanup(ctx context.Context) error {
	var errs []error
	for _, b := range j {
		errs = append(errs, b.Cleanup(ctx))
	}
	return errors.Join(errs...)
}

type joinedReading []Reading

func (j joinedReading) Read(ctx context.Context) error {
	var errs []error
	for _, r := range j {
		errs = append(errs, r.Read(ctx))
	}
	return errors.Join(errs...)
}

func (j joinedReading) Accept() int {
	drifted := 0
	for _, r := range j {
		drifted += r.Accept()
	}
	return drifted
}

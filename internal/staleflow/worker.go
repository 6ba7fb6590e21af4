package staleflow

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fairlead/fairlead/internal/fwd"
	"github.com/fairlead/fairlead/internal/host/conntrack"
)

const (
	// batchSize is how many stale flows are collected before they are deleted; it bounds the memory of a pass.
	batchSize = 500
	// After a pass the worker rests restFactor times as long as the pass took, at most maxRest, so that a cluster in which
	// UDP endpoints change all the time does not cost the node a core.
	restFactor = 4
	maxRest    = 30 * time.Second
)

// Pass is the outcome of looking at the flows of one family.
type Pass struct {
	Family fwd.Family
	// Deleted counts the flows that were removed, by Reason.
	Deleted [NumReasons]int
	// Duration is how long it took.
	Duration time.Duration
	// Complete is false where the kernel left flows out of the dump.
	Complete bool
	// Err is why the pass failed. Flows may have been deleted all the same.
	Err error
}

// Stats are totals since the start of the process.
type Stats struct {
	// Deleted counts flows that were removed, by fwd.Family.Index and Reason.
	Deleted [2][NumReasons]uint64
	// Passes and Failed count passes, and those of them that failed, by fwd.Family.Index.
	Passes, Failed [2]uint64
}

// Worker removes stale flows in its own time. Submit and Stats may be called from any goroutine.
type Worker struct {
	table conntrack.Table
	log   *slog.Logger
	done  func(Pass)

	wake chan struct{}

	mu      sync.Mutex // guards pending
	pending Plan

	deleted        [2][NumReasons]atomic.Uint64
	passes, failed [2]atomic.Uint64
}

// NewWorker returns a worker on a table. done, if not nil, is called by Run after each pass, for metrics.
func NewWorker(table conntrack.Table, log *slog.Logger, done func(Pass)) *Worker {
	return &Worker{table: table, log: log, done: done, wake: make(chan struct{}, 1)}
}

// Submit hands over a plan and returns at once. A plan that was not begun yet is merged with it.
func (w *Worker) Submit(p Plan) {
	w.mu.Lock()
	w.pending = w.pending.merge(p)
	empty := w.pending.Empty()
	w.mu.Unlock()
	if empty {
		return
	}
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// Stats returns the totals.
func (w *Worker) Stats() Stats {
	var s Stats
	for i := range s.Deleted {
		for r := range s.Deleted[i] {
			s.Deleted[i][r] = w.deleted[i][r].Load()
		}
		s.Passes[i], s.Failed[i] = w.passes[i].Load(), w.failed[i].Load()
	}
	return s
}

// Run works until the context ends. It is called once, in a goroutine of the caller, who waits for it.
func (w *Worker) Run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-w.wake:
		}
		w.mu.Lock()
		plan := w.pending
		w.pending = Plan{header: plan.header}
		w.mu.Unlock()

		begin := time.Now()
		w.work(ctx, plan)
		select {
		case <-ctx.Done():
			return
		case <-time.After(min(restFactor*time.Since(begin), maxRest)):
		}
	}
}

// work carries out a plan. A family that fails is put back, for the next Submit.
func (w *Worker) work(ctx context.Context, plan Plan) {
	for _, f := range fwd.Families {
		if !plan.has(f) || ctx.Err() != nil {
			continue
		}
		pass := w.pass(ctx, plan, f)
		if ctx.Err() != nil {
			return
		}
		if pass.Err != nil {
			back := Plan{header: plan.header}
			back.families[f.Index()] = plan.families[f.Index()]
			w.mu.Lock()
			w.pending = back.merge(w.pending)
			w.mu.Unlock()
		}
		w.report(pass)
	}
}

// pass streams the flows of one family and removes the stale ones.
func (w *Worker) pass(ctx context.Context, plan Plan, f fwd.Family) Pass {
	p := Pass{Family: f}
	begin := time.Now()
	var batches [NumReasons][]conntrack.Flow
	var deleteErr error // the first one; the others' are most likely the same
	remove := func(r Reason) {
		n, err := w.table.Delete(ctx, batches[r])
		p.Deleted[r] += n
		batches[r] = batches[r][:0]
		if deleteErr == nil {
			deleteErr = err
		}
	}
	complete, err := w.table.Dump(ctx, f == fwd.IPv6, uint8(fwd.UDP), func(fl conntrack.Flow) bool {
		if r, stale := plan.Stale(fl); stale {
			if batches[r] = append(batches[r], fl); len(batches[r]) == batchSize {
				remove(r)
			}
		}
		return true
	})
	for r := range batches {
		if len(batches[r]) > 0 {
			remove(Reason(r))
		}
	}
	p.Complete, p.Err = complete, errors.Join(err, deleteErr)
	p.Duration = time.Since(begin)
	return p
}

// report counts and logs a pass.
func (w *Worker) report(p Pass) {
	i := p.Family.Index()
	w.passes[i].Add(1)
	total := 0
	for r, n := range p.Deleted {
		w.deleted[i][r].Add(uint64(n))
		total += n
	}
	attrs := []any{"family", p.Family.String(), "duration", p.Duration, "complete", p.Complete}
	for r, n := range p.Deleted {
		if n > 0 {
			attrs = append(attrs, Reason(r).String(), n)
		}
	}
	switch {
	case p.Err != nil:
		w.failed[i].Add(1)
		w.log.Warn("Removing stale UDP flows failed; the next change of a UDP Service tries again", append(attrs, "err", p.Err)...)
	case total > 0:
		w.log.Info("Removed stale UDP flows", attrs...)
	default:
		w.log.Debug("No stale UDP flows", attrs...)
	}
	if w.done != nil {
		w.done(p)
	}
}

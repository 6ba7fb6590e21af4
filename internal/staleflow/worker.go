package staleflow

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/fairlead/fairlead/internal/fwd"
	"github.com/fairlead/fairlead/internal/host/conntrack"
)

const (
	// batchSize is how many stale flows are collected before they are deleted, which limits the
	// memory of a pass.
	batchSize = 500
	// After a pass the worker pauses for pauseFactor times the duration of the pass, at most
	// maxPause, so that a cluster in which UDP endpoints change all the time does not cost the node
	// a core.
	pauseFactor = 4
	maxPause    = 30 * time.Second
	// A pass that failed or was interrupted is retried after firstRetry, then after twice as long
	// each time, up to maxRetry.
	firstRetry = time.Second
	maxRetry   = time.Minute
)

// Pass is the result of checking the flows of one family.
type Pass struct {
	Family fwd.Family
	// Deleted counts the flows that were removed, by Reason.
	Deleted  [NumReasons]int
	Duration time.Duration
	// Complete is false if the kernel may have left flows out of a dump.
	Complete bool
	// Err is why the pass failed. Flows may have been deleted nevertheless.
	Err error
}

// Worker removes stale flows in the background. Submit may be called from any goroutine.
type Worker struct {
	table conntrack.Table
	log   *slog.Logger
	done  func(Pass)

	wake chan struct{}

	mu      sync.Mutex // guards pending
	pending Plan

	// failing says, by fwd.Family.Index, that the last pass failed; it belongs to Run.
	failing [2]bool
}

// NewWorker returns a worker on a table. done, if not nil, is called by Run after each pass, for
// metrics.
func NewWorker(table conntrack.Table, log *slog.Logger, done func(Pass)) *Worker {
	return &Worker{table: table, log: log, done: done, wake: make(chan struct{}, 1)}
}

// Submit passes on a plan without waiting. It is merged with a plan that waits already.
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

// Run carries out plans until the context ends. It is called once, and the caller waits for it.
func (w *Worker) Run(ctx context.Context) {
	var retry <-chan time.Time
	wait := firstRetry
	for {
		select {
		case <-ctx.Done():
			return
		case <-w.wake:
		case <-retry:
		}
		w.mu.Lock()
		plan := w.pending
		w.pending = Plan{header: plan.header}
		w.mu.Unlock()

		begin := time.Now()
		done := w.work(ctx, plan)
		pause := min(pauseFactor*time.Since(begin), maxPause)
		if done {
			retry, wait = nil, firstRetry
		} else {
			retry = time.After(max(wait, pause))
			wait = min(2*wait, maxRetry)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
	}
}

// work carries out a plan. It puts back the families whose pass failed or was interrupted, and then
// returns false.
func (w *Worker) work(ctx context.Context, plan Plan) (done bool) {
	done = true
	for _, f := range fwd.Families {
		if !plan.has(f) || ctx.Err() != nil {
			continue
		}
		pass := w.pass(ctx, plan, f)
		if ctx.Err() != nil {
			return false
		}
		if pass.Err != nil || !pass.Complete {
			done = false
			back := Plan{header: plan.header}
			back.families[f.Index()] = plan.families[f.Index()]
			w.mu.Lock()
			w.pending = back.merge(w.pending)
			w.mu.Unlock()
		}
		w.report(ctx, pass)
	}
	return done
}

// pass streams the flows of one family and removes the stale ones.
func (w *Worker) pass(ctx context.Context, plan Plan, f fwd.Family) Pass {
	p := Pass{Family: f, Complete: true}
	begin := time.Now()
	var batches [NumReasons][]conntrack.Flow
	var deleteErr error // the first one; later ones are probably the same
	remove := func(r Reason) {
		n, err := w.table.Delete(ctx, batches[r])
		p.Deleted[r] += n
		batches[r] = batches[r][:0]
		if deleteErr == nil {
			deleteErr = err
		}
	}
	judge := func(fl conntrack.Flow) bool {
		if r, stale := plan.Stale(fl); stale {
			if batches[r] = append(batches[r], fl); len(batches[r]) == batchSize {
				remove(r)
			}
		}
		return true
	}
	var errs []error
	dump := func(q conntrack.Query) {
		complete, err := w.table.Dump(ctx, q, judge)
		p.Complete, errs = p.Complete && complete, append(errs, err)
	}
	if plan.hasUDP(f) {
		dump(conntrack.Query{IPv6: f == fwd.IPv6, Proto: uint8(fwd.UDP)})
	}
	if plan.hasTCP(f) {
		dump(conntrack.Query{IPv6: f == fwd.IPv6, Proto: uint8(fwd.TCP), Opening: true})
	}
	for r := range batches {
		if len(batches[r]) > 0 {
			remove(Reason(r))
		}
	}
	p.Err = errors.Join(append(errs, deleteErr)...)
	p.Duration = time.Since(begin)
	return p
}

// report logs a pass and calls done.
func (w *Worker) report(ctx context.Context, p Pass) {
	total := 0
	attrs := []any{"family", p.Family.String(), "duration", p.Duration, "complete", p.Complete}
	for r, n := range p.Deleted {
		total += n
		if n > 0 {
			attrs = append(attrs, Reason(r).String(), n)
		}
	}
	failing := &w.failing[p.Family.Index()]
	switch {
	case p.Err != nil:
		level := slog.LevelWarn
		if *failing { // logged already
			level = slog.LevelDebug
		}
		w.log.Log(ctx, level, "failed to remove stale flows, retrying", append(attrs, "error", p.Err)...)
	case total > 0:
		w.log.Info("removed stale flows", attrs...)
	default:
		w.log.Debug("no stale flows", attrs...)
	}
	*failing = p.Err != nil
	if w.done != nil {
		w.done(p)
	}
}

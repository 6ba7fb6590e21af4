package main

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/fairlead/fairlead/internal/backend"
	"github.com/fairlead/fairlead/internal/fwd"
	"github.com/fairlead/fairlead/internal/kube"
	"github.com/fairlead/fairlead/internal/localport"
	"github.com/fairlead/fairlead/internal/staleflow"
)

// flowAdapter makes plans for those who follow a sync: the worker that removes stale flows, and the forwarder of node ports
// on loopback addresses. It belongs to the loop's goroutine.
type flowAdapter struct {
	builder staleflow.Builder
	worker  *staleflow.Worker
	local   *localport.Forwarder
	// finder knows what was in the kernel before this process; nil where the backend does not.
	finder backend.Finder
}

// Update implements reconcile.Flows.
func (a *flowAdapter) Update(ch fwd.Changes) {
	a.builder.Update(ch)
	a.local.Update(ch)
}

// Submit implements reconcile.Flows.
func (a *flowAdapter) Submit(written [2]bool, all bool) {
	if a.finder != nil {
		a.builder.Found(a.finder.Found())
	}
	a.worker.Submit(a.builder.Snapshot(written, all))
	a.local.Sync()
}

// eventAdapter reports Events; without a Recorder it drops them.
type eventAdapter struct{ recorder *kube.Recorder }

// Warn implements reconcile.Events.
func (a eventAdapter) Warn(s fwd.Service, reason, message string) {
	a.recorder.Service(s, true, reason, message)
}

// group runs the daemon's goroutines. The first that fails ends the others. run and wait belong to one goroutine.
type group struct {
	cancel context.CancelCauseFunc
	parts  []part
}

type part struct {
	name string
	done chan struct{}
}

// failure is the cause of a context that ended because a goroutine failed; a signal has another cause.
type failure struct {
	name string
	err  error
}

func (f *failure) Error() string { return f.name + ": " + f.err.Error() }

// Unwrap returns the cause.
func (f *failure) Unwrap() error { return f.err }

func (g *group) run(name string, fn func() error) {
	p := part{name, make(chan struct{})}
	g.parts = append(g.parts, p)
	go func() {
		defer close(p.done)
		if err := fn(); err != nil {
			g.cancel(&failure{name, err})
		}
	}()
}

// grace is how long parts have to end when they are told to. All that they write to the kernel is whole at any time, so that
// one which waits for a program or for an answer need not be waited for.
const grace = 700 * time.Millisecond

// wait returns when the context has ended and all goroutines have, or had the time to: the failure of the first that failed,
// or nil where the context ended for another reason.
func (g *group) wait(ctx context.Context, log *slog.Logger) error {
	<-ctx.Done()
	over := make(chan struct{})
	defer time.AfterFunc(grace, func() { close(over) }).Stop()
	var left []string
	for _, p := range g.parts {
		select {
		case <-p.done:
			continue
		default:
		}
		select {
		case <-p.done:
		case <-over:
			left = append(left, p.name)
		}
	}
	if len(left) > 0 {
		log.Warn("ending without parts that do not end", "parts", left)
	}
	var f *failure
	if errors.As(context.Cause(ctx), &f) {
		return f
	}
	return nil
}

package main

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"time"
)

// group runs the daemon's goroutines. The first that fails ends the others. Any goroutine may call
// run.
type group struct {
	cancel context.CancelCauseFunc

	mu    sync.Mutex // guards parts
	parts []part
}

type part struct {
	name string
	done chan struct{}
}

// failure is the cause of a context that ended because a part failed. A signal has another cause.
type failure struct {
	part string
	err  error
}

func (f *failure) Error() string { return f.part + ": " + f.err.Error() }

// Unwrap returns the cause.
func (f *failure) Unwrap() error { return f.err }

func (g *group) run(name string, fn func() error) {
	p := part{name, make(chan struct{})}
	g.mu.Lock()
	g.parts = append(g.parts, p)
	g.mu.Unlock()
	go func() {
		defer close(p.done)
		if err := fn(); err != nil {
			g.cancel(&failure{name, err})
		}
	}()
}

// shutdownTimeout is how long parts may take to end. Every single write to the kernel is complete,
// so a part that waits for a program or for a response need not be waited for.
const shutdownTimeout = 700 * time.Millisecond

// wait returns when the context has ended and all parts have too, or shutdownTimeout is over: the
// failure of the first part that failed, or nil if the context ended for another reason.
func (g *group) wait(ctx context.Context, log *slog.Logger) error {
	<-ctx.Done()
	g.mu.Lock()
	parts := slices.Clone(g.parts)
	g.mu.Unlock()
	timeout := make(chan struct{})
	defer time.AfterFunc(shutdownTimeout, func() { close(timeout) }).Stop()
	var running []string
	for _, p := range parts {
		select {
		case <-p.done:
			continue
		default:
		}
		select {
		case <-p.done:
		case <-timeout:
			running = append(running, p.name)
		}
	}
	if len(running) > 0 {
		log.Warn("shutdown timed out, still running", "parts", running)
	}
	var f *failure
	if errors.As(context.Cause(ctx), &f) {
		return f
	}
	return nil
}

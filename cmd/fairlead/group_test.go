package main

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"testing"
)

func TestGroup(t *testing.T) {
	broken := errors.New("broken")
	untilEnd := func(ctx context.Context, err error) func() error {
		return func() error {
			<-ctx.Done()
			return err
		}
	}
	t.Run("a failure ends the others and is returned", func(t *testing.T) {
		ctx, cancel := context.WithCancelCause(t.Context())
		g := group{cancel: cancel}
		g.run("other", untilEnd(ctx, nil))
		g.run("part", func() error { return broken })
		if err := g.wait(ctx, slog.New(slog.DiscardHandler)); !errors.Is(err, broken) || err.Error() != "part: broken" {
			t.Errorf("got %v", err)
		}
	})
	t.Run("a signal is no failure, nor what fails because of it", func(t *testing.T) {
		parent, stop := signal.NotifyContext(t.Context(), syscall.SIGUSR1)
		defer stop()
		ctx, cancel := context.WithCancelCause(parent)
		g := group{cancel: cancel}
		g.run("part", untilEnd(ctx, broken))
		if err := syscall.Kill(os.Getpid(), syscall.SIGUSR1); err != nil {
			t.Fatal(err)
		}
		if err := g.wait(ctx, slog.New(slog.DiscardHandler)); err != nil {
			t.Errorf("got %v", err)
		}
	})
}

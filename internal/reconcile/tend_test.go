package reconcile

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fairlead/fairlead/internal/backend"
	"github.com/fairlead/fairlead/internal/config"
)

// tended is a Backend that wants to be tended again after each of the pauses, and then no more.
type tended struct {
	backend.Backend
	pauses []time.Duration
	at     []time.Time
}

func (b *tended) Tend(_ context.Context, now time.Time) time.Time {
	turn.Load()
	b.at = append(b.at, now)
	if len(b.pauses) == 0 {
		return time.Time{}
	}
	next := now.Add(b.pauses[0])
	b.pauses = b.pauses[1:]
	return next
}

// A backend is tended after each Apply and when it asked for it, also while syncs fail.
func TestTend(t *testing.T) {
	for _, failing := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			cfg, err := config.Parse([]string{"--cluster-cidr=10.0.0.0/8,fd00::/8", "--iptables-sync-period=1h"}, func() (string, error) { return "n1", nil })
			if err != nil {
				t.Fatal(err)
			}
			kernels := &[2]fakeKernel{}
			backends := newFakeBackends(kernels)
			b := &tended{Backend: backends[0]}
			backends[0] = b
			if failing {
				kernels[0].failWrite = errors.New("lock held")
			}
			feed := &fakeFeed{wake: make(chan struct{}, 1)}
			l := New(Options{Config: cfg, Feed: feed, Backends: backends, Logger: slog.New(slog.NewTextHandler(&bytes.Buffer{}, nil))})
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error)
			go func() { done <- l.Run(ctx) }()
			feed.change(func() { feed.synced = true })
			time.Sleep(time.Minute)
			synctest.Wait()
			b.at, b.pauses = nil, []time.Duration{time.Second, 40 * time.Second}
			feed.put(service(1, 0))
			turn.Add(1)
			start := time.Now()
			time.Sleep(41 * time.Second)
			synctest.Wait()
			if failing {
				// Each retry is an Apply as well.
				if n := len(b.at); n < 5 || !b.at[0].Equal(start) {
					t.Errorf("tended %d times while syncs fail", n)
				}
			} else {
				var at []time.Duration
				for _, a := range b.at {
					at = append(at, a.Sub(start))
				}
				if len(at) != 3 || at[0] != 0 || at[1] != time.Second || at[2] != 41*time.Second {
					t.Errorf("tended after %v, want after 0s, 1s and 41s", at)
				}
				feed.put(service(2, 0))
				synctest.Wait()
				turn.Add(1)
				if len(b.at) != 4 {
					t.Errorf("tended %d times, want once more after a change", len(b.at))
				}
			}
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
	}
}

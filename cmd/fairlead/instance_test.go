package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/fairlead/fairlead/internal/config"
	"github.com/fairlead/fairlead/internal/host/nodelock"
	"github.com/fairlead/fairlead/internal/instance"
)

// instanceOfTest is a configuration whose instance no other test has.
func instanceOfTest(t *testing.T) *config.Config {
	return &config.Config{ServiceProxyName: fmt.Sprintf("%s-%d", t.Name(), os.Getpid()), Mode: config.ModeIPTables}
}

// safeBuffer is a log that one goroutine writes and another reads.
type safeBuffer struct {
	mu sync.Mutex // guards b
	b  bytes.Buffer
}

func (s *safeBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *safeBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func TestTheSecondOfAnInstanceWaitsAndTakesOver(t *testing.T) {
	cfg := instanceOfTest(t)
	log := &safeBuffer{}
	logger := slog.New(slog.NewTextHandler(log, nil))
	first, err := claim(t.Context(), cfg, func(string) { t.Error("the first waits") }, nil, logger)
	if err != nil || first == nil {
		t.Fatalf("the first: %v, %v", first, err)
	}
	var note string
	waits := make(chan struct{}, 100)
	type result struct {
		lock *nodelock.Lock
		err  error
	}
	done := make(chan result)
	go func() {
		lock, err := claim(t.Context(), cfg, func(n string) { note = n; waits <- struct{}{} }, nil, logger)
		done <- result{lock, err}
	}()
	<-waits
	if p := <-first.Visitors(); p != (nodelock.Process{Instance: cfg.ServiceProxyName, Mode: "iptables", Version: version(), PID: os.Getpid()}) {
		t.Errorf("the first has the visitor %+v", p)
	}
	if !strings.Contains(note, fmt.Sprint("process ", os.Getpid())) {
		t.Errorf("on standby it says %q", note)
	}
	select {
	case r := <-done:
		t.Fatalf("the second did not wait: %v", r)
	default:
	}
	first.Release()
	r := <-done
	if r.err != nil || r.lock == nil {
		t.Fatalf("the second: %v", r)
	}
	if text := log.String(); strings.Count(text, "waiting until it stops") != 1 || !strings.Contains(text, "taking over") {
		t.Errorf("the log says\n%s", text)
	}

	// A signal ends the wait.
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		lock, err := claim(ctx, cfg, func(string) { cancel() }, nil, logger)
		done <- result{lock, err}
	}()
	if r := <-done; r.lock != nil || !errors.Is(r.err, context.Canceled) {
		t.Errorf("after a signal: %v", r)
	}
	r.lock.Release()
}

func TestCleanupKeepsWhatARunningDaemonOwns(t *testing.T) {
	cfg := instanceOfTest(t)
	id := instance.Of(cfg.ServiceProxyName)
	var out bytes.Buffer
	c := cleaner{streams: streams{&out, io.Discard}, log: slog.New(slog.DiscardHandler)}
	release, err := c.hold(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	// A daemon that starts meanwhile waits.
	if _, err := nodelock.Acquire(t.Context(), id.Table(), process(cfg)); err == nil {
		t.Error("a daemon can start during the clean-up")
	}
	release()
	lock, err := nodelock.Acquire(t.Context(), id.Table(), process(cfg))
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Release()
	for _, c.dryRun = range []bool{false, true} {
		out.Reset()
		if _, err := c.hold(t.Context(), id); err == nil || !strings.Contains(err.Error(), "stop it first") || !strings.Contains(out.String(), id.Table()) {
			t.Errorf("dry run %t: %v, %s", c.dryRun, err, out.String())
		}
	}
}

// TestASharedNodeStaysOne when the configuration file changes: whether others are there is not in
// it.
func TestASharedNodeStaysOne(t *testing.T) {
	first := &config.Config{NodeName: "n"}
	a := newSettings(first)
	a.changed = make(chan *config.Config, 3)
	to := a.changed
	a.set(t.Context(), &config.Config{NodeName: "n", MasqueradeAll: true})
	if c := <-to; c.NodeShared || !c.MasqueradeAll {
		t.Errorf("before: %+v", c)
	}
	a.share(t.Context())
	a.share(t.Context())
	if c := <-to; !c.NodeShared || !c.MasqueradeAll {
		t.Errorf("shared: %+v", c)
	}
	a.set(t.Context(), &config.Config{NodeName: "n"})
	if c := <-to; !c.NodeShared || c.MasqueradeAll {
		t.Errorf("after: %+v", c)
	}
	if len(to) != 0 || first.NodeShared || !a.current.Load().NodeShared {
		t.Errorf("%d more changes, the first is shared: %t, the last: %t", len(to), first.NodeShared, a.current.Load().NodeShared)
	}
}

package health

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/fairlead/fairlead/internal/host/hosttest"
)

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// taken listens on a port of loopback, which nobody else gets when the listener is closed.
func taken(t *testing.T) (net.Listener, netip.AddrPort) {
	t.Helper()
	l := hosttest.Listen(t, netip.MustParseAddr("127.0.0.1"))
	return l, netip.MustParseAddrPort(l.Addr().String())
}

// retryLog closes channels when a server says that it cannot listen, and that it can at last.
type retryLog struct{ failed, recovered chan struct{} }

func newRetryLog() retryLog { return retryLog{make(chan struct{}), make(chan struct{})} }

func (w retryLog) Write(p []byte) (int, error) {
	switch text := string(p); {
	case strings.Contains(text, "cannot listen"):
		close(w.failed)
	case strings.Contains(text, "at last"):
		close(w.recovered)
	}
	return len(p), nil
}

func TestServerWaitsForItsPort(t *testing.T) {
	l, addr := taken(t)
	ctx, cancel := context.WithCancel(t.Context())
	done, log := make(chan error, 1), newRetryLog()
	s := Server{Name: "health", Addr: addr, retry: time.Millisecond, Log: slog.New(slog.NewTextHandler(log, nil)),
		Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "here") })}
	go func() { done <- s.Run(ctx) }()
	<-log.failed
	l.Close()
	<-log.recovered
	resp, err := http.Get("http://" + addr.String())
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	if string(text) != "here" || err != nil {
		t.Errorf("answer %q, %v", text, err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("end: %v", err)
	}
}

func TestServerGivesUpWaitingWithContext(t *testing.T) {
	_, addr := taken(t)
	ctx, cancel := context.WithCancel(t.Context())
	done, log := make(chan error, 1), newRetryLog()
	s := Server{Addr: addr, Handler: http.NotFoundHandler(), Log: slog.New(slog.NewTextHandler(log, nil))}
	go func() { done <- s.Run(ctx) }()
	<-log.failed
	cancel()
	if err := <-done; err != nil {
		t.Errorf("an address that is taken: %v", err)
	}
}

func TestServerHardFail(t *testing.T) {
	_, addr := taken(t)
	var told error
	s := Server{Addr: addr, Handler: http.NotFoundHandler(), Log: quiet(), HardFail: true, Failed: func(err error) { told = err }}
	err := s.Run(t.Context())
	if err == nil || !errors.Is(err, told) || !strings.Contains(err.Error(), addr.String()) {
		t.Errorf("error %v, told %v", err, told)
	}
}

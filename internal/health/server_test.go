package health

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fairlead/fairlead/internal/host/hosttest"
)

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// taken listens on a port of loopback, which no other test gets when the listener is closed.
func taken(t *testing.T) (net.Listener, netip.AddrPort) {
	t.Helper()
	l := hosttest.Listen(t, netip.MustParseAddr("127.0.0.1"))
	return l, netip.MustParseAddrPort(l.Addr().String())
}

// retryLog closes channels when a server logs that it cannot listen, and that it listens after all.
type retryLog struct{ failed, recovered chan struct{} }

func newRetryLog() retryLog { return retryLog{make(chan struct{}), make(chan struct{})} }

func (w retryLog) Write(p []byte) (int, error) {
	switch text := string(p); {
	case strings.Contains(text, "cannot listen"):
		close(w.failed)
	case strings.Contains(text, "after earlier failures"):
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
	var reported error
	s := Server{Addr: addr, Handler: http.NotFoundHandler(), Log: quiet(), HardFail: true, Failed: func(err error) { reported = err }}
	err := s.Run(t.Context())
	if err == nil || !errors.Is(err, reported) || !strings.Contains(err.Error(), addr.String()) {
		t.Errorf("error %v, reported %v", err, reported)
	}
}

// pipes is a listener whose connections are made by dial, in memory, so that the timeouts are those
// of a test's clock.
type pipes struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func newPipes() *pipes { return &pipes{conns: make(chan net.Conn), closed: make(chan struct{})} }

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Addr() net.Addr { return &net.TCPAddr{} }

func (p *pipes) Close() error {
	p.once.Do(func() { close(p.closed) })
	return nil
}

func (p *pipes) dial() net.Conn {
	client, server := net.Pipe()
	p.conns <- server
	return client
}

// TestClientsCannotHoldConnections has clients that stop at each point of a request, at a server
// and at a health-check node port.
func TestClientsCannotHoldConnections(t *testing.T) {
	const big = 10 << 20
	handlers := map[string]http.Handler{
		"server":                 http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(make([]byte, big)) }),
		"health-check node port": NewChecks(ChecksOptions{Log: quiet()}).handler(1),
	}
	for _, tt := range []struct {
		name, send string
		// reads says that the client reads the answer.
		reads bool
		most  time.Duration
	}{
		{"says nothing", "", true, readTimeout},
		{"a header that does not end", "GET / HTTP/1.1\r\nHost: a\r\n", true, readTimeout},
		{"a body that never comes", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n", true, readTimeout},
		{"does not read the answer", "GET / HTTP/1.1\r\nHost: a\r\n\r\n", false, writeTimeout},
		{"sends nothing after the answer", "GET / HTTP/1.1\r\nHost: a\r\n\r\n", true, idleTimeout},
	} {
		for kind, h := range handlers {
			t.Run(tt.name+", "+kind, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					l, limit := newPipes(), newConnLimit(maxConns)
					srv := newHTTPServer(h, limit, quiet())
					go func() { _ = srv.Serve(l) }()
					defer srv.Close()
					begin := time.Now()
					c := l.dial()
					defer c.Close()
					if _, err := io.WriteString(c, tt.send); err != nil {
						t.Fatal(err)
					}
					if !tt.reads {
						time.Sleep(tt.most + time.Second) // only then may it find that the connection is closed
						synctest.Wait()
						if limit.conns.Len() > 0 {
							t.Error("open")
						}
						return
					}
					if _, err := io.Copy(io.Discard, c); err != nil {
						t.Error(err)
					}
					if took := time.Since(begin); took > tt.most+time.Second {
						t.Errorf("closed after %v, want %v", took, tt.most)
					}
				})
			})
		}
	}
}

// TestManyConnectionsDoNotKeepAProbeOut has more connections than are kept; those that answer least
// are closed.
func TestManyConnectionsDoNotKeepAProbeOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, limit := newPipes(), newConnLimit(3)
		srv := newHTTPServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "fine") }), limit, quiet())
		go func() { _ = srv.Serve(l) }()
		defer srv.Close()
		ask := func(c net.Conn) error {
			if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: a\r\n\r\n"); err != nil {
				return err
			}
			resp, err := http.ReadResponse(bufio.NewReader(c), nil)
			if err != nil {
				return err
			}
			defer resp.Body.Close()
			if text, err := io.ReadAll(resp.Body); string(text) != "fine" {
				return fmt.Errorf("%q %w", text, err)
			}
			return nil
		}
		probe := l.dial()
		if err := ask(probe); err != nil {
			t.Fatal(err)
		}
		var others []net.Conn
		for n := range 20 {
			synctest.Wait()
			c := l.dial()
			others = append(others, c)
			if n%2 == 0 { // half a request
				if _, err := io.WriteString(c, "GET /"); err != nil {
					t.Fatal(err)
				}
			}
			synctest.Wait()
			if err := ask(probe); err != nil {
				t.Fatalf("%d connections: the probe that asks all the time: %v", n, err)
			}
			if limit.conns.Len() > 3 {
				t.Fatalf("%d connections are open", limit.conns.Len())
			}
		}
		if err := ask(l.dial()); err != nil {
			t.Errorf("a new probe: %v", err)
		}
		if _, err := others[0].Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("the oldest connection: %v, want it closed", err)
		}
	})
}

// TestServerNamesTheFlagOfItsPort: another instance or a kube-proxy usually has the port.
func TestServerNamesTheFlagOfItsPort(t *testing.T) {
	_, addr := taken(t)
	err := Server{Name: "metrics", Flag: "--metrics-bind-address", Addr: addr, HardFail: true, Log: quiet()}.Run(t.Context())
	if err == nil || !strings.Contains(err.Error(), "another process on the node uses the port; choose another one with --metrics-bind-address") {
		t.Errorf("got %v", err)
	}
	bad := Server{Name: "metrics", Flag: "--metrics-bind-address", Addr: netip.MustParseAddrPort("192.0.2.1:1"), HardFail: true, Log: quiet()}
	if err := bad.Run(t.Context()); err == nil || strings.Contains(err.Error(), "another process") {
		t.Errorf("an address that is not the node's: %v", err)
	}
}

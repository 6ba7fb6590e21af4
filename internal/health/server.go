package health

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"syscall"
	"time"
)

// bindRetry is the time between two attempts to bind an address.
const bindRetry = 5 * time.Second

// eventTime is how long a process that cannot bind an address goes on before it exits, so that the
// Event about it is sent.
const eventTime = time.Second

// Server answers requests on one address.
type Server struct {
	// Name is the server's name in the log, such as "health", and Flag the flag that sets its
	// address.
	Name, Flag string
	Addr       netip.AddrPort
	Handler    http.Handler
	// HardFail makes Run return an error if it cannot bind the address. Otherwise it retries every
	// five seconds, because forwarding does not depend on the server.
	HardFail bool
	// Failed, if not nil, is called with the error that HardFail makes Run return.
	Failed func(error)
	Log    *slog.Logger
	// retry overrides bindRetry in tests.
	retry time.Duration
}

// Run serves until the context ends, which is not an error.
func (s Server) Run(ctx context.Context) error {
	l, err := s.listen(ctx)
	if l == nil {
		return err
	}
	srv := newHTTPServer(s.Handler, newConnLimit(maxConns), s.Log)
	stop := context.AfterFunc(ctx, func() { _ = srv.Close() }) // closes the listener, which ends Serve
	defer stop()
	if err := srv.Serve(l); err != nil && !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve on %s: %w", s.Addr, err)
	}
	return nil
}

// newHTTPServer limits what a client can occupy, and for how long: everybody who can reach the node
// can connect. A profile of package pprof extends its own writeTimeout.
func newHTTPServer(h http.Handler, limit *connLimit, log *slog.Logger) *http.Server {
	return &http.Server{
		Handler: h, ReadTimeout: readTimeout, WriteTimeout: writeTimeout, IdleTimeout: idleTimeout, MaxHeaderBytes: 32 << 10,
		ConnState: limit.follow, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
}

const (
	// readTimeout is for reading a request, header and body.
	readTimeout = 10 * time.Second
	// writeTimeout is from the end of the request's header to the end of the response, including
	// the review of a token.
	writeTimeout = 30 * time.Second
	// idleTimeout is until the next request on a connection. Probes and scrapes come every few
	// seconds to every minute.
	idleTimeout = 2 * time.Minute
)

// listen returns nil, nil when the context ends.
func (s Server) listen(ctx context.Context) (net.Listener, error) {
	var lc net.ListenConfig
	failed := false
	for {
		l, err := lc.Listen(ctx, "tcp", s.Addr.String()) // an unspecified address of either family means both families
		if err == nil {
			if failed {
				s.Log.Info("listening after earlier failures", "server", s.Name, "address", s.Addr.String())
			}
			return l, nil
		}
		if ctx.Err() != nil {
			return nil, nil
		}
		if s.HardFail {
			err = fmt.Errorf("listen on %s: %w", s.Addr, s.explain(err))
			if s.Failed != nil {
				s.Failed(err)
				sleep(ctx, eventTime)
			}
			return nil, err
		}
		if !failed {
			s.Log.Error("cannot listen, retrying every 5s", "server", s.Name, "address", s.Addr.String(), "error", s.explain(err))
			failed = true
		}
		if !sleep(ctx, cmp.Or(s.retry, bindRetry)) {
			return nil, nil
		}
	}
}

// explain adds what to do if another process has the port, such as a kube-proxy or another instance
// of Fairlead.
func (s Server) explain(err error) error {
	if s.Flag == "" || !errors.Is(err, syscall.EADDRINUSE) {
		return err
	}
	return fmt.Errorf("%w: another process on the node uses the port; choose another one with %s", err, s.Flag)
}

// sleep returns false if the context ends first.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

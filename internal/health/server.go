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

// bindRetry is the time between two attempts to listen.
const bindRetry = 5 * time.Second

// eventTime is how long a process that cannot listen lives on, so that the Event that says so gets out.
const eventTime = time.Second

// Server answers requests on one address.
type Server struct {
	// Name is for the log, such as "health", and so is Flag, by which the address can be changed.
	Name    string
	Flag    string
	Addr    netip.AddrPort
	Handler http.Handler
	// HardFail ends Run where the address cannot be listened on; otherwise it is tried again every five seconds, since
	// forwarding does not depend on it.
	HardFail bool
	// Failed, if not nil, is told before HardFail ends Run.
	Failed func(error)
	Log    *slog.Logger
	// retry is the time between two attempts to listen; 0 means bindRetry. Tests are faster.
	retry time.Duration
}

// Run serves until the context ends, which is no error.
func (s Server) Run(ctx context.Context) error {
	l, err := s.listen(ctx)
	if l == nil {
		return err
	}
	srv := newHTTPServer(s.Handler, newConnLimit(maxConns), s.Log)
	stop := context.AfterFunc(ctx, func() { _ = srv.Close() }) // closing the listener ends Serve, whatever Close says
	defer stop()
	if err := srv.Serve(l); err != nil && !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve on %s: %w", s.Addr, err)
	}
	return nil
}

// newHTTPServer bounds what a client can hold on to, and for how long: everybody who reaches the node can connect. A request has to
// be whole after readTimeout, whatever it is; a profile of package pprof has its own time on top of writeTimeout.
func newHTTPServer(h http.Handler, limit *connLimit, log *slog.Logger) *http.Server {
	return &http.Server{
		Handler: h, ReadTimeout: readTimeout, WriteTimeout: writeTimeout, IdleTimeout: idleTimeout, MaxHeaderBytes: 32 << 10,
		ConnState: limit.follow, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
}

const (
	// readTimeout is for a request, header and body.
	readTimeout = 10 * time.Second
	// writeTimeout is for an answer from the end of the request's header on, with what the API server takes to review a token.
	writeTimeout = 30 * time.Second
	// idleTimeout is until the next request on a connection. Probes and scrapes come every few seconds up to a minute.
	idleTimeout = 2 * time.Minute
)

// listen returns nil and nil when the context ends.
func (s Server) listen(ctx context.Context) (net.Listener, error) {
	var lc net.ListenConfig
	failed := false
	for {
		l, err := lc.Listen(ctx, "tcp", s.Addr.String()) // an unspecified address of either family stands for both families
		if err == nil {
			if failed {
				s.Log.Info("listening at last", "server", s.Name, "address", s.Addr.String())
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
				rest(ctx, eventTime)
			}
			return nil, err
		}
		if !failed {
			s.Log.Error("cannot listen, trying again every 5s", "server", s.Name, "address", s.Addr.String(), "error", s.explain(err))
			failed = true
		}
		if !rest(ctx, cmp.Or(s.retry, bindRetry)) {
			return nil, nil
		}
	}
}

// explain says what to do where another process has the port, as a kube-proxy or another instance of Fairlead on the node.
func (s Server) explain(err error) error {
	if s.Flag == "" || !errors.Is(err, syscall.EADDRINUSE) {
		return err
	}
	return fmt.Errorf("%w: another process on the node has the port, choose another one with %s", err, s.Flag)
}

// rest waits; it returns false when the context ends.
func rest(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

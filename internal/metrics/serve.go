package metrics

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"time"
)

// bindRetry is the time between two attempts to listen.
const bindRetry = 5 * time.Second

// Serve answers requests on the address until the context ends, which is no error. Where it cannot listen it tries
// again every five seconds: forwarding does not depend on it.
func Serve(ctx context.Context, addr netip.AddrPort, h http.Handler, log *slog.Logger) error {
	l := listen(ctx, addr, log)
	if l == nil {
		return nil
	}
	srv := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute}
	stop := context.AfterFunc(ctx, func() { _ = srv.Close() }) // closing the listener ends Serve, whatever Close says
	defer stop()
	if err := srv.Serve(l); err != nil && !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve on %s: %w", addr, err)
	}
	return nil
}

// listen returns nil when the context ends.
func listen(ctx context.Context, addr netip.AddrPort, log *slog.Logger) net.Listener {
	var lc net.ListenConfig
	failed := false
	for {
		l, err := lc.Listen(ctx, "tcp", addr.String())
		if err == nil {
			if failed {
				log.Info("listening at last", "address", addr.String())
			}
			return l
		}
		if ctx.Err() != nil {
			return nil
		}
		if !failed {
			log.Error("cannot listen, trying again every 5s", "address", addr.String(), "error", err)
			failed = true
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(bindRetry):
		}
	}
}

package localport

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/fairlead/fairlead/internal/fwd"
)

// acceptRetry is the pause after a failed accept, which mostly means that there are no file
// descriptors left.
const acceptRetry = 200 * time.Millisecond

// accept takes connections until the listener is closed.
func (f *Forwarder) accept(ctx context.Context, at netip.AddrPort, choices *chooser, l listener) {
	failing := false
	for {
		client, err := l.AcceptTCP()
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil:
			if !failing {
				f.log.Error("cannot accept connections to a node port on loopback, retrying", "address", at.String(), "error", err)
				failing = true
			}
			select {
			case <-ctx.Done():
			case <-time.After(acceptRetry):
			}
			continue
		case failing:
			f.log.Info("accepting connections to a node port on loopback again", "address", at.String())
			failing = false
		}
		fam := fwd.FamilyOf(at.Addr()).Index()
		if !fromLoopback(client) || !f.enter() {
			f.count.refused[fam].Add(1)
			reset(client)
			continue
		}
		f.count.accepted[fam].Add(1)
		to := choices.choose(time.Now(), f.random)
		f.conns.Go(func() {
			defer f.leave()
			f.serve(ctx, client, at, to)
		})
	}
}

func fromLoopback(c *net.TCPConn) bool {
	a, ok := c.RemoteAddr().(*net.TCPAddr)
	return ok && a.IP.IsLoopback()
}

// enter counts a connection. It returns false if there are too many.
func (f *Forwarder) enter() bool {
	if f.count.open.Add(1) <= f.maxConns {
		return true
	}
	f.count.open.Add(-1)
	if f.full.CompareAndSwap(false, true) {
		f.log.Error("too many connections to node ports on loopback, resetting new ones until some have ended", "limit", f.maxConns)
	}
	return false
}

// leave is the reverse of enter. It logs that connections are accepted again when a tenth of the
// limit is free, so as not to log every connection.
func (f *Forwarder) leave() {
	if f.count.open.Add(-1) <= f.maxConns*9/10 && f.full.CompareAndSwap(true, false) {
		f.log.Info("accepting new connections to node ports on loopback again", "limit", f.maxConns)
	}
}

// serve forwards one connection to an endpoint.
func (f *Forwarder) serve(ctx context.Context, client *net.TCPConn, at, to netip.AddrPort) {
	// Not DialTCP: it binds first, and a port that is bound before the destination is known is in
	// use for all destinations.
	server, err := f.dialer.DialContext(ctx, "tcp", to.String())
	if err != nil {
		if ctx.Err() == nil {
			f.count.dialFailures[fwd.FamilyOf(at.Addr()).Index()].Add(1)
			f.log.Debug("endpoint of a node port on loopback does not respond", "address", at.String(), "endpoint", to.String(), "error", err)
		}
		reset(client)
		return
	}
	relay(ctx, client, server.(*net.TCPConn))
}

// relay copies in both directions until both have ended, one fails or the context ends. Then it
// closes both connections.
func relay(ctx context.Context, a, b *net.TCPConn) {
	abort := func() { reset(a); reset(b) }
	stop := context.AfterFunc(ctx, abort)
	pump := func(to, from *net.TCPConn) {
		// Between TCP sockets io.Copy splices.
		_, err := io.Copy(to, from)
		if err == nil {
			err = to.CloseWrite()
		}
		if err != nil {
			abort() // one side has gone away; the other gets a reset too
		}
	}
	var other sync.WaitGroup
	other.Go(func() { pump(b, a) })
	pump(a, b)
	other.Wait()
	stop()
	// Both have been shut down or reset, so that closing cannot fail.
	_ = a.Close()
	_ = b.Close()
}

// reset closes a connection so that the other side gets an error instead of an end of file. It may
// be called twice.
func reset(c *net.TCPConn) {
	_ = c.SetLinger(0) // fails only if it is closed already
	_ = c.Close()
}

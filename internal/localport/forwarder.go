package localport

import (
	"cmp"
	"context"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fairlead/fairlead/internal/fwd"
)

const (
	defaultDialTimeout = 10 * time.Second
	defaultMaxConns    = 10_000
	// A port that cannot be bound is retried after bindRetryMin, then after twice as long each
	// time, up to bindRetryMax.
	bindRetryMin = time.Second
	bindRetryMax = time.Minute
)

// keepAlive ends connections whose other side disappeared, after six minutes. An idle connection
// costs one packet a minute.
var keepAlive = net.KeepAliveConfig{Enable: true, Idle: time.Minute, Interval: time.Minute, Count: 5}

// Options are what a Forwarder works with.
type Options struct {
	// Families says by fwd.Family.Index on which loopback addresses node ports are served: on those
	// that the node-port addresses list explicitly.
	Families [2]bool
	// DialTimeout is the timeout for connecting to an endpoint; 0 means 10 s.
	DialTimeout time.Duration
	// MaxConns is how many connections may be open; others are reset. 0 means 10,000. Each needs up
	// to six file descriptors.
	MaxConns int
	Logger   *slog.Logger
}

// listener is the part of *net.TCPListener that the Forwarder uses.
type listener interface {
	AcceptTCP() (*net.TCPConn, error)
	Close() error
}

// Forwarder serves node ports on loopback. Update and Sync belong to one goroutine, Run to another;
// Stats may be called from any.
type Forwarder struct {
	families [2]bool
	dialer   net.Dialer
	maxConns int64
	log      *slog.Logger
	listen   func(context.Context, netip.AddrPort) (listener, error)
	random   func(uint64) uint64
	// settled, if not nil, is called by Run for tests when that many targets were applied.
	settled func(taken int)

	// changed holds the targets that changed since the last Sync; it belongs to the goroutine of
	// Update.
	changed map[fwd.Key]target

	wake    chan struct{}
	mu      sync.Mutex // guards pending
	pending map[fwd.Key]target

	// conns are the goroutines of listeners and connections; Run waits for them.
	conns sync.WaitGroup
	// full says that the limit of connections was reached and logged.
	full  atomic.Bool
	count counters
}

// New returns a Forwarder that does nothing until Run.
func New(o Options) *Forwarder {
	lc := net.ListenConfig{KeepAliveConfig: keepAlive}
	// Go's default is Multipath TCP, which is of no use between processes of one host.
	lc.SetMultipathTCP(false)
	return &Forwarder{
		families: o.Families,
		dialer:   net.Dialer{Timeout: cmp.Or(o.DialTimeout, defaultDialTimeout), KeepAliveConfig: keepAlive},
		maxConns: int64(cmp.Or(o.MaxConns, defaultMaxConns)),
		log:      o.Logger,
		listen: func(ctx context.Context, at netip.AddrPort) (listener, error) {
			l, err := lc.Listen(ctx, "tcp", at.String())
			if err != nil {
				return nil, err
			}
			return l.(*net.TCPListener), nil
		},
		random:  rand.Uint64N,
		changed: make(map[fwd.Key]target),
		pending: make(map[fwd.Key]target),
		wake:    make(chan struct{}, 1),
	}
}

// Update records changes of the table. Its cost is proportional to the size of the fragments that
// changed.
func (f *Forwarder) Update(ch fwd.Changes) {
	// A key may move from one Service to another within the changes, in either order: remove all
	// old ones first, then add.
	for _, sc := range ch.Services {
		f.each(sc.Old, func(fe *fwd.Frontend) { f.changed[fe.Key] = target{} })
	}
	for _, sc := range ch.Services {
		f.each(sc.New, func(fe *fwd.Frontend) { f.changed[fe.Key] = targetOf(sc.New, fe) })
	}
}

// each calls do for the frontends of a fragment that can be served here.
func (f *Forwarder) each(fr *fwd.Fragment, do func(*fwd.Frontend)) {
	if fr == nil {
		return
	}
	for i := range fr.Frontends {
		if fe := &fr.Frontends[i]; isLocalPort(fe.Key) && f.families[fe.Key.Family.Index()] {
			do(fe)
		}
	}
}

// Sync makes Run open and close listeners for all updates so far. It does not wait.
func (f *Forwarder) Sync() {
	if len(f.changed) == 0 {
		return
	}
	f.mu.Lock()
	maps.Copy(f.pending, f.changed)
	f.mu.Unlock()
	clear(f.changed)
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// port is a node port that must be served.
type port struct {
	key     fwd.Key
	choices chooser
	// listener is nil while the port cannot be bound. It failed so many times so far, and is
	// retried at retry.
	listener listener
	failures int
	retry    time.Time
}

func (p *port) addr() netip.AddrPort {
	return netip.AddrPortFrom(loopback[p.key.Family.Index()], p.key.Port)
}

// Run serves until the context ends. Then it closes listeners, resets connections, and returns when
// all its goroutines have ended. It is called once.
func (f *Forwarder) Run(ctx context.Context) {
	ports := make(map[fwd.Key]*port)
	for {
		f.mu.Lock()
		changed := f.pending
		f.pending = make(map[fwd.Key]target)
		f.mu.Unlock()

		closed := f.take(ports, changed)
		opened, retry := f.open(ctx, ports)
		if opened+closed > 0 {
			f.log.Info("node ports on loopback changed", "opened", opened, "closed", closed, "ports", len(ports))
		}
		if f.settled != nil {
			f.settled(len(changed))
		}
		var again <-chan time.Time
		if !retry.IsZero() {
			again = time.After(time.Until(retry))
		}
		select {
		case <-ctx.Done():
			for _, p := range ports {
				f.close(p)
			}
			f.conns.Wait()
			return
		case <-f.wake:
		case <-again:
		}
	}
}

// take updates ports and closes the listeners of those that are removed. It returns their number.
func (f *Forwarder) take(ports map[fwd.Key]*port, changed map[fwd.Key]target) (closed int) {
	for key, t := range changed {
		p := ports[key]
		switch {
		case p == nil && t.empty():
		case t.empty():
			if f.close(p) {
				closed++
			}
			delete(ports, key)
		default:
			if p == nil {
				p = &port{key: key}
				ports[key] = p
			}
			p.choices.set(t)
		}
	}
	return closed
}

// close closes the listener of a port. It returns whether there was one.
func (f *Forwarder) close(p *port) bool {
	if p.listener == nil {
		return false
	}
	_ = p.listener.Close() // fails only if it is closed already
	p.listener = nil
	f.count.listeners[p.key.Family.Index()].Add(-1)
	return true
}

// open binds the ports that are due. It returns when the next retry is due, zero if nothing has
// failed.
func (f *Forwarder) open(ctx context.Context, ports map[fwd.Key]*port) (opened int, retry time.Time) {
	now := time.Now()
	for _, key := range slices.SortedFunc(maps.Keys(ports), fwd.Key.Compare) {
		p := ports[key]
		if p.listener == nil && !p.retry.After(now) && f.bind(ctx, p) {
			opened++
		}
		if p.listener == nil && (retry.IsZero() || p.retry.Before(retry)) {
			retry = p.retry
		}
	}
	return opened, retry
}

// bind listens on a port, or plans the next attempt.
func (f *Forwarder) bind(ctx context.Context, p *port) bool {
	fam := p.key.Family.Index()
	l, err := f.listen(ctx, p.addr())
	if err != nil {
		if ctx.Err() != nil {
			return false
		}
		f.count.bindFailures[fam].Add(1)
		if p.failures == 0 {
			f.log.Warn("cannot serve a node port on loopback, retrying at least every minute",
				"address", p.addr().String(), "service", p.choices.owner().String(), "error", err)
		}
		p.retry = time.Now().Add(min(bindRetryMin<<min(p.failures, 16), bindRetryMax))
		p.failures++
		return false
	}
	if p.failures > 0 {
		f.log.Info("serving a node port on loopback after earlier failures", "address", p.addr().String(), "failures", p.failures)
	}
	p.listener, p.failures, p.retry = l, 0, time.Time{}
	f.count.listeners[fam].Add(1)
	f.conns.Go(func() { f.accept(ctx, p.addr(), &p.choices, l) })
	return true
}

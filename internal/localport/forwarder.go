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
	// A port that cannot be listened on is tried again after bindRetryMin, then after twice as long, up to bindRetryMax.
	bindRetryMin = time.Second
	bindRetryMax = time.Minute
)

// keepAlive ends connections whose other side is gone without a word, after six minutes: as long as nothing is sent a
// probe costs one packet a minute.
var keepAlive = net.KeepAliveConfig{Enable: true, Idle: time.Minute, Interval: time.Minute, Count: 5}

// Options say how a Forwarder works.
type Options struct {
	// Families says by fwd.Family.Index on which loopback addresses node ports are served: those that the node-port
	// addresses name explicitly.
	Families [2]bool
	// DialTimeout is how long an endpoint may take to accept a connection; 0 means 10 s.
	DialTimeout time.Duration
	// MaxConns is how many connections may be open; more are reset. 0 means 10,000. Each needs up to six file descriptors.
	MaxConns int
	Logger   *slog.Logger
}

// listener is what the Forwarder needs of a *net.TCPListener.
type listener interface {
	AcceptTCP() (*net.TCPConn, error)
	Close() error
}

// Forwarder serves node ports on loopback. Update and Sync belong to one goroutine, Run to another; Stats may be called
// from any.
type Forwarder struct {
	families [2]bool
	dialer   net.Dialer
	maxConns int64
	log      *slog.Logger
	listen   func(context.Context, netip.AddrPort) (listener, error)
	random   func(uint64) uint64
	// settled, if not nil, is called by Run when that many targets were taken and listeners opened and closed, for tests.
	settled func(taken int)

	// changed holds the targets that changed since the last Sync; it belongs to the goroutine of Update.
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
	// Go would listen for Multipath TCP, which is of no use between processes of one host.
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

// Update takes in changes of the table, in memory. It costs the size of the fragments that changed.
func (f *Forwarder) Update(ch fwd.Changes) {
	// A key may pass from one Service to another within the changes, in either order: first all go, then all come.
	for _, sc := range ch.Services {
		f.each(sc.Old, func(fe *fwd.Frontend) { f.changed[fe.Key] = target{} })
	}
	for _, sc := range ch.Services {
		f.each(sc.New, func(fe *fwd.Frontend) { f.changed[fe.Key] = targetOf(sc.New, fe) })
	}
}

// each calls do for the frontends of a fragment that may be served here.
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

// Sync makes Run open and close listeners according to all updates so far. It does not wait.
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

// port is a node port that is to be served.
type port struct {
	key     fwd.Key
	choices chooser
	// listener is nil while the port cannot be listened on: failures times so far, and next to be tried at retry.
	listener listener
	failures int
	retry    time.Time
}

func (p *port) addr() netip.AddrPort {
	return netip.AddrPortFrom(loopback[p.key.Family.Index()], p.key.Port)
}

// Run serves until the context ends; then it closes listeners, resets connections, and returns when all its goroutines
// have ended. It is called once, in a goroutine of the caller, who waits for it.
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
			f.log.Info("Node ports on loopback changed", "opened", opened, "closed", closed, "ports", len(ports))
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

// take brings ports up to date and closes the listeners of those that are gone; it returns their number.
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

// close says whether there was a listener.
func (f *Forwarder) close(p *port) bool {
	if p.listener == nil {
		return false
	}
	_ = p.listener.Close() // fails only if it is closed already
	p.listener = nil
	f.count.listeners[p.key.Family.Index()].Add(-1)
	return true
}

// open listens on the ports whose turn it is, and returns when the next ones are to be tried, zero if there are none.
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

// bind listens on a port, or says when to try again.
func (f *Forwarder) bind(ctx context.Context, p *port) bool {
	fam := p.key.Family.Index()
	l, err := f.listen(ctx, p.addr())
	if err != nil {
		if ctx.Err() != nil {
			return false
		}
		f.count.bindFailures[fam].Add(1)
		if p.failures == 0 {
			f.log.Warn("A node port cannot be served on loopback; it is tried again, at least every minute",
				"address", p.addr().String(), "service", p.choices.owner().String(), "error", err)
		}
		p.retry = time.Now().Add(min(bindRetryMin<<min(p.failures, 16), bindRetryMax))
		p.failures++
		return false
	}
	if p.failures > 0 {
		f.log.Info("A node port is served on loopback at last", "address", p.addr().String(), "failures", p.failures)
	}
	p.listener, p.failures, p.retry = l, 0, time.Time{}
	f.count.listeners[fam].Add(1)
	f.conns.Go(func() { f.accept(ctx, p.addr(), &p.choices, l) })
	return true
}

package reconcile

import (
	"context"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"github.com/fairlead/fairlead/internal/backend"
	"github.com/fairlead/fairlead/internal/cluster"
	"github.com/fairlead/fairlead/internal/config"
	"github.com/fairlead/fairlead/internal/fwd"
)

// Feed collects changes of the cluster's objects, made by other goroutines.
type Feed interface {
	// Wake signals that there is something to drain, and that Synced became true.
	Wake() <-chan struct{}
	// Drain moves the collected changes into the store.
	Drain(*cluster.Store) cluster.Drained
	// Synced reports whether the first lists of Services, EndpointSlices and the node are complete.
	Synced() bool
}

// Flows removes connection-tracking entries that contradict the rules.
type Flows interface {
	// Update takes in changes of the table, in memory.
	Update(fwd.Changes)
	// Submit requests removal according to all updates so far; it does not block. written says, by
	// fwd.Family.Index, which kernels have the rules; removal in the other family waits. all says
	// that flows of Services that did not change since the last Submit may be stale too.
	Submit(written [2]bool, all bool)
}

// Checks answers health checks of load balancers: whether a Service has endpoints on this node.
type Checks interface {
	// Update takes in changes of the table, in memory.
	Update(fwd.Changes)
	// Programmed reports that one family's kernel has the rules of all updates so far. It does not
	// block.
	Programmed(fwd.Family)
}

// Events reports problems of Services to their users. It does not block.
type Events interface {
	// Warn makes a Warning event on a Service; reason is one word in CamelCase.
	Warn(s fwd.Service, reason, message string)
}

// Monitor follows the loop, for metrics and health. Its methods do not block.
type Monitor interface {
	// Queued reports that a change has been waiting to be written since then.
	Queued(since time.Time)
	// Synced reports a sync, including one that took in events and had nothing to write.
	Synced(Sync)
	// Verified reports that a reading of one family's kernel found everything, with nothing to
	// repair.
	Verified(f fwd.Family, at time.Time)
	// Node reports new facts about the node.
	Node(cluster.Node)
	// Configured reports a new Config.
	Configured(*config.Config)
}

// Options configure a Loop. Flows, Checks, Events, Monitor, LocalAddrs, AddrChanges, Drift,
// OnWritten and OnVerified may be nil.
type Options struct {
	Config *config.Config
	// Configs delivers new Configs, each made by Apply of the previous one; it may be nil.
	Configs  <-chan *config.Config
	Feed     Feed
	Backends backend.Families
	Flows    Flows
	Checks   Checks
	Events   Events
	Monitor  Monitor
	// LocalAddrs lists the addresses of the node's interfaces; AddrChanges signals that they may
	// have changed.
	LocalAddrs  func() ([]netip.Addr, error)
	AddrChanges <-chan struct{}
	// Drift signals that other programs may have changed what a Backend wrote; the family is read
	// back soon.
	Drift <-chan backend.Drift
	// OnWritten is called once for each family, after everything was written for the first time.
	// OnVerified is called once for each family, after a reading of the kernel found all of it, so
	// that other dataplanes are no longer needed. Both run in the loop's goroutine.
	OnWritten, OnVerified func(fwd.Family)
	Logger                *slog.Logger
}

// Loop is the loop. Make one with New; only Run's goroutine touches its fields.
type Loop struct {
	Options
	log *slog.Logger

	// families are those that the node serves.
	families []*family
	// news is what came in and is not in the table yet.
	news news
	// podCIDRs follows the node's podCIDRs for detect-local mode NodeCIDR.
	podCIDRs podCIDRs
	// wanted is what the kernel is to hold.
	wanted     wanted
	quarantine quarantine
	reports    reports
	// readings delivers finished readings; readers are the goroutines that make them.
	readings chan *reading
	readers  sync.WaitGroup
	// knownAt is when the feed and the node were first complete, lastEnd the end of the last sync
	// that changed something; both are zero before.
	knownAt, lastEnd time.Time
}

// New returns a Loop. Call Run to start it.
func New(o Options) *Loop {
	l := &Loop{Options: o, log: o.Logger, news: news{any: true, addrs: true, header: true}}
	for i, b := range o.Backends {
		if b != nil {
			l.families = append(l.families, &family{Family: fwd.Families[i], backend: b})
		}
	}
	l.readings = make(chan *reading, len(l.families))
	l.quarantine.refusals = make(map[fwd.Service]*refusal)
	l.reports.problems = make(map[fwd.Service]string)
	return l
}

// Run runs the loop until the context ends, which is no error. After an error the process must be
// restarted.
func (l *Loop) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer l.readers.Wait()
	defer cancel()
	addrs, drift := l.AddrChanges, l.Drift
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-l.Feed.Wake():
			l.news.any = true
		case _, ok := <-addrs:
			l.news.any, l.news.addrs = true, true
			if !ok {
				addrs = nil // the watch ended, as it does when the context ends
			}
		case c := <-l.Configs:
			l.configure(c)
		case d, ok := <-drift:
			if !ok {
				drift = nil
			} else if f := l.family(d.Family); f != nil {
				f.plan.hint(d, time.Now())
			}
		case r := <-l.readings:
			l.endReading(ctx, r)
		case <-timer.C:
		}
		if err := l.act(ctx, time.Now()); err != nil {
			return err
		}
		if at, ok := l.next(); ok {
			timer.Reset(time.Until(at))
		} else {
			timer.Stop()
		}
	}
}

// act does what is due now.
func (l *Loop) act(ctx context.Context, now time.Time) error {
	if at, due := l.podCIDRs.next(); due && !now.Before(at) {
		if err := l.podCIDRs.check(l, now); err != nil {
			return err
		}
	}
	if at, due := l.nextChange(); due && !now.Before(at) {
		if err := l.takeNews(ctx, now); err != nil {
			return err
		}
	}
	if owner, at, due := l.nextTrial(); due && !now.Before(at) {
		l.try(ctx, owner)
	}
	for _, f := range l.families {
		if at, due := f.nextTend(); due && !now.Before(at) {
			f.tend(ctx)
		}
		if at, due := l.nextReading(f); due && !now.Before(at) {
			l.beginReading(ctx, f)
		}
	}
	return nil
}

// next is when act has to be called again if nothing comes in before; ok is false for never.
func (l *Loop) next() (next time.Time, ok bool) {
	consider := func(at time.Time, due bool) {
		if due && (!ok || at.Before(next)) {
			next, ok = at, true
		}
	}
	consider(l.podCIDRs.next())
	consider(l.nextChange())
	_, at, due := l.nextTrial()
	consider(at, due)
	for _, f := range l.families {
		consider(f.nextTend())
		consider(l.nextReading(f))
	}
	return next, ok
}

// family returns a family, or nil if the node does not serve it.
func (l *Loop) family(f fwd.Family) *family {
	for _, fam := range l.families {
		if fam.Family == f {
			return fam
		}
	}
	return nil
}

// configure applies a new Config. A shorter SyncPeriod takes effect after the next verification.
func (l *Loop) configure(c *config.Config) {
	l.Config = c
	if l.Monitor != nil {
		l.Monitor.Configured(c)
	}
	l.news.any, l.news.header = true, true
}

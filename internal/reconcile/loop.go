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

// Feed collects changes of the cluster's objects from other goroutines.
type Feed interface {
	// Wake receives when there is something to drain, and when Synced becomes true.
	Wake() <-chan struct{}
	// Drain moves what was collected into the store.
	Drain(*cluster.Store) cluster.Drained
	// Synced says that the first lists of Services, EndpointSlices and the node are complete.
	Synced() bool
}

// Flows removes connection-tracking entries that lead elsewhere than the rules do.
type Flows interface {
	// Update takes in changes of the table, in memory.
	Update(fwd.Changes)
	// Submit asks for removal according to all updates so far; it does not wait. written says by fwd.Family.Index where the
	// kernel has the rules by now; what is to be removed in the other family waits. all says that also flows may be stale
	// whose Services did not change since the last Submit.
	Submit(written [2]bool, all bool)
}

// Checks answers load balancers that ask whether a Service has endpoints on this node.
type Checks interface {
	// Update takes in changes of the table, in memory.
	Update(fwd.Changes)
	// Programmed says that the kernel has the rules of all updates so far in one family. It does not wait.
	Programmed(fwd.Family)
}

// Events tells users about their Services. It does not wait.
type Events interface {
	// Warn makes a Warning event on a Service; reason is one word in CamelCase.
	Warn(s fwd.Service, reason, message string)
}

// Monitor follows what the loop does, for metrics and health. It does not wait.
type Monitor interface {
	// Queued says that a change waits to be written, since then.
	Queued(since time.Time)
	// Synced reports a sync, also one that took events in and had nothing to write.
	Synced(Sync)
	// Verified says that a reading of the kernel found all that is wanted in one family, and nothing to repair.
	Verified(f fwd.Family, at time.Time)
	// Node reports new facts about the node.
	Node(cluster.Node)
	// Configured says that the Config is another one from now on.
	Configured(*config.Config)
}

// Options are what a Loop works with. Flows, Checks, Events, Monitor, LocalAddrs, AddrChanges, Drift, OnWritten and OnVerified
// may be nil.
type Options struct {
	Config *config.Config
	// Configs receives a Config to go on with, made by Apply of the one before; it may be nil.
	Configs  <-chan *config.Config
	Feed     Feed
	Backends backend.Families
	Flows    Flows
	Checks   Checks
	Events   Events
	Monitor  Monitor
	// LocalAddrs lists the addresses of the node's interfaces; AddrChanges receives when they may have changed.
	LocalAddrs  func() ([]netip.Addr, error)
	AddrChanges <-chan struct{}
	// Drift receives when others may have changed what a Backend wrote; the family is read back soon.
	Drift <-chan backend.Drift
	// OnWritten is called once for each family, after everything was written for the first time. OnVerified is called once for
	// each family, after a reading of the kernel has found all of it: only then nothing else is needed to forward. Both run in
	// the loop's goroutine.
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
	// podCIDRs are what detect-local mode NodeCIDR works with.
	podCIDRs podCIDRs
	// wanted is what the kernel is to hold.
	wanted     wanted
	quarantine quarantine
	reports    reports
	// readings receives the readings that have ended; readers are the goroutines that make them.
	readings chan *reading
	readers  sync.WaitGroup
	// knownAt is when the feed and the node first said enough to decide about packets, lastEnd the end of the last sync that
	// changed something; both are zero before.
	knownAt, lastEnd time.Time
}

// New returns a Loop that has done nothing yet.
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

// Run works until the context ends, which is no error. An error means that the process must be restarted to go on.
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

// act does what is due at that time.
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

// next is when act has to be called again without news, if ever.
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

// family returns a family that the node serves, or nil.
func (l *Loop) family(f fwd.Family) *family {
	for _, fam := range l.families {
		if fam.Family == f {
			return fam
		}
	}
	return nil
}

// configure goes on with another Config. A shorter SyncPeriod counts from the next verification on.
func (l *Loop) configure(c *config.Config) {
	l.Config = c
	if l.Monitor != nil {
		l.Monitor.Configured(c)
	}
	l.news.any, l.news.header = true, true
}

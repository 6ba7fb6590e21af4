package reconcile

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"time"

	"github.com/fairlead/fairlead/internal/backend"
	"github.com/fairlead/fairlead/internal/cluster"
	"github.com/fairlead/fairlead/internal/compile"
	"github.com/fairlead/fairlead/internal/config"
	"github.com/fairlead/fairlead/internal/fwd"
)

// Drained says what a Feed put into the store.
type Drained struct {
	// Services and Slices count the events.
	Services, Slices int
	// Triggers are, by fwd.Family.Index, the times of the changes that made the endpoint slices, as the control plane noted
	// them.
	Triggers [2][]time.Time
	// NodeChanged says that facts about the node, or the service CIDRs, changed.
	NodeChanged bool
}

func (d *Drained) any() bool {
	return d.Services+d.Slices+len(d.Triggers[0])+len(d.Triggers[1]) > 0
}

// Feed collects changes of the cluster's objects from other goroutines.
type Feed interface {
	// Wake receives when there is something to drain, and when Synced becomes true.
	Wake() <-chan struct{}
	// Drain moves what was collected into the store.
	Drain(*cluster.Store) Drained
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
	// Programmed says that the kernel has the rules of all updates so far, in both families. It does not wait.
	Programmed()
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
	// Verified says that a reading of the kernel found all that is wanted, and nothing to repair.
	Verified(at time.Time)
	// Node reports new facts about the node.
	Node(cluster.Node)
	// Configured says that the Config is another one from now on.
	Configured(*config.Config)
}

// Sync is the report of one attempt to bring the kernel up to date.
type Sync struct {
	Start, End time.Time
	// Failed says by fwd.Family.Index what could not be written completely.
	Failed [2]bool
	// Unread says that it failed since the kernel could not be read, so that nothing was written.
	Unread bool
	// Full says that the kernel was read before it was written: at the start, after a failure, and to verify.
	Full bool
	// Applying is how long the backend took to write.
	Applying time.Duration
	// Services, Frontends and Endpoints count what is in the table; an endpoint counts once for each service port that it is
	// chosen for. Conflicts counts the keys that a Service claims and another one has.
	Services, Frontends, Endpoints, Conflicts int
	// ServiceEvents and SliceEvents count changes of objects that this sync took in.
	ServiceEvents, SliceEvents int
	// Triggers are, by fwd.Family.Index, the times of the endpoint changes that are in the kernel since this sync.
	Triggers [2][]time.Time
	// LocalPolicyEmpty counts, by fwd.Family.Index, service ports whose internal (0) or external (1) policy Local has no
	// endpoint on this node.
	LocalPolicyEmpty [2][2]int
	// Quarantined counts the Services that the kernel refuses.
	Quarantined int
	// Result counts what was written.
	Result backend.Result
	// Drifted counts objects that others had changed.
	Drifted int
}

// Options are what a Loop works with. Flows, Checks, Events, Monitor, LocalAddrs, AddrChanges, Drift and OnFirstWrite may be nil.
type Options struct {
	Config *config.Config
	// Configs receives a Config to go on with, made by Apply of the one before; it may be nil.
	Configs <-chan *config.Config
	Feed    Feed
	Backend backend.Backend
	Flows   Flows
	Checks  Checks
	Events  Events
	Monitor Monitor
	// LocalAddrs lists the addresses of the node's interfaces; AddrChanges receives when they may have changed.
	LocalAddrs  func() ([]netip.Addr, error)
	AddrChanges <-chan struct{}
	// Drift receives when others may have changed what the Backend wrote.
	Drift <-chan struct{}
	// OnFirstWrite is called once for each family, after everything was written for the first time.
	OnFirstWrite func(fwd.Family)
	Logger       *slog.Logger
}

// podCIDRWait is how long a node may be without podCIDRs in mode NodeCIDR.
const podCIDRWait = 5 * time.Minute

// firstBackoff is the wait after the first failure.
const firstBackoff = 100 * time.Millisecond

// Loop is the loop. Make one with New; only Run's goroutine touches its fields.
type Loop struct {
	Options
	log *slog.Logger

	store cluster.Store
	table fwd.Table
	facts compile.Facts
	addrs []netip.Addr
	// podCIDRs are those that mode NodeCIDR works with, once known.
	podCIDRs []netip.Prefix
	// lackingSince is when it was first seen that there are none.
	lackingSince time.Time

	started time.Time
	// woken says that there is news; addrsStale that it is the addresses, configStale that it is the Config.
	woken, addrsStale, configStale bool
	// unread says that the kernel has to be read before it is written.
	unread bool
	// headerSent says that the backend knows the header; partial that most Services are not in the table yet.
	headerSent, partial bool
	// written says by fwd.Family.Index that everything was written at least once, complete that it was so for both.
	written  [2]bool
	complete bool
	// lastEnd is the end of the last sync that did anything.
	lastEnd  time.Time
	verifyAt time.Time
	// verifyRest is the time before which no verification begins, suspect says that one is due then because of Drift.
	verifyRest time.Time
	suspect    bool
	// tendAt is when the backend has something to do, the zero Time if it has not.
	tendAt time.Time
	// unverified counts verifications in a row that failed.
	unverified int
	// verified receives the reading that is going on; reading says that there is one.
	verified chan verification
	reading  bool
	// queuedSince is the time of the oldest change that is not in the kernel yet.
	queuedSince time.Time

	failure    failure
	quarantine quarantine
	reports    reports
	// localPolicyEmpty and endpoints are sums over the table.
	localPolicyEmpty [2][2]int
	endpoints        int
	// pending is what was drained and not reported yet.
	pending Drained
}

// New returns a Loop that has done nothing yet.
func New(o Options) *Loop {
	l := &Loop{Options: o, log: o.Logger, unread: true, addrsStale: true, verified: make(chan verification, 1)}
	l.quarantine.held = make(map[fwd.Service]*refusal)
	l.reports.problems = make(map[fwd.Service]string)
	return l
}

// Run works until the context ends, which is no error. An error means that the process must be restarted to go on.
func (l *Loop) Run(ctx context.Context) error {
	l.started = time.Now()
	l.woken = true
	changes, drift := l.AddrChanges, l.Drift
	timer := time.NewTimer(0)
	defer timer.Stop()
	ctx, cancel := context.WithCancel(ctx)
	defer l.awaitVerify()
	defer cancel()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-l.Feed.Wake():
			l.woken = true
		case _, ok := <-changes:
			if !ok {
				changes = nil // the watch ended, as it does when the context ends
			}
			l.woken, l.addrsStale = true, true
		case l.Config = <-l.Configs: // a shorter SyncPeriod counts from the next verification on
			if l.Monitor != nil {
				l.Monitor.Configured(l.Config)
			}
			l.woken, l.configStale = true, true
		case _, ok := <-drift:
			if !ok {
				drift = nil
			}
			l.suspect = ok
		case v := <-l.verified:
			l.endVerify(ctx, v)
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
	if at, due := l.nextTend(); due && !now.Before(at) {
		l.tend(ctx)
	}
	if !l.lackingSince.IsZero() {
		if err := l.checkNode(now); err != nil {
			return err
		}
	}
	if l.failure.failing() {
		if l.changeDue(now) || !now.Before(l.failure.retryAt) {
			return l.sync(ctx, true)
		}
		return nil
	}
	if l.changeDue(now) {
		if err := l.sync(ctx, true); err != nil {
			return err
		}
	}
	if at, due := l.nextVerify(); due && !time.Now().Before(at) {
		l.beginVerify(ctx)
	}
	return nil
}

func (l *Loop) changeDue(now time.Time) bool { return l.woken && !now.Before(l.changeAt()) }

// changeAt is the earliest time at which a change may be applied.
func (l *Loop) changeAt() time.Time {
	if l.lastEnd.IsZero() {
		return l.lastEnd
	}
	return l.lastEnd.Add(l.Config.MinSyncPeriod)
}

// next is when act has to be called again without news, if ever.
func (l *Loop) next() (time.Time, bool) {
	var at time.Time
	consider := func(t time.Time, when bool) {
		if when && (at.IsZero() || t.Before(at)) {
			at = t
		}
	}
	consider(l.changeAt(), l.woken)
	consider(l.failure.retryAt, l.failure.failing())
	consider(l.nextVerify())
	consider(l.nextTend())
	consider(l.lackingSince.Add(podCIDRWait), !l.lackingSince.IsZero() && l.podCIDRs == nil)
	return at, !at.IsZero()
}

// checkNode follows the node's podCIDRs in mode NodeCIDR, and gives up where it has none for too long. Other ones than at the
// start count from now on; where a Node loses them, those that it had stay.
func (l *Loop) checkNode(now time.Time) error {
	if l.Config.DetectMode != config.DetectNodeCIDR {
		return nil
	}
	have := l.store.Node().PodCIDRs
	switch {
	case len(have) > 0 && l.podCIDRs != nil && !slices.Equal(have, l.podCIDRs):
		l.log.Warn("the node has other podCIDRs, pods with addresses of the old ones count as sources outside of the cluster",
			"podCIDRs", have, "before", l.podCIDRs)
		fallthrough
	case len(have) > 0:
		l.podCIDRs = have
	case l.podCIDRs != nil:
	case l.lackingSince.IsZero():
		l.lackingSince = now
		l.log.Warn("waiting for the node's podCIDR, which --detect-local-mode NodeCIDR needs; nothing is written before",
			"node", l.Config.NodeName, "endsIn", podCIDRWait)
	case now.Sub(l.lackingSince) >= podCIDRWait:
		return fmt.Errorf("node %q has no podCIDR after %v, which --detect-local-mode NodeCIDR needs: let the controller manager allocate one or choose another mode", l.Config.NodeName, podCIDRWait)
	}
	return nil
}

// node returns the facts about the node that rules are made from.
func (l *Loop) node() cluster.Node {
	n := l.store.Node()
	if l.Config.DetectMode == config.DetectNodeCIDR && len(n.PodCIDRs) == 0 {
		n.PodCIDRs = l.podCIDRs
	}
	return n
}

// ready says that enough is known of the cluster and the node to decide about packets.
func (l *Loop) ready() bool {
	return l.Config.DetectMode != config.DetectNodeCIDR || l.podCIDRs != nil
}

package reconcile

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/fairlead/fairlead/internal/cluster"
	"github.com/fairlead/fairlead/internal/config"
)

// news is what came in since the table was last updated.
type news struct {
	// any says that there is something, addrs that the node's addresses may have changed, and
	// header that the table's header has to be computed again because the node or the Config
	// changed.
	any, addrs, header bool
	// unreported is what was drained and has not been reported to the Monitor.
	unreported cluster.Drained
}

// firstReadingTimeout is how long the first sync waits for a family whose kernel is still being
// read.
const firstReadingTimeout = 5 * time.Second

// nextChange is when the next sync is due: for news, or for the next step of a large change.
func (l *Loop) nextChange() (time.Time, bool) {
	more := len(l.wanted.gradual) > 0 && l.podCIDRs.known(l.Config)
	if !l.news.any && !more {
		return time.Time{}, false
	}
	if l.knownAt.IsZero() {
		return time.Time{}, true
	}
	if len(l.writable()) == 0 {
		return time.Time{}, false // the end of a reading wakes the loop
	}
	if more {
		return time.Time{}, true
	}
	at := l.knownAt
	for _, f := range l.families {
		if !l.wanted.loaded && f.reading != nil && !f.failure.failing() {
			at = l.knownAt.Add(firstReadingTimeout)
		}
	}
	if !l.lastEnd.IsZero() {
		at = l.lastEnd.Add(l.Config.MinSyncPeriod)
	}
	return at, true
}

// takeNews drains the feed and, if a kernel was read, writes the changes.
func (l *Loop) takeNews(ctx context.Context, now time.Time) error {
	if !l.Feed.Synced() {
		l.news.any = false
		return nil
	}
	l.drain()
	if err := l.podCIDRs.check(l, now); err != nil {
		return err
	}
	switch {
	case !l.podCIDRs.known(l.Config):
		l.news.any = false
	case l.knownAt.IsZero():
		l.knownAt = now
		l.queued(now)
	default:
		l.news.any = false
		l.sync(ctx)
	}
	return nil
}

// drain moves the feed's changes into the store.
func (l *Loop) drain() {
	d, sum := l.Feed.Drain(&l.wanted.store), &l.news.unreported
	sum.Services += d.Services
	sum.Slices += d.Slices
	for i, t := range d.Triggers {
		sum.Triggers[i] = append(sum.Triggers[i], t...)
	}
	if d.NodeChanged {
		l.news.header = true
		if l.Monitor != nil {
			l.Monitor.Node(l.wanted.store.Node())
		}
	}
}

// queued reports that something is waiting to be written.
func (l *Loop) queued(since time.Time) {
	if l.Monitor != nil {
		l.Monitor.Queued(since)
	}
}

// podCIDRTimeout is how long a node may be without podCIDRs in mode NodeCIDR.
const podCIDRTimeout = 5 * time.Minute

// podCIDRs follows the node's podCIDRs in mode NodeCIDR.
type podCIDRs struct {
	// inForce are the podCIDRs in use, nil before there were any.
	inForce []netip.Prefix
	// missingSince is when the node was first seen without podCIDRs.
	missingSince time.Time
}

// check follows the node. It returns an error if the node has had no podCIDR for too long. Changed
// podCIDRs take effect at once; a Node that loses them keeps the last ones.
func (p *podCIDRs) check(l *Loop, now time.Time) error {
	if l.Config.DetectMode != config.DetectNodeCIDR {
		return nil
	}
	have := l.wanted.store.Node().PodCIDRs
	switch {
	case len(have) > 0:
		if p.inForce != nil && !slices.Equal(have, p.inForce) {
			l.log.Warn("the node's podCIDRs changed; pods in the old ones count as sources outside of the cluster",
				"podCIDRs", have, "before", p.inForce)
		}
		p.inForce = have
	case p.inForce != nil:
	case p.missingSince.IsZero():
		p.missingSince = now
		l.log.Warn("waiting for the node's podCIDR, which --detect-local-mode NodeCIDR needs; no rules are written before",
			"node", l.Config.NodeName, "timeout", podCIDRTimeout)
	case now.Sub(p.missingSince) >= podCIDRTimeout:
		return fmt.Errorf("node %q has no podCIDR after %v, which --detect-local-mode NodeCIDR needs: let the controller manager allocate one, or choose another mode", l.Config.NodeName, podCIDRTimeout)
	}
	return nil
}

// next is when check has to be called again; ok is false for never.
func (p *podCIDRs) next() (time.Time, bool) {
	return p.missingSince.Add(podCIDRTimeout), !p.missingSince.IsZero() && p.inForce == nil
}

// known reports whether the mode has what it needs.
func (p *podCIDRs) known(c *config.Config) bool {
	return c.DetectMode != config.DetectNodeCIDR || p.inForce != nil
}

// node returns the facts about the node that rules are made from.
func (l *Loop) node() cluster.Node {
	n := l.wanted.store.Node()
	if l.Config.DetectMode == config.DetectNodeCIDR && len(n.PodCIDRs) == 0 {
		n.PodCIDRs = l.podCIDRs.inForce
	}
	return n
}

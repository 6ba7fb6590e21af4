package ipvs

import (
	"cmp"
	"context"
	"errors"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/internal/fwd"
	hostipvs "github.com/fairlead/fairlead/internal/host/ipvs"
)

// A real server that is no longer wanted keeps its connections: its weight becomes 0, and it is
// deleted when that breaks no connection (drains.complete).
//
//	serving(w) ──no longer wanted──► draining ──complete──► deleted
//	     ▲                              │
//	     └────────wanted again──────────┘ only the weight changes: a deletion would break connections, even new ones
//
// The same holds for a whole virtual server; meanwhile its address stays the node's. UDP has no
// connections: its servers are deleted at once, and the kernel selects another real server for the
// next packet of each client.

// manyServers is the number of virtual servers from which one Read costs less than RealServers for
// each.
const manyServers = 300

// drain records that a real server got weight 0.
func (t *target) drain(k Key, e fwd.Endpoint, reason Reason) {
	now := t.opts.Now()
	if reason == DrainRemoved && (e.Terminating || t.pods.leaving(e.Addr)) {
		reason = DrainTerminating
	}
	r := drainingReal{since: now, reason: reason, instance: e.Instance}
	if e.Terminating && !t.pods.leaving(e.Addr) {
		r.endsAt = now.Add(endedGrace) // it was shutting down before and is no longer
	}
	t.drains.start(k, e.Addr, r)
}

// Tend implements backend.Tender: it deletes what has drained.
func (t *target) Tend(ctx context.Context, now time.Time) time.Time {
	next, _ := t.tend(ctx, now)
	return next
}

// tend is Tend. It also returns the deletions that failed and will be retried.
func (t *target) tend(ctx context.Context, now time.Time) (next time.Time, failed failures) {
	failed = t.tendServers(ctx, now)
	next = t.drains.next()
	if err := t.release(ctx); err != nil && ctx.Err() == nil {
		t.opts.Logger.Warn("cannot remove addresses and set entries of drained virtual servers, will retry", "family", t.family.String(), "error", err)
		retry := now.Add(lastPoll)
		next = earlier(retry, cmp.Or(next, retry))
	}
	return next, failed
}

// tendServers deletes real and virtual servers that have drained, and returns the deletions that
// failed.
func (t *target) tendServers(ctx context.Context, now time.Time) (failed failures) {
	for a := range t.pods.takeEnded() {
		t.drains.ended(a, now)
	}
	due := t.drains.due(now)
	if len(due) == 0 {
		return nil
	}
	states, err := t.states(ctx, due)
	if err == nil {
		failed = t.deleteDrained(ctx, due, states, now)
		err = failed.join()
	}
	if err != nil && ctx.Err() == nil {
		t.opts.Logger.Warn("cannot delete drained real servers, will retry", "family", t.family.String(), "error", err)
	}
	t.drains.reschedule(due, now)
	return failed
}

// states reads the real servers of virtual servers. A virtual server that does not exist has no
// entry.
func (t *target) states(ctx context.Context, keys []Key) (map[Key][]hostipvs.RealState, error) {
	out := make(map[Key][]hostipvs.RealState, len(keys))
	if len(keys) < manyServers {
		for _, k := range keys {
			reals, err := t.opts.Servers.RealServers(ctx, virtualServer(k))
			switch {
			case errors.Is(err, unix.ESRCH):
			case err != nil:
				return nil, err
			default:
				out[k] = reals
			}
		}
		return out, nil
	}
	content, err := t.opts.Servers.Read(ctx)
	if err != nil {
		return nil, err
	}
	for _, s := range content.Servers {
		out[serverKey(s.VirtualServer)] = s.Reals
	}
	return out, nil
}

// deleteDrained deletes what has drained.
func (t *target) deleteDrained(ctx context.Context, keys []Key, states map[Key][]hostipvs.RealState, now time.Time) failures {
	var b batch
	for _, k := range keys {
		reals, exists := states[k]
		if !exists { // another program has deleted it
			t.drains.forget(k)
			continue
		}
		done, empty := t.drains.judge(k, reals, now)
		if empty {
			b.add(k, hostipvs.Op{Verb: hostipvs.DelServer}, func() { t.drains.forget(k) })
			continue
		}
		for _, a := range done {
			b.add(k, delReal(a), func() { t.drains.stop(k, a) })
		}
	}
	if len(b.ops) == 0 {
		return nil
	}
	defer t.changing()()
	return b.run(ctx, t.opts.Servers)
}

// draining counts what drains. It may be called from any goroutine.
func (t *target) draining(now time.Time) Draining {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := t.drains.count(t.leaving, now)
	out.Objects += len(t.held) + len(t.stray)
	return out
}

// DrainingAt returns the real servers behind a destination that drain in this node's kernel, with
// their connections. Without IPVS in the kernel there are none; no module is loaded.
func DrainingAt(ctx context.Context, proto fwd.Proto, dst netip.AddrPort) (out []hostipvs.RealState, err error) {
	if _, err := os.Stat("/proc/thread-self/net/ip_vs"); err != nil {
		return nil, nil
	}
	k, err := hostipvs.Open(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, k.Close()) }()
	reals, err := k.RealServers(ctx, hostipvs.VirtualServer{Protocol: uint8(proto), Addr: dst})
	if err != nil && !errors.Is(err, unix.ESRCH) {
		return nil, err
	}
	for _, r := range reals {
		if r.Weight == 0 {
			out = append(out, r)
		}
	}
	return out, nil
}

// pods tracks which endpoints are shutting down, and which of these have terminated since the last
// Tend. It belongs to the loop's goroutine.
type pods struct {
	// terminating counts the Services in which an endpoint is shutting down.
	terminating map[netip.AddrPort]int
	terminated  map[netip.AddrPort]struct{}
}

func newPods() *pods {
	return &pods{terminating: make(map[netip.AddrPort]int), terminated: make(map[netip.AddrPort]struct{})}
}

// update processes changes of the table. When a Service is removed, its endpoints are forgotten.
func (p *pods) update(ch fwd.Changes) {
	for _, c := range ch.Services {
		now := make(map[netip.AddrPort]bool)
		if c.New != nil {
			for _, a := range c.New.Leaving {
				now[a] = true
				p.terminating[a]++
				delete(p.terminated, a)
			}
		}
		if c.Old == nil {
			continue
		}
		for _, a := range c.Old.Leaving {
			if p.terminating[a]--; p.terminating[a] <= 0 {
				delete(p.terminating, a)
			}
			if !now[a] && c.New != nil {
				p.terminated[a] = struct{}{}
			}
		}
	}
}

// leaving reports whether an endpoint is shutting down.
func (p *pods) leaving(a netip.AddrPort) bool { return p.terminating[a] > 0 }

// takeEnded returns the endpoints that have terminated since the last call.
func (p *pods) takeEnded() map[netip.AddrPort]struct{} {
	ended := p.terminated
	if len(ended) > 0 {
		p.terminated = make(map[netip.AddrPort]struct{})
	}
	return ended
}

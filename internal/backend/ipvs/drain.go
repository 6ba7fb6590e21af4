package ipvs

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/internal/fwd"
	hostipvs "github.com/fairlead/fairlead/internal/host/ipvs"
)

// A real server that nobody wants any more keeps the connections that it has: its weight becomes 0, and it is deleted when
// nothing is lost by it.
//
//	serving(w) ──not wanted──► draining ──one of the conditions of due()──► deleted
//	     ▲                        │
//	     └──────wanted again──────┘ by its weight alone: a deletion would cut the connections, also those made meanwhile
//
// So it is with a whole virtual server, whose address stays the node's meanwhile. UDP has no connections: its servers are
// deleted at once, and the kernel chooses another one for the next packet of each client.

// Reason says why a real server drains.
type Reason uint8

// The reasons.
const (
	// DrainRemoved: the endpoint is no longer chosen, though its pod may live on: a label changed, it became unready.
	DrainRemoved Reason = iota
	// DrainTerminating: the pod shuts down.
	DrainTerminating
	// DrainServer: the whole virtual server is gone, and with it all of its endpoints.
	DrainServer
	// DrainFound: the kernel had it with weight 0 when it was read, as an earlier process left it.
	DrainFound
	// NumReasons is the number of reasons, for arrays by reason.
	NumReasons
)

func (r Reason) String() string {
	return [...]string{"removed", "terminating", "server-removed", "found"}[r]
}

const (
	// endedGrace is how long connections to a pod that has ended are kept. Then clients are told by a reset, instead of
	// sending into silence until they give up.
	endedGrace = 5 * time.Second
	// The kernel is asked about connections after firstPoll, and then after twice as long each time, up to lastPoll.
	firstPoll = time.Second
	lastPoll  = 15 * time.Second
	// manyServers is the number of virtual servers from which one reading of all costs less than one of each.
	manyServers = 300
)

// draining is one real server that drains.
type draining struct {
	since  time.Time
	reason Reason
	// instance is that of the endpoint that it served; 0 if not known.
	instance uint32
	// endsAt is when it is deleted whatever connections it has, because its pod has ended; zero if it has not.
	endsAt time.Time
	// idleSince is since when no connection is established; zero while one is.
	idleSince time.Time
	// connections are those that were seen last.
	connections uint32
}

// drainingServer is a virtual server of which something drains.
type drainingServer struct {
	// server is what the kernel has, as long as whole says that nobody wants it.
	server *Server
	whole  bool
	reals  map[netip.AddrPort]*draining
	// pollAt is when it is looked at next, pause what it waited before.
	pollAt time.Time
	pause  time.Duration
}

// bounds are the times that decide how long a real server drains.
type bounds struct {
	// fin is after what time the kernel forgets a connection that is being closed.
	fin time.Duration
	// longest is how long a real server drains at most.
	longest time.Duration
}

// due says whether nothing is lost any more if a real server is deleted now, or too little to wait for:
//
//   - it has no connection;
//   - none has been established for so long that those which are being closed are closed;
//   - its pod has ended, and what its clients send is not answered by anybody;
//   - it has drained for as long as is allowed.
func (d *draining) due(b bounds, now time.Time) bool {
	return d.connections == 0 || d.expires(b).Compare(now) <= 0
}

// expires is when the real server is deleted at the latest as things are.
func (d *draining) expires(b bounds) time.Time {
	at := d.since.Add(b.longest)
	if !d.idleSince.IsZero() {
		at = earlier(at, d.idleSince.Add(b.fin))
	}
	if !d.endsAt.IsZero() {
		at = earlier(at, d.endsAt)
	}
	return at
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

// see takes in what the kernel says of the real server.
func (d *draining) see(s hostipvs.RealState, now time.Time) {
	d.connections = s.Active + s.Inactive
	switch {
	case s.Active > 0:
		d.idleSince = time.Time{}
	case d.idleSince.IsZero():
		d.idleSince = now
	}
}

// drain notes that a real server has weight 0 now. The kernel is asked about it with the next Tend.
func (t *target) drain(k Key, e fwd.Endpoint, r Reason) {
	now := t.opts.Now()
	if r == DrainRemoved && (e.Terminating || t.pods.leaving(e.Addr)) {
		r = DrainTerminating
	}
	d := &draining{since: now, reason: r, instance: e.Instance}
	if e.Terminating && !t.pods.leaving(e.Addr) {
		d.endsAt = now.Add(endedGrace) // it shut down when it was seen last, and is gone from there too
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.drains[k]
	if s == nil {
		s = &drainingServer{reals: make(map[netip.AddrPort]*draining)}
		t.drains[k] = s
	}
	s.reals[e.Addr] = d
	s.pollAt, s.pause = time.Time{}, 0
}

// drainWhole notes that nobody wants a virtual server any more, of which the real servers have been told to drain.
func (t *target) drainWhole(k Key, server *Server) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.drains[k]
	if s == nil {
		s = &drainingServer{reals: make(map[netip.AddrPort]*draining)}
		t.drains[k] = s
	}
	s.whole, s.server = true, server
	s.pollAt, s.pause = time.Time{}, 0
}

// undrain notes that a real server is wanted again, or gone.
func (t *target) undrain(k Key, a netip.AddrPort) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if s := t.drains[k]; s != nil {
		delete(s.reals, a)
		t.settleLocked(k)
	}
}

// keep notes that a virtual server is wanted again, though real servers of it may drain.
func (t *target) keep(k Key) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if s := t.drains[k]; s != nil {
		s.whole, s.server = false, nil
		t.settleLocked(k)
	}
}

// settleLocked forgets a virtual server of which nothing drains.
func (t *target) settleLocked(k Key) {
	if s := t.drains[k]; len(s.reals) == 0 && !s.whole {
		delete(t.drains, k)
	}
}

// forget notes that a virtual server is gone.
func (t *target) forget(k Key) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.drains, k)
}

// Tend implements backend.Tender: it deletes what has drained.
func (t *target) Tend(ctx context.Context, now time.Time) time.Time {
	next, _ := t.tend(ctx, now)
	return next
}

// tend is Tend; it also returns what it could not delete of virtual servers, which is tried again.
func (t *target) tend(ctx context.Context, now time.Time) (next time.Time, failed failures) {
	failed = t.tendServers(ctx, now)
	if err := t.release(ctx); err != nil && ctx.Err() == nil {
		t.opts.Logger.Warn("cannot remove what nobody needs any more, it is tried again", "family", t.family.String(), "error", err)
		return earlier(now.Add(lastPoll), cmp.Or(t.nextPoll(), now.Add(lastPoll))), failed
	}
	return t.nextPoll(), failed
}

// tendServers deletes real and virtual servers that have drained, and returns what it could not.
func (t *target) tendServers(ctx context.Context, now time.Time) (failed failures) {
	for a := range t.pods.takeEnded() {
		t.ended(a, now)
	}
	due := t.dueServers(now)
	if len(due) == 0 {
		return nil
	}
	states, err := t.states(ctx, due)
	if err == nil {
		failed = t.finish(ctx, due, states, now)
		err = failed.join()
	}
	if err != nil && ctx.Err() == nil {
		t.opts.Logger.Warn("cannot look after real servers that drain, it is tried again", "family", t.family.String(), "error", err)
	}
	for _, k := range due {
		t.schedule(k, now)
	}
	return failed
}

// ended gives the connections to a pod that has ended a last moment.
func (t *target) ended(a netip.AddrPort, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, s := range t.drains {
		if d := s.reals[a]; d != nil && d.endsAt.IsZero() {
			d.endsAt = now.Add(endedGrace)
			if d.reason == DrainRemoved {
				d.reason = DrainTerminating
			}
			s.pollAt = earlier(s.pollAt, d.endsAt)
		}
	}
}

func (t *target) dueServers(now time.Time) []Key {
	t.mu.Lock()
	defer t.mu.Unlock()
	var due []Key
	for k, s := range t.drains {
		if !s.pollAt.After(now) {
			due = append(due, k)
		}
	}
	slices.SortFunc(due, Key.compare)
	return due
}

// schedule plans when a virtual server is looked at again.
func (t *target) schedule(k Key, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.drains[k]
	if s == nil {
		return
	}
	s.pause = min(max(2*s.pause, firstPoll), lastPoll)
	s.pollAt = now.Add(s.pause)
	for _, d := range s.reals {
		if at := d.expires(t.bounds); at.After(now) { // one that should be gone by now is tried again after the pause
			s.pollAt = earlier(s.pollAt, at)
		}
	}
}

func (t *target) nextPoll() (next time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, s := range t.drains {
		if next.IsZero() || s.pollAt.Before(next) {
			next = s.pollAt
		}
	}
	return next
}

// states asks the kernel about the real servers of virtual servers. A virtual server that is not there has no entry.
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
	wanted := make(map[Key]bool, len(keys))
	for _, k := range keys {
		wanted[k] = true
	}
	for _, s := range content.Servers {
		if k := serverKey(s.VirtualServer); wanted[k] {
			out[k] = s.Reals
		}
	}
	return out, nil
}

// finish deletes what may be deleted.
func (t *target) finish(ctx context.Context, keys []Key, states map[Key][]hostipvs.RealState, now time.Time) failures {
	var b batch
	for _, k := range keys {
		reals, there := states[k]
		if !there { // somebody else has deleted it
			t.forget(k)
			continue
		}
		gone, rest := t.judge(k, reals, now)
		if rest == 0 {
			b.add(k, hostipvs.Op{Verb: hostipvs.DelServer}, func() { t.forget(k) })
			continue
		}
		for _, a := range gone {
			b.add(k, delReal(a), func() { t.undrain(k, a) })
		}
	}
	if len(b.ops) == 0 {
		return nil
	}
	defer t.changing()()
	return b.run(ctx, t.opts.Servers)
}

// judge says which real servers of a virtual server may be deleted. rest is how many then remain of a virtual server that
// nobody wants, and not 0 for one that is wanted.
func (t *target) judge(k Key, reals []hostipvs.RealState, now time.Time) (gone []netip.AddrPort, rest int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.drains[k]
	seen := make(map[netip.AddrPort]bool, len(s.reals))
	for _, r := range reals {
		d := s.reals[r.Addr]
		if d == nil || r.Weight != 0 {
			continue // serves, or somebody else gave it new connections
		}
		seen[r.Addr] = true
		if d.see(r, now); d.due(t.bounds, now) || k.Proto == fwd.UDP {
			gone = append(gone, r.Addr)
		}
	}
	maps.DeleteFunc(s.reals, func(a netip.AddrPort, _ *draining) bool { return !seen[a] })
	if !s.whole {
		t.settleLocked(k)
		return gone, 1
	}
	return gone, len(s.reals) - len(gone)
}

// Draining is what drains in one family or in several.
type Draining struct {
	// Count is the number of real servers, by Reason.
	Count [NumReasons]int
	// Oldest is for how long the oldest has drained.
	Oldest time.Duration
	// Connections are those of all of them, as seen last.
	Connections uint64
	// Objects is the number of all objects that are still to be taken out of the kernel: real servers and virtual servers that
	// drain, VIPs and elements of sets that stay for them, and what a Write has yet to delete or could not. At 0 nothing drains.
	Objects int
}

// draining counts; it may be called from any goroutine.
func (t *target) draining(now time.Time) (out Draining) {
	t.mu.Lock()
	defer t.mu.Unlock()
	out.Objects = len(t.held) + len(t.stray)
	for k := range t.leaving {
		// One that drains counts below.
		if t.drains[k] == nil {
			out.Objects++
		}
	}
	for _, s := range t.drains {
		out.Objects += len(s.reals)
		if s.whole {
			out.Objects++
		}
		for _, d := range s.reals {
			out.Count[d.reason]++
			out.Oldest = max(out.Oldest, now.Sub(d.since))
			out.Connections += uint64(d.connections)
		}
	}
	return out
}

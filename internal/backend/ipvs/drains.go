package ipvs

import (
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/fairlead/fairlead/internal/fwd"
	hostipvs "github.com/fairlead/fairlead/internal/host/ipvs"
)

// Reason is why a real server drains.
type Reason uint8

// The reasons.
const (
	// DrainRemoved: the endpoint is no longer selected, but its pod may still run: a label changed,
	// or it became unready.
	DrainRemoved Reason = iota
	// DrainTerminating: the pod is shutting down.
	DrainTerminating
	// DrainServer: the whole virtual server was removed.
	DrainServer
	// DrainFound: the real server had weight 0 when the kernel was read; an earlier process left
	// it.
	DrainFound
	// NumReasons is the number of reasons, for arrays by reason.
	NumReasons
)

func (r Reason) String() string {
	return [...]string{"removed", "terminating", "server-removed", "found"}[r]
}

const (
	// endedGrace is how long connections to a terminated pod are kept. Afterwards clients get a
	// reset instead of waiting for answers until they give up.
	endedGrace = 5 * time.Second
	// Connections are polled after firstPoll, then after intervals that double up to lastPoll.
	firstPoll = time.Second
	lastPoll  = 15 * time.Second
)

// drainingReal is a real server that drains.
type drainingReal struct {
	since  time.Time
	reason Reason
	// instance is the Instance of the endpoint; 0 if unknown.
	instance uint32
	// endsAt is when the real server is deleted regardless of its connections, because its pod has
	// terminated; zero if it has not.
	endsAt time.Time
	// idleSince is since when no connection is established; zero while one is.
	idleSince time.Time
	// connections is the number of connections at the last poll.
	connections uint32
}

// drainingServer is a virtual server with real servers that drain.
type drainingServer struct {
	// whole means that the virtual server itself is no longer wanted.
	whole bool
	// settings are those of a whole one in the kernel.
	settings hostipvs.Settings
	reals    map[netip.AddrPort]*drainingReal
	// pollAt is the time of the next poll, pause the interval before it.
	pollAt time.Time
	pause  time.Duration
}

// drains knows what drains and decides when it may be deleted. It does no I/O and is safe for
// concurrent use.
type drains struct {
	// fin is the time after which the kernel forgets a connection that is being closed.
	fin time.Duration
	// limit is how long a real server may drain.
	limit time.Duration

	mu      sync.Mutex // guards servers
	servers map[Key]*drainingServer
}

func newDrains(fin, limit time.Duration) *drains {
	return &drains{fin: fin, limit: limit, servers: make(map[Key]*drainingServer)}
}

// complete reports whether deleting a real server now breaks no connection, or only some that are
// not worth waiting for:
//
//   - it has no connection;
//   - none has been established for so long that the closing ones are closed;
//   - its pod has terminated, so nobody answers its clients;
//   - it has drained for the maximum time.
func (d *drains) complete(r *drainingReal, now time.Time) bool {
	return r.connections == 0 || !d.expiry(r).After(now)
}

// expiry is when a real server is deleted if its connections do not change.
func (d *drains) expiry(r *drainingReal) time.Time {
	at := r.since.Add(d.limit)
	if !r.idleSince.IsZero() {
		at = earlier(at, r.idleSince.Add(d.fin))
	}
	if !r.endsAt.IsZero() {
		at = earlier(at, r.endsAt)
	}
	return at
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

// server returns the entry of a virtual server, which it adds if needed. The caller holds d.mu.
func (d *drains) server(k Key) *drainingServer {
	s := d.servers[k]
	if s == nil {
		s = &drainingServer{reals: make(map[netip.AddrPort]*drainingReal)}
		d.servers[k] = s
	}
	return s
}

// start records that a real server drains. The next Tend polls it.
func (d *drains) start(k Key, a netip.AddrPort, r drainingReal) {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := d.server(k)
	s.reals[a] = &r
	s.pollAt, s.pause = time.Time{}, 0
}

// startWhole records that a virtual server is no longer wanted. Its real servers drain already.
func (d *drains) startWhole(k Key, settings hostipvs.Settings) {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := d.server(k)
	s.whole, s.settings = true, settings
	s.pollAt, s.pause = time.Time{}, 0
}

// found records real servers that the kernel has with weight 0, unless they are known.
func (d *drains) found(idle map[Key][]netip.AddrPort, now time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for k, addrs := range idle {
		s := d.server(k)
		for _, a := range addrs {
			if s.reals[a] == nil {
				s.reals[a] = &drainingReal{since: now, reason: DrainFound}
			}
		}
	}
}

// stop records that a real server serves again, or was deleted.
func (d *drains) stop(k Key, a netip.AddrPort) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if s := d.servers[k]; s != nil {
		delete(s.reals, a)
		d.prune(k, s)
	}
}

// keep records that a virtual server is wanted again, though real servers of it may drain.
func (d *drains) keep(k Key) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if s := d.servers[k]; s != nil {
		s.whole = false
		d.prune(k, s)
	}
}

// prune removes the entry of a virtual server if nothing of it drains. The caller holds d.mu.
func (d *drains) prune(k Key, s *drainingServer) {
	if len(s.reals) == 0 && !s.whole {
		delete(d.servers, k)
	}
}

// forget records that a virtual server was deleted.
func (d *drains) forget(k Key) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.servers, k)
}

// clear forgets everything.
func (d *drains) clear() {
	d.mu.Lock()
	defer d.mu.Unlock()
	clear(d.servers)
}

// draining returns the Instance of a real server that drains.
func (d *drains) draining(k Key, a netip.AddrPort) (instance uint32, ok bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if s := d.servers[k]; s != nil && s.reals[a] != nil {
		return s.reals[a].instance, true
	}
	return 0, false
}

// whole returns the virtual servers that drain as a whole, with the settings that they have in the
// kernel.
func (d *drains) whole() map[Key]hostipvs.Settings {
	d.mu.Lock()
	defer d.mu.Unlock()
	out := make(map[Key]hostipvs.Settings)
	for k, s := range d.servers {
		if s.whole {
			out[k] = s.settings
		}
	}
	return out
}

// ended limits the remaining time of connections to a pod that has terminated.
func (d *drains) ended(a netip.AddrPort, now time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, s := range d.servers {
		if r := s.reals[a]; r != nil && r.endsAt.IsZero() {
			r.endsAt = now.Add(endedGrace)
			if r.reason == DrainRemoved {
				r.reason = DrainTerminating
			}
			s.pollAt = earlier(s.pollAt, r.endsAt)
		}
	}
}

// due returns the virtual servers to poll now.
func (d *drains) due(now time.Time) []Key {
	d.mu.Lock()
	defer d.mu.Unlock()
	var due []Key
	for k, s := range d.servers {
		if !s.pollAt.After(now) {
			due = append(due, k)
		}
	}
	slices.SortFunc(due, Key.compare)
	return due
}

// reschedule sets the time of the next poll of virtual servers.
func (d *drains) reschedule(keys []Key, now time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, k := range keys {
		s := d.servers[k]
		if s == nil {
			continue
		}
		s.pause = min(max(2*s.pause, firstPoll), lastPoll)
		s.pollAt = now.Add(s.pause)
		for _, r := range s.reals {
			if at := d.expiry(r); at.After(now) { // an expired one is retried after the pause
				s.pollAt = earlier(s.pollAt, at)
			}
		}
	}
}

// next returns the time of the next poll, zero if nothing drains.
func (d *drains) next() (next time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, s := range d.servers {
		if next.IsZero() || s.pollAt.Before(next) {
			next = s.pollAt
		}
	}
	return next
}

// judge takes the kernel's real servers of a virtual server and returns those that may be deleted.
// empty means that the virtual server may be deleted with them.
func (d *drains) judge(k Key, reals []hostipvs.RealState, now time.Time) (done []netip.AddrPort, empty bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := d.servers[k]
	seen := make(map[netip.AddrPort]bool, len(s.reals))
	for _, state := range reals {
		r := s.reals[state.Addr]
		if r == nil || state.Weight != 0 {
			continue // serves, or another program set its weight
		}
		seen[state.Addr] = true
		r.connections = state.Active + state.Inactive
		switch {
		case state.Active > 0:
			r.idleSince = time.Time{}
		case r.idleSince.IsZero():
			r.idleSince = now
		}
		if d.complete(r, now) || k.Proto == fwd.UDP {
			done = append(done, state.Addr)
		}
	}
	maps.DeleteFunc(s.reals, func(a netip.AddrPort, _ *drainingReal) bool { return !seen[a] })
	d.prune(k, s)
	return done, s.whole && len(done) == len(s.reals)
}

// Draining describes what drains in one family.
type Draining struct {
	// Count is the number of real servers, by Reason.
	Count [NumReasons]int
	// Oldest is how long the oldest has drained.
	Oldest time.Duration
	// Connections is the number of their connections at the last poll.
	Connections uint64
	// Objects is the number of all objects that are still to be removed from the kernel: real
	// servers and virtual servers that drain, addresses and elements of sets that these need, and
	// deletions that are pending. At 0 nothing drains.
	Objects int
}

// count counts what drains. leaving are objects that a Write has not deleted yet.
func (d *drains) count(leaving map[Key]struct{}, now time.Time) (out Draining) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for k := range leaving {
		if d.servers[k] == nil { // counted below otherwise
			out.Objects++
		}
	}
	for _, s := range d.servers {
		out.Objects += len(s.reals)
		if s.whole {
			out.Objects++
		}
		for _, r := range s.reals {
			out.Count[r.reason]++
			out.Oldest = max(out.Oldest, now.Sub(r.since))
			out.Connections += uint64(r.connections)
		}
	}
	return out
}

package health

import (
	"sync"
	"time"

	"github.com/fairlead/fairlead/internal/cluster"
	"github.com/fairlead/fairlead/internal/fwd"
)

// StaleAfter is how long a watch may be silent. It is longer than the API server keeps a watch open
// (clients ask for ten minutes at most) plus the time after which package kube closes one that the
// server did not.
const StaleAfter = 15 * time.Minute

// Options are what a State works with. All functions may be nil.
type Options struct {
	// SyncPeriod is the loop's. A change that waits for twice as long is stale.
	SyncPeriod time.Duration
	// Backlog returns what waits in front of the loop.
	Backlog func() cluster.Backlog
	// Watches returns the state of the watches; nil if objects come from files.
	Watches func() []cluster.Watch
	// Notes returns sentences that /readyz shows to people.
	Notes func() []string
	// Answered is called after each response of an endpoint: "healthz", "livez" or "readyz".
	Answered func(endpoint string, code int)
}

// State is what is known about the health of forwarding on this node. Make one with NewState. Any
// goroutine may call its methods. Arrays are by fwd.Family.Index.
type State struct {
	o Options

	// mu guards all fields below.
	mu         sync.Mutex
	syncPeriod time.Duration
	// served says which families the node serves.
	served [2]bool
	// standby says why this process waits instead of working; empty if it works.
	standby string
	// pendingSince is the time of the oldest change that is not written, zero for none.
	pendingSince [2]time.Time
	// updated is the end of the last sync without a failure, or the start of the process.
	updated [2]time.Time
	// written says that everything was written at least once, verified that everything was then
	// found in the kernel.
	written, verified [2]bool
	leaving           bool
	quarantined       int
}

// NewState returns the State of a process that starts now and serves both families.
func NewState(o Options) *State {
	now := time.Now()
	return &State{o: o, syncPeriod: o.SyncPeriod, served: [2]bool{true, true}, updated: [2]time.Time{now, now}}
}

// SetServed sets which families the node serves.
func (s *State) SetServed(served [2]bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.served = served
}

// SetStandby says that another process does the work and this one waits to take over, and why. It
// is healthy and ready meanwhile. An empty note ends that.
func (s *State) SetStandby(note string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.standby = note
}

// Queued says that a change has been waiting to be written since that time.
func (s *State) Queued(since time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.pendingSince {
		s.wait(i, since)
	}
}

func (s *State) wait(family int, since time.Time) {
	if s.pendingSince[family].IsZero() {
		s.pendingSince[family] = since
	}
}

// Synced reports a sync: which families were tried, and in which not everything is in the kernel,
// whether or not that was tried now; and how many Services the kernel refuses.
func (s *State) Synced(start, end time.Time, tried, failed [2]bool, quarantined int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range failed {
		switch {
		case failed[i]:
			s.wait(i, start)
		case tried[i]:
			s.pendingSince[i], s.updated[i], s.written[i] = time.Time{}, end, true
		}
	}
	s.quarantined = quarantined
}

// Verified says that everything wanted was found in the kernel in one family. It returns whether
// that is now true for all families.
func (s *State) Verified(f fwd.Family) (all bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.verified[f.Index()] = true
	return s.everywhere(s.verified)
}

// everywhere says that something is true for all families that the node serves.
func (s *State) everywhere(is [2]bool) bool {
	return (is[0] || !s.served[0]) && (is[1] || !s.served[1])
}

// Node says whether the node is about to go away: it is being deleted, or the cluster autoscaler
// marked it for deletion.
func (s *State) Node(leaving bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.leaving = leaving
}

// SetSyncPeriod sets the loop's sync period.
func (s *State) SetSyncPeriod(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.syncPeriod = d
}

// Fresh says whether forwarding follows what is known of the cluster.
func (s *State) Fresh() bool {
	in := s.inputs()
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.fresh(in)
}

// inputs is what the functions of Options return at one time.
type inputs struct {
	now     time.Time
	waiting time.Time
	watches []cluster.Watch
	notes   []string
}

func (s *State) inputs() inputs {
	in := inputs{now: time.Now().UTC()}
	if s.o.Backlog != nil {
		in.waiting = s.o.Backlog().WaitingSince
	}
	if s.o.Watches != nil {
		in.watches = s.o.Watches()
	}
	if s.o.Notes != nil {
		in.notes = s.o.Notes()
	}
	return in
}

func (s *State) fresh(in inputs) bool {
	for _, w := range in.watches {
		if w.Open && in.now.Sub(w.LastSeen) > StaleAfter {
			return false
		}
	}
	return s.familyFresh(fwd.IPv4, in) && s.familyFresh(fwd.IPv6, in)
}

// familyFresh says that no change has waited for too long, neither in the loop nor in front of it.
func (s *State) familyFresh(f fwd.Family, in inputs) bool {
	if !s.served[f.Index()] || s.standby != "" { // on standby changes wait on purpose
		return true
	}
	for _, since := range []time.Time{s.pendingSince[f.Index()], in.waiting} {
		if !since.IsZero() && in.now.Sub(since) >= 2*s.syncPeriod {
			return false
		}
	}
	return true
}

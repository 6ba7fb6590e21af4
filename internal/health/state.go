package health

import (
	"sync"
	"time"

	"github.com/fairlead/fairlead/internal/cluster"
	"github.com/fairlead/fairlead/internal/fwd"
)

// StaleAfter is how long nothing may come from a watch. It is longer than the API server keeps a watch open (ten minutes
// at most, which clients ask for) and the time after which package kube cuts one, together.
const StaleAfter = 15 * time.Minute

// Options are what a State works with. Waiting, Watches and Answered may be nil.
type Options struct {
	// SyncPeriod is the loop's; a change that waits for twice as long is stale.
	SyncPeriod time.Duration
	// Waiting returns since when a change has waited that the loop has not taken, zero for none; nil where that is not known.
	Waiting func() time.Time
	// Watches tells of the watches; nil where objects come from files.
	Watches func() []cluster.Watch
	// Served says by fwd.Family.Index which families the node serves; nil stands for both.
	Served func() [2]bool
	// Notes are sentences that /readyz shows to people; nil for none.
	Notes func() []string
	// Standby says that another process does the work, and this one waits to take over: then it is healthy and ready as it is. nil for
	// never.
	Standby func() bool
	// Answered is called after each answer of an endpoint, which is "healthz", "livez" or "readyz".
	Answered func(endpoint string, code int)
}

// State is what is known about the health of the node's forwarding. Make one with NewState; all methods may be called by
// any goroutine.
type State struct {
	o Options

	// mu guards all that follows.
	mu         sync.Mutex
	syncPeriod time.Duration
	// pendingSince is, by fwd.Family.Index, the time of the oldest change that is not written, zero for none.
	pendingSince [2]time.Time
	// updated is, by fwd.Family.Index, the end of the last sync without a failure; before that the start of the process.
	updated [2]time.Time
	// written says by fwd.Family.Index that everything was in the kernel once, verified that a reading of the kernel found it
	// there.
	written, verified [2]bool
	leaving           bool
	quarantined       int
}

// NewState returns a State of a process that starts now.
func NewState(o Options) *State {
	now := time.Now()
	return &State{o: o, syncPeriod: o.SyncPeriod, updated: [2]time.Time{now, now}}
}

// Queued says that a change waits to be written, since then.
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

// Synced reports an attempt to bring the kernel up to date: by fwd.Family.Index where it was tried, and where not everything
// is in the kernel, whether or not that was tried now; and how many Services the kernel refuses.
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

// Verified says that a reading of the kernel found everything that is wanted in one family. It reports whether that is true
// of all families by now.
func (s *State) Verified(f fwd.Family) (all bool) {
	served := s.served()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.verified[f.Index()] = true
	return covers(s.verified, served)
}

// served says which families the node serves.
func (s *State) served() [2]bool {
	if s.o.Served == nil {
		return [2]bool{true, true}
	}
	return s.o.Served()
}

// covers says that something is true of all families that the node serves.
func covers(is, served [2]bool) bool {
	return (is[0] || !served[0]) && (is[1] || !served[1])
}

// Node says whether the node is about to go away: it is being deleted, or the cluster autoscaler marked it for that. It
// stays until told otherwise.
func (s *State) Node(leaving bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.leaving = leaving
}

// SetSyncPeriod says that the loop goes on with another sync period.
func (s *State) SetSyncPeriod(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.syncPeriod = d
}

// Fresh says whether forwarding follows what is known of the cluster.
func (s *State) Fresh() bool {
	at := s.look(time.Now())
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.fresh(at)
}

// moment is what others know at one time.
type moment struct {
	now     time.Time
	waiting time.Time
	watches []cluster.Watch
	notes   []string
	served  [2]bool
	standby bool
}

// look asks those who know.
func (s *State) look(now time.Time) moment {
	at := moment{now: now, served: s.served()}
	if s.o.Standby != nil {
		at.standby = s.o.Standby()
	}
	if s.o.Waiting != nil {
		at.waiting = s.o.Waiting()
	}
	if s.o.Watches != nil {
		at.watches = s.o.Watches()
	}
	if s.o.Notes != nil {
		at.notes = s.o.Notes()
	}
	return at
}

func (s *State) fresh(at moment) bool {
	for _, w := range at.watches {
		if w.Open && at.now.Sub(w.LastSeen) > StaleAfter {
			return false
		}
	}
	return s.familyFresh(fwd.IPv4, at) && s.familyFresh(fwd.IPv6, at)
}

// familyFresh says that no change waits for too long, neither with the loop nor before it.
func (s *State) familyFresh(f fwd.Family, at moment) bool {
	if !at.served[f.Index()] || at.standby { // on standby changes wait on purpose
		return true
	}
	for _, since := range []time.Time{s.pendingSince[f.Index()], at.waiting} {
		if !since.IsZero() && at.now.Sub(since) >= 2*s.syncPeriod {
			return false
		}
	}
	return true
}

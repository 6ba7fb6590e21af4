package kube

import (
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/fairlead/fairlead/internal/cluster"
)

// watchGrace is how long after its timeout a watch is closed by us if the API server has not ended
// it. A Reflector requests watches of five to ten minutes but does not enforce the timeout: if a
// proxy in between keeps the connection but lost the watch, it would wait forever.
const watchGrace = 30 * time.Second

// watchState tracks the watch of a resource. It is part of the stores behind Reflectors, which call
// UpdateResourceVersion for every event and bookmark, and Resync.
type watchState struct {
	// mu guards the fields below.
	mu sync.Mutex
	cluster.Watch
	// current is the watch that was opened last.
	current *trackedWatch
}

func newWatchState(resource string) *watchState {
	return &watchState{Watch: cluster.Watch{Resource: resource, LastSeen: time.Now()}}
}

func (s *watchState) get() cluster.Watch {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.Watch
}

// alive records a sign of life from the API server.
func (s *watchState) alive() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.LastSeen = time.Now()
}

// UpdateResourceVersion implements cache.ResourceVersionUpdater.
func (s *watchState) UpdateResourceVersion(string) { s.alive() }

// Resync implements part of cache.ReflectorStore. It does nothing: the Feed keeps every change
// until it is drained, so there is nothing to replay.
func (s *watchState) Resync() error { return nil }

// track records that a watch was opened, and closes it if the server does not after its timeout.
func (s *watchState) track(w watch.Interface, o metav1.ListOptions) watch.Interface {
	t := &trackedWatch{Interface: w, state: s}
	if o.TimeoutSeconds != nil {
		t.timeout = time.AfterFunc(time.Duration(*o.TimeoutSeconds)*time.Second+watchGrace, w.Stop)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.LastSeen, s.Open, s.current = time.Now(), true, t
	return t
}

// trackedWatch updates the watchState when it is stopped.
type trackedWatch struct {
	watch.Interface
	state *watchState
	// timeout closes the watch; nil if the request had no timeout.
	timeout *time.Timer
}

// Stop implements watch.Interface. A Reflector calls it for every watch that it no longer uses.
func (t *trackedWatch) Stop() {
	if t.timeout != nil {
		t.timeout.Stop()
	}
	t.state.mu.Lock()
	if t.state.current == t {
		t.state.Open = false
	}
	t.state.mu.Unlock()
	t.Interface.Stop()
}

package kube

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/cache"

	"github.com/fairlead/fairlead/internal/cluster"
)

const (
	// nodeWait is how long the Node may be missing at the start, as with kube-proxy.
	nodeWait = 5 * time.Minute
	// firstReminder is the pause until the log repeats what is missing; each pause is twice the one before, up to lastReminder.
	firstReminder = time.Minute
	lastReminder  = 32 * time.Minute
	// nodeTick is how often it is looked what is due.
	nodeTick = 10 * time.Second
)

// nodeStore is the store behind the Reflector of the one Node. The Feed is not synced before the Node exists. When it is
// deleted its last facts stay, marked as deleting: traffic goes on while the node is being removed.
type nodeStore struct {
	*contact
	name string
	feed *Feed
	// taint is told of each version of the Node.
	taint *taintRemover
	log   *slog.Logger
	// explain says what an error means that refuses us the Node, and nothing of others.
	explain func(error) string
	// last is what the Feed has; nil before the Node was seen. It belongs to the Reflector.
	last *cluster.Node

	// mu guards all that follows.
	mu sync.Mutex
	// had says that the Node was seen.
	had bool
	// missing says why there is no Node, since when; it is empty while there is one, and while nobody knows. told is when the
	// log said so last, and pause how long it then keeps quiet.
	missing     string
	since, told time.Time
	pause       time.Duration
}

var (
	_ cache.ReflectorStore         = (*nodeStore)(nil)
	_ cache.ResourceVersionUpdater = (*nodeStore)(nil)
)

// Add delivers the Node if it is the right one and something changed.
func (s *nodeStore) Add(obj any) error {
	n, ok := obj.(*v1.Node)
	if !ok || n.Name != s.name {
		return nil
	}
	s.found()
	s.taint.see(n)
	s.deliver(ConvertNode(n))
	return nil
}

func (s *nodeStore) deliver(n cluster.Node) {
	if s.last != nil && s.last.Equal(&n) {
		return
	}
	s.tell(&n)
	s.last = &n
	s.feed.SetNode(n)
}

// tell logs what an operator should know of how the Node changes.
func (s *nodeStore) tell(n *cluster.Node) {
	first := s.last == nil
	switch {
	case len(n.Addrs) == 0 && (first || len(s.last.Addrs) > 0):
		s.log.Warn("node has neither an InternalIP nor an ExternalIP, what needs the node's address waits for one", "node", s.name)
	case !first && !slices.Equal(n.Addrs, s.last.Addrs):
		s.log.Info("node has other addresses", "node", s.name, "addresses", n.Addrs, "before", s.last.Addrs)
	}
	if !first && !slices.Equal(n.PodCIDRs, s.last.PodCIDRs) {
		s.log.Info("node has other podCIDRs", "node", s.name, "podCIDRs", n.PodCIDRs, "before", s.last.PodCIDRs)
	}
	if n.Deleting && (first || !s.last.Deleting) {
		s.log.Info("node is being deleted, its rules stay in force", "node", s.name)
	}
}

// Update is Add.
func (s *nodeStore) Update(obj any) error { return s.Add(obj) }

// Delete marks the Node as deleting.
func (s *nodeStore) Delete(obj any) error {
	if n, ok := obj.(*v1.Node); ok && n.Name == s.name {
		s.lost()
	}
	return nil
}

// Replace takes the list, which has the Node or is empty.
func (s *nodeStore) Replace(list []any, _ string) error {
	for _, obj := range list {
		if n, ok := obj.(*v1.Node); ok && n.Name == s.name {
			return s.Add(n)
		}
	}
	s.lost()
	return nil
}

// Resync does nothing, as with keyStore.
func (s *nodeStore) Resync() error { return nil }

// lost says that the API server was asked and knows no such Node.
func (s *nodeStore) lost() {
	s.lacks(fmt.Sprintf("the API server has no node %q: is --hostname-override right?", s.name))
	if s.last != nil {
		n := *s.last
		n.Deleting = true
		s.deliver(n)
	}
}

// noted takes the outcome of a list.
func (s *nodeStore) noted(err error) {
	if why := s.explain(err); why != "" {
		s.lacks(fmt.Sprintf("node %q cannot be read: %s", s.name, why))
	}
}

// lacks says why there is no Node. The same again is no news.
func (s *nodeStore) lacks(why string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.missing == why {
		return
	}
	now := time.Now()
	if s.missing == "" {
		s.since = now
	}
	s.missing, s.told, s.pause = why, now, firstReminder
	s.warn(now)
}

func (s *nodeStore) found() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.missing != "" {
		s.log.Info("node found", "node", s.name, "after", time.Since(s.since).Round(time.Second))
	}
	s.had, s.missing = true, ""
}

func (s *nodeStore) warn(now time.Time) {
	if s.had {
		s.log.Warn("no news of the node, its last state counts", "why", s.missing)
		return
	}
	s.log.Warn("waiting for the node, nothing is written before", "why", s.missing, "endsIn", s.since.Add(nodeWait).Sub(now).Round(time.Second))
}

// await repeats what is missing, until ctx ends. The error says that the Node was missing for too long at the start. An API
// server that does not answer is waited for without an end: another process would learn no more.
func (s *nodeStore) await(ctx context.Context) error {
	t := time.NewTicker(nodeTick)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case now := <-t.C:
			if err := s.tick(now); err != nil {
				return err
			}
		}
	}
}

func (s *nodeStore) tick(now time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.missing == "":
	case !s.had && now.Sub(s.since) >= nodeWait:
		return fmt.Errorf("no node after %v: %s", nodeWait, s.missing)
	case now.Sub(s.told) >= s.pause:
		s.told, s.pause = now, min(2*s.pause, lastReminder)
		s.warn(now)
	}
	return nil
}

// lack says why there is no Node; empty where there is one, or where nobody knows yet.
func (s *nodeStore) lack() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.missing
}

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
	// nodeTimeout is how long the Node may be missing at startup, as in kube-proxy.
	nodeTimeout = 5 * time.Minute
	// firstReminder is the delay until the log repeats why there is no Node; each delay is twice
	// the one before, up to lastReminder.
	firstReminder = time.Minute
	lastReminder  = 32 * time.Minute
	// nodeTick is how often reminders and the timeout are checked.
	nodeTick = 10 * time.Second
)

// nodeStore is the store behind the Reflector of the Node. The Feed is not synced before the Node
// exists. When the Node is deleted, its last facts stay, marked as deleting: traffic continues
// while the node is being removed.
type nodeStore struct {
	*watchState
	name string
	feed *Feed
	// taint gets each version of the Node.
	taint *taintRemover
	log   *slog.Logger
	// explain describes an error that means that we may not read the Node, and returns nothing for
	// others.
	explain func(error) string
	// last is what the Feed has; nil before the Node was seen. Only the Reflector uses it.
	last *cluster.Node

	// mu guards the fields below.
	mu sync.Mutex
	// seen means that the Node existed.
	seen bool
	// missing is why there is no Node and since when; empty if there is one or if that is not
	// known. warned is when it was logged last, pause the delay until the next reminder.
	missing       string
	since, warned time.Time
	pause         time.Duration
}

var (
	_ cache.ReflectorStore         = (*nodeStore)(nil)
	_ cache.ResourceVersionUpdater = (*nodeStore)(nil)
)

// Add delivers the Node if it is ours and has changed.
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
	s.logChanges(&n)
	s.last = &n
	s.feed.SetNode(n)
}

// logChanges logs the changes of the Node that an operator should know.
func (s *nodeStore) logChanges(n *cluster.Node) {
	first := s.last == nil
	switch {
	case len(n.Addrs) == 0 && (first || len(s.last.Addrs) > 0):
		s.log.Warn("node has no InternalIP or ExternalIP; features that need the node's address wait for one", "node", s.name)
	case !first && !slices.Equal(n.Addrs, s.last.Addrs):
		s.log.Info("node addresses changed", "node", s.name, "old", s.last.Addrs, "new", n.Addrs)
	}
	if !first && !slices.Equal(n.PodCIDRs, s.last.PodCIDRs) {
		s.log.Info("node podCIDRs changed", "node", s.name, "old", s.last.PodCIDRs, "new", n.PodCIDRs)
	}
	if n.Deleting && (first || !s.last.Deleting) {
		s.log.Info("node is being deleted; keeping its rules", "node", s.name)
	}
}

// Update is the same as Add.
func (s *nodeStore) Update(obj any) error { return s.Add(obj) }

// Delete marks the Node as deleting.
func (s *nodeStore) Delete(obj any) error {
	if n, ok := obj.(*v1.Node); ok && n.Name == s.name {
		s.notFound()
	}
	return nil
}

// Replace takes a list, which has the Node or is empty.
func (s *nodeStore) Replace(list []any, _ string) error {
	for _, obj := range list {
		if n, ok := obj.(*v1.Node); ok && n.Name == s.name {
			return s.Add(n)
		}
	}
	s.notFound()
	return nil
}

// notFound records that the Node does not exist in the API server.
func (s *nodeStore) notFound() {
	s.setMissing(fmt.Sprintf("the API server has no node %q: is --hostname-override right?", s.name))
	if s.last != nil {
		n := *s.last
		n.Deleting = true
		s.deliver(n)
	}
}

// listed takes the result of a list.
func (s *nodeStore) listed(err error) {
	if why := s.explain(err); why != "" {
		s.setMissing(fmt.Sprintf("cannot read node %q: %s", s.name, why))
	}
}

// setMissing records why there is no Node, and logs it if the reason is new.
func (s *nodeStore) setMissing(why string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.missing == why {
		return
	}
	now := time.Now()
	if s.missing == "" {
		s.since = now
	}
	s.missing, s.warned, s.pause = why, now, firstReminder
	s.warn(now)
}

func (s *nodeStore) found() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.missing != "" {
		s.log.Info("node found", "node", s.name, "duration", time.Since(s.since).Round(time.Second))
	}
	s.seen, s.missing = true, ""
}

func (s *nodeStore) warn(now time.Time) {
	if s.seen {
		s.log.Warn("cannot read the node; keeping its last known state", "reason", s.missing)
		return
	}
	s.log.Warn("waiting for the node; no rules are written before it exists", "reason", s.missing,
		"timeout", s.since.Add(nodeTimeout).Sub(now).Round(time.Second))
}

// wait logs reminders while the Node is missing, until ctx ends. The error means that the Node was
// missing for too long at startup. An API server that does not respond is no error: another process
// would not get an answer either.
func (s *nodeStore) wait(ctx context.Context) error {
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
	case !s.seen && now.Sub(s.since) >= nodeTimeout:
		return fmt.Errorf("no node after %v: %s", nodeTimeout, s.missing)
	case now.Sub(s.warned) >= s.pause:
		s.warned, s.pause = now, min(2*s.pause, lastReminder)
		s.warn(now)
	}
	return nil
}

// problem returns why there is no Node; empty if there is one, or if that is not known yet.
func (s *nodeStore) problem() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.missing
}

package kube

import (
	"context"
	"log/slog"
	"sync/atomic"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/cache"

	"github.com/fairlead/fairlead/internal/cluster"
)

// missingNodePeriod is how often the log repeats that the Node does not exist.
const missingNodePeriod = 30 * time.Second

// nodeStore is the store behind the Reflector of the one Node. The Feed is not synced before the Node exists. When it is
// deleted its last facts stay, marked as deleting: traffic goes on while the node is being removed.
type nodeStore struct {
	*contact
	name string
	feed *Feed
	log  *slog.Logger
	// last is what the Feed has; nil before the Node was seen.
	last *cluster.Node
	// missing says that the API server was asked and knows no such Node.
	missing atomic.Bool
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
	if s.missing.Swap(false) {
		s.log.Info("node found", "node", s.name)
	}
	s.deliver(ConvertNode(n))
	return nil
}

func (s *nodeStore) deliver(n cluster.Node) {
	if s.last != nil && s.last.Equal(&n) {
		return
	}
	s.last = &n
	s.feed.SetNode(n)
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

func (s *nodeStore) lost() {
	if !s.missing.Swap(true) {
		s.warn()
	}
	if s.last != nil {
		n := *s.last
		n.Deleting = true
		s.deliver(n)
	}
}

func (s *nodeStore) warn() {
	s.log.Warn("node " + s.name + " not found: is --hostname-override right?")
}

// remind repeats the warning while the Node is missing, until ctx ends.
func (s *nodeStore) remind(ctx context.Context) {
	t := time.NewTicker(missingNodePeriod)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			if s.missing.Load() {
				s.warn()
			}
		}
	}
}

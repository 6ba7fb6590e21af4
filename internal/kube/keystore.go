package kube

import (
	"fmt"
	"log/slog"
	"strconv"

	v1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"

	"github.com/fairlead/fairlead/internal/cluster"
	"github.com/fairlead/fairlead/internal/fwd"
)

// reduced is what is kept of an API object after its conversion. At most one of service and slice
// is set; none if the object is not handled or the version is already known.
type reduced struct {
	name     types.NamespacedName
	uid      types.UID
	version  uint64
	service  *cluster.Service
	slice    *cluster.Slice
	problems []Problem
}

// known is what a keyStore remembers about an object.
type known struct {
	// version is the resource version, or 0 if it is not a number; then the object is converted
	// each time it arrives.
	version uint64
	// round is the last Replace that the object was part of, or after which it was added.
	round uint32
	// delivered means that the Feed has a value for it.
	delivered bool
}

// keyStore is the store behind a Reflector of Services or EndpointSlices. It keeps names and
// versions, and passes values to the Feed. As a cache.TransformingStore it reduces each object as
// soon as it is decoded, also during the initial streaming list, so that the API objects are never
// all in memory at once. It is used by one Reflector.
type keyStore struct {
	*watchState
	kind     Kind
	convert  Converter
	feed     *Feed
	recorder *Recorder
	log      *slog.Logger
	known    map[types.NamespacedName]known
	round    uint32
}

var (
	_ cache.TransformingStore      = (*keyStore)(nil)
	_ cache.ResourceVersionUpdater = (*keyStore)(nil)
)

func newKeyStore(kind Kind, o APIOptions, f *Feed, r *Recorder) *keyStore {
	return &keyStore{watchState: newWatchState(kind.String()), kind: kind, convert: o.Convert.interning(), feed: f,
		recorder: r, log: o.Logger, known: make(map[types.NamespacedName]known)}
}

// Transformer implements cache.TransformingStore: the Reflector reduces objects before it collects
// them.
func (s *keyStore) Transformer() cache.TransformFunc {
	return func(obj any) (any, error) { return s.reduce(obj) }
}

// reduce converts an API object; a reduced object is returned unchanged.
func (s *keyStore) reduce(obj any) (*reduced, error) {
	switch obj := obj.(type) {
	case *reduced:
		return obj, nil
	case *v1.Service:
		r, isNew := s.header(obj)
		if isNew {
			r.service, r.problems = s.convert.Service(obj)
		}
		return r, nil
	case *discoveryv1.EndpointSlice:
		r, isNew := s.header(obj)
		if isNew {
			r.slice, r.problems = s.convert.Slice(obj)
		}
		return r, nil
	}
	return nil, unexpected(obj)
}

func unexpected(obj any) error {
	return fmt.Errorf("unexpected object of type %T from the API server", obj)
}

// header reduces the metadata and reports whether the version is new.
func (s *keyStore) header(obj metav1.Object) (*reduced, bool) {
	version, err := strconv.ParseUint(obj.GetResourceVersion(), 10, 64)
	if err != nil {
		version = 0
	}
	r := &reduced{version: version, uid: obj.GetUID(),
		name: types.NamespacedName{Namespace: s.convert.interned.str(obj.GetNamespace()), Name: obj.GetName()}}
	return r, version == 0 || s.known[r.name].version != version
}

// Add passes a new object to the Feed.
func (s *keyStore) Add(obj any) error {
	r, err := s.reduce(obj)
	if err != nil {
		return err
	}
	k := s.known[r.name]
	if r.version == 0 || k.version != r.version {
		delivered := s.deliver(r)
		if !delivered && k.delivered {
			s.remove(r.name)
		}
		k = known{version: r.version, delivered: delivered}
		s.report(r)
	}
	k.round = s.round
	s.known[r.name] = k
	return nil
}

// Update passes a changed object to the Feed.
func (s *keyStore) Update(obj any) error { return s.Add(obj) }

// Delete tells the Feed that an object was deleted, or is no longer selected.
func (s *keyStore) Delete(obj any) error {
	m, ok := obj.(metav1.Object)
	if !ok {
		return unexpected(obj)
	}
	s.drop(types.NamespacedName{Namespace: m.GetNamespace(), Name: m.GetName()})
	return nil
}

// Replace sets the whole state: objects that are not in the list are gone. The first call marks the
// kind as synced.
func (s *keyStore) Replace(list []any, _ string) error {
	s.round++
	for _, obj := range list {
		if err := s.Add(obj); err != nil {
			return err
		}
	}
	for name, k := range s.known {
		if k.round != s.round {
			s.drop(name)
		}
	}
	s.feed.MarkSynced(s.kind)
	return nil
}

func (s *keyStore) drop(name types.NamespacedName) {
	k, ok := s.known[name]
	if !ok {
		return
	}
	delete(s.known, name)
	if k.delivered {
		s.remove(name)
	}
}

// deliver passes the value to the Feed and reports whether there was one.
func (s *keyStore) deliver(r *reduced) bool {
	switch {
	case r.service != nil:
		s.recorder.remember(r.service.Name, r.uid)
		s.feed.SetService(r.service)
	case r.slice != nil:
		s.feed.SetSlice(r.slice)
	default:
		s.log.Debug("ignoring object", "resource", s.kind.String(), "object", r.name.String())
		return false
	}
	return true
}

func (s *keyStore) remove(name types.NamespacedName) {
	if s.kind == KindSlices {
		s.feed.DeleteSlice(cluster.SliceName(name))
		return
	}
	s.recorder.forget(fwd.Service(name))
	s.feed.DeleteService(fwd.Service(name))
}

// report logs problems: one line each, and one Event on the Service. The problems of an
// EndpointSlice that is not handled have no Service for an Event.
func (s *keyStore) report(r *reduced) {
	recorder, service := s.recorder, fwd.Service(r.name)
	if s.kind == KindSlices {
		if r.slice != nil {
			service = r.slice.Service
		} else {
			recorder = nil
		}
	}
	recorder.badFields(s.log, service, r.problems)
}

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

// reduced is what is left of an API object once it is converted. At most one of service and slice is set; neither if the
// object is not handled or its version is known already.
type reduced struct {
	name     types.NamespacedName
	uid      types.UID
	version  uint64
	service  *cluster.Service
	slice    *cluster.Slice
	problems []Problem
}

// known is what a keyStore remembers of an object.
type known struct {
	// version is the resource version, 0 if it is no number; such an object is converted each time it arrives.
	version uint64
	// round is the last Replace, or what came after it, that the object was part of.
	round uint32
	// delivered says that the Feed has a value for it.
	delivered bool
}

// keyStore is the store behind a Reflector of Services or EndpointSlices. It keeps names and versions and hands values
// to the Feed. As a cache.TransformingStore it reduces each object as soon as it is decoded, also while a Reflector
// streams the initial state, so that the objects of the API never exist all at once. One Reflector uses it.
type keyStore struct {
	*contact
	kind     Kind
	convert  ConvertOptions
	interned *interner
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
	return &keyStore{contact: newContact(map[Kind]string{KindServices: "services", KindSlices: "endpointslices"}[kind]), kind: kind, convert: o.Convert, interned: newInterner(), feed: f, recorder: r, log: o.Logger,
		known: make(map[types.NamespacedName]known)}
}

// Transformer tells the Reflector to reduce objects before it collects them.
func (s *keyStore) Transformer() cache.TransformFunc {
	return func(obj any) (any, error) { return s.reduce(obj) }
}

// reduce converts an object of the API; one that is reduced already is returned as it is.
func (s *keyStore) reduce(obj any) (*reduced, error) {
	switch obj := obj.(type) {
	case *reduced:
		return obj, nil
	case *v1.Service:
		r, fresh := s.header(obj)
		if fresh {
			r.service, r.problems = convertService(obj, s.convert, s.interned)
		}
		return r, nil
	case *discoveryv1.EndpointSlice:
		r, fresh := s.header(obj)
		if fresh {
			r.slice, r.problems = convertSlice(obj, s.interned)
		}
		return r, nil
	}
	return nil, fmt.Errorf("an object of type %T came from the API server", obj)
}

// header reads the metadata and says whether this version is new.
func (s *keyStore) header(obj metav1.Object) (*reduced, bool) {
	version, err := strconv.ParseUint(obj.GetResourceVersion(), 10, 64)
	if err != nil {
		version = 0
	}
	r := &reduced{version: version, uid: obj.GetUID(),
		name: types.NamespacedName{Namespace: s.interned.str(obj.GetNamespace()), Name: obj.GetName()}}
	return r, version == 0 || s.known[r.name].version != version
}

// Add puts a new object into the Feed.
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

// Update puts a changed object into the Feed.
func (s *keyStore) Update(obj any) error { return s.Add(obj) }

// Delete tells the Feed that an object is gone, or no longer selected.
func (s *keyStore) Delete(obj any) error {
	m, ok := obj.(metav1.Object)
	if !ok {
		return fmt.Errorf("an object of type %T came from the API server", obj)
	}
	s.drop(types.NamespacedName{Namespace: m.GetNamespace(), Name: m.GetName()})
	return nil
}

// Replace takes the whole state: what is not in it is gone. After the first the kind is synced.
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

// Resync does nothing: the Feed keeps every change until it is taken, so there is nothing to replay.
func (s *keyStore) Resync() error { return nil }

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

// deliver hands the value to the Feed and says whether there was one.
func (s *keyStore) deliver(r *reduced) bool {
	switch {
	case r.service != nil:
		s.recorder.remember(r.service.Name, r.uid)
		s.feed.SetService(r.service)
	case r.slice != nil:
		s.feed.SetSlice(r.slice)
	default:
		s.log.Debug("object is not handled", "kind", s.kind.String(), "object", r.name.String())
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

// report tells about problems; those of an EndpointSlice as a whole have no Service to put an Event on.
func (s *keyStore) report(r *reduced) {
	switch {
	case r.slice != nil:
		report(s.log, s.recorder, r.slice.Service, r.problems)
	case s.kind == KindServices:
		report(s.log, s.recorder, fwd.Service(r.name), r.problems)
	default:
		report(s.log, nil, fwd.Service{}, r.problems)
	}
}

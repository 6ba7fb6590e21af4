package cluster

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"

	"github.com/fairlead/fairlead/internal/fwd"
)

// Store holds the cluster's objects. The zero Store is empty and ready to use.
type Store struct {
	services map[fwd.Service]*Service
	// slices by the Service that they belong to, since that is how they are read, sorted by name.
	slices map[fwd.Service][]*Slice
	// named finds a slice whose label changes or that is deleted.
	named map[SliceName]*Slice
	node  Node
	// serviceCIDRs are those that are ready.
	serviceCIDRs []netip.Prefix
	dirty        map[fwd.Service]struct{}
}

func (s *Store) init() {
	if s.services == nil {
		s.services = make(map[fwd.Service]*Service)
		s.slices = make(map[fwd.Service][]*Slice)
		s.named = make(map[SliceName]*Slice)
		s.dirty = make(map[fwd.Service]struct{})
	}
}

// SetService adds or replaces a Service.
func (s *Store) SetService(v *Service) {
	s.init()
	if old := s.services[v.Name]; old != nil && old.Equal(v) {
		return
	}
	s.services[v.Name] = v
	s.dirty[v.Name] = struct{}{}
}

// DeleteService removes a Service. It does nothing if there is none.
func (s *Store) DeleteService(name fwd.Service) {
	if s.services[name] == nil {
		return
	}
	delete(s.services, name)
	s.dirty[name] = struct{}{}
}

// SetSlice adds or replaces an EndpointSlice. A slice that moves to another Service makes both
// dirty.
func (s *Store) SetSlice(v *Slice) {
	s.init()
	old := s.named[v.Name]
	if old != nil && old.Service != v.Service {
		s.DeleteSlice(v.Name)
		old = nil
	}
	if old != nil && old.Equal(v) {
		return
	}
	s.named[v.Name] = v
	all := s.slices[v.Service]
	if i, there := slices.BinarySearchFunc(all, v, compareSlices); there {
		all[i] = v
	} else {
		s.slices[v.Service] = slices.Insert(all, i, v)
	}
	s.dirty[v.Service] = struct{}{}
}

// DeleteSlice removes an EndpointSlice. It does nothing if there is none.
func (s *Store) DeleteSlice(name SliceName) {
	old := s.named[name]
	if old == nil {
		return
	}
	delete(s.named, name)
	svc := old.Service
	if left := slices.DeleteFunc(s.slices[svc], func(o *Slice) bool { return o == old }); len(left) > 0 {
		s.slices[svc] = left
	} else {
		delete(s.slices, svc)
	}
	s.dirty[svc] = struct{}{}
}

func compareSlices(a, b *Slice) int {
	return cmp.Or(cmp.Compare(a.Name.Namespace, b.Name.Namespace), cmp.Compare(a.Name.Name, b.Name.Name))
}

// SetNode replaces the facts about the node. If the zone changed, which is the only fact that
// affects endpoints, every Service becomes dirty. It reports whether anything changed.
func (s *Store) SetNode(n Node) bool {
	if s.node.Equal(&n) {
		return false
	}
	if s.node.Zone != n.Zone {
		s.MarkAllDirty()
	}
	s.node = n
	return true
}

// SetServiceCIDRs replaces the networks that cluster IPs are allocated from, of both families,
// sorted. No Service becomes dirty; it reports whether anything changed.
func (s *Store) SetServiceCIDRs(cidrs []netip.Prefix) bool {
	if slices.Equal(s.serviceCIDRs, cidrs) {
		return false
	}
	s.serviceCIDRs = cidrs
	return true
}

// ServiceCIDRs returns what was set last. The caller must not change it.
func (s *Store) ServiceCIDRs() []netip.Prefix { return s.serviceCIDRs }

// MarkDirty makes one Service dirty.
func (s *Store) MarkDirty(name fwd.Service) {
	s.init()
	s.dirty[name] = struct{}{}
}

// MarkAllDirty makes every Service dirty.
func (s *Store) MarkAllDirty() {
	s.init()
	for name := range s.services {
		s.dirty[name] = struct{}{}
	}
}

// Node returns the facts about the node.
func (s *Store) Node() Node { return s.node }

// Service returns a Service, or nil.
func (s *Store) Service(name fwd.Service) *Service { return s.services[name] }

// Slices returns the EndpointSlices of a Service, sorted by name. The list is valid until the Store
// changes; the caller must not change it.
func (s *Store) Slices(name fwd.Service) []*Slice { return s.slices[name] }

// Len returns the numbers of Services and of EndpointSlices.
func (s *Store) Len() (services, endpointSlices int) { return len(s.services), len(s.named) }

// Dirty says whether TakeDirty would return anything.
func (s *Store) Dirty() bool { return len(s.dirty) > 0 }

// TakeDirty returns the names of the Services that changed since the last call, or whose
// EndpointSlices did, sorted. A name may belong to a Service that does not exist, or no longer.
func (s *Store) TakeDirty() []fwd.Service {
	if len(s.dirty) == 0 {
		return nil
	}
	names := slices.SortedFunc(maps.Keys(s.dirty), fwd.Service.Compare)
	clear(s.dirty)
	return names
}

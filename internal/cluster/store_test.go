package cluster

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/fairlead/fairlead/internal/fwd"
)

// model is the store as plain maps: what is there, and what is dirty by the rules.
type model struct {
	services map[fwd.Service]Service
	slices   map[SliceName]Slice
	node     Node
	dirty    map[fwd.Service]bool
}

func named(namespace, name string) fwd.Service { return fwd.Service{Namespace: namespace, Name: name} }

func (m *model) setService(s Service) {
	if old, ok := m.services[s.Name]; !ok || old.AffinitySec != s.AffinitySec {
		m.dirty[s.Name] = true
	}
	m.services[s.Name] = s
}

func (m *model) deleteService(n fwd.Service) {
	if _, ok := m.services[n]; ok {
		m.dirty[n] = true
	}
	delete(m.services, n)
}

func (m *model) setSlice(s Slice) {
	old, ok := m.slices[s.Name]
	if !ok || old.Service != s.Service || old.Family != s.Family {
		m.dirty[s.Service] = true
		if ok {
			m.dirty[old.Service] = true
		}
		m.slices[s.Name] = s
	}
}

func (m *model) deleteSlice(n SliceName) {
	if old, ok := m.slices[n]; ok {
		m.dirty[old.Service] = true
	}
	delete(m.slices, n)
}

func (m *model) setNode(n Node) (changed bool) {
	if n.Zone != m.node.Zone {
		for name := range m.services {
			m.dirty[name] = true
		}
	}
	changed = n.Zone != m.node.Zone || n.Deleting != m.node.Deleting
	m.node = n
	return changed
}

func (m *model) check(t *testing.T, s *Store, names []fwd.Service) {
	t.Helper()
	for _, n := range names {
		want, ok := m.services[n]
		if got := s.Service(n); (got != nil) != ok || ok && !got.Equal(&want) {
			t.Errorf("service %s: got %v, want %v (%v)", n, got, want, ok)
		}
		var wantSlices, gotSlices []string
		for _, sl := range m.slices {
			if sl.Service == n {
				wantSlices = append(wantSlices, fmt.Sprint(sl.Name, sl.Family))
			}
		}
		slices.Sort(wantSlices)
		for _, sl := range s.Slices(n) {
			gotSlices = append(gotSlices, fmt.Sprint(sl.Name, sl.Family))
		}
		if !slices.Equal(gotSlices, wantSlices) {
			t.Errorf("slices of %s: got %v, want %v", n, gotSlices, wantSlices)
		}
	}
	if a, b := s.Len(); a != len(m.services) || b != len(m.slices) {
		t.Errorf("Len: %d, %d, want %d, %d", a, b, len(m.services), len(m.slices))
	}
	if n := s.Node(); !n.Equal(&m.node) {
		t.Errorf("node: got %v, want %v", n, m.node)
	}
	if s.Dirty() != (len(m.dirty) > 0) {
		t.Errorf("Dirty: %v, want %v", s.Dirty(), m.dirty)
	}
}

// TestStoreRandom runs random operations against the model. Names are few, so that objects are set
// again, move between Services and are deleted twice.
func TestStoreRandom(t *testing.T) {
	names := []fwd.Service{named("a", "x"), named("a", "y"), named("b", "x")}
	for seed := range uint64(20) {
		r := rand.New(rand.NewPCG(seed, 3))
		var s Store
		m := model{services: map[fwd.Service]Service{}, slices: map[SliceName]Slice{}, dirty: map[fwd.Service]bool{}}
		for step := range 300 {
			name := names[r.IntN(len(names))]
			slice := SliceName{"a", fmt.Sprint("s", r.IntN(4))}
			switch r.IntN(8) {
			case 0, 1:
				v := Service{Name: name, AffinitySec: uint32(r.IntN(2))}
				m.setService(v)
				s.SetService(&v)
			case 2:
				m.deleteService(name)
				s.DeleteService(name)
			case 3, 4:
				v := Slice{Name: slice, Service: name, Family: fwd.Families[r.IntN(2)], TriggerUnixNano: int64(step)}
				m.setSlice(v)
				s.SetSlice(&v)
			case 5:
				m.deleteSlice(slice)
				s.DeleteSlice(slice)
			case 6:
				n := Node{Zone: fmt.Sprint(r.IntN(2)), Deleting: r.IntN(2) == 0}
				want := m.setNode(n)
				if got := s.SetNode(n); got != want {
					t.Errorf("SetNode: %v, want %v", got, want)
				}
			case 7:
				want := slices.SortedFunc(maps.Keys(m.dirty), fwd.Service.Compare)
				clear(m.dirty)
				if got := s.TakeDirty(); !slices.Equal(got, want) {
					t.Errorf("TakeDirty: %v, want %v", got, want)
				}
			}
			m.check(t, &s, names)
			if t.Failed() {
				t.Fatalf("seed %d, step %d", seed, step)
			}
		}
	}
}

func TestStoreZeroValue(t *testing.T) {
	var s Store
	s.DeleteService(named("a", "x"))
	s.DeleteSlice(SliceName{"a", "x"})
	if s.Dirty() || s.TakeDirty() != nil || s.Slices(named("a", "x")) != nil || s.Service(named("a", "x")) != nil {
		t.Error("an empty store holds something")
	}
	s.MarkAllDirty()
	if s.Dirty() {
		t.Error("an empty store is dirty")
	}
}

func TestMarkAllDirty(t *testing.T) {
	var s Store
	for _, n := range []string{"y", "x"} {
		s.SetService(&Service{Name: named("a", n)})
	}
	s.TakeDirty()
	s.MarkAllDirty()
	if got, want := s.TakeDirty(), []fwd.Service{named("a", "x"), named("a", "y")}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// TestKeptSliceIsTheFirst pins that a slice which differs only in its trigger time does not replace
// the one that is there: nothing is written for it, so there is no programming latency to measure.
func TestKeptSliceIsTheFirst(t *testing.T) {
	var s Store
	name := named("a", "x")
	s.SetSlice(&Slice{Name: SliceName{"a", "s"}, Service: name, TriggerUnixNano: 1})
	s.TakeDirty()
	s.SetSlice(&Slice{Name: SliceName{"a", "s"}, Service: name, TriggerUnixNano: 2})
	if s.Dirty() || s.Slices(name)[0].TriggerUnixNano != 1 {
		t.Error("a new trigger time alone counts as a change")
	}
}

func TestServiceCIDRs(t *testing.T) {
	var s Store
	one := []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16")}
	if !s.SetServiceCIDRs(one) || s.SetServiceCIDRs(slices.Clone(one)) || !slices.Equal(s.ServiceCIDRs(), one) || !s.SetServiceCIDRs(nil) {
		t.Error("what changes is not told, or what does not is")
	}
	if s.Dirty() {
		t.Error("a Service is dirty")
	}
}

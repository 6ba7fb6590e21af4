package kube

import (
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/fairlead/fairlead/internal/cluster"
	"github.com/fairlead/fairlead/internal/fwd"
)

func named(name string) fwd.Service { return fwd.Service{Namespace: "ns", Name: name} }

func sliceOf(name, service string, trigger int64, ports ...uint16) *cluster.Slice {
	s := &cluster.Slice{Name: cluster.SliceName{Namespace: "ns", Name: name}, Service: named(service), TriggerUnixNano: trigger}
	for _, p := range ports {
		s.Ports = append(s.Ports, cluster.SlicePort{Protocol: fwd.TCP, Port: p})
	}
	return s
}

func TestFeedCancelsOppositeChanges(t *testing.T) {
	f, store := NewFeed(), &cluster.Store{}
	a := &cluster.Service{Name: named("a")}
	f.SetService(a)
	f.Drain(store)
	store.TakeDirty()

	f.SetService(&cluster.Service{Name: named("a"), ExternalLocal: true})
	f.SetService(&cluster.Service{Name: named("a")})
	f.SetService(&cluster.Service{Name: named("new")})
	f.DeleteService(named("new"))
	if d := f.Drain(store); d.Services != 4 || d.Slices != 0 {
		t.Errorf("drained %+v, want 4 changes of Services", d)
	}
	if store.Dirty() {
		t.Errorf("dirty: %v", store.TakeDirty())
	}
	if d := f.Drain(store); d.Services != 0 {
		t.Errorf("a second drain saw %d changes", d.Services)
	}
}

func TestFeedLastVersionWins(t *testing.T) {
	f, store := NewFeed(), &cluster.Store{}
	f.DeleteService(named("a"))
	f.SetService(&cluster.Service{Name: named("a"), CreatedUnix: 1})
	f.SetService(&cluster.Service{Name: named("a"), CreatedUnix: 2})
	f.SetSlice(sliceOf("s", "a", 0, 1))
	f.SetSlice(sliceOf("s", "a", 0, 2))
	f.Drain(store)
	if got := store.Service(named("a")); got == nil || got.CreatedUnix != 2 {
		t.Errorf("service %+v", got)
	}
	if got := store.Slices(named("a")); len(got) != 1 || got[0].Ports[0].Port != 2 {
		t.Errorf("slices %+v", got)
	}
}

func TestFeedSliceMovesBetweenServices(t *testing.T) {
	f, store := NewFeed(), &cluster.Store{}
	f.SetSlice(sliceOf("s", "a", 0, 1))
	f.Drain(store)
	store.TakeDirty()
	f.SetSlice(sliceOf("s", "b", 0, 1))
	f.Drain(store)
	if d := cmp.Diff([]fwd.Service{named("a"), named("b")}, store.TakeDirty()); d != "" {
		t.Errorf("dirty (-want +got):\n%s", d)
	}
	if len(store.Slices(named("a"))) != 0 || len(store.Slices(named("b"))) != 1 {
		t.Errorf("slices of a: %v, of b: %v", store.Slices(named("a")), store.Slices(named("b")))
	}
}

func TestFeedTriggers(t *testing.T) {
	f, store := NewFeed(), &cluster.Store{}
	at := func(d time.Duration) int64 { return f.start.Add(d).UnixNano() }
	want := func(step string, times ...int64) {
		t.Helper()
		var got []int64
		triggers := f.Drain(store).Triggers
		for _, x := range triggers[0] {
			got = append(got, x.UnixNano())
		}
		if len(triggers[1]) > 0 {
			t.Errorf("%s: times of IPv6: %v", step, triggers[1])
		}
		if d := cmp.Diff(times, got, cmpopts.EquateEmpty()); d != "" {
			t.Errorf("%s (-want +got):\n%s", step, d)
		}
	}
	f.SetSlice(sliceOf("s", "a", at(-time.Second), 1))
	want("before the process started")
	f.SetSlice(sliceOf("s", "a", at(time.Second), 2))
	f.SetSlice(sliceOf("s", "a", at(2*time.Second), 3))
	want("two changes", at(time.Second), at(2*time.Second))
	f.SetSlice(sliceOf("s", "a", at(2*time.Second), 4))
	want("a change that keeps the trigger of the one before")
	f.SetSlice(sliceOf("s", "a", at(3*time.Second), 5))
	f.DeleteSlice(cluster.SliceName{Namespace: "ns", Name: "s"})
	want("deleted before it was applied")
	if len(f.lastTriggers) != 0 {
		t.Errorf("triggers of a deleted slice are kept: %v", f.lastTriggers)
	}
	six := sliceOf("six", "a", at(time.Second), 1)
	six.Family = fwd.IPv6
	f.SetSlice(six)
	if got := f.Drain(store).Triggers; len(got[0]) != 0 || len(got[1]) != 1 {
		t.Errorf("times of an IPv6 slice: %v", got)
	}
}

func TestFeedCountsChanges(t *testing.T) {
	f, store := NewFeed(), &cluster.Store{}
	f.SetSlice(sliceOf("s", "a", 0, 1))
	f.SetSlice(sliceOf("s", "a", 0, 2))
	f.DeleteService(named("a"))
	if b := f.Backlog(); b.Services != 1 || b.Slices != 2 || b.WaitingServices != 1 || b.WaitingSlices != 2 {
		t.Errorf("before Drain: %+v", b)
	}
	f.Drain(store)
	f.DeleteService(named("b"))
	if b := f.Backlog(); b.Services != 2 || b.Slices != 2 || b.WaitingServices != 1 || b.WaitingSlices != 0 {
		t.Errorf("after Drain: %+v", b)
	}
}

func TestFeedSyncedAndWake(t *testing.T) {
	f, store := NewFeed(), &cluster.Store{}
	woken := func() bool {
		select {
		case <-f.Wake():
			return true
		default:
			return false
		}
	}
	if woken() || f.Synced() {
		t.Fatal("a new Feed is awake or synced")
	}
	f.MarkSynced(KindServices)
	f.MarkSynced(KindSlices)
	if !woken() || woken() || f.Synced() {
		t.Fatal("want one wake for two marks, and not synced without a node")
	}
	f.SetNode(cluster.Node{Name: "n1", Zone: "z"})
	if !woken() || !f.Synced() {
		t.Fatal("want awake and synced with a node")
	}
	if !f.Drain(store).NodeChanged || f.Drain(store).NodeChanged {
		t.Error("want the node to change once")
	}
	f.SetNode(cluster.Node{Name: "n1", Zone: "z"})
	if f.Drain(store).NodeChanged {
		t.Error("an equal node is a change")
	}
	all := NewFeed()
	all.MarkSynced()
	if !all.Synced() {
		t.Error("marking all kinds does not sync")
	}
}

// TestFeedRace proves that no change is lost with several writers and one reader; with the race
// detector it also checks the locking.
func TestFeedRace(t *testing.T) {
	f, store := NewFeed(), &cluster.Store{}
	const writers, rounds = 4, 500
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := range rounds {
				f.SetService(&cluster.Service{Name: named(fmt.Sprint(w)), CreatedUnix: int64(i)})
				f.SetSlice(sliceOf(fmt.Sprint(w), fmt.Sprint(w), 0, uint16(i+1)))
				f.SetNode(cluster.Node{Name: fmt.Sprint(i)})
			}
		})
	}
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()
	services := 0
	for running := true; running; {
		select {
		case <-f.Wake():
		case <-done:
			running = false
		}
		services += f.Drain(store).Services
	}
	if services != writers*rounds {
		t.Errorf("%d changes seen, want %d", services, writers*rounds)
	}
	for w := range writers {
		if got := store.Service(named(fmt.Sprint(w))); got.CreatedUnix != rounds-1 {
			t.Errorf("service %d is at version %d", w, got.CreatedUnix)
		}
	}
}

func TestFeedWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, store := NewFeed(), &cluster.Store{}
		want := func(step string, since, last time.Time) {
			t.Helper()
			if b := f.Backlog(); !b.WaitingSince.Equal(since) || !b.LastChange.Equal(last) {
				t.Errorf("%s: since %v, last %v, want %v and %v", step, b.WaitingSince, b.LastChange, since, last)
			}
		}
		want("nothing", time.Time{}, time.Time{})
		first := time.Now()
		f.SetSlice(sliceOf("s", "a", 0, 1))
		want("before it synced", time.Time{}, first)
		f.Drain(store)
		f.MarkSynced()
		f.Drain(store) // only a wake, no change
		want("drained", time.Time{}, first)
		time.Sleep(time.Second)
		second := time.Now()
		f.SetSlice(sliceOf("s", "a", 0, 2))
		time.Sleep(time.Second)
		f.SetSlice(sliceOf("s", "a", 0, 3))
		want("two changes", second, time.Now())
		f.Drain(store)
		want("taken", time.Time{}, time.Now())
	})
}

func TestFeedWaitsForServiceCIDRs(t *testing.T) {
	notFound := apierrors.NewNotFound(schema.GroupResource{Resource: "servicecidrs"}, "")
	for _, tt := range []struct {
		name    string
		deliver func(*Feed, *cidrStore)
		synced  bool
	}{
		{"nothing yet", func(*Feed, *cidrStore) {}, false},
		{"an empty list", func(_ *Feed, s *cidrStore) { _ = s.Replace(nil, "") }, true},
		{"no such resource", func(_ *Feed, s *cidrStore) { s.listed(notFound) }, true},
		{"one failure", func(_ *Feed, s *cidrStore) { s.listed(errors.New("no answer")) }, false},
		{"three failures", func(_ *Feed, s *cidrStore) {
			for range 3 {
				s.listed(errors.New("no answer"))
			}
		}, true},
	} {
		f := NewFeed()
		f.needServiceCIDRs()
		f.MarkSynced(KindServices, KindSlices, KindNode)
		tt.deliver(f, newCIDRStore(f))
		if got := f.Synced(); got != tt.synced {
			t.Errorf("%s: synced %v, want %v", tt.name, got, tt.synced)
		}
	}
	f := NewFeed()
	f.MarkSynced(KindServices, KindSlices, KindNode)
	if !f.Synced() {
		t.Error("the Feed waits for service CIDRs that are not needed")
	}
}

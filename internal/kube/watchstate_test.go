package kube

import (
	"testing"
	"testing/synctest"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/utils/ptr"
)

func TestWatchState(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newWatchState("services")
		want := func(step string, open bool, silent time.Duration) {
			t.Helper()
			if got := c.get(); got.Open != open || time.Since(got.LastSeen) != silent || got.Resource != "services" {
				t.Errorf("%s: %+v after %v, want open %v after %v", step, got, time.Since(got.LastSeen), open, silent)
			}
		}
		time.Sleep(time.Minute)
		want("before the first answer", false, time.Minute)
		c.alive()
		want("a list", false, 0)
		first := c.track(watch.NewFake(), metav1.ListOptions{})
		time.Sleep(time.Hour)
		want("an open watch without a time", true, time.Hour)
		c.UpdateResourceVersion("7")
		want("a bookmark", true, 0)

		second := watch.NewFake()
		followed := c.track(second, metav1.ListOptions{TimeoutSeconds: ptr.To(int64(300))})
		first.Stop() // a Reflector may stop the old watch after it has a new one
		want("another watch", true, 0)
		time.Sleep(300*time.Second + watchGrace - 1)
		if second.IsStopped() {
			t.Error("closed too early")
		}
		time.Sleep(time.Nanosecond)
		synctest.Wait()
		if _, ok := <-followed.ResultChan(); ok {
			t.Error("an event came")
		}
		if !second.IsStopped() {
			t.Error("a watch that the server has lost is not closed")
		}
		followed.Stop()
		want("ended", false, 330*time.Second)

		third := watch.NewFake()
		c.track(third, metav1.ListOptions{TimeoutSeconds: ptr.To(int64(300))}).Stop()
		time.Sleep(time.Hour)
		want("ended at once", false, time.Hour)
	})
}

func TestAPISourceWatches(t *testing.T) {
	a := newFakeAPI(t, true)
	a.put(apiNode("z1"))
	f, s := attach(t, a, func(*APIOptions) {})
	open := func() int {
		n := 0
		for _, c := range s.Watches() {
			if c.Open {
				n++
			}
		}
		return n
	}
	f.until("synced", f.feed.Synced)
	if n := open(); n != 3 {
		t.Errorf("%d watches open, want 3", n)
	}
	before := s.Watches()[0].LastSeen
	a.put(apiService("a", "10.96.0.1"))
	f.untilIP("a", "10.96.0.1")
	a.put(apiService("a", "10.96.0.2")) // the first event has been processed by then
	f.untilIP("a", "10.96.0.2")
	if !s.Watches()[0].LastSeen.After(before) {
		t.Error("an event does not update LastSeen")
	}
	a.setDown(true)
	for open() > 0 {
		next(t, a.refused)
	}
}

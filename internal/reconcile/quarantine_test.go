package reconcile

import (
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fairlead/fairlead/internal/cluster"
	"github.com/fairlead/fairlead/internal/fwd"
)

func TestQuarantine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := &[2]fakeKernel{}
		h := running(t, k)
		defer h.stop(t)
		bad := name(2)
		k[0].refuse = map[fwd.Service]bool{bad: true, name(4): true}
		h.feed.put(service(2, 0), service(3, 0), service(4, 0), service(5, 0))
		h.settle()
		for i, want := range map[int][2]bool{1: both, 2: neither, 3: both, 4: neither, 5: both} {
			if h.has(i) != want {
				t.Errorf("Service %d in the kernel: %v, want %v", i, h.has(i), want)
			}
		}
		h.after(5 * time.Minute)
		if n := h.count("the kernel refuses a Service"); n != 2 {
			t.Errorf("logged %d refusals of 2 Services\n%s", n, h.log)
		}
		if !strings.Contains(h.log.String(), "ns/s2") || !strings.Contains(h.log.String(), "no such match") {
			t.Errorf("log names neither Service nor answer\n%s", h.log)
		}
		if got := strings.Join(h.follow.events, ","); got != "ns/s2 Quarantined,ns/s4 Quarantined" {
			t.Errorf("events %q", got)
		}
		if h.count("sync failed") > 0 {
			t.Errorf("a refusal counts as failure\n%s", h.log)
		}
		if s := h.last(); s.Quarantined != 2 || failed(s) != neither {
			t.Errorf("reported %+v", s)
		}

		// The object changes to something acceptable.
		k[0].refuse = map[fwd.Service]bool{bad: true}
		h.feed.put(service(4, 1))
		h.after(time.Second)
		if h.has(4) != both {
			t.Error("a changed Service is still set aside")
		}
		// The kernel learns to accept the other one.
		k[0].refuse = nil
		h.after(longestTrial * 30 * time.Second)
		if h.has(2) != both || h.count("accepts the Service again") != 2 {
			t.Errorf("not tried again: %v\n%s", h.has(2), h.log)
		}
		if s := h.last(); s.Quarantined != 0 {
			t.Errorf("reported %d in quarantine", s.Quarantined)
		}
	})
}

func TestRefusedServiceIsDeleted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := &[2]fakeKernel{}
		h := running(t, k)
		defer h.stop(t)
		k[0].refuse = map[fwd.Service]bool{name(2): true}
		h.feed.put(service(2, 0))
		h.after(2 * time.Second)
		h.feed.put(func(s *cluster.Store) { s.DeleteService(name(2)) })
		h.after(2 * time.Second)
		k[0].refuse = nil
		h.after(time.Minute)
		if h.has(2) != neither {
			t.Error("a deleted Service came out of quarantine")
		}
	})
}

// TestQuarantineDelaysNobody: a refused Service whose endpoints churn neither makes the loop read
// the kernel, nor is it written together with others; users are told once.
func TestQuarantineDelaysNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := &[2]fakeKernel{}
		h := running(t, k)
		defer h.stop(t)
		bad := name(2)
		k[0].refuse = map[fwd.Service]bool{bad: true}
		h.feed.put(service(2, 0))
		h.after(2 * time.Second)
		k[0].slowRead = 4 * time.Second // as iptables-save takes on a large node
		k[0].plans = nil
		var late []int
		for i := range 300 {
			h.feed.put(service(2, i), service(3, i))
			h.settle()
			if !slices.ContainsFunc(k[0].plans, func(p fakePlan) bool { return slices.Contains(p.upserts, name(3)) }) {
				late = append(late, i)
			}
			k[0].plans = slices.DeleteFunc(k[0].plans, func(p fakePlan) bool { return !slices.Contains(p.upserts, bad) })
			for _, p := range k[0].plans {
				if len(p.upserts) != 1 {
					t.Errorf("the refused Service is written together with %v", p.upserts)
				}
			}
			h.after(1100 * time.Millisecond)
		}
		if len(late) > 0 {
			t.Errorf("changes %v of 300 of another Service were not written at once\n%s", late, h.log)
		}
		if n := len(k[0].plans); n < 4 || n > 12 {
			t.Errorf("a Service that changes all the time was tried %d times in five and a half minutes", n)
		}
		if n := h.count("the kernel refuses a Service"); n != 1 || len(h.follow.events) != 1 {
			t.Errorf("told %d times in the log, and %d Events", n, len(h.follow.events))
		}
		if h.count("repaired drift") > 0 {
			t.Errorf("what a trial left counts as drift\n%s", h.log)
		}

		// What is accepted now and then is the same trouble.
		k[0].slowRead = 0
		h.after(10 * time.Minute)
		for range 3 {
			k[0].refuse = nil
			h.feed.put(service(2, 1000))
			h.after(40 * time.Second)
			if h.has(2) != both {
				t.Fatal("not tried again within the SyncPeriod after a change")
			}
			k[0].refuse = map[fwd.Service]bool{bad: true}
			h.feed.put(service(2, 1001))
			h.after(40 * time.Second)
		}
		if len(h.follow.events) != 1 {
			t.Errorf("%d Events", len(h.follow.events))
		}
	})
}

// TestTrialDistances: one that does not change is tried at growing distances.
func TestTrialDistances(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := &[2]fakeKernel{}
		h := running(t, k)
		defer h.stop(t)
		k[0].refuse = map[fwd.Service]bool{name(2): true}
		h.feed.put(service(2, 0))
		h.settle()
		began, first := time.Now(), len(k[0].at)
		h.after(time.Hour)
		var at []time.Duration
		for _, a := range k[0].at[first:] {
			at = append(at, a.Sub(began).Round(time.Second))
		}
		want := []time.Duration{30, 90, 210, 450, 750, 1050, 1350, 1650, 1950, 2250, 2550, 2850, 3150, 3450}
		for i := range want {
			want[i] *= time.Second
		}
		if !slices.Equal(at, want) {
			t.Errorf("tried after %v, want %v", at, want)
		}
	})
}

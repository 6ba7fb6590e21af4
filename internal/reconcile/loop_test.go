package reconcile

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/fairlead/fairlead/internal/backend"
	"github.com/fairlead/fairlead/internal/cluster"
	"github.com/fairlead/fairlead/internal/config"
	"github.com/fairlead/fairlead/internal/fwd"
)

var both, neither = [2]bool{true, true}, [2]bool{false, false}

// running starts a loop with one Service in the kernel, and lets quiet time pass.
func running(t *testing.T, kernels *[2]fakeKernel, args ...string) *house {
	t.Helper()
	h := start(t, kernels, args...)
	h.feed.put(service(1, 0))
	h.sync()
	h.after(5 * time.Second)
	if h.has(1) != both {
		t.Fatalf("Service not written at the start\n%s", h.log)
	}
	return h
}

func TestNothingBeforeSyncedAndObserved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := &[2]fakeKernel{}
		k[0].failRead = errors.New("lock held")
		h := start(t, k)
		h.feed.put(service(1, 0))
		h.after(time.Hour)
		if k[0].reads+k[0].writes+k[1].writes > 0 {
			t.Fatalf("touched the kernel before the feed synced: %d reads", k[0].reads)
		}
		h.sync()
		h.after(time.Minute)
		if k[0].writes > 0 || h.has(1) != [2]bool{false, true} {
			t.Fatalf("%d writes without having read, kernel %v", k[0].writes, h.has(1))
		}
		if n := h.count("sync failed"); n < 2 || n > 4 {
			t.Errorf("failure logged %d times in a minute, want about once in a SyncPeriod\n%s", n, h.log)
		}
		k[0].failRead = nil
		h.after(30 * time.Second)
		if h.has(1) != both || h.count("sync works again") != 1 || len(h.written) != 2 {
			t.Errorf("no recovery: %v, first %v\n%s", h.has(1), h.written, h.log)
		}
		if err := h.stop(t); err != nil {
			t.Error(err)
		}
		if h.has(1) != both {
			t.Error("rules removed at the end")
		}
	})
}

func TestCoalescing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := &[2]fakeKernel{}
		h := running(t, k)
		defer h.stop(t)
		k[0].slow = 3 * time.Second
		writes := k[0].writes

		h.feed.put(service(2, 0))
		h.settle()
		if k[0].writes != writes+1 {
			t.Fatal("the first change after a quiet time is not applied at once")
		}
		for i := range 50 { // while the backend is busy, and within MinSyncPeriod after it
			h.feed.put(service(3, i))
			h.after(75 * time.Millisecond)
		}
		h.after(10 * time.Second)
		if k[0].writes != writes+2 {
			t.Errorf("%d syncs for a burst, want one", k[0].writes-writes-1)
		}
		if gap := k[0].at[writes+1].Sub(k[0].at[writes]); gap != 4*time.Second {
			t.Errorf("second write began %v after the first began, want 3s of writing and 1s of pause", gap)
		}
		if h.has(3) != both {
			t.Error("burst not written")
		}
	})
}

func TestSteadyStateIsSilent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := &[2]fakeKernel{}
		h := running(t, k)
		defer h.stop(t)
		h.log.Reset()
		writes, reads, syncs := k[0].writes, k[0].reads, len(h.follow.syncs)
		for range 20 { // events without a meaning
			h.feed.put(service(1, 0))
			h.after(15 * time.Second)
		}
		if k[0].writes != writes || h.log.Len() > 0 || len(h.follow.syncs) != syncs {
			t.Errorf("%d writes, %d reports, log %q", k[0].writes-writes, len(h.follow.syncs)-syncs, h.log)
		}
		if n := k[0].reads - reads; n != 10 {
			t.Errorf("verified %d times in five minutes, want 10", n)
		}
	})
}

func TestRestartWritesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := &[2]fakeKernel{}
		h := running(t, k)
		h.stop(t)
		k[0].writes, k[1].writes = 0, 0
		h = running(t, k)
		defer h.stop(t)
		if k[0].writes+k[1].writes > 0 {
			t.Error("a restart without a change wrote")
		}
		if len(h.written) != 2 || len(h.follow.flows) != 1 || !h.follow.flows[0].All {
			t.Errorf("first written reported for %v, flows %v", h.written, h.follow.flows)
		}
	})
}

func TestRestartRemovesWhatIsGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := &[2]fakeKernel{}
		running(t, k).stop(t)
		h := start(t, k)
		defer h.stop(t)
		h.sync()
		if h.has(1) != neither {
			t.Error("the rules of a Service that was deleted meanwhile are still there")
		}
	})
}

func TestFamiliesAreIndependent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := &[2]fakeKernel{}
		h := running(t, k)
		defer h.stop(t)
		k[1].failWrite = errors.New("ip6tables broken")
		for i := 2; i < 5; i++ {
			h.feed.put(service(i, 0))
			h.after(2 * time.Second)
			if got := h.has(i); got != [2]bool{true, false} {
				t.Errorf("Service %d: %v, want IPv4 alone", i, got)
			}
		}
		if failed := failed(h.last()); failed != [2]bool{false, true} {
			t.Errorf("reported failed families %v", failed)
		}
		k[1].failWrite = nil
		h.after(time.Minute)
		if h.has(4) != both {
			t.Error("IPv6 not written after recovery")
		}
		if failed := failed(h.last()); failed != neither {
			t.Errorf("reported failed families %v", failed)
		}
	})
}

func TestBackoff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := &[2]fakeKernel{}
		h := running(t, k)
		defer h.stop(t)
		k[0].failWrite = errors.New("lock held")
		h.feed.put(service(2, 0))
		h.settle()
		h.after(5 * time.Minute)
		at := k[0].at[1:]
		want := 100 * time.Millisecond
		for i := 1; i < len(at); i++ {
			wait := at[i].Sub(at[i-1])
			if wait > want || wait < want*4/5 {
				t.Errorf("attempt %d after %v, want %v less at most a fifth", i, wait, want)
			}
			want = min(2*want, 30*time.Second)
		}
		if len(at) < 15 {
			t.Errorf("only %d attempts in five minutes", len(at))
		}
		if n := h.count("sync failed"); n < 5 || n > 11 {
			t.Errorf("logged %d times in five minutes, want at most once in 30s", n)
		}
		// Changes neither shorten the wait nor make anybody read: they go to the other family
		// alone, and the next attempt takes all of them.
		for n := k[0].writes; k[0].writes == n; { // the next attempt is then half a minute away
			h.after(time.Second)
		}
		attempts, reads := k[0].writes, [2]int{k[0].reads, k[1].reads}
		for i := range 5 {
			h.feed.put(service(3, i))
			h.after(1100 * time.Millisecond)
		}
		if k[0].writes != attempts || k[0].reads != reads[0] || k[1].reads > reads[1]+1 /* to verify */ || h.has(3) != [2]bool{false, true} {
			t.Errorf("%d attempts and %d readings because of changes, kernel %v", k[0].writes-attempts, k[0].reads+k[1].reads-reads[0]-reads[1], h.has(3))
		}
		k[0].failWrite = nil
		h.after(30 * time.Second)
		if k[0].writes != attempts+1 || h.has(2) != both || h.has(3) != both {
			t.Errorf("%d attempts, kernel %v, %v", k[0].writes-attempts, h.has(2), h.has(3))
		}
	})
}

func TestDriftRepair(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := &[2]fakeKernel{}
		h := running(t, k)
		defer h.stop(t)
		clear(k[0].objects)
		k[1].objects[fwd.Service{Name: "stranger"}] = "left over"
		h.after(30 * time.Second)
		if h.has(1) != both || len(k[1].objects) != 1 {
			t.Errorf("not repaired: %v %v", k[0].objects, k[1].objects)
		}
		if h.count("repaired drift") != 2 { // one in each family
			t.Errorf("log %s", h.log)
		}
		if n := h.drifted(); n != 2 {
			t.Errorf("reported %d drifted objects, want 2", n)
		}
	})
}

func TestVerifyUnderConstantChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := &[2]fakeKernel{}
		h := running(t, k, "--iptables-min-sync-period=0")
		defer h.stop(t)
		reads := k[0].reads
		for i := range 1200 {
			h.feed.put(service(2, i))
			h.after(100 * time.Millisecond)
		}
		if n := k[0].reads - reads; n < 2 || n > 4 {
			t.Errorf("verified %d times in two minutes", n)
		}
	})
}

// One failed verification is no failed sync: no update waits for another reading. Many in a row
// are.
func TestFailedVerify(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := &[2]fakeKernel{}
		h := running(t, k)
		defer h.stop(t)
		k[0].failRead = errors.New("somebody else writes")
		h.after(31 * time.Second)
		k[0].slowRead = 10 * time.Second
		h.feed.put(service(2, 0))
		h.settle()
		if h.has(2) != both {
			t.Error("a change waited for a reading")
		}
		if h.count("cannot read the kernel back") != 1 || h.count("level=ERROR") != 0 {
			t.Errorf("log %s", h.log)
		}
		k[0].slowRead = 0
		h.after(2 * time.Minute)
		if h.count("level=ERROR") == 0 {
			t.Errorf("nothing but failures for two minutes, and the log has %s", h.log)
		}
		k[0].failRead = nil
		h.after(time.Minute)
		if h.count("sync works again") != 1 {
			t.Errorf("log %s", h.log)
		}
	})
}

func TestDriftIsRepairedWhenTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := &[2]fakeKernel{}
		h := running(t, k)
		defer h.stop(t)
		k[0].slowRead = 100 * time.Millisecond
		delete(k[0].objects, name(1))
		hint := backend.Drift{Family: fwd.IPv4, What: "table nat", Process: "iptables"}
		others := k[1].reads
		h.drift <- hint
		h.after(200 * time.Millisecond)
		if h.has(1) != both || h.count("family=IPv4 objects=1 changed=\"table nat\" by=iptables") != 1 {
			t.Errorf("not repaired, or not told who made it necessary\n%s", h.log)
		}
		if k[1].reads != others {
			t.Error("the other family was read too")
		}
		// Whoever changes the rules all the time cannot make us read all the time: pauses double
		// until a fiftieth of the time goes into it.
		reads := k[0].reads
		for range 600 {
			h.drift <- hint
			h.after(100 * time.Millisecond)
		}
		if n := k[0].reads - reads; n < 12 || n > 18 {
			t.Errorf("read %d times in a minute, each taking a tenth of a second", n)
		}
		// After a quiet time the first hint counts at once again.
		h.after(time.Minute)
		delete(k[0].objects, name(1))
		h.drift <- hint
		h.after(200 * time.Millisecond)
		if h.has(1) != both {
			t.Error("not repaired after a quiet time")
		}
	})
}

// A reading that takes long neither holds up a change nor takes what was written meanwhile for
// drift.
func TestSlowVerify(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := &[2]fakeKernel{}
		h := running(t, k)
		defer h.stop(t)
		k[0].slowRead = 10 * time.Second
		delete(k[0].objects, name(1))
		h.after(31 * time.Second) // the reading has begun
		h.feed.put(service(2, 0))
		h.settle()
		if h.has(2) != both {
			t.Error("a change waited for the reading")
		}
		if h.has(1) == both {
			t.Error("repaired before the reading ended")
		}
		h.after(10 * time.Second)
		if h.has(1) != both || h.has(2) != both {
			t.Errorf("kernel %v", k[0].objects)
		}
		if n := h.drifted(); n != 1 {
			t.Errorf("%d objects drifted, want the one that was deleted", n)
		}
		// What costs 10 s is not done every 30 s.
		reads := k[0].reads
		h.after(8 * time.Minute)
		if n := k[0].reads - reads; n != 0 {
			t.Errorf("read %d times in eight minutes", n)
		}
		h.after(time.Minute)
		if n := k[0].reads - reads; n != 1 {
			t.Errorf("read %d times in nine minutes", n)
		}
	})
}

func TestVerifyDoesNotHurryChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := &[2]fakeKernel{}
		h := running(t, k)
		defer h.stop(t)
		h.after(24*time.Second + 500*time.Millisecond) // the verification is due in half a second
		h.feed.put(service(2, 0))
		h.settle()
		h.feed.put(service(2, 1))
		h.after(time.Second)
		n := len(k[0].at)
		if gap := k[0].at[n-1].Sub(k[0].at[n-2]); gap != time.Second {
			t.Errorf("two syncs %v apart, want MinSyncPeriod", gap)
		}
	})
}

func TestNodeCIDR(t *testing.T) {
	node := func(cidr string) func(*cluster.Store) {
		return func(s *cluster.Store) {
			n := cluster.Node{Name: "n1"}
			if cidr != "" {
				n.PodCIDRs = []netip.Prefix{netip.MustParsePrefix(cidr)}
			}
			s.SetNode(n)
		}
	}
	synctest.Test(t, func(t *testing.T) {
		k := &[2]fakeKernel{}
		h := start(t, k, "--detect-local-mode=NodeCIDR")
		h.feed.put(node(""), service(1, 0))
		h.sync()
		h.after(4 * time.Minute)
		if k[0].writes > 0 {
			t.Fatal("wrote before podCIDRs were known")
		}
		h.feed.put(node("10.1.0.0/24"))
		h.settle()
		if h.has(1) != both {
			t.Fatal("not written when podCIDRs came")
		}
		h.after(time.Hour)
		for _, step := range []struct{ cidr, want string }{{"10.2.0.0/24", "10.2.0.0/24"}, {"", "10.2.0.0/24"}, {"10.3.0.0/24", "10.3.0.0/24"}} {
			h.feed.change(func() { h.feed.puts, h.feed.d.NodeChanged = append(h.feed.puts, node(step.cidr)), true })
			h.after(podCIDRTimeout)
			if got := h.checks.header.Detector[0].Prefix.String(); got != step.want {
				t.Errorf("podCIDR %q: pods are known by %s, want %s", step.cidr, got, step.want)
			}
		}
		if n := h.count("the node's podCIDRs changed"); n != 2 {
			t.Errorf("%d lines:\n%s", n, h.log)
		}
		if err := h.stop(t); err != nil {
			t.Error(err)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		h := start(t, &[2]fakeKernel{}, "--detect-local-mode=NodeCIDR")
		h.after(2 * podCIDRTimeout)
		h.feed.change(func() {
			h.feed.puts, h.feed.d.NodeChanged, h.feed.synced = append(h.feed.puts, node("10.1.0.0/24")), true, true
		})
		h.after(time.Minute)
		if len(h.done) > 0 || h.count("waiting for") > 0 {
			t.Errorf("a silent API server counts as lack of a podCIDR:\n%s", h.log)
		}
		h.cancel()
	})
	synctest.Test(t, func(t *testing.T) {
		h := start(t, &[2]fakeKernel{}, "--detect-local-mode=NodeCIDR")
		h.sync()
		h.after(podCIDRTimeout - time.Second)
		select {
		case err := <-h.done:
			t.Fatalf("ended early: %v", err)
		default:
		}
		h.after(time.Second)
		select {
		case err := <-h.done:
			if err == nil || !strings.Contains(err.Error(), "podCIDR") || !strings.Contains(err.Error(), "n1") {
				t.Errorf("error %v", err)
			}
		default:
			t.Error("waits for ever")
		}
		h.cancel()
	})
}

func TestFlows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := &[2]fakeKernel{}
		h := running(t, k)
		defer h.stop(t)
		both, v4, v6 := [2]bool{true, true}, [2]bool{true, false}, [2]bool{false, true}
		if diff := cmp.Diff([]submitted{{both, true}}, h.follow.flows); diff != "" {
			t.Errorf("at the start: %s", diff)
		}
		fail := func(v4, v6 error) func() {
			return func() { k[0].failWrite, k[1].failWrite = v4, v6 }
		}
		broken := errors.New("lock held")
		steps := []struct {
			what string
			do   func()
			wait time.Duration
			want []submitted
		}{
			{"a change", func() { h.feed.put(service(2, 0)) }, 2 * time.Second, []submitted{{both, false}}},
			{"before the rules are in the kernel", func() { fail(broken, broken)(); h.feed.put(service(2, 1)) }, 2 * time.Second, nil},
			{"recovery of each family", fail(nil, nil), 10 * time.Second, []submitted{{v4, true}, {v6, true}}},
			{"one family fails", func() { fail(nil, broken)(); h.feed.put(service(2, 2)) }, 0, []submitted{{v4, false}}},
			{"recovery of one family", fail(nil, nil), 10 * time.Second, []submitted{{v6, true}}},
			{"repair of rules that were missing", func() { clear(k[0].objects) }, 30 * time.Second, []submitted{{v4, true}}},
			{"steady state", func() {}, time.Minute, nil},
		}
		for _, step := range steps {
			h.follow.flows = nil
			step.do()
			h.after(step.wait)
			// Families recover in any order.
			slices.SortFunc(h.follow.flows, func(a, b submitted) int { return slices.Compare(a.order(), b.order()) })
			if diff := cmp.Diff(step.want, h.follow.flows); diff != "" {
				t.Errorf("%s: %s", step.what, diff)
			}
		}
	})
}

func TestFirstWriteByFamily(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := &[2]fakeKernel{}
		k[1].failWrite = errors.New("ip6tables broken")
		h := start(t, k)
		defer h.stop(t)
		h.feed.put(service(1, 0))
		h.sync()
		h.after(time.Minute)
		if diff := cmp.Diff([]fwd.Family{fwd.IPv4}, h.written); diff != "" {
			t.Error(diff)
		}
		k[1].failWrite = nil
		h.after(time.Minute)
		if diff := cmp.Diff([]fwd.Family{fwd.IPv4, fwd.IPv6}, h.written); diff != "" {
			t.Error(diff)
		}
	})
}

func TestReports(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := &[2]fakeKernel{}
		h := running(t, k)
		defer h.stop(t)
		// A younger Service claims the same address and port.
		clash := func(version int) func(*cluster.Store) {
			return func(s *cluster.Store) {
				v := *s.Service(name(1))
				v.Name, v.CreatedUnix = name(7), 100
				v.AffinitySec = uint32(version)
				s.SetService(&v)
			}
		}
		h.feed.put(clash(1))
		h.after(2 * time.Second)
		h.feed.put(clash(2))
		h.after(2 * time.Second)
		if n := h.count("two Services claim"); n != 2 || len(h.follow.events) != 2 { // one for each family
			t.Errorf("%d conflicts logged, events %v, want one for each of two keys", n, h.follow.events)
		}
		trigger := time.Now()
		h.feed.change(func() {
			h.feed.d = cluster.Drained{Services: 1, Slices: 2, Triggers: [2][]time.Time{{trigger}, {trigger, trigger}}}
			h.feed.puts = append(h.feed.puts, service(1, 5))
		})
		h.after(2 * time.Second)
		s := h.last()
		if s.ServiceEvents != 1 || s.SliceEvents != 2 || len(s.Families[0].Triggers) != 1 || len(s.Families[1].Triggers) != 2 || !s.Families[0].Triggers[0].Equal(trigger) {
			t.Errorf("reported %+v", s)
		}
		if s.Services != 2 || s.Frontends != 4 || s.Conflicts != 0 {
			t.Errorf("reported %d Services, %d frontends and %d conflicts", s.Services, s.Frontends, s.Conflicts)
		}
	})
}

// A change of endpoints that asks for nothing new is in the kernel at once: it does not wait for
// the next one that does.
func TestTriggersOfAChangeWithoutAMeaning(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := running(t, &[2]fakeKernel{})
		defer h.stop(t)
		syncs, writes := len(h.follow.syncs), h.kernels[0].writes
		h.feed.change(func() { h.feed.d = cluster.Drained{Slices: 1, Triggers: [2][]time.Time{{time.Now()}, nil}} })
		h.settle()
		if n := len(h.follow.syncs); n != syncs+1 || len(h.last().Families[0].Triggers) != 1 || h.kernels[0].writes != writes {
			t.Errorf("%d reports, the last %+v", n-syncs, h.follow.syncs[n-1])
		}
	})
}

// While one family fails, the times of its changes wait; the other's do not.
func TestTriggersByFamily(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := &[2]fakeKernel{}
		h := running(t, k)
		defer h.stop(t)
		k[1].failWrite = errors.New("no")
		h.feed.change(func() {
			h.feed.d = cluster.Drained{Slices: 2, Triggers: [2][]time.Time{{time.Now()}, {time.Now()}}}
			h.feed.puts = append(h.feed.puts, service(1, 5))
		})
		h.settle()
		s := h.last()
		if len(s.Families[0].Triggers) != 1 || len(s.Families[1].Triggers) != 0 {
			t.Fatalf("while IPv6 fails: %+v", s.Families)
		}
		k[1].failWrite = nil
		h.after(time.Minute)
		times := 0
		for _, s := range h.follow.syncs {
			times += len(s.Families[1].Triggers)
		}
		if times != 1 {
			t.Errorf("%d times of IPv6 reported, want 1", times)
		}
	})
}

// Verified waits for a reading of the kernel after the first complete write, which follows at once;
// a kernel that has everything already is verified by the reading before the write that is not
// needed.
func TestVerified(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := &[2]fakeKernel{}
		h := start(t, k)
		k[0].slowRead, k[1].slowRead = time.Second, time.Second
		h.feed.put(service(1, 0))
		h.sync()
		h.after(1500 * time.Millisecond) // a reading, the write, and a part of the next reading
		if h.has(1) != both || h.follow.verified != [2]int{} || len(h.written) != 2 || len(h.verified) != 0 {
			t.Fatalf("written %v, verified %v times before the kernel was read", h.has(1), h.follow.verified)
		}
		h.after(2 * time.Second)
		if h.follow.verified != [2]int{1, 1} || len(h.verified) != 2 {
			t.Errorf("verified %v times after the first reading\n%s", h.follow.verified, h.log)
		}
		h.stop(t)

		h = start(t, k) // as a new process
		h.feed.put(service(1, 0))
		h.sync()
		h.after(1500 * time.Millisecond)
		if k[0].writes != 1 || h.follow.verified != [2]int{1, 1} || len(h.verified) != 2 {
			t.Errorf("restart: %d writes, verified %v times\n%s", k[0].writes, h.follow.verified, h.log)
		}
		delete(k[0].objects, name(1))
		h.after(5 * time.Minute)
		if n := h.follow.verified; k[0].writes != 2 || n[0] < 2 || n[0] >= n[1] || len(h.verified) != 2 {
			t.Errorf("drift: %d writes, verified %v times", k[0].writes, n)
		}
		h.stop(t)
	})
}

// What a reading finds missing after the first write is written again, and only the reading after
// that verifies.
func TestNotVerifiedWhatIsMissing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := &[2]fakeKernel{}
		k[0].slowRead = time.Second
		h := start(t, k)
		defer h.stop(t)
		h.feed.put(service(1, 0))
		h.sync()
		h.after(1100 * time.Millisecond) // the second reading has begun, and sees what is there by now
		k[0].mu.Lock()
		k[0].lose = 1
		k[0].mu.Unlock()
		h.after(time.Second)
		if len(h.verified) != 1 || h.verified[0] != fwd.IPv6 {
			t.Fatalf("verified %v, want IPv6 alone", h.verified)
		}
		h.after(10 * time.Second)
		if len(h.verified) != 2 || h.count("repaired drift") != 1 {
			t.Errorf("verified %v\n%s", h.verified, h.log)
		}
	})
}

// Those who answer load balancers hear by family that the kernel has the rules.
func TestProgrammed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := &[2]fakeKernel{}
		h := running(t, k)
		defer h.stop(t)
		before := h.checks.programmed
		k[0].slow = time.Second
		h.feed.put(service(2, 0))
		h.settle()
		if h.checks.programmed != before {
			t.Error("told of rules that are not written")
		}
		h.after(2 * time.Second)
		if h.checks.updates == 0 || h.checks.programmed != [2]int{before[0] + 1, before[1] + 1} {
			t.Errorf("%d updates, told %v times, before %v", h.checks.updates, h.checks.programmed, before)
		}
		k[1].failWrite = errors.New("no")
		h.feed.put(service(3, 0))
		h.after(5 * time.Second)
		if h.checks.programmed != [2]int{before[0] + 2, before[1] + 1} {
			t.Errorf("told %v times while IPv6 fails, before %v", h.checks.programmed, before)
		}
		k[1].failWrite = nil
		h.after(25 * time.Second)
		if h.checks.programmed[1] != before[1]+2 {
			t.Error("not told when it works again")
		}
	})
}

func TestSlowBackendEndsWithContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := &[2]fakeKernel{}
		h := running(t, k)
		k[0].slow = time.Hour
		h.feed.put(service(2, 0))
		h.settle()
		if err := h.stop(t); err != nil {
			t.Error(err)
		}
		if h.count("failed") > 0 {
			t.Errorf("the end of the process is logged as a failure\n%s", h.log)
		}
	})
}

// A changed Config is in force without a restart: Services are compiled again where it matters to
// them, and only then.
func TestConfig(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := &[2]fakeKernel{}
		h := running(t, k)
		defer h.stop(t)
		h.feed.put(func(s *cluster.Store) {
			service(1, 0)(s)
			svc := *s.Service(name(1))
			svc.ExternalIPs = []netip.Addr{netip.MustParseAddr("192.0.2.9")}
			s.SetService(&svc)
		})
		h.after(2 * time.Second)
		before, writes := k[0].objects[name(1)], k[0].writes
		change := func(args ...string) {
			next, err := config.Parse(append([]string{"--cluster-cidr=10.0.0.0/8,fd00::/8", "--nodeport-addresses=all"}, args...), func() (string, error) { return "n1", nil })
			if err != nil {
				t.Fatal(err)
			}
			if _, restart := config.Diff(h.config, next); len(restart) > 0 {
				t.Fatal(restart)
			}
			h.config = h.config.Apply(next)
			h.configs <- h.config
			h.after(2 * time.Second)
		}
		change("-v=4")
		if k[0].writes != writes {
			t.Error("written although no rule depends on it")
		}
		if h.follow.configs != 1 {
			t.Errorf("told %d times of one new configuration", h.follow.configs)
		}
		change("-v=4", "--feature-gates=AllowServiceExternalIPs=false")
		if after := k[0].objects[name(1)]; !strings.Contains(before, "192.0.2.9") || strings.Contains(after, "192.0.2.9") {
			t.Errorf("got %s, before %s", after, before)
		}
		change("-v=4")
		if after := k[0].objects[name(1)]; after != before {
			t.Errorf("got %s, want %s", after, before)
		}
		reads := k[0].reads
		change("--iptables-sync-period=5s")
		h.after(time.Minute)
		if n := k[0].reads - reads; n < 5 {
			t.Errorf("verified %d times in a minute, want it every 5 seconds", n)
		}
	})
}

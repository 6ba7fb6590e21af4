package reconcile

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fairlead/fairlead/internal/cluster"
	"github.com/fairlead/fairlead/internal/fwd"
)

const largeID = 99

// large puts an IPv4 Service of 12 ports on 61 addresses with 50 endpoints, which takes three
// steps. version changes its ports.
func large(version int) func(*cluster.Store) {
	return func(s *cluster.Store) {
		v := &cluster.Service{Name: name(largeID), ClusterIPs: [2]netip.Addr{netip.MustParseAddr("10.96.9.9")}}
		slice := &cluster.Slice{Name: cluster.SliceName{Namespace: v.Name.Namespace, Name: v.Name.Name}, Service: v.Name, Family: fwd.IPv4}
		for i := range 12 {
			port := fmt.Sprint("p", i)
			v.Ports = append(v.Ports, cluster.ServicePort{Name: port, Protocol: fwd.UDP, Port: uint16(1 + i + 100*(version%2))})
			slice.Ports = append(slice.Ports, cluster.SlicePort{Name: port, Protocol: fwd.UDP, Port: 53})
		}
		for i := range 60 {
			v.ExternalIPs = append(v.ExternalIPs, netip.AddrFrom4([4]byte{203, 0, 113, byte(i)}))
		}
		for i := range 50 {
			slice.Endpoints = append(slice.Endpoints, cluster.Endpoint{Addr: netip.AddrFrom4([4]byte{10, 1, 0, byte(i)}), Ready: true, Serving: true})
		}
		s.SetService(v)
		s.SetSlice(slice)
	}
}

// plansOf are the indexes of IPv4 writes that hold a Service.
func (h *house) plansOf(i int) (at []int) {
	for n, p := range h.kernels[0].plans {
		if slices.Contains(p.upserts, name(i)) || slices.Contains(p.deletes, name(i)) {
			at = append(at, n)
		}
	}
	return at
}

// largeFrontends counts the frontends of the large Service in the kernel.
func (h *house) largeFrontends() int {
	return strings.Count(h.kernels[0].objects[name(largeID)], "203.0.113.")
}

const largeSize = 12 * 60

// TestLargeServiceDelaysNobody: a Service with very many frontends is written in steps, and a
// change of another Service that comes meanwhile is written before the large one is complete.
func TestLargeServiceDelaysNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := &[2]fakeKernel{}
		h := running(t, k, "--proxy-mode=nftables", "--iptables-min-sync-period=1s")
		defer h.stop(t)
		k[0].slow, k[0].plans = time.Second, nil
		trigger := time.Now()
		h.feed.change(func() {
			h.feed.puts, h.feed.d.Triggers[0] = append(h.feed.puts, large(0)), []time.Time{trigger}
		})
		h.settle()
		h.feed.put(service(2, 0))
		h.after(2500 * time.Millisecond) // the second step has ended
		if h.has(2) != both || h.largeFrontends() == largeSize {
			t.Errorf("small Service in the kernel: %v, want it before the last of %d frontends; there are %d", h.has(2), largeSize, h.largeFrontends())
		}
		for _, i := range h.plansOf(2) {
			if p := h.kernels[0].plans[i]; len(p.upserts) != 1 {
				t.Errorf("the small Service was written together with a step of the large one: %v", p.upserts)
			}
		}
		for _, s := range h.follow.syncs {
			if len(s.Families[0].Triggers) > 0 {
				t.Error("a change is reported as written before it is complete")
			}
		}
		h.after(10 * time.Second)
		small, large := h.plansOf(2), h.plansOf(largeID)
		if len(large) != 3 || len(small) != 1 || small[0] >= large[2] {
			t.Errorf("the large Service is in writes %v, the small one in %v", large, small)
		}
		if h.largeFrontends() != largeSize || len(h.last().Families[0].Triggers) != 1 {
			t.Errorf("%d frontends, reported %+v", h.largeFrontends(), h.last())
		}
	})
}

// TestLargeServiceChangesMeanwhile: one that changes all the time is complete now and then, and in
// the end as it should be.
func TestLargeServiceChangesMeanwhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := &[2]fakeKernel{}
		h := running(t, k, "--proxy-mode=nftables")
		defer h.stop(t)
		k[0].slow, k[0].plans = time.Second, nil
		complete := 0
		for i := range 20 {
			h.feed.change(func() {
				h.feed.puts, h.feed.d.Triggers[0] = append(h.feed.puts, large(i)), []time.Time{time.Now()}
			})
			h.after(time.Second)
		}
		for _, s := range h.follow.syncs {
			if len(s.Families[0].Triggers) > 0 {
				complete++
			}
		}
		if complete < 2 {
			t.Errorf("complete %d times in 20 s", complete)
		}
		h.after(time.Minute)
		if n := strings.Count(k[0].objects[name(largeID)], ":112/"); h.largeFrontends() != largeSize || n != 61 {
			t.Errorf("%d frontends, %d of them of the last version", h.largeFrontends(), n)
		}
		h.feed.put(large(0))
		h.settle()
		h.feed.put(func(s *cluster.Store) { s.DeleteService(name(largeID)) })
		h.after(time.Minute)
		if h.has(largeID) != neither || h.has(1) != both || failed(h.last()) != neither {
			t.Errorf("deleted on the way, and in the kernel %v; the others %v", h.has(largeID), h.has(1))
		}
	})
}

// TestLargeServiceAtStart: on a node without rules the others come first and nothing counts as
// written before all is; what an earlier process wrote is changed in one write.
func TestLargeServiceAtStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := &[2]fakeKernel{}
		k[0].slow = time.Second
		h := start(t, k, "--proxy-mode=nftables")
		h.feed.put(service(1, 0), large(0))
		h.sync()
		h.after(1500 * time.Millisecond)
		if h.has(1) != both || h.largeFrontends() == 0 || len(h.written)+len(h.verified) > 0 {
			t.Errorf("kernel %v with %d frontends, written %v, verified %v", h.has(1), h.largeFrontends(), h.written, h.verified)
		}
		h.after(10 * time.Second)
		if h.largeFrontends() != largeSize || len(h.written) != 2 || h.follow.verified != [2]int{1, 1} {
			t.Errorf("%d frontends, written %v, verified %v", h.largeFrontends(), h.written, h.verified)
		}
		h.stop(t)
		k[0].plans, k[0].slow = nil, 0
		h = start(t, k, "--proxy-mode=nftables")
		h.feed.put(service(1, 0), large(0))
		h.sync()
		h.after(time.Minute)
		h.stop(t)
		if len(k[0].plans) > 0 || len(h.verified) != 2 {
			t.Errorf("a restart without a change wrote %d times, verified %v", len(k[0].plans), h.verified)
		}
		h = start(t, k, "--proxy-mode=nftables")
		h.feed.put(service(1, 0), large(1))
		h.sync()
		defer h.stop(t)
		if len(k[0].plans) != 1 || h.largeFrontends() != largeSize {
			t.Errorf("%d writes, %d frontends", len(k[0].plans), h.largeFrontends())
		}
	})
}

// TestLargeServiceRefused: a large Service that the kernel refuses half-way is set aside as a
// whole.
func TestLargeServiceRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := &[2]fakeKernel{}
		h := running(t, k, "--proxy-mode=nftables")
		defer h.stop(t)
		k[0].slow = time.Second
		h.feed.put(large(0))
		h.after(1500 * time.Millisecond)
		k[0].refuse = map[fwd.Service]bool{name(largeID): true}
		h.after(20 * time.Second)
		if h.has(largeID) != neither || h.count("sync failed") > 0 || len(h.follow.events) != 1 || h.last().Quarantined != 1 {
			t.Errorf("kernel %v, events %v\n%s", h.has(largeID), h.follow.events, h.log)
		}
		k[0].refuse = nil
		h.after(time.Minute)
		if h.largeFrontends() != largeSize || h.last().Quarantined != 0 {
			t.Errorf("%d frontends, reported %+v", h.largeFrontends(), h.last())
		}
	})
}

// TestVerificationWaitsForSteps: a verification that becomes due while a large Service is written
// follows the last step.
func TestVerificationWaitsForSteps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := &[2]fakeKernel{}
		h := running(t, k, "--proxy-mode=nftables", "--iptables-sync-period=30s")
		defer h.stop(t)
		h.after(20 * time.Second) // a reading is due in 5 s
		before := k[0].reads
		k[0].slow = 6 * time.Second
		h.feed.put(large(0))
		h.after(16 * time.Second) // two of three steps
		if n := h.largeFrontends(); n == 0 || n == largeSize || k[0].reads != before {
			t.Errorf("%d of %d frontends, %d readings, want part of them and %d", n, largeSize, k[0].reads, before)
		}
		h.after(10 * time.Second)
		if n := h.largeFrontends(); n != largeSize || k[0].reads != before+1 {
			t.Errorf("%d of %d frontends, %d readings, want all and %d", n, largeSize, k[0].reads, before+1)
		}
	})
}

package reconcile

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fairlead/fairlead/internal/cluster"
	"github.com/fairlead/fairlead/internal/fwd"
)

// critical makes a Service one that a new node needs first.
func critical(i int) func(*cluster.Store) {
	return func(s *cluster.Store) {
		v := *s.Service(name(i))
		v.Critical = true
		s.SetService(&v)
	}
}

// crowd puts Services 0 to n-1, of which 7 and 8 are critical.
func (h *house) crowd(n int) {
	for i := range n {
		h.feed.put(service(i, 0))
	}
	h.feed.put(critical(7), critical(8))
}

func TestCriticalServicesFirst(t *testing.T) {
	for _, tc := range []struct {
		mode string
		// sizes are how many Services each write makes.
		sizes []int
	}{
		{"nftables", []int{2, 500, 500, 298}},
		{"ipvs", []int{2, 500, 500, 298}},
		{"iptables", []int{2, 1298}},
	} {
		t.Run(tc.mode, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				k := &[2]fakeKernel{}
				h := start(t, k, "--proxy-mode="+tc.mode)
				defer h.stop(t)
				h.crowd(1300)
				h.sync()
				h.after(time.Second)
				var sizes []int
				for _, p := range k[0].plans {
					sizes = append(sizes, len(p.upserts))
					if len(p.deletes) > 0 {
						t.Errorf("deleted %v", p.deletes)
					}
				}
				if !slices.Equal(sizes, tc.sizes) {
					t.Errorf("writes of %v Services, want %v", sizes, tc.sizes)
				}
				if first, want := k[0].plans[0].upserts, []fwd.Service{name(7), name(8)}; !slices.Equal(first, want) {
					t.Errorf("wrote %v first, want %v", first, want)
				}
				if len(k[0].objects) != 1300 || len(k[1].objects) != 1300 {
					t.Errorf("%d and %d of 1300 Services are there", len(k[0].objects), len(k[1].objects))
				}
				// It counts as written when all is, and is one sync for those who follow.
				if s := h.follow.syncs; len(s) != 1 || written(s[0]) != 2600 || len(h.written) != 2 || h.checks.programmed != [2]int{1, 1} || h.follow.verified != [2]int{1, 1} {
					t.Errorf("%d syncs, written %v, %v verified\n%s", len(s), h.written, h.follow.verified, h.log)
				}
			})
		})
	}
}

// TestDropsLast: until all Services are in the table nobody can say that an address has none.
func TestDropsLast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := &[2]fakeKernel{}
		h := start(t, k, "--proxy-mode=nftables")
		defer h.stop(t)
		var drops []bool
		h.checks.seen = func(h fwd.Header) { drops = append(drops, h.DropUnallocated) }
		h.crowd(10)
		h.sync()
		if !slices.Equal(drops, []bool{false, true}) {
			t.Errorf("addresses without a Service are dropped: %v, want not with the first piece, and then", drops)
		}
	})
}

// TestRestartKeepsAll: with rules of an earlier run in the kernel nothing is removed and nothing is
// written in pieces.
func TestRestartKeepsAll(t *testing.T) {
	for _, mode := range []string{"nftables", "iptables", "ipvs"} {
		t.Run(mode, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				k := &[2]fakeKernel{}
				h := start(t, k, "--proxy-mode="+mode)
				h.crowd(1000)
				h.sync()
				h.after(time.Second)
				h.stop(t)
				for i := range k {
					k[i].writes, k[i].plans = 0, nil
				}
				h = start(t, k, "--proxy-mode="+mode)
				h.crowd(1000)
				h.sync()
				h.after(time.Minute)
				h.stop(t)
				if k[0].writes+k[1].writes > 0 {
					t.Fatalf("restart without a change wrote %d and %d times", k[0].writes, k[1].writes)
				}

				// Meanwhile a critical Service and another changed, one went, and many came.
				h = start(t, k, "--proxy-mode="+mode)
				defer h.stop(t)
				h.crowd(1700)
				h.feed.put(service(7, 1), critical(7), service(20, 1), func(s *cluster.Store) { s.DeleteService(name(30)) })
				h.sync()
				h.after(time.Minute)
				for i := range k {
					if p := k[i].plans; len(p) != 1 || len(p[0].upserts) != 702 || !slices.Equal(p[0].deletes, []fwd.Service{name(30)}) {
						t.Errorf("%d writes, want one of 702 Services that deletes one", len(p))
					}
				}
			})
		})
	}
}

func TestPieceFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := &[2]fakeKernel{}
		h := start(t, k, "--proxy-mode=nftables")
		defer h.stop(t)
		k[0].failAt = 2
		h.crowd(1300)
		h.sync()
		h.after(10 * time.Second)
		var sizes [2][]int
		for i := range k {
			for _, p := range k[i].plans {
				sizes[i] = append(sizes[i], len(p.upserts))
			}
		}
		// What failed is written with all that was left; the other family goes on.
		if !slices.Equal(sizes[0], []int{2, 500, 1298}) || !slices.Equal(sizes[1], []int{2, 500, 500, 298}) || h.count("sync failed") != 1 {
			t.Errorf("writes of %v Services\n%s", sizes, h.log)
		}
		if len(k[0].objects) != 1300 || len(k[1].objects) != 1300 || h.follow.verified != [2]int{1, 1} {
			t.Errorf("%d and %d of 1300 Services are there, verified %v times", len(k[0].objects), len(k[1].objects), h.follow.verified)
		}
	})
}

// TestRefusedAhead: a critical Service that the kernel refuses does not hold up the others.
func TestRefusedAhead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := &[2]fakeKernel{}
		k[0].refuse = map[fwd.Service]bool{name(7): true}
		h := start(t, k, "--proxy-mode=nftables")
		defer h.stop(t)
		h.crowd(600)
		h.sync()
		h.after(time.Second)
		if h.has(7) != neither || len(k[0].objects) != 599 || h.count("sync failed") > 0 {
			t.Errorf("%d Services are there\n%s", len(k[0].objects), h.log)
		}
	})
}

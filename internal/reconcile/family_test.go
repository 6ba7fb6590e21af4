package reconcile

import (
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fairlead/fairlead/internal/fwd"
)

// A family whose kernel cannot be read when the process starts delays itself alone: nothing is told
// of it that follows a write, and it comes by itself.
func TestUnreadFamilyDelaysItselfAlone(t *testing.T) {
	for i, f := range fwd.Families {
		t.Run(f.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				k, other := &[2]fakeKernel{}, fwd.Families[1-i]
				k[i].failRead = errors.New("exit status 1")
				h := start(t, k)
				defer h.stop(t)
				h.feed.put(service(1, 0))
				h.sync()
				h.after(100 * time.Second)
				reads := k[1-i].reads
				h.feed.put(service(2, 0))
				h.settle()
				want := [2]bool{true, true}
				want[i] = false
				if h.has(1) != want || h.has(2) != want || k[i].writes > 0 {
					t.Errorf("kernel %v, %v, want all but %s; %d writes without having read", h.has(1), h.has(2), f, k[i].writes)
				}
				if !slices.Equal(h.written, []fwd.Family{other}) || !slices.Equal(h.verified, []fwd.Family{other}) {
					t.Errorf("written %v, verified %v, want %s alone", h.written, h.verified, other)
				}
				if h.follow.verified[i] > 0 || h.checks.programmed[i] > 0 || h.checks.programmed[1-i] != 2 {
					t.Errorf("verified %v times, programmed %v", h.follow.verified, h.checks.programmed)
				}
				if s := h.last(); !s.Families[i].Failed || s.Families[i].Tried || s.Families[1-i].Failed || !s.Families[1-i].Tried {
					t.Errorf("reported %+v", s.Families)
				}
				if k[1-i].reads != reads || reads > 5 {
					t.Errorf("%s was read %d times in 100s", other, k[1-i].reads)
				}
				k[i].failRead = nil
				h.after(30 * time.Second)
				if h.has(2) != both || len(h.written) != 2 || len(h.verified) != 2 || failed(h.last()) != neither {
					t.Errorf("no recovery: kernel %v, written %v, verified %v, reported %+v\n%s", h.has(2), h.written, h.verified, h.last().Families, h.log)
				}
			})
		})
	}
}

// A reading that hangs delays the other family by a few seconds when the process starts, and not at
// all later.
func TestHungReading(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := &[2]fakeKernel{}
		k[1].slowRead = 5 * time.Minute
		h := start(t, k)
		defer h.stop(t)
		h.feed.put(service(1, 0))
		h.sync()
		h.after(firstReadingTimeout)
		if h.has(1) != [2]bool{true, false} || !slices.Equal(h.verified, []fwd.Family{fwd.IPv4}) {
			t.Fatalf("kernel %v, verified %v", h.has(1), h.verified)
		}
		if s := h.last(); !s.Families[1].Failed {
			t.Error("IPv6 is reported as written")
		}
		for i := range 5 {
			h.after(2 * time.Second)
			h.feed.put(service(2, i))
			h.settle()
			if h.has(2) != [2]bool{true, false} {
				t.Fatalf("change %d is not written at once: %v", i, h.has(2))
			}
		}
		h.after(5 * time.Minute)
		if h.has(2) != both {
			t.Errorf("kernel %v", h.has(2))
		}
	})
}

// A reading during which a write failed proves nothing.
func TestReadingBesideAFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := &[2]fakeKernel{}
		h := start(t, k)
		defer h.stop(t)
		h.feed.put(service(1, 0))
		k[0].slowRead = time.Second
		h.sync()
		h.after(1100 * time.Millisecond) // the reading that verifies has begun
		k[0].failWrite = errors.New("lock held")
		h.after(500 * time.Millisecond)
		h.feed.put(service(2, 0))
		h.after(time.Second)
		if !slices.Equal(h.verified, []fwd.Family{fwd.IPv6}) {
			t.Errorf("verified %v, want IPv6 alone", h.verified)
		}
		k[0].failWrite = nil
		h.after(time.Minute)
		if len(h.verified) != 2 || h.has(2) != both {
			t.Errorf("verified %v, kernel %v", h.verified, h.has(2))
		}
	})
}

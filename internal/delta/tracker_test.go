package delta

import (
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
)

// value has a part that equality leaves out, as a hash or a time would be.
type value struct{ n, note int }

func sameN(a, b value) bool { return a.n == b.n }

// check compares the tracker with plain maps of what is wanted and what is there.
func check(t *testing.T, tr *Tracker[int, value], desired, actual map[int]value) {
	t.Helper()
	pending := map[int]bool{}
	for k := range 8 {
		d, wanted := desired[k]
		a, there := actual[k]
		if wanted != there || wanted && d.n != a.n {
			pending[k] = true
		}
		if got, ok := tr.Desired(k); ok != wanted || got != d {
			t.Errorf("Desired(%d): %v %v, want %v %v", k, got, ok, d, wanted)
		}
		if got, ok := tr.Actual(k); ok != there || got.n != a.n {
			t.Errorf("Actual(%d): %v %v, want %v %v", k, got, ok, a, there)
		}
	}
	var got []int
	for k := range tr.Pending() {
		got = append(got, k)
	}
	slices.Sort(got)
	if want := slices.Sorted(maps.Keys(pending)); !slices.Equal(got, want) {
		t.Errorf("Pending: %v, want %v", got, want)
	}
	if d, a, p := tr.Len(); d != len(desired) || a != len(actual) || p != len(pending) {
		t.Errorf("Len: %d %d %d, want %d %d %d", d, a, p, len(desired), len(actual), len(pending))
	}
	covered := true
	for k, a := range actual {
		d, wanted := desired[k]
		covered = covered && wanted && d.n == a.n
	}
	if tr.Covered() != covered {
		t.Errorf("Covered: %v, want %v", tr.Covered(), covered)
	}
}

func TestTrackerRandom(t *testing.T) {
	for seed := range uint64(20) {
		r := rand.New(rand.NewPCG(seed, 5))
		tr := New[int](sameN)
		desired, actual := map[int]value{}, map[int]value{}
		for step := range 400 {
			k, v := r.IntN(8), value{r.IntN(3), step}
			switch op := r.IntN(20); {
			case op < 6:
				tr.SetDesired(k, v)
				desired[k] = v
			case op < 9:
				tr.DeleteDesired(k)
				delete(desired, k)
			case op < 14:
				tr.SetActual(k, v)
				actual[k] = v
			case op < 17:
				tr.DeleteActual(k)
				delete(actual, k)
			case op == 17:
				tr.ClearDesired()
				clear(desired)
			case op == 18:
				actual = map[int]value{}
				for range r.IntN(6) {
					actual[r.IntN(8)] = value{r.IntN(3), step}
				}
				tr.ReplaceActual(maps.Clone(actual))
			case op == 19:
				// Nothing was read, as of a kernel that has nothing.
				clear(actual)
				tr.ReplaceActual(nil)
			}
			check(t, tr, desired, actual)
			if t.Failed() {
				t.Fatalf("seed %d, step %d", seed, step)
			}
		}
	}
}

// TestWritingAllThatIsPendingSettles is what the tracker is for: whatever was believed, after
// writing what is pending nothing is, and actual is what is desired. TestMapsAreGivenBack: what
// many keys needed while they were pending is free when none is.
func TestMapsAreGivenBack(t *testing.T) {
	tr := New[int](sameN)
	full := func() map[int]value {
		m := map[int]value{}
		for k := range 2 * shrinkAbove {
			m[k] = value{n: k}
		}
		return m
	}
	held := func(what string) {
		t.Helper()
		if tr.most != 0 || len(tr.wanted)+len(tr.there) > 0 {
			t.Errorf("%s: room for %d pending keys is held", what, tr.most)
		}
	}
	for k, v := range full() {
		tr.SetDesired(k, v)
	}
	for k, v := range full() {
		tr.SetActual(k, v)
	}
	held("written")
	tr.ReplaceActual(full())
	held("read")
	tr.ReplaceActual(nil)
	if _, _, n := tr.Len(); n != 2*shrinkAbove {
		t.Errorf("%d pending, want all", n)
	}
}

func TestWritingAllThatIsPendingSettles(t *testing.T) {
	r := rand.New(rand.NewPCG(9, 9))
	for range 100 {
		tr := New[int](sameN)
		read := map[int]value{}
		desired := map[int]value{}
		for range r.IntN(8) {
			k, v := r.IntN(8), value{n: r.IntN(3)}
			tr.SetDesired(k, v)
			desired[k] = v
			read[r.IntN(8)] = value{n: r.IntN(3)}
		}
		tr.ReplaceActual(read)
		for _, k := range slices.Collect(tr.Pending()) {
			if v, ok := tr.Desired(k); ok {
				tr.SetActual(k, v)
			} else {
				tr.DeleteActual(k)
			}
		}
		check(t, tr, desired, desired)
	}
}

// TestEqualValuesAreHeldOnce pins that the desired value replaces an equal actual one, so that
// memory they refer to is not held twice.
func TestEqualValuesAreHeldOnce(t *testing.T) {
	tr := New[int](sameN)
	tr.SetDesired(1, value{1, 1})
	tr.SetActual(1, value{1, 2})
	if got, _ := tr.Actual(1); got.note != 1 {
		t.Error("after SetActual there are two values")
	}
	tr.ReplaceActual(map[int]value{1: {1, 3}})
	if got, _ := tr.Actual(1); got.note != 1 {
		t.Error("after ReplaceActual there are two values")
	}
}

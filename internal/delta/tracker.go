package delta

import (
	"iter"
	"maps"
)

// Tracker holds desired and actual values. Make one with New.
//
// A key is either in agreed, or in wanted, there, or both: values that are as desired, nearly all,
// are stored once.
type Tracker[K comparable, V any] struct {
	agreed map[K]V
	// wanted and there hold the desired and actual values of pending keys.
	wanted, there map[K]V
	// most is the maximum length of wanted and there since they were made.
	most  int
	equal func(a, b V) bool
}

// New returns a Tracker without desired and actual values. equal compares two values.
func New[K comparable, V any](equal func(a, b V) bool) *Tracker[K, V] {
	return &Tracker[K, V]{agreed: make(map[K]V), wanted: make(map[K]V), there: make(map[K]V), equal: equal}
}

// shrinkAbove is the length above which maps are replaced when they become empty: a map never
// shrinks.
const shrinkAbove = 1024

func (t *Tracker[K, V]) shrink() {
	t.most = max(t.most, len(t.wanted), len(t.there))
	if t.most > shrinkAbove && len(t.wanted) == 0 && len(t.there) == 0 {
		t.wanted, t.there, t.most = make(map[K]V), make(map[K]V), 0
	}
}

// SetDesired sets the desired value of a key. If it equals the actual value the Tracker keeps the
// new one, since a value that was read may lack fields that only the Renderer sets.
func (t *Tracker[K, V]) SetDesired(k K, v V) {
	have, there := t.Actual(k)
	switch {
	case there && t.equal(v, have):
		t.agreed[k] = v
		delete(t.wanted, k)
		delete(t.there, k)
	case there:
		t.there[k] = have
		fallthrough
	default:
		t.wanted[k] = v
		delete(t.agreed, k)
	}
	t.shrink()
}

// DeleteDesired removes the desired value of a key.
func (t *Tracker[K, V]) DeleteDesired(k K) {
	if v, ok := t.agreed[k]; ok {
		t.there[k] = v
		delete(t.agreed, k)
	}
	delete(t.wanted, k)
	t.shrink()
}

// ClearDesired removes all desired values: everything actual is to be deleted.
func (t *Tracker[K, V]) ClearDesired() {
	maps.Copy(t.there, t.agreed)
	t.agreed, t.wanted = make(map[K]V), make(map[K]V)
	t.shrink()
}

// SetActual records that the key has the value, because it was written.
func (t *Tracker[K, V]) SetActual(k K, v V) {
	want, wanted := t.Desired(k)
	switch {
	case wanted && t.equal(want, v):
		t.agreed[k] = want
		delete(t.wanted, k)
		delete(t.there, k)
	case wanted:
		t.wanted[k] = want
		fallthrough
	default:
		t.there[k] = v
		delete(t.agreed, k)
	}
	t.shrink()
}

// DeleteActual records that the key is gone, because it was deleted.
func (t *Tracker[K, V]) DeleteActual(k K) {
	if v, ok := t.agreed[k]; ok {
		t.wanted[k] = v
		delete(t.agreed, k)
	}
	delete(t.there, k)
	t.shrink()
}

// ReplaceActual replaces all actual values by what was read. The Tracker keeps the map, which may
// be nil.
func (t *Tracker[K, V]) ReplaceActual(m map[K]V) {
	if m == nil {
		m = make(map[K]V)
	}
	t.there = m
	for k, v := range t.agreed {
		if have, ok := m[k]; ok && t.equal(v, have) {
			delete(m, k)
		} else {
			t.wanted[k] = v
			delete(t.agreed, k)
		}
	}
	for k, v := range t.wanted {
		if have, ok := m[k]; ok && t.equal(v, have) {
			t.agreed[k] = v
			delete(t.wanted, k)
			delete(m, k)
		}
	}
	t.most = max(t.most, len(t.agreed)) // the map that was read held as much
	t.shrink()
}

// Desired returns the desired value of a key.
func (t *Tracker[K, V]) Desired(k K) (V, bool) {
	if v, ok := t.agreed[k]; ok {
		return v, true
	}
	v, ok := t.wanted[k]
	return v, ok
}

// Actual returns the actual value of a key.
func (t *Tracker[K, V]) Actual(k K) (V, bool) {
	if v, ok := t.agreed[k]; ok {
		return v, true
	}
	v, ok := t.there[k]
	return v, ok
}

// Pending yields the keys in which desired and actual differ, in no order.
func (t *Tracker[K, V]) Pending() iter.Seq[K] {
	return func(yield func(K) bool) {
		for k := range t.wanted {
			if !yield(k) {
				return
			}
		}
		for k := range t.there {
			if _, seen := t.wanted[k]; !seen && !yield(k) {
				return
			}
		}
	}
}

// Covered reports whether all actual values are as desired, so that pending keys are only missing
// ones.
func (t *Tracker[K, V]) Covered() bool { return len(t.there) == 0 }

// Len returns the numbers of desired, actual and pending keys. It takes time in proportion to the
// pending keys.
func (t *Tracker[K, V]) Len() (desired, actual, pending int) {
	pending = len(t.wanted)
	for k := range t.there {
		if _, both := t.wanted[k]; !both {
			pending++
		}
	}
	return len(t.agreed) + len(t.wanted), len(t.agreed) + len(t.there), pending
}

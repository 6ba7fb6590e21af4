package delta

import (
	"iter"
	"maps"
)

// Tracker holds desired and actual values. Make one with New.
type Tracker[K comparable, V any] struct {
	desired map[K]V
	actual  map[K]V
	pending map[K]struct{}
	equal   func(a, b V) bool
}

// New returns a Tracker that wants nothing and believes that nothing is there. equal compares two values.
func New[K comparable, V any](equal func(a, b V) bool) *Tracker[K, V] {
	return &Tracker[K, V]{
		desired: make(map[K]V),
		actual:  make(map[K]V),
		pending: make(map[K]struct{}),
		equal:   equal,
	}
}

// settle works out whether the key is pending. Where both values are equal it keeps one of them, so that values which
// refer to memory are held once.
func (t *Tracker[K, V]) settle(k K) {
	want, wanted := t.desired[k]
	have, there := t.actual[k]
	switch {
	case wanted && there && t.equal(want, have):
		t.actual[k] = want
		delete(t.pending, k)
	case !wanted && !there:
		delete(t.pending, k)
	default:
		t.pending[k] = struct{}{}
	}
}

// SetDesired wants the key to have the value.
func (t *Tracker[K, V]) SetDesired(k K, v V) {
	t.desired[k] = v
	t.settle(k)
}

// DeleteDesired wants the key to be gone.
func (t *Tracker[K, V]) DeleteDesired(k K) {
	delete(t.desired, k)
	t.settle(k)
}

// ClearDesired wants nothing any more: everything actual is to be deleted.
func (t *Tracker[K, V]) ClearDesired() {
	clear(t.desired)
	clear(t.pending)
	for k := range t.actual {
		t.pending[k] = struct{}{}
	}
}

// SetActual records that the key has the value, because it was written.
func (t *Tracker[K, V]) SetActual(k K, v V) {
	t.actual[k] = v
	t.settle(k)
}

// DeleteActual records that the key is gone, because it was deleted.
func (t *Tracker[K, V]) DeleteActual(k K) {
	delete(t.actual, k)
	t.settle(k)
}

// ReplaceActual records what was read: what the map does not hold is not there. The Tracker keeps the map; nil means that
// nothing is there.
func (t *Tracker[K, V]) ReplaceActual(m map[K]V) {
	if m == nil {
		m = make(map[K]V)
	}
	t.actual = m
	clear(t.pending)
	for k := range t.desired {
		t.settle(k)
	}
	for k := range m {
		t.settle(k)
	}
}

// Desired returns the wanted value of a key.
func (t *Tracker[K, V]) Desired(k K) (V, bool) { v, ok := t.desired[k]; return v, ok }

// Actual returns the value that a key is believed to have.
func (t *Tracker[K, V]) Actual(k K) (V, bool) { v, ok := t.actual[k]; return v, ok }

// AllDesired yields all wanted values, in no order.
func (t *Tracker[K, V]) AllDesired() iter.Seq2[K, V] { return maps.All(t.desired) }

// Pending yields the keys in which desired and actual differ, in no order.
func (t *Tracker[K, V]) Pending() iter.Seq[K] { return maps.Keys(t.pending) }

// Covered says that all that is actual is wanted just so: what is pending is only missing.
func (t *Tracker[K, V]) Covered() bool {
	for k := range t.pending {
		if _, there := t.actual[k]; there {
			return false
		}
	}
	return true
}

// Len returns the numbers of desired, actual and pending keys.
func (t *Tracker[K, V]) Len() (desired, actual, pending int) {
	return len(t.desired), len(t.actual), len(t.pending)
}

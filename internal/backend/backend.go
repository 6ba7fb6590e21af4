package backend

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/fairlead/fairlead/internal/delta"
	"github.com/fairlead/fairlead/internal/fwd"
)

// Backend programs the dataplane of one address family; Families is the one of a whole node.
type Backend interface {
	// Update accepts changes of the table, in memory.
	Update(fwd.Changes)
	// Apply writes what is pending. The Result counts what was written even if there is an error;
	// what failed stays pending. The error is a *FamilyError, or joins several.
	Apply(context.Context) (Result, error)
	// Observe reads the kernel and replaces the actual state by it. It returns how many objects
	// differ from what was written.
	Observe(context.Context) (drifted int, err error)
	// Bare reports whether the kernel has nothing except what is desired now. What comes later can
	// then be written in any order and in batches, since no packet depends on anything that a batch
	// changes.
	Bare() bool
	// Begin starts an Observe that does not block Update and Apply.
	Begin() Reading
	// Cleanup removes all our objects from the kernel. It may be called twice.
	Cleanup(context.Context) error
}

// Tender is a Backend that also has work to do as time passes.
type Tender interface {
	// Tend does what is due and returns when it is to be called next, the zero Time for not before
	// the next Apply. It is also called after each Apply, in the Backend's goroutine. It retries
	// what fails by itself.
	Tend(ctx context.Context, now time.Time) (next time.Time)
}

// Reading is a reading of the kernel in the background. A Backend has one at a time: a later Begin
// or Observe makes an earlier Reading void.
type Reading interface {
	// Read reads the kernel. It may run in another goroutine than the Backend's.
	Read(context.Context) error
	// Accept makes what was read the actual state, except what was written since Begin, and returns
	// how many objects differ from what was written. It runs in the Backend's goroutine, after
	// Read. ok is false if the Reading is void or Read failed.
	Accept() (drifted int, ok bool)
}

// Result counts what an Apply wrote: objects of the backend's own kind (a chain, a virtual server).
type Result struct {
	Written, Deleted int
}

// Add adds up two results.
func (r Result) Add(o Result) Result {
	return Result{Written: r.Written + o.Written, Deleted: r.Deleted + o.Deleted}
}

// FamilyError is the failure of one family.
type FamilyError struct {
	Family fwd.Family
	// Refused says that the kernel or its tools will refuse the same write again; otherwise the
	// failure may pass.
	Refused bool
	// Culprits are the Services whose objects were refused, if known.
	Culprits []fwd.Service
	Err      error
}

func (e *FamilyError) Error() string { return fmt.Sprintf("%s: %v", e.Family, e.Err) }

// Unwrap returns the cause.
func (e *FamilyError) Unwrap() error { return e.Err }

// Edit is a change of one desired object.
type Edit[K comparable, V any] struct {
	Key    K
	Value  V
	Delete bool
}

// Renderer turns changes of the table into desired objects. It may keep an index, but has no
// effects.
type Renderer[K comparable, V any] interface {
	// Render returns the edits for changes, which may come from many operations on the table, in
	// order: a Service may occur more than once. If several edits have the same key the last one
	// counts.
	Render(fwd.Changes) []Edit[K, V]
}

// Plan is what a Target is to write, in no particular order.
type Plan[K comparable, V any] struct {
	// Upserts are objects to create or change.
	Upserts map[K]V
	// Deletes are objects to remove, with their actual value.
	Deletes map[K]V
	// Actual returns the actual value of an object.
	Actual func(K) (V, bool)
}

// Target reads and writes the kernel.
type Target[K comparable, V any] interface {
	// Read returns exactly our objects in the kernel.
	Read(context.Context) (map[K]V, error)
	// Write executes a plan in an order in which each intermediate state forwards correctly or
	// rejects. It calls done for each key that was written, even if it returns an error. An error
	// that is no *FamilyError counts as transient.
	Write(ctx context.Context, plan Plan[K, V], done func(K)) error
}

// Engine drives one Renderer and one Target.
type Engine[K comparable, V any] struct {
	family   fwd.Family
	target   Target[K, V]
	renderer Renderer[K, V]
	tracker  *delta.Tracker[K, V]
	// queue is what was not rendered yet, with that many frontends.
	queue     fwd.Changes
	frontends int
	// unsure are keys of failed writes. It is not known whether the kernel has them, so that it is
	// read before one of them is written again.
	unsure map[K]struct{}
	// reading is the last one, nil if it was accepted or is void.
	reading *reading[K, V]
}

// NewEngine returns an Engine for which the kernel has none of our objects until it is read.
func NewEngine[K comparable, V any](f fwd.Family, r Renderer[K, V], t Target[K, V], equal func(a, b V) bool) *Engine[K, V] {
	return &Engine[K, V]{family: f, renderer: r, target: t, tracker: delta.New[K, V](equal), unsure: make(map[K]struct{})}
}

// renderAtOnce is how many frontends are rendered together, or more where one Service has them:
// what is rendered is in memory twice for a moment.
const renderAtOnce = 2000

// Update implements Backend for one family. Changes are rendered when they are needed or there are
// many, so that an object that many Services share is rendered only a few times.
func (e *Engine[K, V]) Update(ch fwd.Changes) {
	if ch.Header != nil {
		e.queue.Header = ch.Header
	}
	e.queue.Services = append(e.queue.Services, ch.Services...)
	e.queue.VIPs = append(e.queue.VIPs, ch.VIPs...)
	for _, sc := range ch.Services {
		for _, f := range []*fwd.Fragment{sc.Old, sc.New} {
			if f != nil {
				e.frontends += len(f.Frontends)
			}
		}
	}
	if e.frontends >= renderAtOnce {
		e.render()
	}
}

func (e *Engine[K, V]) render() {
	if e.queue.Empty() {
		return
	}
	for _, ed := range e.renderer.Render(e.queue) {
		if ed.Delete {
			e.tracker.DeleteDesired(ed.Key)
		} else {
			e.tracker.SetDesired(ed.Key, ed.Value)
		}
	}
	e.queue, e.frontends = fwd.Changes{}, 0
}

// Pending is the number of objects that differ from the desired state.
func (e *Engine[K, V]) Pending() int {
	e.render()
	_, _, n := e.tracker.Len()
	return n
}

// Bare implements Backend for one family.
func (e *Engine[K, V]) Bare() bool {
	e.render()
	return len(e.unsure) == 0 && e.tracker.Covered()
}

// Apply implements Backend for one family.
func (e *Engine[K, V]) Apply(ctx context.Context) (res Result, err error) {
	if e.pendingUnsure() {
		if _, err := e.Observe(ctx); err != nil {
			return Result{}, err
		}
	}
	pending := e.Pending()
	if pending == 0 {
		return Result{}, nil
	}
	plan := Plan[K, V]{Upserts: make(map[K]V, pending), Deletes: make(map[K]V), Actual: e.tracker.Actual}
	for k := range e.tracker.Pending() {
		if v, ok := e.tracker.Desired(k); ok {
			plan.Upserts[k] = v
		} else {
			plan.Deletes[k], _ = e.tracker.Actual(k)
		}
	}
	if e.reading != nil {
		for _, m := range []map[K]V{plan.Upserts, plan.Deletes} {
			for k := range m {
				e.reading.written[k] = struct{}{}
			}
		}
	}
	written := make(map[K]struct{}, pending)
	err = e.target.Write(ctx, plan, func(k K) {
		written[k] = struct{}{}
		if v, ok := plan.Upserts[k]; ok {
			e.tracker.SetActual(k, v)
			res.Written++
		} else {
			e.tracker.DeleteActual(k)
			res.Deleted++
		}
	})
	if err != nil {
		for _, m := range []map[K]V{plan.Upserts, plan.Deletes} {
			for k := range m {
				if _, done := written[k]; !done {
					e.unsure[k] = struct{}{}
				}
			}
		}
	}
	return res, e.wrap(err)
}

// pendingUnsure reports whether an unsure key is to be written.
func (e *Engine[K, V]) pendingUnsure() bool {
	if len(e.unsure) == 0 {
		return false
	}
	e.render()
	for k := range e.tracker.Pending() {
		if _, ok := e.unsure[k]; ok {
			return true
		}
	}
	return false
}

// Observe implements Backend for one family. The number returned by the first Observe has no
// meaning.
func (e *Engine[K, V]) Observe(ctx context.Context) (int, error) {
	r := e.Begin()
	if err := r.Read(ctx); err != nil {
		return 0, err
	}
	drifted, _ := r.Accept()
	return drifted, nil
}

// Begin implements Backend for one family.
func (e *Engine[K, V]) Begin() Reading {
	e.reading = &reading[K, V]{engine: e, written: make(map[K]struct{})}
	return e.reading
}

type reading[K comparable, V any] struct {
	engine *Engine[K, V]
	actual map[K]V
	// written are the keys of all writes, failed ones included, since the reading began.
	written map[K]struct{}
}

func (r *reading[K, V]) Read(ctx context.Context) error {
	var err error
	r.actual, err = r.engine.target.Read(ctx)
	return r.engine.wrap(err)
}

func (r *reading[K, V]) Accept() (drifted int, ok bool) {
	e := r.engine
	if e.reading != r || r.actual == nil {
		return 0, false
	}
	e.reading = nil
	for k := range r.written {
		if v, ok := e.tracker.Actual(k); ok {
			r.actual[k] = v
		} else {
			delete(r.actual, k)
		}
	}
	// The effect of a failed write of our own is not drift.
	for k := range e.unsure {
		if _, ok := r.written[k]; ok {
			continue
		}
		if v, ok := r.actual[k]; ok {
			e.tracker.SetActual(k, v)
		} else {
			e.tracker.DeleteActual(k)
		}
		delete(e.unsure, k)
	}
	before := e.Pending()
	e.tracker.ReplaceActual(r.actual)
	return max(0, e.Pending()-before), true
}

// Cleanup reads the kernel and removes all our objects. The Engine cannot be used afterwards.
func (e *Engine[K, V]) Cleanup(ctx context.Context) error {
	if _, err := e.Observe(ctx); err != nil {
		return err
	}
	e.queue, e.frontends = fwd.Changes{}, 0
	e.tracker.ClearDesired()
	_, err := e.Apply(ctx)
	return err
}

func (e *Engine[K, V]) wrap(err error) error {
	if err == nil {
		return nil
	}
	var fe *FamilyError
	if errors.As(err, &fe) {
		return err
	}
	return &FamilyError{Family: e.family, Err: err}
}

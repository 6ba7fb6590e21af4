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
	// Update takes in changes of the table, in memory.
	Update(fwd.Changes)
	// Apply writes what is pending. The Result counts what was written, also where an error is returned; what failed stays
	// pending. The error is a *FamilyError, or joins several.
	Apply(context.Context) (Result, error)
	// Observe replaces what is believed to be in the kernel with what is there. It returns how many objects differ from
	// what was believed to have been written.
	Observe(context.Context) (drifted int, err error)
	// Bare says that the kernel is believed to hold nothing but what is wanted now: what is wanted later can be written in
	// any order and in pieces, since no packet depends on anything that a piece would change.
	Bare() bool
	// Begin begins an Observe in a way that does not hold up Update and Apply.
	Begin() Reading
	// Cleanup removes from the kernel all that is ours. It is harmless to call it twice.
	Cleanup(context.Context) error
}

// Tender is a Backend that has work to do as time passes, whether or not anything changes. A Backend need not be one.
type Tender interface {
	// Tend does what is due and returns when it is to be called next, the zero Time for not before the next Apply. It is
	// called after each Apply too, in the Backend's goroutine. What fails it tries again by itself.
	Tend(ctx context.Context, now time.Time) (next time.Time)
}

// Reading is a reading of the kernel beside ongoing work. A Backend has one at a time: a later Begin or Observe makes an
// earlier Reading void.
type Reading interface {
	// Read reads the kernel. It may run in another goroutine than the Backend's.
	Read(context.Context) error
	// Accept takes in what was read, except what was written since Begin, and returns how many objects differ from what
	// was believed. It runs in the Backend's goroutine, after Read. ok is false if the Reading is void or Read failed: then
	// nothing is known.
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
	// Refused says that the kernel or its tools will not accept what was written, however often it is tried; otherwise
	// the failure may pass.
	Refused bool
	// Culprits are the Services whose objects were refused, where that is known.
	Culprits []fwd.Service
	Err      error
}

func (e *FamilyError) Error() string { return fmt.Sprintf("%s: %v", e.Family, e.Err) }

// Unwrap returns the cause.
func (e *FamilyError) Unwrap() error { return e.Err }

// Edit is what a Renderer wants of one object.
type Edit[K comparable, V any] struct {
	Key    K
	Value  V
	Delete bool
}

// Renderer turns changes of the table into wanted objects. It may keep an index of its own, but has no effects.
type Renderer[K comparable, V any] interface {
	// Render takes in changes. They may be those of many operations on the table, in order, so that a Service may occur more
	// than once; the header, if there is one, is the last. Of edits with the same key the last counts.
	Render(fwd.Changes) []Edit[K, V]
}

// Plan is what a Target is to write, in no order.
type Plan[K comparable, V any] struct {
	// Upserts are objects to make or to change.
	Upserts map[K]V
	// Deletes are objects to remove, with the value that they are believed to have.
	Deletes map[K]V
	// Actual returns the value that an object is believed to have.
	Actual func(K) (V, bool)
}

// Target reads and writes the kernel.
type Target[K comparable, V any] interface {
	// Read returns all objects in the kernel that are ours, and no others.
	Read(context.Context) (map[K]V, error)
	// Write carries out a plan in an order in which every state between forwards correctly or rejects. It calls done for
	// each key that was written, also where it returns an error. An error is a *FamilyError or counts as one that may pass.
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
	// unsure holds the keys of writes that failed somewhere on their way: whether the kernel has them is not known, so that it
	// is read before one of them is written again.
	unsure map[K]struct{}
	// reading is the one that was begun last, nil if it was accepted or is void.
	reading *reading[K, V]
}

// NewEngine returns an Engine that believes the kernel to hold nothing of ours.
func NewEngine[K comparable, V any](f fwd.Family, r Renderer[K, V], t Target[K, V], equal func(a, b V) bool) *Engine[K, V] {
	return &Engine[K, V]{family: f, renderer: r, target: t, tracker: delta.New[K, V](equal), unsure: make(map[K]struct{})}
}

// renderAtOnce is how many frontends are rendered together, or more where one Service has them: what is rendered is in
// memory twice for a moment.
const renderAtOnce = 2000

// Update takes in changes. They are rendered when they are needed or many, those of many Updates together, so that an object
// in which many Services share is rendered once, or few times.
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

// Pending is the number of objects that differ from what is wanted.
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

// pendingUnsure says whether something is to be written of which it is not known what the kernel has.
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

// Observe implements Backend for one family. After the first Observe the number that it returns says nothing.
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
	// written are the keys that were written, or were tried to be, since the reading began.
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
	// What a failed write of our own left is not drift.
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

// Cleanup reads the kernel and removes all that is ours. The renderer's wishes are kept in the renderer alone: an Engine
// that cleaned up is not used again.
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

package ipvs

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/fairlead/fairlead/internal/backend"
	"github.com/fairlead/fairlead/internal/fwd"
)

// Write implements backend.Target. New objects are added before old ones are removed:
//
//	sets with their entries, so that packets to a new frontend do not meet rules that do not know it
//	chains, if there are none yet: they do not depend on Services
//	virtual servers, their settings and real servers
//	addresses and routing: until now nobody sends packets to a new frontend
//	chains, if there were some: everything they refer to exists, and nothing was removed yet
//	real servers that the wrong sources would reach with the old chains, see write_redirects.go
//	─
//	weights 0, deletions of real and virtual servers, of addresses, entries and sets
//
// Real servers that the wrong sources would reach with the new chains are removed before these are
// written. If something in the first half fails, only what does not depend on it is removed.
func (t *target) Write(ctx context.Context, p plan, done func(Key)) error {
	defer t.changing()()
	t.setLeaving(p)
	w := &writer{
		target: t, outcome: outcome{plan: p, failed: make(map[Key]error), done: func(k Key) { done(k); t.left(k) }},
		upserts: byKind(p.Upserts), deletes: byKind(p.Deletes),
		stale: make(map[fwd.Proto][]netip.AddrPort), taken: make(map[netip.Addr]error),
	}
	_, dispatched := p.Actual(chainKey(tableNAT, "PREROUTING"))
	if dispatched {
		w.turn = turnOf(p)
	}
	w.makeSets(ctx)
	w.addEntries(ctx)
	if !dispatched {
		w.writeChains(ctx)
	}
	w.makeServers(ctx)
	w.makeDivert(ctx)
	w.makeVIPs(ctx)
	if dispatched {
		w.turnChains(ctx)
	}
	w.makeLateReals(ctx)
	for proto, dst := range w.stale {
		t.opts.Stale(proto, dst, false)
	}
	w.lowerServers(ctx)
	if w.chainsErr == nil {
		w.deleteServers(ctx)
	}
	w.tendDeleted(ctx)
	if w.chainsErr == nil {
		need := t.need()
		w.deleteVIPs(ctx, need)
		w.deleteDivert(ctx, need)
		w.deleteEntries(ctx, need)
		w.deleteSets(ctx)
	}
	t.mu.Lock()
	t.complete = len(w.failed) == 0
	t.mu.Unlock()
	return w.error(ctx, t.family)
}

// setLeaving records what the plan removes. A virtual server that changes counts, because its real
// servers may be removed.
func (t *target) setLeaving(p plan) {
	leaving := make(map[Key]struct{}, len(p.Deletes))
	for k := range p.Deletes {
		leaving[k] = struct{}{}
	}
	for k := range p.Upserts {
		if _, exists := p.Actual(k); exists && k.Kind == KindServer {
			leaving[k] = struct{}{}
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.leaving = leaving
}

// left records that an object was written. Objects that stay for draining connections are counted
// elsewhere by then.
func (t *target) left(k Key) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.leaving, k)
}

// changing records that the target writes to the kernel until done is called.
func (t *target) changing() (done func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.writes++
	t.writing++
	return func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.writes++
		t.writing--
	}
}

// writer executes one plan.
type writer struct {
	*target
	outcome
	// upserts and deletes are the keys of the plan by kind, sorted.
	upserts, deletes map[Kind][]Key
	turn             turn
	chainsErr        error
	// stale are the destinations of new virtual servers, and of UDP ones that had no real server.
	stale map[fwd.Proto][]netip.AddrPort
	// taken are addresses with virtual servers of other programs. On the device such a virtual
	// server would count as kube-proxy's, so the address is not added.
	taken map[netip.Addr]error
	// late are operations that add real servers after the chains are written.
	late batch
	// lower are operations that take connections from real servers; they run after everything was
	// added.
	lower batch
}

func byKind(m map[Key]Value) map[Kind][]Key {
	out := make(map[Kind][]Key)
	for _, k := range slices.SortedFunc(maps.Keys(m), Key.compare) {
		out[k.Kind] = append(out[k.Kind], k)
	}
	return out
}

// outcome collects which keys of a plan were written.
type outcome struct {
	plan plan
	done func(Key)
	// failed has an error for each key that was not written.
	failed map[Key]error
	// refused means that the kernel will never accept some key; culprits are the Services of such
	// keys.
	refused  bool
	culprits []fwd.Service
}

// fail records that a key was not written.
func (o *outcome) fail(k Key, err error) {
	if _, known := o.failed[k]; !known {
		o.failed[k] = err
	}
}

func (o *outcome) failAll(keys []Key, err error) {
	for _, k := range keys {
		o.fail(k, err)
	}
}

// refuse records that the kernel will never accept a key.
func (o *outcome) refuse(k Key, err error) {
	o.fail(k, err)
	o.refused = true
	if owner := o.plan.Upserts[k].Owner; owner != (fwd.Service{}) && !slices.Contains(o.culprits, owner) {
		o.culprits = append(o.culprits, owner)
	}
}

// blame records a failed operation.
func (o *outcome) blame(f failure) {
	if temporary(f.err) {
		o.fail(f.key, f.err)
	} else {
		o.refuse(f.key, f.err)
	}
}

// ok reports those keys as written that did not fail.
func (o *outcome) ok(keys []Key) {
	for _, k := range keys {
		if o.failed[k] == nil {
			o.done(k)
		}
	}
}

// error returns the error of Write.
func (o *outcome) error(ctx context.Context, f fwd.Family) error {
	if len(o.failed) == 0 {
		return nil
	}
	const maxErrors = 3
	var errs []error
	for _, k := range slices.SortedFunc(maps.Keys(o.failed), Key.compare) {
		if err := o.failed[k]; len(errs) < maxErrors && !slices.Contains(errs, err) {
			errs = append(errs, err)
		}
	}
	slices.SortFunc(o.culprits, fwd.Service.Compare)
	return &backend.FamilyError{
		Family: f, Refused: o.refused && ctx.Err() == nil, Culprits: o.culprits,
		Err: fmt.Errorf("%d of %d objects not written: %w", len(o.failed), len(o.plan.Upserts)+len(o.plan.Deletes), errors.Join(errs...)),
	}
}

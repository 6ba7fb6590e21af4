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

// Write implements backend.Target. What is new is made before anything goes:
//
//	sets with their entries, so that no packet of a new frontend meets rules that do not know it
//	chains, if there are none yet: they are the same whatever the Services
//	virtual servers, their settings and real servers
//	addresses and routing, last: until then nobody sends packets here
//	chains, if there were some: what they lead to is there by now, and what goes has not gone
//	real servers that would be met by others without the new chains, see write_redirects.go
//	─
//	weights 0, real and virtual servers that go, addresses, entries, sets
//
// Real servers that would be met by others with the new chains go before these. If something of the first half fails, only what
// does not depend on it goes.
func (t *target) Write(ctx context.Context, p plan, done func(Key)) error {
	defer t.changing()()
	t.leave(p)
	w := &writer{target: t, plan: p, done: func(k Key) { done(k); t.left(k) }, failed: make(map[Key]error), taken: make(map[netip.Addr]error)}
	w.sortKeys()
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
	w.reportStale()
	w.lowerServers(ctx)
	if w.chainsErr == nil {
		w.deleteServers(ctx)
	}
	w.tendDeleted(ctx)
	t.mu.Lock()
	w.need = t.needLocked()
	t.mu.Unlock()
	if w.chainsErr == nil {
		w.deleteVIPs(ctx)
		w.deleteDivert(ctx)
		w.deleteEntries(ctx)
		w.deleteSets(ctx)
	}
	t.mu.Lock()
	t.complete = len(w.failed) == 0
	t.mu.Unlock()
	return w.error(ctx)
}

// leave notes what is to be taken out. Of a virtual server that changes, real servers may be.
func (t *target) leave(p plan) {
	leaving := make(map[Key]struct{}, len(p.Deletes))
	for k := range p.Deletes {
		leaving[k] = struct{}{}
	}
	for k := range p.Upserts {
		if _, there := p.Actual(k); there && k.Kind == KindServer {
			leaving[k] = struct{}{}
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.leaving = leaving
}

// left notes that an object was written. What stays for draining connections is noted elsewhere by then.
func (t *target) left(k Key) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.leaving, k)
}

// changing notes that the kernel changes from now on, until the function that it returns is called.
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

// writer carries out one plan.
type writer struct {
	*target
	plan plan
	done func(Key)
	turn turn
	// upserts and deletes are the keys of the plan by kind, sorted.
	upserts, deletes map[Kind][]Key
	// failed says of each key that was not written why.
	failed map[Key]error
	// refused says that the kernel will not accept something, however often it is tried, and culprits for whom it was.
	refused   bool
	culprits  []fwd.Service
	chainsErr error
	// stale are the destinations of new virtual servers, and of UDP ones that had no real server.
	stale map[fwd.Proto][]netip.AddrPort
	// taken are addresses on which virtual servers are of other programs. On the device they would count as kube-proxy's.
	taken map[netip.Addr]error
	// late are operations that give real servers to virtual servers when the chains are written.
	late batch
	// lower are the operations that take connections away from real servers; they come when all else is there.
	lower batch
	// need is what still drains.
	need need
}

func (w *writer) sortKeys() {
	byKind := func(m map[Key]Value) map[Kind][]Key {
		out := make(map[Kind][]Key)
		for _, k := range slices.SortedFunc(maps.Keys(m), Key.compare) {
			out[k.Kind] = append(out[k.Kind], k)
		}
		return out
	}
	w.upserts, w.deletes = byKind(w.plan.Upserts), byKind(w.plan.Deletes)
	w.stale = make(map[fwd.Proto][]netip.AddrPort)
}

// fail notes that a key was not written.
func (w *writer) fail(k Key, err error) {
	if _, known := w.failed[k]; !known {
		w.failed[k] = err
	}
}

// refuse notes that the kernel will not have a key.
func (w *writer) refuse(k Key, err error) {
	w.fail(k, err)
	w.refused = true
	if owner := w.plan.Upserts[k].Owner; owner != (fwd.Service{}) && !slices.Contains(w.culprits, owner) {
		w.culprits = append(w.culprits, owner)
	}
}

// ok reports those of the keys that did not fail.
func (w *writer) ok(keys []Key) {
	for _, k := range keys {
		if w.failed[k] == nil {
			w.done(k)
		}
	}
}

// error is what Write returns.
func (w *writer) error(ctx context.Context) error {
	if len(w.failed) == 0 {
		return nil
	}
	keys := slices.SortedFunc(maps.Keys(w.failed), Key.compare)
	const some = 3
	errs := make([]error, 0, some)
	for _, k := range keys {
		if err := w.failed[k]; len(errs) < some && !slices.Contains(errs, err) {
			errs = append(errs, err)
		}
	}
	slices.SortFunc(w.culprits, fwd.Service.Compare)
	return &backend.FamilyError{
		Family: w.family, Refused: w.refused && ctx.Err() == nil, Culprits: w.culprits,
		Err: fmt.Errorf("%d of %d objects not written: %w", len(keys), len(w.plan.Upserts)+len(w.plan.Deletes), errors.Join(errs...)),
	}
}

// reportStale tells who looks after connection tracking.
func (w *writer) reportStale() {
	for proto, dst := range w.stale {
		w.opts.Stale(proto, dst, false)
	}
}

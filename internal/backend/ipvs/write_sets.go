package ipvs

import (
	"context"
	"errors"
	"fmt"

	"github.com/fairlead/fairlead/internal/fwd"
	"github.com/fairlead/fairlead/internal/host/ipset"
)

// growth is the factor by which a full set grows.
const growth = 4

// makeSets creates missing sets. A set with our name but another type cannot be changed.
func (w *writer) makeSets(ctx context.Context) {
	keys := w.upserts[KindSet]
	for _, k := range keys {
		want := w.plan.Upserts[k].SetType
		if have, there := w.plan.Actual(k); there {
			w.refuse(k, fmt.Errorf("set %s is of type %s, want %s: run fairlead cleanup first", k.Name, have.SetType, want))
			continue
		}
		s := w.set(k.Name, want)
		if err := w.opts.Sets.Create(ctx, s); err != nil && !w.resized(ctx, s, err) {
			w.fail(k, err)
		}
	}
	w.ok(keys)
}

// resized reports whether the creation of a set failed only because the existing one has another
// size.
func (w *writer) resized(ctx context.Context, s ipset.Set, err error) bool {
	if !errors.Is(err, ipset.ErrExist) {
		return false
	}
	have, ok := w.find(ctx, s.Name)
	return ok && have.Type == s.Type && have.IPv6 == s.IPv6
}

func (w *writer) find(ctx context.Context, name string) (ipset.Set, bool) {
	found, err := w.opts.Sets.List(ctx, name)
	if err != nil || len(found) == 0 || found[0].Name != name {
		return ipset.Set{}, false
	}
	return found[0].Set, true
}

func (t *target) set(name string, typ ipset.Type) ipset.Set {
	return ipset.Set{Name: name, Type: typ, IPv6: t.family == fwd.IPv6, MaxElem: ipset.DefaultMaxElem}
}

// setOf returns the wanted or actual set of an entry.
func (w *writer) setOf(k Key) ipset.Set {
	sk := Key{Kind: KindSet, Name: k.Name}
	v, ok := w.plan.Upserts[sk]
	if !ok {
		v, _ = w.plan.Actual(sk)
	}
	return w.set(k.Name, v.SetType)
}

func (w *writer) addEntries(ctx context.Context) {
	var keys []Key
	for _, k := range w.upserts[KindEntry] {
		if w.takeHeld(k) {
			w.done(k)
			continue
		}
		keys = append(keys, k)
	}
	full := w.applyEntries(ctx, keys, false)
	for name, keys := range full {
		w.grow(ctx, name, keys)
	}
	w.ok(keys)
	// A virtual server is not changed if entries about it are missing.
	for _, k := range keys {
		if err := w.failed[k]; err != nil {
			if s := serverOfEntry(k); w.plan.Upserts[s].Server != nil || w.turn.gains[s] {
				w.fail(s, err)
			}
		}
	}
}

// serverOfEntry returns the key of the virtual server that an entry is about.
func serverOfEntry(entry Key) Key { return Key{Kind: KindServer, Proto: entry.Proto, Addr: entry.Addr} }

// grow grows a full set until the entries fit.
func (w *writer) grow(ctx context.Context, name string, keys []Key) {
	for len(keys) > 0 {
		s, ok := w.find(ctx, name)
		if !ok {
			w.failAll(keys, fmt.Errorf("grow set %s: %w", name, ipset.ErrNoSet))
			return
		}
		if err := ipset.Grow(ctx, w.opts.Sets, name, s.MaxElem*growth); err != nil {
			w.failAll(keys, err)
			return
		}
		w.opts.Logger.Info("grew a full set", "set", name, "entries", s.MaxElem*growth)
		keys = w.applyEntries(ctx, keys, false)[name]
	}
}

// applyEntries adds or deletes entries. It returns those for which the set is full, by set.
func (w *writer) applyEntries(ctx context.Context, keys []Key, del bool) (full map[string][]Key) {
	if len(keys) == 0 {
		return nil
	}
	changes := make([]ipset.Change, len(keys))
	for i, k := range keys {
		changes[i] = ipset.Change{Set: w.setOf(k), Entry: entry(k), Del: del}
	}
	failed, err := w.opts.Sets.Apply(ctx, changes)
	if err != nil {
		w.failAll(keys, err) // unknown which were applied: all are retried
		return nil
	}
	full = make(map[string][]Key)
	for _, f := range failed {
		k := keys[f.Index]
		switch {
		case !del && errors.Is(f.Err, ipset.ErrExist), del && (errors.Is(f.Err, ipset.ErrMissing) || errors.Is(f.Err, ipset.ErrNoSet)):
		case errors.Is(f.Err, ipset.ErrFull):
			full[k.Name] = append(full[k.Name], k)
		case errors.Is(f.Err, ipset.ErrInvalid):
			w.refuse(k, f.Err)
		default:
			w.fail(k, f.Err)
		}
	}
	return full
}

// deleteEntries deletes entries except those that draining connections need.
func (w *writer) deleteEntries(ctx context.Context, need need) {
	var keys []Key
	for _, k := range w.deletes[KindEntry] {
		if w.hold(k, need) {
			w.done(k)
			continue
		}
		if err := w.failed[serverOfEntry(k)]; err != nil {
			w.fail(k, err) // the virtual server was not deleted
			continue
		}
		if _, removed := w.plan.Deletes[Key{Kind: KindSet, Name: k.Name}]; removed {
			w.done(k) // together with its set
			continue
		}
		keys = append(keys, k)
	}
	w.applyEntries(ctx, keys, true)
	w.ok(keys)
}

// deleteSets destroys sets that no rule uses any more.
func (w *writer) deleteSets(ctx context.Context) {
	keys := w.deletes[KindSet]
	for _, k := range keys {
		if err := w.opts.Sets.Destroy(ctx, k.Name); err != nil && !errors.Is(err, ipset.ErrNoSet) {
			w.fail(k, err)
		}
	}
	w.ok(keys)
}

package ipvs

import (
	"context"
	"errors"
	"maps"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/internal/fwd"
	"github.com/fairlead/fairlead/internal/host/ipset"
	"github.com/fairlead/fairlead/internal/host/link"
)

// routeDevice is the device of local routes. Device does not work: IPv6 accepts no routes on it
// while it is down, and with the last IPv4 address that mode VIPAddress left there, the kernel
// removes all its IPv4 routes without notification.
const routeDevice = link.Loopback

// vip returns the kernel object of a KindVIP.
func (t *target) vip(k Key, v Value) link.Object {
	if t.opts.VIPs == VIPRoute {
		return link.Route{Dst: k.Prefix, Dev: routeDevice, Src: v.Source, Table: link.LocalTable}
	}
	return link.Addr{Dev: t.device(), Prefix: k.Prefix}
}

// makeVIPs makes addresses local. A route whose source changes is replaced.
func (w *writer) makeVIPs(ctx context.Context) {
	keys := w.upserts[KindVIP]
	if len(keys) == 0 {
		return
	}
	if _, err := w.opts.Links.EnsureDummy(ctx, w.device()); err != nil {
		w.failAll(keys, err)
		return
	}
	var c linkChanges
	for _, k := range keys {
		want := w.plan.Upserts[k]
		have, there := w.plan.Actual(k)
		if v, held := w.held[k]; held {
			have, there = v, true
			w.takeHeld(k)
		}
		switch err := w.taken[k.Prefix.Addr()]; {
		case err != nil:
			w.fail(k, err)
			continue
		case there && same(have, want):
			continue
		case there:
			c.remove(k, w.vip(k, have))
		case w.opts.VIPs == VIPRoute && k.Prefix.IsSingleIP() && w.isStray(link.Addr{Dev: w.device(), Prefix: k.Prefix}):
			// The kernel added a route for the address and refuses a second one.
			c.remove(k, link.Addr{Dev: w.device(), Prefix: k.Prefix})
		}
		c.add(k, w.vip(k, want))
	}
	c.run(ctx, w)
	w.ok(keys)
}

// isStray reports whether another VIPMode added an address to the device.
func (t *target) isStray(a link.Addr) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.ContainsFunc(t.stray, func(o link.Object) bool {
		s, ok := o.(link.Addr)
		return ok && s.Prefix == a.Prefix
	})
}

func (w *writer) deleteVIPs(ctx context.Context, need need) {
	var keys []Key
	var c linkChanges
	for _, k := range w.deletes[KindVIP] {
		if w.hold(k, need) {
			w.done(k)
			continue
		}
		keys = append(keys, k)
		c.remove(k, w.vip(k, w.plan.Deletes[k]))
	}
	c.run(ctx, w)
	w.ok(keys)
}

// divert returns the kernel objects of a KindDivert, without the rule if there is no mark.
func (t *target) divert(v Value) []link.Object {
	six := t.family == fwd.IPv6
	table := divertTableOf(t.opts.Instance)
	out := []link.Object{link.MarkRoute(six, table)}
	if v.Mark != 0 {
		out = append(out, link.Rule{IPv6: six, Priority: divertPriority, Mark: v.Mark, Mask: v.Mark, Table: table})
	}
	return out
}

// makeDivert adds the route before the rule that uses it.
func (w *writer) makeDivert(ctx context.Context) {
	keys := w.upserts[KindDivert]
	narrow := w.isNarrow()
	if narrow {
		w.makeNarrow(ctx)
	}
	var c linkChanges
	for _, k := range keys {
		for _, o := range w.divert(w.plan.Upserts[k]) {
			if _, route := o.(link.Route); !route || !narrow {
				c.add(k, o)
			}
		}
		if have, there := w.plan.Actual(k); there && have.Mark != 0 && have.Mark != w.plan.Upserts[k].Mark {
			c.remove(k, w.divert(have)[1])
		}
	}
	c.run(ctx, w)
	w.ok(keys)
}

func (w *writer) deleteDivert(ctx context.Context, need need) {
	var keys []Key
	var c linkChanges
	for _, k := range w.deletes[KindDivert] {
		if w.hold(k, need) {
			w.done(k)
			continue
		}
		keys = append(keys, k)
		for _, o := range slices.Backward(w.divert(w.plan.Deletes[k])) {
			c.remove(k, o)
		}
	}
	c.run(ctx, w)
	w.ok(keys)
}

// linkChanges are changes that are applied together.
type linkChanges struct {
	keys    []Key
	changes []link.Change
}

func (c *linkChanges) add(k Key, o link.Object) {
	c.keys, c.changes = append(c.keys, k), append(c.changes, link.Change{Object: o})
}

func (c *linkChanges) remove(k Key, o link.Object) {
	c.keys, c.changes = append(c.keys, k), append(c.changes, link.Change{Object: o, Del: true})
}

// run applies the changes and records failures. Adding what exists and removing what does not are
// not failures.
func (c *linkChanges) run(ctx context.Context, w *writer) {
	for k, err := range c.apply(ctx, w.opts.Links) {
		if errors.Is(err, link.ErrInvalid) {
			w.refuse(k, err)
		} else {
			w.fail(k, err)
		}
	}
}

func (c *linkChanges) apply(ctx context.Context, links link.Host) map[Key]error {
	out := make(map[Key]error)
	if len(c.changes) == 0 {
		return out
	}
	failed, err := links.Apply(ctx, c.changes)
	if err != nil {
		for _, k := range c.keys {
			out[k] = err
		}
		return out
	}
	for _, f := range failed {
		if ch := c.changes[f.Index]; ch.Del && link.Missing(f.Err) || !ch.Del && errors.Is(f.Err, unix.EEXIST) {
			continue
		}
		out[c.keys[f.Index]] = f.Err
	}
	return out
}

// What draining connections need stays: the address of a virtual server that drains, and its
// entries in sets.

// hold keeps an object instead of deleting it if draining connections need it.
func (w *writer) hold(k Key, need need) bool {
	if !need.of(k) {
		return false
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.held[k] = w.plan.Deletes[k]
	return true
}

// takeHeld reports whether a wanted object exists because it was held for draining connections.
func (w *writer) takeHeld(k Key) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	_, ok := w.held[k]
	delete(w.held, k)
	return ok
}

// need has the virtual servers that drain as a whole, and their addresses.
type need struct {
	family  fwd.Family
	addrs   map[netip.Addr]bool
	servers map[Key]bool
}

func (t *target) need() need {
	n := need{family: t.family, addrs: make(map[netip.Addr]bool), servers: make(map[Key]bool)}
	for k := range t.drains.whole() {
		n.addrs[k.Addr.Addr()], n.servers[k] = true, true
	}
	return n
}

// of reports whether an object is needed.
func (n need) of(k Key) bool {
	if len(n.servers) == 0 {
		return false
	}
	switch k.Kind {
	case KindVIP:
		return n.within(k.Prefix)
	case KindDivert:
		return true
	case KindEntry:
		switch k.Name {
		case setName(n.family, setVIPs):
			return n.addrs[k.Addr.Addr()]
		case setName(n.family, setDivert):
			return n.servers[Key{Kind: KindServer, Proto: k.Proto, Addr: k.Addr}]
		}
	}
	return false
}

// within reports whether the prefix contains the address of a virtual server that drains.
func (n need) within(p netip.Prefix) bool {
	if p.IsSingleIP() {
		return n.addrs[p.Addr()]
	}
	for a := range n.addrs {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// ofLink is of for objects of another VIPMode.
func (n need) ofLink(o link.Object) bool {
	switch o := o.(type) {
	case link.Addr:
		return n.within(o.Prefix)
	case link.Route:
		return n.within(o.Dst)
	}
	return len(n.servers) > 0
}

// release removes objects that are no longer held, and, if everything wanted exists, objects of
// another VIPMode.
func (t *target) release(ctx context.Context) error {
	t.mu.Lock()
	need := t.need()
	var links linkChanges
	var entries []Key
	for k, v := range t.held {
		switch {
		case need.of(k):
		case k.Kind == KindEntry:
			entries = append(entries, k)
		case k.Kind == KindVIP:
			links.remove(k, t.vip(k, v))
		case k.Kind == KindDivert:
			for _, o := range slices.Backward(t.divert(v)) {
				links.remove(k, o)
			}
		}
	}
	done := slices.Concat(links.keys, entries)
	var stray []link.Object
	for _, o := range t.stray {
		if t.complete && !need.ofLink(o) {
			links.remove(Key{}, o)
		} else {
			stray = append(stray, o)
		}
	}
	t.mu.Unlock()
	if len(links.changes)+len(entries) == 0 {
		return nil
	}
	defer t.changing()()
	failed := links.apply(ctx, t.opts.Links)
	maps.Copy(failed, t.releaseEntries(ctx, entries))
	t.mu.Lock()
	defer t.mu.Unlock()
	if failed[Key{}] == nil {
		t.stray = stray
	}
	for _, k := range done {
		if failed[k] == nil {
			delete(t.held, k)
		}
	}
	return errors.Join(slices.Collect(maps.Values(failed))...)
}

// releaseEntries deletes entries of sets.
func (t *target) releaseEntries(ctx context.Context, keys []Key) map[Key]error {
	out := make(map[Key]error)
	changes := make([]ipset.Change, len(keys))
	for i, k := range keys {
		typ := ipset.HashIPPort
		if k.Name == setName(t.family, setVIPs) {
			typ = ipset.HashIP
		}
		changes[i] = ipset.Change{Set: t.set(k.Name, typ), Entry: entry(k), Del: true}
	}
	if len(changes) == 0 {
		return out
	}
	failed, err := t.opts.Sets.Apply(ctx, changes)
	if err != nil {
		for _, k := range keys {
			out[k] = err
		}
	}
	for _, f := range failed {
		if !errors.Is(f.Err, ipset.ErrMissing) && !errors.Is(f.Err, ipset.ErrNoSet) {
			out[keys[f.Index]] = f.Err
		}
	}
	return out
}

package ipvs

import (
	"context"
	"errors"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/fairlead/fairlead/internal/fwd"
	hostipvs "github.com/fairlead/fairlead/internal/host/ipvs"
	"github.com/fairlead/fairlead/internal/host/link"
	"github.com/fairlead/fairlead/internal/instance"
)

// In mode VIPMark packets with the mark are delivered to this node whatever their destination.
// During a change of modes the rules of another mode are in force as well. They translate new
// connections after the mark is set, so the first packet to an endpoint would be delivered here.
// Therefore the routing table for marked packets is narrow during the change: it has a local route
// for each address of a virtual server and no default route. A translated packet finds no route in
// it and is routed by the main table.

// narrowRoute delivers marked packets to one address to this node.
func narrowRoute(id instance.ID, a netip.Addr) link.Route {
	return link.Route{Dst: netip.PrefixFrom(a, a.BitLen()), Dev: link.Loopback, Table: divertTableOf(id)}
}

func isNarrow(id instance.ID, r link.Route) bool { return r == narrowRoute(id, r.Dst.Addr()) }

// Narrow prepares this node for the rules of another mode: what mode VIPMark left continues to
// serve without affecting connections that these rules translate. Without anything left by that
// mode, Narrow does nothing.
func Narrow(ctx context.Context, id instance.ID) error {
	links, err := link.Open(id.Routing())
	if err != nil {
		return err
	}
	defer links.Close()
	routes, err := links.Routes(ctx)
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(fwd.Families[:], func(f fwd.Family) bool { return wide(id, routes, f) }) {
		return nil
	}
	servers, err := hostipvs.Open(ctx)
	if err != nil {
		return err
	}
	defer servers.Close()
	return narrow(ctx, id, links, servers, routes)
}

// wide reports whether marked packets of a family are delivered to this node whatever their
// destination.
func wide(id instance.ID, routes []link.Route, f fwd.Family) bool {
	return slices.Contains(routes, link.MarkRoute(f == fwd.IPv6, divertTableOf(id)))
}

func narrow(ctx context.Context, id instance.ID, links link.Host, servers hostipvs.Interface, routes []link.Route) error {
	for _, f := range fwd.Families {
		if !wide(id, routes, f) {
			continue
		}
		// The default route is removed only after the others were added.
		if err := narrowServers(ctx, id, links, servers, f); err != nil {
			return err
		}
		var c linkChanges
		c.remove(Key{}, link.MarkRoute(f == fwd.IPv6, divertTableOf(id)))
		if err := c.apply(ctx, links)[Key{}]; err != nil {
			return err
		}
	}
	return nil
}

// narrowServers adds the routes of our existing virtual servers.
func narrowServers(ctx context.Context, id instance.ID, links link.Host, servers hostipvs.Interface, f fwd.Family) error {
	content, err := servers.Read(ctx)
	if err != nil {
		return err
	}
	var c linkChanges
	for _, s := range content.Servers {
		owner, tagged := ownerOf(s.Settings.Flags)
		if a := s.VirtualServer.Addr.Addr(); fwd.FamilyOf(a) == f && tagged && owner == id {
			c.add(serverKey(s.VirtualServer), narrowRoute(id, a))
		}
	}
	return errors.Join(slices.Collect(maps.Values(c.apply(ctx, links)))...)
}

// Widen ends FamilyOptions.Narrow, when no rules of another mode are in force any more.
func (b *Backend) Widen(ctx context.Context, f fwd.Family) error {
	for _, fam := range b.families {
		if fam.target.family == f {
			return fam.target.widen(ctx)
		}
	}
	return nil
}

// widenDelay is the time between the removal of the other mode's rules and the default route: a
// packet that they have translated may not have reached its routing decision yet, on another
// processor, and must not find that route. It is not known whether a shorter delay, or none, loses
// packets.
const widenDelay = 500 * time.Millisecond

// widen adds the default route. The routes that it replaces are unwanted from then on, and removed
// after the next Read.
func (t *target) widen(ctx context.Context) error {
	if !t.isNarrow() {
		return nil
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(widenDelay):
	}
	defer t.changing()()
	var c linkChanges
	k := Key{Kind: KindDivert}
	c.add(k, link.MarkRoute(t.family == fwd.IPv6, divertTableOf(t.opts.Instance)))
	if err := c.apply(ctx, t.opts.Links)[k]; err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.narrow = false
	return nil
}

func (t *target) isNarrow() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.narrow
}

// makeNarrow adds the routes of new virtual servers.
func (w *writer) makeNarrow(ctx context.Context) {
	var c linkChanges
	for _, k := range w.upserts[KindServer] {
		c.add(Key{Kind: KindDivert}, narrowRoute(w.opts.Instance, k.Addr.Addr()))
	}
	c.run(ctx, w)
}

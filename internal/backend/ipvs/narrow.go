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

// In mode VIPMark a packet with the mark is delivered to this node whatever its destination. While rules of another mode are in
// force as well, in a change of modes, they translate new connections after the mark is set, and the first packet to an
// endpoint would end here. So meanwhile the table that packets with the mark look into is narrow: it has a local route for
// each address of a virtual server and no default route. A translated packet finds no route there and goes on to the main table.

// narrowRoute delivers packets with the mark to this node if this is their destination.
func narrowRoute(id instance.ID, a netip.Addr) link.Route {
	return link.Route{Dst: netip.PrefixFrom(a, a.BitLen()), Dev: link.Loopback, Table: divertTableOf(id)}
}

func isNarrow(id instance.ID, r link.Route) bool { return r == narrowRoute(id, r.Dst.Addr()) }

// Narrow prepares this node for the rules of another mode of an instance: what mode VIPMark left goes on serving, and does not get in the way of
// connections that these rules translate. Where there is nothing of that mode it does nothing.
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

// wide says whether packets of a family that have the mark are delivered to this node whatever their destination.
func wide(id instance.ID, routes []link.Route, f fwd.Family) bool {
	return slices.Contains(routes, link.MarkRoute(f == fwd.IPv6, divertTableOf(id)))
}

func narrow(ctx context.Context, id instance.ID, links link.Host, servers hostipvs.Interface, routes []link.Route) error {
	for _, f := range fwd.Families {
		if !wide(id, routes, f) {
			continue
		}
		// The default route goes only when the others are there.
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

// narrowServers makes the routes of virtual servers of ours that are there.
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

// Widen ends what FamilyOptions.Narrow began, when no other mode's rules are in force any more.
func (b *Backend) Widen(ctx context.Context, f fwd.Family) error {
	for _, fam := range b.families {
		if fam.target.family == f {
			return fam.target.widen(ctx)
		}
	}
	return nil
}

// widenDelay is the time between the end of the other mode's rules and the default route: a packet that they have translated
// may still be on its way to the routing decision, on another processor, and must not find that route.
const widenDelay = 500 * time.Millisecond

// widen makes the default route. The routes that it takes the place of go with the next reading, as what nobody wants.
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

// makeNarrow makes the routes of virtual servers that are new.
func (w *writer) makeNarrow(ctx context.Context) {
	var c linkChanges
	for _, k := range w.upserts[KindServer] {
		c.add(Key{Kind: KindDivert}, narrowRoute(w.opts.Instance, k.Addr.Addr()))
	}
	c.run(ctx, w)
}

package ipvs

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/fairlead/fairlead/internal/fwd"
	"github.com/fairlead/fairlead/internal/host/ipset"
	hostipvs "github.com/fairlead/fairlead/internal/host/ipvs"
	"github.com/fairlead/fairlead/internal/host/link"
	"github.com/fairlead/fairlead/internal/host/xtables"
	"github.com/fairlead/fairlead/internal/instance"
)

// Leftover is what mode ipvs left of one instance in one family, except chains in the tables nat
// and filter, which are removed together with those of mode iptables.
type Leftover struct {
	Instance instance.ID
	Family   fwd.Family
	// Servers, VIPs and Sets count our virtual servers, local addresses and sets. Other counts
	// routes, routing rules, and the device if nothing else is on it. Chains counts chains of table
	// mangle in all flavours of iptables.
	Servers, VIPs, Sets, Other, Chains int

	host host
}

// host is the kernel for clean-up.
type host struct {
	servers hostipvs.Interface
	sets    ipset.Sets
	links   link.Host
	mangle  []xtables.Interface
	exclude []netip.Prefix
	id      instance.ID
}

// Leftovers finds what mode ipvs left of the instances, or of all instances if none is given,
// except objects with an address in one of the networks. It changes nothing and loads no module.
// The returned function closes what the Leftovers need; it is never nil. The error says what cannot
// be read; there may be results as well.
func Leftovers(ctx context.Context, exclude []netip.Prefix, ids ...instance.ID) ([]Leftover, func(), error) {
	var closers []func() error
	closeAll := func() {
		for _, c := range closers {
			_ = c() // only closes sockets
		}
	}
	h := host{servers: noServers{}, sets: noSets{}, exclude: exclude}
	if _, err := os.Stat("/proc/thread-self/net/ip_vs"); err == nil {
		k, err := hostipvs.Open(ctx)
		if err != nil {
			return nil, closeAll, err
		}
		h.servers, closers = k, append(closers, k.Close)
	}
	if _, err := os.Stat("/sys/module/ip_set"); err == nil {
		k, err := ipset.Open()
		if err != nil {
			return nil, closeAll, err
		}
		h.sets, closers = k, append(closers, k.Close)
	}
	var errs []error
	mangle := make(map[fwd.Family][]xtables.Interface)
	for _, f := range fwd.Families {
		tables, err := mangleTables(f)
		errs = append(errs, err)
		mangle[f] = tables
	}
	if len(ids) == 0 {
		found, err := h.instances(ctx, mangle)
		errs = append(errs, err)
		ids = found
	}
	var out []Leftover
	for _, id := range ids {
		links, err := link.Open(id.Routing())
		if err != nil {
			return nil, closeAll, err
		}
		closers = append(closers, links.Close)
		for _, f := range fwd.Families {
			h := h
			h.id, h.links = id, links
			for _, tables := range mangle[f] {
				h.mangle = append(h.mangle, xtables.Exchanged(tables, names(id)))
			}
			l, err := h.leftover(ctx, f)
			errs = append(errs, err)
			if l.any() {
				out = append(out, l)
			}
		}
	}
	return out, closeAll, errors.Join(errs...)
}

// instances returns the instances with sets, virtual servers or chains of table mangle, and the
// unnamed one.
func (h host) instances(ctx context.Context, mangle map[fwd.Family][]xtables.Interface) ([]instance.ID, error) {
	ids := map[instance.ID]bool{0: true}
	add := func(name string) {
		if id, ok := instance.OfObject(name); ok {
			ids[id] = true
		}
	}
	var errs []error
	sets, err := h.sets.List(ctx, instance.NamedPrefix)
	errs = append(errs, err)
	for _, s := range sets {
		add(s.Name)
	}
	content, err := h.servers.List(ctx)
	errs = append(errs, err)
	for _, s := range content.Servers {
		if id, ok := ownerOf(s.Settings.Flags); ok {
			ids[id] = true
		}
	}
	for _, tables := range slices.Concat(slices.Collect(maps.Values(mangle))...) {
		chains, err := tables.Read(ctx, tableMangle)
		errs = append(errs, err)
		for name := range chains {
			add(name)
		}
	}
	return slices.Sorted(maps.Keys(ids)), errors.Join(errs...)
}

func (l *Leftover) any() bool { return l.Servers+l.VIPs+l.Sets+l.Other+l.Chains > 0 }

// leftover reads one family.
func (h host) leftover(ctx context.Context, f fwd.Family) (Leftover, error) {
	l := Leftover{Instance: h.id, Family: f, host: h}
	t := h.backend(f, 0, 0).families[0].target
	found, err := t.Read(ctx)
	if err != nil {
		return l, fmt.Errorf("read objects of mode ipvs, %s: %w", f, err)
	}
	for k := range found {
		switch k.Kind {
		case KindServer:
			l.Servers++
		case KindVIP:
			l.VIPs++
		case KindSet:
			l.Sets++
		}
	}
	l.Other = len(t.stray)
	if on, _, err := h.links.Addrs(ctx, h.id.Device()); err == nil && f == fwd.IPv4 && empty(on) {
		if d, err := h.links.Device(ctx, h.id.Device()); err == nil && d.Dummy {
			l.Other++
		}
	}
	for _, tables := range h.mangle {
		chains, err := mangleChains(ctx, tables)
		if err != nil {
			return l, fmt.Errorf("read table mangle, %s: %w", f, err)
		}
		l.Chains += len(chains)
	}
	return l, nil
}

// backend returns a Backend without rules, for objects with our tag only. fin and longest are
// FinTimeout and DrainTimeout.
func (h host) backend(f fwd.Family, fin, longest time.Duration) *Backend {
	b := New(map[fwd.Family]FamilyOptions{f: {
		RenderOptions: RenderOptions{Instance: h.id, Exclude: h.exclude},
		Servers:       h.servers, Sets: h.sets, Links: h.links, Tables: noTables{},
		FinTimeout: fin, DrainTimeout: longest,
	}})
	b.families[0].target.taggedOnly = true
	return b
}

// Remove removes the objects. The rules in tables nat and filter must have been removed, because
// they use the sets. Connections through virtual servers break. Virtual servers of other programs
// are not changed.
func (l Leftover) Remove(ctx context.Context) error {
	for _, tables := range l.host.mangle {
		if err := cleanMangle(ctx, tables); err != nil {
			return fmt.Errorf("clean up table mangle, %s: %w", l.Family, err)
		}
	}
	if err := l.host.backend(l.Family, 0, 0).Cleanup(ctx); err != nil {
		return err
	}
	return l.host.removeDevice(ctx)
}

// Retire is Remove for a node on which other rules serve already: it lets connections of virtual
// servers end first, for at most longest.
func (l Leftover) Retire(ctx context.Context, longest time.Duration) error {
	// Mode ipvs may have changed the timeout of closing connections.
	t, err := l.host.servers.Timeouts(ctx)
	if err != nil {
		return err
	}
	b := l.host.backend(l.Family, t.TCPFin, longest)
	if err := b.families[0].Engine.Cleanup(ctx); err != nil {
		// Remove below retries.
		b.families[0].target.opts.Logger.Debug("cannot remove everything yet", "error", err)
	}
	for next := b.Tend(ctx, time.Now()); !next.IsZero(); next = b.Tend(ctx, time.Now()) {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Until(next)):
		}
	}
	return l.Remove(ctx)
}

// removeDevice removes the device if it has only link-local addresses, which the kernel adds to a
// device that is up.
func (h host) removeDevice(ctx context.Context) error {
	on, _, err := h.links.Addrs(ctx, h.id.Device())
	if err != nil || !empty(on) {
		return err
	}
	err = h.links.RemoveDummy(ctx, h.id.Device())
	if errors.Is(err, link.ErrNoDevice) || errors.Is(err, link.ErrNotDummy) {
		return nil
	}
	return err
}

func empty(on []link.Addr) bool {
	return !slices.ContainsFunc(on, func(a link.Addr) bool { return !a.Prefix.Addr().IsLinkLocalUnicast() })
}

// clean removes what is left when all keys were removed.
func (t *target) clean(ctx context.Context) error {
	t.mu.Lock()
	t.complete = true
	t.mu.Unlock()
	t.drains.clear()
	return t.release(ctx)
}

// mangleTables returns access to table mangle for every installed flavour of iptables.
func mangleTables(f fwd.Family) ([]xtables.Interface, error) {
	flavours := []xtables.Flavour{xtables.NFT, xtables.Legacy}
	missing := func(fl xtables.Flavour) bool {
		_, err := xtables.New(fl, false)
		return errors.Is(err, xtables.ErrNotFound)
	}
	if missing(xtables.NFT) && missing(xtables.Legacy) {
		flavours = []xtables.Flavour{xtables.Plain}
	}
	var out []xtables.Interface
	var errs []error
	for _, fl := range flavours {
		switch tables, err := xtables.New(fl, f == fwd.IPv6); {
		case errors.Is(err, xtables.ErrNotFound):
		case err != nil:
			errs = append(errs, err)
		default:
			out = append(out, tables)
		}
	}
	return out, errors.Join(errs...)
}

// mangleChains returns our chains in table mangle and the jumps to them in other chains.
func mangleChains(ctx context.Context, tables xtables.Interface) (map[Key]Value, error) {
	table, err := tables.Read(ctx, tableMangle)
	if err != nil {
		return nil, err
	}
	out := make(map[Key]Value)
	readChains(map[string]xtables.Table{tableMangle: table}, out)
	return out, nil
}

func cleanMangle(ctx context.Context, tables xtables.Interface) error {
	chains, err := mangleChains(ctx, tables)
	if err != nil || len(chains) == 0 {
		return err
	}
	p := plan{Actual: func(k Key) (Value, bool) { v, ok := chains[k]; return v, ok }}
	var gone []Key
	for k := range chains {
		gone = append(gone, k)
	}
	slices.SortFunc(gone, Key.compare)
	return tables.Restore(ctx, restoreInput(p, nil, gone, gone, gone))
}

// noTables is iptables without any of our rules, for clean-up that must not write rules.
type noTables struct{}

func (noTables) Read(context.Context, string) (xtables.Table, error) { return nil, nil }

func (noTables) Restore(_ context.Context, input []byte) error {
	return fmt.Errorf("BUG: clean-up wrote rules: %s", strings.TrimSpace(string(input)))
}

// noServers is IPVS in a kernel without it.
type noServers struct{ hostipvs.Interface }

func (noServers) Read(context.Context) (hostipvs.Content, error) { return hostipvs.Content{}, nil }

func (noServers) List(context.Context) (hostipvs.Content, error) { return hostipvs.Content{}, nil }

func (noServers) Timeouts(context.Context) (hostipvs.Timeouts, error) {
	return hostipvs.Timeouts{}, nil
}

// noSets is ip_set in a kernel without it.
type noSets struct{ ipset.Sets }

func (noSets) List(context.Context, string) ([]ipset.Content, error) { return nil, nil }

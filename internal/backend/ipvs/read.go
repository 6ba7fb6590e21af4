package ipvs

import (
	"context"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/fairlead/fairlead/internal/fwd"
	"github.com/fairlead/fairlead/internal/host/ipset"
	hostipvs "github.com/fairlead/fairlead/internal/host/ipvs"
	"github.com/fairlead/fairlead/internal/host/link"
	"github.com/fairlead/fairlead/internal/host/xtables"
)

// Read implements backend.Target. These objects are ours:
//
//   - virtual servers with the instance's tag, and those without a tag on an address of the device
//     (kube-proxy's);
//   - addresses on the device, and routes and rules with our protocol number;
//   - sets whose names begin with our prefix, chains whose names begin with FAIRLEAD-, and jumps to
//     these.
//
// Objects with an address in an excluded network belong to others, even with a tag. Read does not
// return what drains.
func (t *target) Read(ctx context.Context) (map[Key]Value, error) {
	hidden, writes := t.hidden()
	s := snapshot{narrow: t.isNarrow()}
	if err := s.take(ctx, t); err != nil {
		return nil, err
	}
	out := make(map[Key]Value)
	idle := t.readServers(s, out)
	readSets(s.sets, out)
	readChains(s.chains, out)
	stray := slices.Concat(t.readAddrs(s, out), t.readRouting(s, out))

	after, _ := t.hidden()
	for _, k := range slices.Concat(hidden, after) {
		delete(out, k)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.writes == writes { // otherwise some of it may be outdated, and the next Read tells
		t.stray = stray
		t.drains.found(idle, t.opts.Now())
		maps.DeleteFunc(t.leaving, func(k Key, _ struct{}) bool {
			_, exists := out[k]
			return !exists
		})
	}
	return out, nil
}

// snapshot is everything that Read reads.
type snapshot struct {
	servers []hostipvs.Server
	addrs   []link.Addr
	routes  []link.Route
	rules   []link.Rule
	// narrow means that the table for packets with the mark has no default route.
	narrow bool
	sets   []ipset.Content
	// chains are by table and name.
	chains map[string]xtables.Table
}

func (s *snapshot) take(ctx context.Context, t *target) error {
	content, err := t.opts.Servers.Read(ctx)
	if err != nil {
		return err
	}
	s.servers = content.Servers
	if s.addrs, _, err = t.opts.Links.Addrs(ctx, t.device()); err != nil {
		return err
	}
	if s.routes, err = t.opts.Links.Routes(ctx); err != nil {
		return err
	}
	if s.rules, err = t.opts.Links.Rules(ctx); err != nil {
		return err
	}
	if s.sets, err = t.opts.Sets.List(ctx, setPrefix(t.family)); err != nil {
		return err
	}
	s.chains = make(map[string]xtables.Table)
	for _, table := range tables {
		if s.chains[table], err = t.opts.Tables.Read(ctx, table); err != nil {
			return err
		}
	}
	return nil
}

// tables are the tables with our rules, in the order in which they are written.
var tables = []string{tableMangle, tableFilter, tableNAT}

// hidden returns the keys that Read does not return: virtual servers that drain as a whole, and
// what these need.
func (t *target) hidden() (keys []Key, writes uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.AppendSeq(slices.Collect(maps.Keys(t.drains.whole())), maps.Keys(t.held)), t.writes
}

// readServers adds virtual servers to out. It returns the real servers with weight 0: they get no
// connections, so they are not part of the Value.
func (t *target) readServers(s snapshot, out map[Key]Value) (idle map[Key][]netip.AddrPort) {
	bound := make(map[netip.Addr]bool, len(s.addrs))
	for _, a := range s.addrs {
		bound[a.Prefix.Addr()] = !t.taggedOnly
	}
	idle = make(map[Key][]netip.AddrPort)
	for _, srv := range s.servers {
		a := srv.VirtualServer.Addr.Addr()
		if t.foreign(a) || !t.owns(srv.Settings.Flags, bound[a]) {
			continue
		}
		k := serverKey(srv.VirtualServer)
		v := &Server{Settings: t.actualSettings(k, srv.Settings)}
		var weightless []netip.AddrPort
		if v.Endpoints, weightless = endpoints(srv.Reals); len(weightless) > 0 {
			idle[k] = weightless
		}
		out[k] = Value{Server: v}
	}
	return idle
}

// owns reports whether a virtual server is ours. bound means that one without a tag on its address
// is kube-proxy's.
func (t *target) owns(flags hostipvs.Flags, bound bool) bool {
	id, tagged := ownerOf(flags)
	return tagged && id == t.opts.Instance || !tagged && bound
}

// foreign reports whether objects with the address do not concern the target.
func (t *target) foreign(a netip.Addr) bool { return fwd.FamilyOf(a) != t.family || t.opts.excludes(a) }

// actualSettings returns settings of the kernel so that they compare equal to the wanted ones:
// without values that mean nothing, and with the wanted scheduler if the default one replaces it.
func (t *target) actualSettings(k Key, s hostipvs.Settings) hostipvs.Settings {
	if s.Flags&hostipvs.Persistent == 0 {
		s.TimeoutSec, s.Prefix = 0, 0
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if want, ok := t.replaced[k]; ok && s == t.substitute(want) {
		return want
	}
	return s
}

// endpoints returns the real servers that get connections, and those with weight 0. One with
// another forwarding method has weight 0 as an endpoint, so that it differs from every wanted one.
func endpoints(reals []hostipvs.RealState) (out []fwd.Endpoint, idle []netip.AddrPort) {
	for _, r := range reals {
		e := fwd.Endpoint{Addr: r.Addr, Weight: r.Weight}
		switch {
		case r.Weight == 0:
			idle = append(idle, r.Addr)
			continue
		case r.Method != hostipvs.Masquerade && r.Method != hostipvs.LocalNode: // the kernel changes Masquerade to LocalNode for its own addresses
			e.Weight = 0
		}
		out = append(out, e)
	}
	return out, idle
}

func readSets(sets []ipset.Content, out map[Key]Value) {
	for _, c := range sets {
		out[Key{Kind: KindSet, Name: c.Name}] = Value{SetType: c.Type}
		for _, e := range c.Entries {
			k := Key{Kind: KindEntry, Name: c.Name, Proto: fwd.Proto(e.Proto), Prefix: e.Net}
			if e.Addr.IsValid() {
				k.Addr = netip.AddrPortFrom(e.Addr, e.Port)
			}
			out[k] = Value{}
		}
	}
}

// readChains adds our chains and the jumps to them in other chains. This includes chains of mode
// iptables, which the first write removes.
func readChains(read map[string]xtables.Table, out map[Key]Value) {
	for table, chains := range read {
		for name, c := range chains {
			rules := c.Rules
			if builtin(name) {
				rules = slices.DeleteFunc(slices.Clone(rules), func(r string) bool { return !jumpsToOurs(r) })
				if len(rules) == 0 {
					continue
				}
			}
			out[chainKey(table, name)] = Value{Rules: strings.Join(rules, "\n")}
		}
	}
}

func chainKey(table, name string) Key { return Key{Kind: KindChain, Table: table, Name: name} }

// builtin reports whether a chain is not ours, so that only jumps to our chains are.
func builtin(name string) bool { return !strings.HasPrefix(name, chainPrefix) }

// jumpsToOurs reports whether a rule jumps to one of our chains.
func jumpsToOurs(rule string) bool {
	rule = " " + rule
	return strings.Contains(rule, " -j "+chainPrefix) || strings.Contains(rule, " -g "+chainPrefix)
}

// readAddrs adds the addresses on the device. stray are ours that another VIPMode added.
func (t *target) readAddrs(s snapshot, out map[Key]Value) (stray []link.Object) {
	others := make(map[netip.Addr]bool)
	for _, srv := range s.servers {
		if _, tagged := ownerOf(srv.Settings.Flags); t.taggedOnly && !tagged {
			others[srv.VirtualServer.Addr.Addr()] = true
		}
	}
	for _, a := range s.addrs {
		switch addr := a.Prefix.Addr(); {
		case others[addr], t.foreign(addr), addr.IsLinkLocalUnicast(): // the kernel adds link-local addresses if the device is up
		case t.opts.VIPs == VIPAddress && a.Prefix.IsSingleIP():
			out[Key{Kind: KindVIP, Prefix: a.Prefix}] = Value{Global: a.Global}
		default:
			stray = append(stray, a)
		}
	}
	return stray
}

// readRouting adds routes and rules. stray are ours that another VIPMode added.
func (t *target) readRouting(s snapshot, out map[Key]Value) (stray []link.Object) {
	diverts, stray := t.readRoutes(s, out)
	table := divertTableOf(t.opts.Instance)
	var divert *Value
	for _, r := range s.rules {
		ours := r.Table == table && r.Priority == divertPriority && r.Mask == r.Mark
		switch {
		case r.IPv6 != (t.family == fwd.IPv6):
		case t.opts.VIPs == VIPMark && ours && divert == nil:
			divert = &Value{Mark: r.Mark}
			if !diverts {
				divert.Mark = 0 // the route is missing, so the Value must differ from the wanted one
			}
		default:
			stray = append(stray, r)
		}
	}
	if divert == nil && diverts {
		divert = &Value{}
	}
	if divert != nil {
		out[Key{Kind: KindDivert}] = *divert
	}
	return stray
}

// readRoutes adds routes. diverts means that the route for marked packets exists.
func (t *target) readRoutes(s snapshot, out map[Key]Value) (diverts bool, stray []link.Object) {
	diverts = s.narrow
	route := link.MarkRoute(t.family == fwd.IPv6, divertTableOf(t.opts.Instance))
	for _, r := range s.routes {
		switch {
		case s.narrow && isNarrow(t.opts.Instance, r), t.foreign(r.Dst.Addr()):
		case r == route && t.opts.VIPs == VIPMark:
			diverts = true
		case t.opts.VIPs == VIPRoute && r.Table == link.LocalTable && r.Dev == routeDevice:
			out[Key{Kind: KindVIP, Prefix: r.Dst}] = Value{Source: r.Src}
		default:
			stray = append(stray, r)
		}
	}
	return diverts, stray
}

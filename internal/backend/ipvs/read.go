package ipvs

import (
	"context"
	"maps"
	"math"
	"net/netip"
	"slices"
	"strings"

	"github.com/fairlead/fairlead/internal/fwd"
	"github.com/fairlead/fairlead/internal/host/ipset"
	hostipvs "github.com/fairlead/fairlead/internal/host/ipvs"
	"github.com/fairlead/fairlead/internal/host/link"
	"github.com/fairlead/fairlead/internal/host/xtables"
)

// Read implements backend.Target. What is ours:
//
//   - virtual servers with the instance's tag, and those without any on an address of the device, which are kube-proxy's;
//   - the addresses on the device, and routes and rules with our protocol number;
//   - sets whose names begin with our prefix; chains whose names begin with FAIRLEAD-, and the jumps to them.
//
// What has an address in an excluded network belongs to others, tagged or not. What drains is not told.
func (t *target) Read(ctx context.Context) (map[Key]Value, error) {
	hidden, writes := t.hidden()
	s := snapshot{narrow: t.isNarrow()}
	if err := s.take(ctx, t); err != nil {
		return nil, err
	}
	out := make(map[Key]Value)
	found := t.readServers(s, out)
	readSets(s.sets, out)
	readChains(s.chains, out)
	stray := t.readLinks(s, out)

	after, _ := t.hidden()
	for _, h := range [][]Key{hidden, after} {
		for _, k := range h {
			delete(out, k)
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.writes == writes { // otherwise some of it may be out of date, and the next reading will tell
		t.stray = stray
		t.drainFoundLocked(found)
		maps.DeleteFunc(t.leaving, func(k Key, _ struct{}) bool {
			_, there := out[k]
			return !there
		})
	}
	return out, nil
}

// snapshot is what was read.
type snapshot struct {
	servers []hostipvs.Server
	addrs   []link.Addr
	routes  []link.Route
	rules   []link.Rule
	// narrow says that the table for packets with the mark has no default route.
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

// tables are those with rules of ours, in the order in which they are written.
var tables = []string{tableMangle, tableFilter, tableNAT}

// hidden are the keys that nobody is to hear of: what drains as a whole and what is held for it.
func (t *target) hidden() (keys []Key, writes uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for k, s := range t.drains {
		if s.whole {
			keys = append(keys, k)
		}
	}
	for k := range t.held {
		keys = append(keys, k)
	}
	return keys, t.writes
}

// readServers tells of virtual servers. found are the real servers with weight 0, by virtual server: they get no
// connections, so they are none of what serves.
func (t *target) readServers(s snapshot, out map[Key]Value) (found map[Key][]netip.AddrPort) {
	bound := make(map[netip.Addr]bool, len(s.addrs))
	for _, a := range s.addrs {
		bound[a.Prefix.Addr()] = !t.taggedOnly
	}
	found = make(map[Key][]netip.AddrPort)
	for _, srv := range s.servers {
		a := srv.VirtualServer.Addr.Addr()
		if fwd.FamilyOf(a) != t.family || t.excluded(a) || !t.owns(srv.Settings.Flags, bound[a]) {
			continue
		}
		k := serverKey(srv.VirtualServer)
		v, idle := t.actual(k, srv)
		out[k] = Value{Server: v}
		if len(idle) > 0 {
			found[k] = idle
		}
	}
	return found
}

// owns says whether a virtual server is ours; bound that its address is such that one without a tag is kube-proxy's, and taken
// over.
func (t *target) owns(flags hostipvs.Flags, bound bool) bool {
	id, tagged := ownerOf(uint32(flags))
	return tagged && id == t.opts.Instance || !tagged && bound
}

// actual is a virtual server as it is, and its real servers without weight.
func (t *target) actual(k Key, srv hostipvs.Server) (*Server, []netip.AddrPort) {
	v := &Server{Scheduler: srv.Settings.Scheduler, Flags: uint32(srv.Settings.Flags)}
	if srv.Settings.Flags&hostipvs.Persistent != 0 {
		v.TimeoutSec = srv.Settings.TimeoutSec
		if srv.Settings.Prefix != 0 {
			v.TimeoutSec = math.MaxUint32 // persistent for networks, which is none of ours
		}
	}
	v.Endpoints, _ = endpoints(srv.Reals)
	t.mu.Lock()
	defer t.mu.Unlock()
	if want := t.replaced[k]; want != nil && alike(settings(v), t.substitute(want)) {
		v.Scheduler, v.Flags, v.TimeoutSec = want.Scheduler, want.Flags, want.TimeoutSec
	}
	_, idle := endpoints(srv.Reals)
	return v, idle
}

// endpoints are the real servers that get connections, and those with weight 0, which do not. One that forwards in another
// way than by rewriting addresses has weight 0 as an endpoint, so that it differs from whatever is wanted.
func endpoints(reals []hostipvs.RealState) (out []fwd.Endpoint, idle []netip.AddrPort) {
	for _, r := range reals {
		e := fwd.Endpoint{Addr: r.Addr, Weight: r.Weight}
		switch {
		case r.Weight == 0:
			idle = append(idle, r.Addr)
			continue
		case r.Method != hostipvs.Masquerade && r.Method != hostipvs.LocalNode: // which the kernel makes of its own addresses
			e.Weight = 0
		}
		out = append(out, e)
	}
	return out, idle
}

// drainFoundLocked takes real servers that were found with weight 0 for draining since now, unless they are known.
func (t *target) drainFoundLocked(found map[Key][]netip.AddrPort) {
	now := t.opts.Now()
	for k, addrs := range found {
		s := t.drains[k]
		if s == nil {
			s = &drainingServer{reals: make(map[netip.AddrPort]*draining)}
			t.drains[k] = s
		}
		for _, a := range addrs {
			if s.reals[a] == nil {
				s.reals[a] = &draining{since: now, reason: DrainFound}
			}
		}
	}
}

func readSets(sets []ipset.Content, out map[Key]Value) {
	for _, c := range sets {
		out[Key{Kind: KindSet, Name: c.Name}] = Value{SetType: string(c.Type)}
		for _, e := range c.Entries {
			out[entryKey(c.Name, e)] = Value{}
		}
	}
}

func entryKey(set string, e ipset.Entry) Key {
	k := Key{Kind: KindEntry, Name: set, Proto: fwd.Proto(e.Proto), Prefix: e.Net}
	if e.Addr.IsValid() {
		k.Addr = netip.AddrPortFrom(e.Addr, e.Port)
	}
	return k
}

// readChains tells of our chains, and of the jumps to them from others. Rules of mode iptables are among them: what the
// program does not want of it goes with the first write.
func readChains(read map[string]xtables.Table, out map[Key]Value) {
	for table, chains := range read {
		for name, c := range chains {
			rules := c.Rules
			if builtin(name) {
				rules = slices.DeleteFunc(slices.Clone(rules), func(r string) bool { return !leadsToOurs(r) })
				if len(rules) == 0 {
					continue
				}
			}
			out[chainKey(table, name)] = Value{Rules: strings.Join(rules, "\n")}
		}
	}
}

func chainKey(table, name string) Key { return Key{Kind: KindChain, Table: table, Name: name} }

// builtin says whether the chain is not ours, so that only jumps to ours are.
func builtin(name string) bool { return !strings.HasPrefix(name, chainPrefix) }

// leadsToOurs says whether a rule leads to a chain of ours.
func leadsToOurs(rule string) bool {
	rule = " " + rule
	return strings.Contains(rule, " -j "+chainPrefix) || strings.Contains(rule, " -g "+chainPrefix)
}

// readLinks tells of addresses, routes and rules. stray are those that are ours and that another way of binding VIPs made.
func (t *target) readLinks(s snapshot, out map[Key]Value) (stray []link.Object) {
	others := make(map[netip.Addr]bool)
	for _, srv := range s.servers {
		if _, tagged := ownerOf(uint32(srv.Settings.Flags)); t.taggedOnly && !tagged {
			others[srv.VirtualServer.Addr.Addr()] = true
		}
	}
	for _, a := range s.addrs {
		switch addr := a.Prefix.Addr(); {
		case others[addr]:
		case fwd.FamilyOf(addr) != t.family || t.excluded(addr) || addr.IsLinkLocalUnicast(): // the kernel's, if the device is up
		case t.opts.VIPs == VIPAddress && a.Prefix.IsSingleIP():
			out[Key{Kind: KindVIP, Prefix: a.Prefix}] = Value{Global: a.Global}
		default:
			stray = append(stray, a)
		}
	}
	table := divertTableOf(t.opts.Instance)
	route := link.MarkRoute(t.family == fwd.IPv6, table)
	diverts := s.narrow
	for _, r := range s.routes {
		switch {
		case s.narrow && isNarrow(t.opts.Instance, r):
		case fwd.FamilyOf(r.Dst.Addr()) != t.family || t.excluded(r.Dst.Addr()):
		case r == route && t.opts.VIPs == VIPMark:
			diverts = true
		case t.opts.VIPs == VIPRoute && r.Table == link.LocalTable && r.Dev == routeDevice:
			out[Key{Kind: KindVIP, Prefix: r.Dst}] = Value{Source: r.Src}
		default:
			stray = append(stray, r)
		}
	}
	seen := false
	for _, r := range s.rules {
		switch {
		case r.IPv6 != (t.family == fwd.IPv6):
		case t.opts.VIPs == VIPMark && !seen && r.Table == table && r.Priority == divertPriority && r.Mask == r.Mark:
			seen = true
			v := Value{Mark: r.Mark}
			if !diverts {
				v.Mark = 0 // half of it is not there, so it differs from whatever is wanted
			}
			out[Key{Kind: KindDivert}] = v
		default:
			stray = append(stray, r)
		}
	}
	if diverts && !seen {
		out[Key{Kind: KindDivert}] = Value{}
	}
	return stray
}

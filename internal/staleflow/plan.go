package staleflow

import (
	"cmp"
	"iter"
	"maps"
	"net/netip"
	"slices"

	"github.com/fairlead/fairlead/internal/fwd"
	"github.com/fairlead/fairlead/internal/host/conntrack"
)

// Reason is why a flow is stale.
type Reason uint8

// The reasons.
const (
	// BlackHole: the flow began without NAT, because the Service had no endpoints or its rules were
	// not written yet. It is a UDP flow, or a TCP connection that still waits for its first answer.
	BlackHole Reason = iota
	// EndpointGone: the flow goes to an endpoint that does not serve.
	EndpointGone
	// FrontendGone: the flow was translated for a frontend that was deleted.
	FrontendGone
	// NumReasons is the number of reasons, for arrays by reason.
	NumReasons
)

func (r Reason) String() string {
	return [...]string{"black-hole", "endpoint-gone", "frontend-gone"}[r]
}

// family is the plan of one address family.
type family struct {
	// keys are the UDP frontends with their serving endpoints, sorted.
	keys map[fwd.Key][]netip.AddrPort
	// lost are the endpoints that UDP frontends have lost, sorted; if the frontend was deleted,
	// flows to them are stale.
	lost map[fwd.Key][]netip.AddrPort
	// found are UDP frontends that an earlier process left in the kernel.
	found map[fwd.Key]struct{}
	// forwards says for TCP frontends whether they forward new connections: for those that changed,
	// or for all that forward.
	forwards map[fwd.Key]bool
}

// Plan decides which flows are stale. It is immutable and safe for concurrent use. With the zero
// Plan none is.
type Plan struct {
	header   fwd.Header
	families [2]*family // by fwd.Family.Index; nil if the family need not be checked
}

// Empty reports whether no flow can be stale.
func (p Plan) Empty() bool { return !p.has(fwd.IPv4) && !p.has(fwd.IPv6) }

func (p Plan) has(f fwd.Family) bool { return p.hasUDP(f) || p.hasTCP(f) }

func (p Plan) hasUDP(f fwd.Family) bool {
	fam := p.families[f.Index()]
	return fam != nil && len(fam.keys)+len(fam.lost)+len(fam.found) > 0
}

func (p Plan) hasTCP(f fwd.Family) bool {
	fam := p.families[f.Index()]
	return fam != nil && slices.Contains(slices.Collect(maps.Values(fam.forwards)), true)
}

// Stale reports whether a flow is to be removed, and why.
func (p Plan) Stale(f conntrack.Flow) (Reason, bool) {
	dst := f.OrigDst.Addr()
	fam := p.families[fwd.FamilyOf(dst).Index()]
	natted := f.ReplySrc != f.OrigDst
	if fam == nil || !natted && f.Zone|f.OrigZone != 0 {
		return 0, false
	}
	vip := fwd.Key{Family: fwd.FamilyOf(dst), Addr: dst, Proto: fwd.Proto(f.Proto), Port: f.OrigDst.Port()}
	nodePort := vip
	nodePort.Addr = netip.Addr{}
	served := p.servesNodePorts(dst, f.OrigSrc.Addr())
	switch vip.Proto {
	case fwd.TCP:
		return BlackHole, f.Opening && !natted && (fam.forwards[vip] || served && fam.forwards[nodePort])
	case fwd.UDP:
		return fam.staleUDP(vip, nodePort, served, natted, f.ReplySrc)
	}
	return 0, false
}

// staleUDP is Stale for a UDP flow with a destination that may be a virtual IP, or a node port if
// the address serves them.
func (f *family) staleUDP(vip, nodePort fwd.Key, served, natted bool, endpoint netip.AddrPort) (Reason, bool) {
	serving, ok := f.keys[vip]
	if !ok && served {
		serving, ok = f.keys[nodePort]
	}
	switch {
	case !ok:
		return FrontendGone, natted && f.wasForwarded(vip, nodePort, served, endpoint)
	case contains(serving, endpoint):
		return 0, false
	case natted:
		return EndpointGone, true
	}
	return BlackHole, len(serving) > 0
}

// wasForwarded reports whether a translation to an endpoint comes from a frontend that was deleted:
// a virtual IP, a node port, or a node port on an address that no longer serves node ports. Other
// translations may be another program's. The endpoints of frontends of an earlier process are not
// known; any translation for them counts.
func (f *family) wasForwarded(vip, nodePort fwd.Key, served bool, endpoint netip.AddrPort) bool {
	if contains(f.lost[vip], endpoint) || contains(f.lost[nodePort], endpoint) || !served && contains(f.keys[nodePort], endpoint) {
		return true
	}
	_, foundVIP := f.found[vip]
	_, foundNodePort := f.found[nodePort]
	return foundVIP || served && foundNodePort
}

func (p Plan) servesNodePorts(dst, src netip.Addr) bool {
	return p.header.IsLocal(dst) && p.header.NodePorts[fwd.FamilyOf(dst).Index()].Serves(dst, p.header.IsLocal(src))
}

func contains(sorted []netip.AddrPort, a netip.AddrPort) bool {
	_, ok := slices.BinarySearchFunc(sorted, a, netip.AddrPort.Compare)
	return ok
}

// union merges two sorted lists into a new one.
func union(a, b []netip.AddrPort) []netip.AddrPort {
	switch {
	case len(a) == 0:
		return b
	case len(b) == 0:
		return a
	}
	out := slices.Concat(a, b)
	slices.SortFunc(out, netip.AddrPort.Compare)
	return slices.Compact(out)
}

// merge returns a plan that finds what p or next finds. If they differ next counts, which is newer.
func (p Plan) merge(next Plan) Plan {
	out := Plan{header: next.header}
	for i := range out.families {
		old, now := p.families[i], next.families[i]
		switch {
		case now == nil:
			now = old
		case old != nil:
			now = old.merge(now)
		}
		out.families[i] = now
	}
	return out
}

func (f *family) merge(next *family) *family {
	out := &family{
		keys: next.keys, lost: maps.Clone(f.lost), found: overlay(f.found, next.found), forwards: overlay(f.forwards, next.forwards),
	}
	if next.keys == nil {
		out.keys = f.keys
	}
	if out.lost == nil {
		out.lost = next.lost
		return out
	}
	for k, eps := range next.lost {
		out.lost[k] = union(out.lost[k], eps)
	}
	return out
}

// overlay returns a map with the entries of both; those of b replace those of a.
func overlay[V any](a, b map[fwd.Key]V) map[fwd.Key]V {
	switch {
	case len(a) == 0:
		return b
	case len(b) == 0:
		return a
	}
	out := maps.Clone(a)
	maps.Copy(out, b)
	return out
}

// Builder follows the table and makes plans. The cost of an Update is proportional to the change,
// that of a Snapshot to the number of UDP frontends in the families that changed. The zero Builder
// is ready to use; it belongs to one goroutine.
type Builder struct {
	header   fwd.Header
	families [2]family
	// services are the Services with TCP frontends that forward.
	services map[fwd.Service]*fwd.Fragment
	// dirty says which families have changes of UDP frontends.
	dirty [2]bool
}

// Found adds frontends that were in the kernel before anything was written, from an earlier
// process. If the table does not have them, the next Plan finds their UDP flows.
func (b *Builder) Found(keys []fwd.Key) {
	for _, k := range keys {
		if k.Proto != fwd.UDP {
			continue
		}
		fam := &b.families[k.Family.Index()]
		if fam.found == nil {
			fam.found = make(map[fwd.Key]struct{})
		}
		fam.found[k] = struct{}{}
		b.dirty[k.Family.Index()] = true
	}
}

// Update processes changes of the table.
func (b *Builder) Update(ch fwd.Changes) {
	b.updateTCP(ch.Services)
	// A key may move from one Service to another within the changes, in either order: first all are
	// removed, then added.
	before := make(map[fwd.Key][]netip.AddrPort)
	for _, sc := range ch.Services {
		for key := range udpTargets(sc.Old) {
			fam := &b.families[key.Family.Index()]
			if serving, ok := fam.keys[key]; ok {
				before[key] = serving
				delete(fam.keys, key)
			}
		}
	}
	for _, sc := range ch.Services {
		for key, serving := range udpTargets(sc.New) {
			was, known := before[key]
			delete(before, key)
			fam := &b.families[key.Family.Index()]
			if fam.keys == nil {
				fam.keys = make(map[fwd.Key][]netip.AddrPort)
			}
			fam.keys[key] = serving
			if !known || !slices.Equal(serving, was) {
				b.endpointsLost(key, was)
			}
		}
	}
	for key, was := range before {
		b.endpointsLost(key, was)
	}
	if ch.Header != nil {
		b.setHeader(*ch.Header)
	}
}

// endpointsLost records that a frontend no longer has all of its endpoints.
func (b *Builder) endpointsLost(key fwd.Key, endpoints []netip.AddrPort) {
	i := key.Family.Index()
	b.dirty[i] = true
	if len(endpoints) == 0 {
		return
	}
	fam := &b.families[i]
	if fam.lost == nil {
		fam.lost = make(map[fwd.Key][]netip.AddrPort)
	}
	fam.lost[key] = union(fam.lost[key], endpoints)
}

func (b *Builder) setHeader(h fwd.Header) {
	for i := range b.families {
		if h.NodePorts[i].Equal(b.header.NodePorts[i]) && slices.Equal(h.LocalAddrs, b.header.LocalAddrs) {
			continue
		}
		for k := range b.families[i].keys {
			if k.IsNodePort() {
				b.dirty[i] = true
				break
			}
		}
	}
	b.header = h
}

// updateTCP records which TCP frontends began or ceased to forward.
func (b *Builder) updateTCP(changes []fwd.ServiceChange) {
	before := make(map[fwd.Key]struct{})
	for _, sc := range changes {
		for k := range tcpForwarding(sc.Old) {
			before[k] = struct{}{}
		}
	}
	for _, sc := range changes {
		forwards := false
		for k := range tcpForwarding(sc.New) {
			forwards = true
			if _, did := before[k]; did {
				delete(before, k)
			} else {
				b.setForwards(k, true)
			}
		}
		switch {
		case !forwards:
			delete(b.services, sc.Owner)
		case b.services == nil:
			b.services = make(map[fwd.Service]*fwd.Fragment)
			fallthrough
		default:
			b.services[sc.Owner] = sc.New
		}
	}
	for k := range before {
		b.setForwards(k, false)
	}
}

func (b *Builder) setForwards(k fwd.Key, forwards bool) {
	fam := &b.families[k.Family.Index()]
	if fam.forwards == nil {
		fam.forwards = make(map[fwd.Key]bool)
	}
	fam.forwards[k] = forwards
}

// Snapshot returns the plan for what changed since the last Snapshot, or with all for everything.
// written says, by fwd.Family.Index, whether the rules of a family are in the kernel; the changes
// of one whose rules are not are kept for a later Snapshot.
func (b *Builder) Snapshot(written [2]bool, all bool) Plan {
	p := Plan{header: b.header}
	if all {
		for _, f := range b.services {
			for k := range tcpForwarding(f) {
				b.setForwards(k, true)
			}
		}
	}
	for i := range b.families {
		fam := &b.families[i]
		if !written[i] || !all && !b.dirty[i] && len(fam.forwards) == 0 {
			continue
		}
		out := &family{forwards: fam.forwards}
		if all || b.dirty[i] {
			out.keys, out.lost, out.found = maps.Clone(fam.keys), fam.lost, fam.found
		}
		p.families[i] = out
		fam.forwards, fam.lost, fam.found, b.dirty[i] = nil, nil, nil, false
	}
	return p
}

// tcpForwarding yields the TCP frontends of a fragment that forward new connections.
func tcpForwarding(f *fwd.Fragment) iter.Seq[fwd.Key] {
	return func(yield func(fwd.Key) bool) {
		if f == nil {
			return
		}
		for i := range f.Frontends {
			fe := &f.Frontends[i]
			if fe.Key.Proto == fwd.TCP && fe.Forwards() && !yield(fe.Key) {
				return
			}
		}
	}
}

// udpTargets returns the serving endpoints of each UDP frontend of a fragment.
func udpTargets(f *fwd.Fragment) map[fwd.Key][]netip.AddrPort {
	if f == nil {
		return nil
	}
	var out map[fwd.Key][]netip.AddrPort
	for i := range f.Frontends {
		fe := &f.Frontends[i]
		if fe.Key.Proto != fwd.UDP {
			continue
		}
		if out == nil {
			out = make(map[fwd.Key][]netip.AddrPort)
		}
		out[fe.Key] = serving(f, fe.Owner, fe.Key.Family)
	}
	return out
}

func serving(f *fwd.Fragment, port fwd.ServicePort, fam fwd.Family) []netip.AddrPort {
	i, ok := slices.BinarySearchFunc(f.Serving, fam, func(s fwd.ServingPort, fam fwd.Family) int {
		return cmp.Or(s.Port.Compare(port), cmp.Compare(s.Family, fam))
	})
	if !ok {
		return nil
	}
	return f.Serving[i].Endpoints
}

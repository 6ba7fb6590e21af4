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

// Reason says why a flow is stale.
type Reason uint8

// The reasons.
const (
	// BlackHole: the flow began without NAT, since the Service had no endpoints or the rules were not there yet. It is one of
	// UDP, or a TCP connection that still waits for its first answer.
	BlackHole Reason = iota
	// EndpointGone: the flow goes to something that does not serve.
	EndpointGone
	// FrontendGone: the flow was translated for a frontend that is no longer there.
	FrontendGone
	// NumReasons is the number of reasons, for arrays by reason.
	NumReasons
)

func (r Reason) String() string {
	return [...]string{"black-hole", "endpoint-gone", "frontend-gone"}[r]
}

// family is the plan of one address family.
type family struct {
	// keys are the UDP frontends with the endpoints that serve, sorted; none where nothing serves.
	keys map[fwd.Key][]netip.AddrPort
	// left are endpoints that UDP frontends have lost, sorted; where a frontend is gone, flows to them are stale.
	left map[fwd.Key][]netip.AddrPort
	// found are UDP frontends that a process before this one left in the kernel.
	found map[fwd.Key]struct{}
	// connects says which TCP frontends new connections are forwarded for, as far as that changed or all is to be looked at.
	connects map[fwd.Key]bool
}

// Plan says which flows are stale. It is immutable and safe for concurrent use. The zero Plan finds none.
type Plan struct {
	header   fwd.Header
	families [2]*family // by fwd.Family.Index; nil for a family that is not to be looked at
}

// Empty says that no flow can be stale, so that there is nothing to look at.
func (p Plan) Empty() bool { return !p.has(fwd.IPv4) && !p.has(fwd.IPv6) }

func (p Plan) has(f fwd.Family) bool { return p.hasUDP(f) || p.hasTCP(f) }

func (p Plan) hasUDP(f fwd.Family) bool {
	fam := p.families[f.Index()]
	return fam != nil && len(fam.keys)+len(fam.left)+len(fam.found) > 0
}

func (p Plan) hasTCP(f fwd.Family) bool {
	fam := p.families[f.Index()]
	if fam == nil {
		return false
	}
	for _, forwards := range fam.connects {
		if forwards {
			return true
		}
	}
	return false
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
		return BlackHole, f.Opening && !natted && (fam.connects[vip] || served && fam.connects[nodePort])
	case fwd.UDP:
		return fam.staleUDP(vip, nodePort, served, natted, f.ReplySrc)
	}
	return 0, false
}

// staleUDP is Stale for a UDP flow with a destination that may be a virtual IP, or a node port if the address serves them.
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

// wasForwarded says whether a translation to an endpoint was made by a frontend that is no longer there: a virtual IP, a
// node port, or a node port on an address on which it is not served any more. A translation to something else may be another
// program's. What a process before this one wrote is known without its endpoints; then any translation counts.
func (f *family) wasForwarded(vip, nodePort fwd.Key, served bool, endpoint netip.AddrPort) bool {
	if contains(f.left[vip], endpoint) || contains(f.left[nodePort], endpoint) || !served && contains(f.keys[nodePort], endpoint) {
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

// union joins two sorted lists without changing them.
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

// merge returns a plan that does all that p was to do and that next is to do. next is the newer one and counts where they
// differ.
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
		keys: next.keys, left: maps.Clone(f.left), found: overlay(f.found, next.found), connects: overlay(f.connects, next.connects),
	}
	if next.keys == nil {
		out.keys = f.keys
	}
	if out.left == nil {
		out.left = next.left
		return out
	}
	for k, eps := range next.left {
		out.left[k] = union(out.left[k], eps)
	}
	return out
}

// overlay returns a map with the entries of both, those of b where both have one.
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

// Builder follows the table and makes plans. An Update costs the change, a Snapshot the number of UDP frontends of the
// families that changed. The zero Builder is ready to use; it belongs to one goroutine.
type Builder struct {
	header   fwd.Header
	families [2]family
	// services are those with TCP frontends that forward.
	services map[fwd.Service]*fwd.Fragment
	// dirty says which families have changes of UDP frontends.
	dirty [2]bool
}

// Found tells of UDP frontends that the kernel had before anything was written: those of a process before this one. Where
// the table does not have them either, the next Plan finds their flows.
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

// Update takes in changes of the table.
func (b *Builder) Update(ch fwd.Changes) {
	b.updateTCP(ch.Services)
	// A key may pass from one Service to another within the changes, in either order: first all go, then all come.
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
				b.lost(key, was)
			}
		}
	}
	for key, was := range before {
		b.lost(key, was)
	}
	if ch.Header != nil {
		b.setHeader(*ch.Header)
	}
}

// lost notes that a frontend no longer has all the endpoints that it had.
func (b *Builder) lost(key fwd.Key, endpoints []netip.AddrPort) {
	i := key.Family.Index()
	b.dirty[i] = true
	if len(endpoints) == 0 {
		return
	}
	fam := &b.families[i]
	if fam.left == nil {
		fam.left = make(map[fwd.Key][]netip.AddrPort)
	}
	fam.left[key] = union(fam.left[key], endpoints)
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

// updateTCP notes which TCP frontends began or ceased to forward.
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
				b.connects(k, true)
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
		b.connects(k, false)
	}
}

func (b *Builder) connects(k fwd.Key, forwards bool) {
	fam := &b.families[k.Family.Index()]
	if fam.connects == nil {
		fam.connects = make(map[fwd.Key]bool)
	}
	fam.connects[k] = forwards
}

// Snapshot returns the plan for what changed since the last Snapshot, or with all set for everything. It leaves out
// families whose rules are not in the kernel, by fwd.Family.Index: their changes wait for a later Snapshot.
func (b *Builder) Snapshot(written [2]bool, all bool) Plan {
	p := Plan{header: b.header}
	if all {
		for _, f := range b.services {
			for k := range tcpForwarding(f) {
				b.connects(k, true)
			}
		}
	}
	for i := range b.families {
		fam := &b.families[i]
		if !written[i] || !all && !b.dirty[i] && len(fam.connects) == 0 {
			continue
		}
		out := &family{connects: fam.connects}
		if all || b.dirty[i] {
			out.keys, out.left, out.found = maps.Clone(fam.keys), fam.left, fam.found
		}
		p.families[i] = out
		fam.connects, fam.left, fam.found, b.dirty[i] = nil, nil, nil, false
	}
	return p
}

// tcpForwarding yields the TCP frontends of a fragment for which new connections of anybody are forwarded.
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

// udpTargets returns the endpoints that serve behind each UDP frontend of a fragment.
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

package staleflow

import (
	"cmp"
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
	// BlackHole: the flow began without NAT, since the Service had no endpoints or the rules were not there yet.
	BlackHole Reason = iota
	// EndpointGone: the flow goes to something that does not serve.
	EndpointGone
	// FrontendGone: the flow's frontend was removed by this process (Builder.RemoveGone).
	FrontendGone
	// NumReasons is the number of reasons, for arrays by reason.
	NumReasons
)

func (r Reason) String() string {
	return [...]string{"black-hole", "endpoint-gone", "frontend-gone"}[r]
}

// target is what flows of one frontend may go to.
type target struct {
	// serving is sorted; empty where nothing serves.
	serving []netip.AddrPort
	// last is serving, or what it was before it became empty.
	last []netip.AddrPort
}

// family is the plan of one address family.
type family struct {
	keys map[fwd.Key]target
	gone map[fwd.Key]target
}

// Plan says which flows are stale. It is immutable and safe for concurrent use. The zero Plan finds none.
type Plan struct {
	header   fwd.Header
	families [2]*family // by fwd.Family.Index; nil for a family that is not to be looked at
}

// Empty says that no flow can be stale, so that there is nothing to look at.
func (p Plan) Empty() bool { return !p.has(fwd.IPv4) && !p.has(fwd.IPv6) }

func (p Plan) has(f fwd.Family) bool {
	fam := p.families[f.Index()]
	return fam != nil && len(fam.keys)+len(fam.gone) > 0
}

// Stale says whether a flow is to be removed, and why.
func (p Plan) Stale(f conntrack.Flow) (Reason, bool) {
	dst := f.OrigDst.Addr()
	fam := p.families[fwd.FamilyOf(dst).Index()]
	if fam == nil || f.Proto != uint8(fwd.UDP) {
		return 0, false
	}
	natted := f.ReplySrc != f.OrigDst
	if !natted && f.Zone|f.OrigZone != 0 {
		return 0, false
	}
	key := fwd.Key{Family: fwd.FamilyOf(dst), Addr: dst, Proto: fwd.UDP, Port: f.OrigDst.Port()}
	t, gone, ok := fam.find(key)
	if !ok && p.servesNodePorts(dst, f.OrigSrc.Addr()) {
		key.Addr = netip.Addr{}
		t, gone, ok = fam.find(key)
	}
	switch {
	case !ok:
		return 0, false
	case gone:
		return FrontendGone, natted && contains(t.last, f.ReplySrc)
	case len(t.serving) == 0 || contains(t.serving, f.ReplySrc):
		return 0, false
	case natted:
		return EndpointGone, true
	}
	return BlackHole, true
}

func (f *family) find(k fwd.Key) (t target, gone, ok bool) {
	if t, ok = f.keys[k]; ok {
		return t, false, true
	}
	t, ok = f.gone[k]
	return t, true, ok
}

func (p Plan) servesNodePorts(dst, src netip.Addr) bool {
	return p.header.IsLocal(dst) && p.header.NodePorts[fwd.FamilyOf(dst).Index()].Serves(dst, p.header.IsLocal(src))
}

func contains(sorted []netip.AddrPort, a netip.AddrPort) bool {
	_, ok := slices.BinarySearchFunc(sorted, a, netip.AddrPort.Compare)
	return ok
}

// merge returns a plan that does what p was to do and next says it otherwise: next is the newer one.
func (p Plan) merge(next Plan) Plan {
	out := Plan{header: next.header}
	for i := range out.families {
		old, now := p.families[i], next.families[i]
		switch {
		case now == nil:
			now = old
		case old != nil && len(old.gone) > 0:
			// A frontend that has come back since is among the keys, and they are looked at first.
			gone := maps.Clone(old.gone)
			maps.Copy(gone, now.gone)
			now = &family{keys: now.keys, gone: gone}
		}
		out.families[i] = now
	}
	return out
}

// Builder follows the table and makes plans. An Update costs the change, a Snapshot the number of UDP frontends of the
// families that changed. The zero Builder is ready to use; it belongs to one goroutine.
type Builder struct {
	// RemoveGone makes flows of frontends stale that are removed while this process runs, if they go to an endpoint that
	// the frontend had. Such a flow otherwise lives as long as its client sends, and reaches whoever gets the pod's
	// address next. The price: while a Service is deleted and made again its flows are interrupted, as new ones are.
	RemoveGone bool

	header   fwd.Header
	families [2]family
	dirty    [2]bool
}

// Update takes in changes of the table.
func (b *Builder) Update(ch fwd.Changes) {
	if ch.Header != nil {
		b.header = *ch.Header
	}
	// A key may pass from one Service to another within the changes, in either order: first all go, then all come.
	left := make(map[fwd.Key]target)
	for _, sc := range ch.Services {
		for key := range udpTargets(sc.Old) {
			fam := &b.families[key.Family.Index()]
			if t, ok := fam.keys[key]; ok {
				left[key] = t
				delete(fam.keys, key)
			}
		}
	}
	for _, sc := range ch.Services {
		for key, serving := range udpTargets(sc.New) {
			old, known := left[key]
			b.set(key, serving, old, known)
			delete(left, key)
		}
	}
	for key, t := range left {
		b.remove(key, t)
	}
}

// set makes a key known; old is what it was before, known says whether it was there.
func (b *Builder) set(key fwd.Key, serving []netip.AddrPort, old target, known bool) {
	i := key.Family.Index()
	fam := &b.families[i]
	if !known || !slices.Equal(serving, old.serving) {
		b.dirty[i] = true
	}
	if fam.keys == nil {
		fam.keys = make(map[fwd.Key]target)
	}
	if g, ok := fam.gone[key]; ok {
		old.last = g.last
		delete(fam.gone, key)
	}
	t := target{serving: serving, last: serving}
	if len(serving) == 0 {
		t.last = old.last
	}
	fam.keys[key] = t
}

func (b *Builder) remove(key fwd.Key, t target) {
	i := key.Family.Index()
	fam := &b.families[i]
	b.dirty[i] = true
	if !b.RemoveGone || len(t.last) == 0 {
		return
	}
	if fam.gone == nil {
		fam.gone = make(map[fwd.Key]target)
	}
	fam.gone[key] = t
}

// Snapshot returns the plan for the families in which something changed since the last Snapshot, or with all set for
// both.
func (b *Builder) Snapshot(all bool) Plan {
	p := Plan{header: b.header}
	for i := range b.families {
		if !all && !b.dirty[i] {
			continue
		}
		b.dirty[i] = false
		fam := &b.families[i]
		p.families[i] = &family{keys: maps.Clone(fam.keys), gone: fam.gone}
		fam.gone = nil
	}
	return p
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

package ipvssim

import (
	"net/netip"
	"slices"

	"github.com/fairlead/fairlead/internal/fwd"
	"github.com/fairlead/fairlead/internal/host/xtables/rulesim"
)

// Options are the options of the renderer that Expect depends on.
type Options struct {
	// Divert is --ipvs-vip=mark, Route --ipvs-vip=route; neither is address.
	Divert, Route bool
	HairpinBPF    bool
	Exclude       []netip.Prefix
}

// Expect returns what mode ipvs should do with a packet, given what the table asks for. It may
// change the slice. It returns nil if the packet's source or endpoint has an address that is the
// node's now (address-of-others).
func (o Options) Expect(t *fwd.Table, p fwd.Packet, want []rulesim.Result) []rulesim.Result {
	l := t.Lookup(p)
	if p.Src.IsValid() && fwd.FamilyOf(p.Src) == fwd.FamilyOf(p.Dst.Addr()) {
		want = o.expect(t, p, l, want)
	}
	byIPVS := p.InInterface == "" && l.Owner != fwd.ServicePort{} // refused-by-icmp
	for i := range want {
		want[i].Reset = want[i].Verdict == fwd.VerdictReject && p.Proto == fwd.TCP && !byIPVS
	}
	return want
}

func only(v fwd.Verdict) []rulesim.Result { return []rulesim.Result{{Verdict: v, Probability: 1}} }

func (o Options) expect(t *fwd.Table, p fwd.Packet, l fwd.Outcome, want []rulesim.Result) []rulesim.Result {
	h, dst := t.Header(), p.Dst.Addr()
	switch {
	case o.excluded(dst), // excluded
		l.Key.IsNodePort() && (dst.IsLoopback() || dst.IsLinkLocalUnicast()): // loopback-node-ports, link-local-node-ports
		return only(fwd.VerdictPass)
	case l.Owner == fwd.ServicePort{}: // other-ports
		if o.rejects(t, &h, dst) {
			return only(fwd.VerdictReject)
		}
		return only(fwd.VerdictPass)
	case !o.Divert && o.takesOthers(t, &h, p.Src, want): // address-of-others
		return nil
	case l.Reason == fwd.ReasonSourceRanges:
		return want
	}
	f := t.Frontend(l.Key)
	route := f.Routes[l.Class]
	_, forwards := primary(f)
	switch {
	case route.Action == fwd.Reject && forwards: // drop-for-reject
		return only(fwd.VerdictDrop)
	case route.Action == fwd.Forward:
		return o.forward(t, &h, p, f, route, want)
	}
	return want
}

// forward is expect for packets that are forwarded.
func (o Options) forward(t *fwd.Table, h *fwd.Header, p fwd.Packet, f *fwd.Frontend, route fwd.Route, want []rulesim.Result) []rulesim.Result {
	if first, _ := primary(f); f.Pool(route) != first && !o.canRedirect(t, h, f) { // no-alternate
		want = nil
		for _, e := range t.Pool(first).Endpoints {
			want = append(want, rulesim.Result{Verdict: fwd.VerdictForward, Endpoint: e.Addr, Masquerade: route.Masquerade || e.Addr.Addr() == p.Src,
				Probability: float64(e.Weight) / total(t.Pool(first).Endpoints)})
		}
	}
	if !o.HairpinBPF { // hairpin-local
		for i := range want {
			want[i].Masquerade = route.Masquerade || want[i].Masquerade && local(t, p.Proto, want[i].Endpoint)
		}
	}
	if p.Src.IsLoopback() { // loopback-source
		lost := 0.0
		want = slices.DeleteFunc(want, func(r rulesim.Result) bool {
			if h.IsLocal(r.Endpoint.Addr()) {
				return false
			}
			lost += r.Probability
			return true
		})
		if lost > 0 {
			want = append(want, rulesim.Result{Verdict: fwd.VerdictDrop, Probability: lost})
		}
	}
	return want
}

// takesOthers reports whether the source of a packet, or an endpoint that it may go to, has an
// address of Services.
func (o Options) takesOthers(t *fwd.Table, h *fwd.Header, src netip.Addr, want []rulesim.Result) bool {
	return slices.ContainsFunc(t.VIPs(), func(v fwd.VIP) bool {
		return !h.IsLocal(v.Addr) && !o.excluded(v.Addr) &&
			(v.Addr == src || slices.ContainsFunc(want, func(r rulesim.Result) bool { return r.Endpoint.Addr() == v.Addr }))
	})
}

func total(es []fwd.Endpoint) (sum float64) {
	for _, e := range es {
		sum += float64(e.Weight)
	}
	return sum
}

func (o Options) excluded(a netip.Addr) bool {
	return slices.ContainsFunc(o.Exclude, func(p netip.Prefix) bool { return p.Contains(a) })
}

// rejects reports whether packets to this address are rejected if they are not to a frontend.
func (o Options) rejects(t *fwd.Table, h *fwd.Header, dst netip.Addr) bool {
	if h.IsLocal(dst) {
		return false
	}
	if o.Divert || o.Route {
		for _, c := range h.ServiceCIDRs[fwd.FamilyOf(dst).Index()] {
			if c.Contains(dst) && !slices.ContainsFunc(o.Exclude, c.Overlaps) && !slices.ContainsFunc(h.LocalAddrs, c.Contains) {
				return true
			}
		}
	}
	return !o.Divert && slices.ContainsFunc(t.VIPs(), func(v fwd.VIP) bool { return v.Addr == dst })
}

// primary is the pool of the first class that is forwarded.
func primary(f *fwd.Frontend) (fwd.PoolKey, bool) {
	for _, c := range []fwd.Class{fwd.Outside, fwd.Pod, fwd.Host} {
		if r := f.Routes[c]; r.Action == fwd.Forward {
			return f.Pool(r), true
		}
	}
	return fwd.PoolKey{}, false
}

// canRedirect reports whether there is an address for a second virtual server: an address of the
// same service port that is not the node's. (A cluster IP that is the node's may have the pool
// already.)
func (o Options) canRedirect(t *fwd.Table, h *fwd.Header, f *fwd.Frontend) bool {
	mine, _ := primary(f)
	for _, other := range t.Fragment(f.Owner.Service).Frontends {
		if other.Owner != f.Owner || other.Key.Family != f.Key.Family || other.Key.IsNodePort() || o.excluded(other.Key.Addr) {
			continue
		}
		theirs, ok := primary(&other)
		if !h.IsLocal(other.Key.Addr) || other.Kind == fwd.ClusterIP && ok && theirs != mine {
			return true
		}
	}
	return false
}

// local reports whether the endpoint is one that a pool of the table calls local.
func local(t *fwd.Table, proto fwd.Proto, ep netip.AddrPort) bool {
	for f := range t.Services() {
		for _, p := range f.Pools {
			if p.Key.Port.Proto == proto && slices.ContainsFunc(p.Endpoints, func(e fwd.Endpoint) bool { return e.Addr == ep && e.Local }) {
				return true
			}
		}
	}
	return false
}

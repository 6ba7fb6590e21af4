package fwd

import (
	"net/netip"
)

// Packet is the first packet of a connection, as it reaches this node or as the node sends it.
type Packet struct {
	Src netip.Addr
	// Dst is the address and port that the client dials.
	Dst   netip.AddrPort
	Proto Proto
	// InInterface is the name of the interface on which the packet arrived; empty for a packet that
	// this host sends.
	InInterface string
	// FromHost says that this host sends the packet, also where Header.LocalAddrs does not name its
	// source: the kernel may choose a virtual IP that the node owns (mode ipvs).
	FromHost bool
}

// Verdict is the fate of a packet.
type Verdict uint8

// The verdicts. Pass means that the Service datapath does not touch the packet.
const (
	VerdictPass Verdict = iota
	VerdictDrop
	VerdictReject
	VerdictForward
)

func (v Verdict) String() string { return [...]string{"pass", "drop", "reject", "forward"}[v] }

// Outcome is what the node does with a packet.
type Outcome struct {
	Verdict Verdict
	// Class is the class of the packet's source.
	Class Class
	// Endpoints are those that may be chosen, each with positive probability; sorted, and only for
	// VerdictForward.
	Endpoints []Endpoint
	// Masquerade says that the source is rewritten for every endpoint. Hairpin connections are also
	// masqueraded, see MasqueradeTo.
	Masquerade bool
	// AffinitySec is the pool's session affinity in seconds; 0 for none.
	AffinitySec uint32
	// Key and Owner are of the frontend that matched; Owner is the zero ServicePort where none did.
	Key    Key
	Owner  ServicePort
	Reason Reason
}

// MasqueradeTo says whether the source is rewritten when the connection goes to that endpoint.
func (o *Outcome) MasqueradeTo(src netip.Addr, ep netip.AddrPort) bool {
	return o.Verdict == VerdictForward && (o.Masquerade || ep.Addr() == src)
}

// Class returns the class of a packet's source on this node.
func (h *Header) Class(p Packet) Class {
	switch {
	case h.Detector[FamilyOf(p.Dst.Addr()).Index()].Matches(p.Src, p.InInterface):
		return Pod
	case p.FromHost || h.IsLocal(p.Src):
		return Host
	}
	return Outside
}

// Lookup says what the node does with a packet that opens a connection. It is the reference for
// every backend. A packet whose addresses are of different families passes.
func (t *Table) Lookup(p Packet) Outcome {
	out := Outcome{Class: t.header.Class(p)}
	if dst := p.Dst.Addr(); !dst.IsValid() || !p.Src.IsValid() || FamilyOf(p.Src) != FamilyOf(dst) {
		return out
	}
	f := t.match(p)
	if f == nil {
		out.Verdict, out.Reason = t.unmatched(p)
		return out
	}
	out.Key, out.Owner = f.Key, f.Owner
	if !f.Admits(p.Src) {
		out.Verdict, out.Reason = VerdictDrop, ReasonSourceRanges
		return out
	}
	r := f.Routes[out.Class]
	out.Reason = r.Reason
	switch r.Action {
	case Drop:
		out.Verdict = VerdictDrop
	case Reject:
		out.Verdict = VerdictReject
	case Forward:
		pool := t.Pool(f.Pool(r))
		out.Verdict, out.Masquerade = VerdictForward, r.Masquerade
		out.Endpoints, out.AffinitySec = pool.Endpoints, pool.AffinitySec
	}
	return out
}

// match returns the frontend that a packet is sent to, or nil: the one of its address and port, or
// else of the node port.
func (t *Table) match(p Packet) *Frontend {
	dst := p.Dst.Addr()
	k := Key{Family: FamilyOf(dst), Addr: dst, Proto: p.Proto, Port: p.Dst.Port()}
	if f := t.Frontend(k); f != nil {
		return f
	}
	fromHost := p.FromHost || t.header.IsLocal(p.Src)
	if !t.header.IsLocal(dst) || !t.header.NodePorts[k.Family.Index()].Serves(dst, fromHost) {
		return nil
	}
	k.Addr = netip.Addr{}
	return t.Frontend(k)
}

// unmatched says what happens to a packet that is sent to no frontend.
func (t *Table) unmatched(p Packet) (Verdict, Reason) {
	dst := p.Dst.Addr()
	isClusterIP := t.vips[dst].clusterIP > 0
	switch {
	case dst.IsLoopback():
		// Serving node ports on 127.0.0.0/8 needs route_localnet, which would let neighbours reach
		// loopback sockets; that is closed again here (CVE-2020-8558).
		if t.header.NodePorts[FamilyOf(dst).Index()].Loopback && !p.Src.IsLoopback() {
			return VerdictDrop, ReasonLoopback
		}
	case t.header.IsLocal(dst):
		// If an interface of this host has the address, it is the host's own.
	case isClusterIP && t.header.RejectOtherPorts:
		return VerdictReject, ReasonOtherPort
	case !isClusterIP && t.header.DropUnallocated && t.header.inServiceCIDR(dst):
		return VerdictDrop, ReasonUnallocated
	}
	return VerdictPass, ReasonNotService
}

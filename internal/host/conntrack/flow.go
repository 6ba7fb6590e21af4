package conntrack

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/internal/host/netlink"
)

// Flow is an entry of the table. Port numbers are 0 for protocols without ports.
type Flow struct {
	// Proto is the transport protocol by its IANA number.
	Proto uint8
	// OrigSrc and OrigDst are those of the first packet, before NAT.
	OrigSrc, OrigDst netip.AddrPort
	// ReplySrc and ReplyDst are what answers have: ReplySrc is where packets really go, ReplyDst
	// the client as the other side sees it. Without NAT they are OrigDst and OrigSrc.
	ReplySrc, ReplyDst netip.AddrPort
	// Zone is the conntrack zone of both directions, 0 for the default one.
	Zone uint16
	// OrigZone is the zone of the original direction, if only that direction is in a zone.
	OrigZone uint16
	// ID is the kernel's number of the entry.
	ID uint32
	// Opening says that it is a TCP connection with only SYNs of the client so far.
	Opening bool
}

// IPv6 reports whether it is a flow of IPv6.
func (f *Flow) IPv6() bool { return f.OrigDst.Addr().Is6() }

// Attributes of a conntrack message.
const (
	ctaTupleOrig  = 1
	ctaTupleReply = 2
	ctaStatus     = 3
	ctaProtoInfo  = 4
	ctaTimeout    = 7
	ctaID         = 12
	ctaZone       = 18
	ctaFilter     = 25
	ctaStatusMask = 26

	ctaTupleIP    = 1
	ctaTupleProto = 2
	ctaTupleZone  = 3

	ctaIPv4Src = 1
	ctaIPv4Dst = 2
	ctaIPv6Src = 3
	ctaIPv6Dst = 4

	ctaProtoNum = 1
	ctaPortSrc  = 2
	ctaPortDst  = 3

	ctaProtoInfoTCP      = 1
	ctaProtoInfoTCPState = 1

	// statusSeenReply is a bit of CTA_STATUS (enum ip_conntrack_status), tcpSynSent a state of TCP
	// (enum tcp_conntrack).
	statusSeenReply = 1 << 1
	tcpSynSent      = 1

	ctaFilterOrigFlags = 1
	// Flags of CTA_FILTER_ORIG_FLAGS: the parts of the original tuple to compare.
	filterIPDst    = 1 << 1
	filterProtoNum = 1 << 3
	filterPortDst  = 1 << 5
)

// decode decodes the attributes of a message about an entry. It does not allocate.
func decode(attrs []byte) (Flow, error) {
	var f Flow
	var orig, reply tuple
	var status uint32
	var tcpState uint8
	err := netlink.Each(attrs, func(a netlink.Attr) error {
		switch a.Type {
		case ctaTupleOrig:
			return orig.decode(a.Data)
		case ctaTupleReply:
			return reply.decode(a.Data)
		case ctaZone:
			return be16(a.Data, &f.Zone)
		case ctaStatus:
			return be32(a.Data, &status)
		case ctaProtoInfo:
			return decodeTCPState(a.Data, &tcpState)
		case ctaID:
			return be32(a.Data, &f.ID)
		}
		return nil
	})
	if err != nil {
		return Flow{}, err
	}
	if !orig.src.IsValid() || !orig.dst.IsValid() || !reply.src.IsValid() || !reply.dst.IsValid() {
		return Flow{}, netlink.ErrMalformed
	}
	f.Proto, f.OrigZone = orig.proto, orig.zone
	f.Opening = f.Proto == unix.IPPROTO_TCP && tcpState == tcpSynSent && status&statusSeenReply == 0
	f.OrigSrc, f.OrigDst = netip.AddrPortFrom(orig.src, orig.srcPort), netip.AddrPortFrom(orig.dst, orig.dstPort)
	f.ReplySrc, f.ReplyDst = netip.AddrPortFrom(reply.src, reply.srcPort), netip.AddrPortFrom(reply.dst, reply.dstPort)
	return f, nil
}

// tuple is one direction of an entry.
type tuple struct {
	src, dst         netip.Addr
	proto            uint8
	srcPort, dstPort uint16
	zone             uint16
}

func (t *tuple) decode(b []byte) error {
	return netlink.Each(b, func(a netlink.Attr) error {
		switch a.Type {
		case ctaTupleIP:
			return netlink.Each(a.Data, t.decodeIP)
		case ctaTupleProto:
			return netlink.Each(a.Data, t.decodeProto)
		case ctaTupleZone:
			return be16(a.Data, &t.zone)
		}
		return nil
	})
}

func (t *tuple) decodeIP(a netlink.Attr) error {
	typ, b := a.Type, a.Data
	to := &t.src
	if typ == ctaIPv4Dst || typ == ctaIPv6Dst {
		to = &t.dst
	}
	switch {
	case (typ == ctaIPv4Src || typ == ctaIPv4Dst) && len(b) == 4:
		*to = netip.AddrFrom4([4]byte(b))
	case (typ == ctaIPv6Src || typ == ctaIPv6Dst) && len(b) == 16:
		*to = netip.AddrFrom16([16]byte(b))
	case typ >= ctaIPv4Src && typ <= ctaIPv6Dst:
		return netlink.ErrMalformed
	}
	return nil
}

func (t *tuple) decodeProto(a netlink.Attr) error {
	switch a.Type {
	case ctaProtoNum:
		if len(a.Data) != 1 {
			return netlink.ErrMalformed
		}
		t.proto = a.Data[0]
	case ctaPortSrc:
		return be16(a.Data, &t.srcPort)
	case ctaPortDst:
		return be16(a.Data, &t.dstPort)
	}
	return nil
}

// decodeTCPState decodes the state of a TCP connection in CTA_PROTOINFO; other protocols have other
// attributes there.
func decodeTCPState(b []byte, to *uint8) error {
	return netlink.Each(b, func(a netlink.Attr) error {
		if a.Type != ctaProtoInfoTCP {
			return nil
		}
		return netlink.Each(a.Data, func(a netlink.Attr) error {
			if a.Type != ctaProtoInfoTCPState {
				return nil
			}
			if len(a.Data) != 1 {
				return netlink.ErrMalformed
			}
			*to = a.Data[0]
			return nil
		})
	})
}

func be32(b []byte, to *uint32) error {
	if len(b) != 4 {
		return netlink.ErrMalformed
	}
	*to = binary.BigEndian.Uint32(b)
	return nil
}

func be16(b []byte, to *uint16) error {
	if len(b) != 2 {
		return netlink.ErrMalformed
	}
	*to = binary.BigEndian.Uint16(b)
	return nil
}

// appendTuple appends one direction of an entry.
func appendTuple(b []byte, typ uint16, proto uint8, src, dst netip.AddrPort, zone uint16) []byte {
	return netlink.AppendNest(b, typ, func(b []byte) []byte {
		b = netlink.AppendNest(b, ctaTupleIP, func(b []byte) []byte {
			s, d := uint16(ctaIPv4Src), uint16(ctaIPv4Dst)
			if dst.Addr().Is6() {
				s, d = ctaIPv6Src, ctaIPv6Dst
			}
			return netlink.AppendAttr(netlink.AppendAttr(b, s, src.Addr().AsSlice()...), d, dst.Addr().AsSlice()...)
		})
		b = netlink.AppendNest(b, ctaTupleProto, func(b []byte) []byte {
			b = netlink.AppendAttr(b, ctaProtoNum, proto)
			b = netlink.AppendNet16(b, ctaPortSrc, src.Port())
			return netlink.AppendNet16(b, ctaPortDst, dst.Port())
		})
		return appendZone(b, ctaTupleZone, zone)
	})
}

// appendZone appends a zone unless it is the default one, which must not be sent.
func appendZone(b []byte, typ, zone uint16) []byte {
	if zone == 0 {
		return b
	}
	return netlink.AppendNet16(b, typ, zone)
}

// appendKey appends what identifies an entry.
func appendKey(b []byte, f *Flow) []byte {
	b = appendTuple(b, ctaTupleOrig, f.Proto, f.OrigSrc, f.OrigDst, f.OrigZone)
	b = appendZone(b, ctaZone, f.Zone)
	return netlink.AppendNet32(b, ctaID, f.ID)
}

// appendFilter asks the kernel to send only what a query matches. Of an IPv6 destination only the
// port is asked for: a kernel that is asked for an address sends all other flows instead (seen with
// 6.18).
func appendFilter(b []byte, q Query) []byte {
	flags := uint32(filterProtoNum)
	b = netlink.AppendNest(b, ctaTupleOrig, func(b []byte) []byte {
		if q.Dst.Addr().Is4() {
			flags |= filterIPDst
			b = netlink.AppendNest(b, ctaTupleIP, func(b []byte) []byte {
				return netlink.AppendAttr(b, ctaIPv4Dst, q.Dst.Addr().AsSlice()...)
			})
		}
		return netlink.AppendNest(b, ctaTupleProto, func(b []byte) []byte {
			b = netlink.AppendAttr(b, ctaProtoNum, q.Proto)
			if q.Dst.IsValid() {
				flags |= filterPortDst
				b = netlink.AppendNet16(b, ctaPortDst, q.Dst.Port())
			}
			return b
		})
	})
	b = netlink.AppendNest(b, ctaFilter, func(b []byte) []byte {
		return netlink.AppendUint32(b, ctaFilterOrigFlags, flags)
	})
	if q.Opening { // no reply was seen
		b = netlink.AppendNet32(b, ctaStatus, 0)
		b = netlink.AppendNet32(b, ctaStatusMask, statusSeenReply)
	}
	return b
}

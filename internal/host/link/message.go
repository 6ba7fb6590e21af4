package link

import (
	"cmp"
	"encoding/binary"
	"math"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/internal/host/netlink"
)

// Attributes of rules, linux/fib_rules.h.
const (
	fraPriority = 6
	fraFwmark   = 10
	fraTable    = 15
	fraFwmask   = 16
	fraProtocol = 21
	// ruleToTable is the action for routing by a table (FR_ACT_TO_TBL).
	ruleToTable = 1
)

// header is the header of routes (rtmsg) and of rules (fib_rule_hdr), which agree in the fields
// used here. In rules protocol and scope are reserved, and kind is the action.
type header struct {
	family, dstLen, table, protocol, scope, kind byte
}

func (h header) bytes() []byte {
	return append(make([]byte, 0, 96), h.family, h.dstLen, 0, 0, h.table, h.protocol, h.scope, h.kind, 0, 0, 0, 0)
}

func familyOf(ipv6 bool) byte {
	if ipv6 {
		return unix.AF_INET6
	}
	return unix.AF_INET
}

// owner is the argument of Open.
type owner uint32

func (o owner) protocol() byte {
	if o == 0 {
		return Protocol
	}
	return OwnedProtocol
}

// request encodes a valid change; dev is the index of the object's device.
func (o owner) request(c Change, dev int) (r netlink.Request) {
	var del uint16
	switch obj := c.Object.(type) {
	case Addr:
		r.Type, del, r.Body = unix.RTM_NEWADDR, unix.RTM_DELADDR, obj.body(dev)
	case Route:
		r.Type, del, r.Body = unix.RTM_NEWROUTE, unix.RTM_DELROUTE, obj.body(dev, o)
	case Rule:
		r.Type, del, r.Body = unix.RTM_NEWRULE, unix.RTM_DELRULE, obj.body(o)
	default:
		panic("BUG: a change of an unknown kind of object")
	}
	if c.Del {
		r.Type = del
	} else {
		r.Flags = unix.NLM_F_CREATE | unix.NLM_F_EXCL
	}
	return r
}

func (a Addr) body(dev int) []byte {
	ip := a.Prefix.Addr()
	b := append(make([]byte, 0, 64), familyOf(ip.Is6()), byte(a.Prefix.Bits()), 0, unix.RT_SCOPE_LINK)
	b = binary.NativeEndian.AppendUint32(b, uint32(dev))
	b = netlink.AppendAttr(b, unix.IFA_LOCAL, ip.AsSlice()...)
	b = netlink.AppendAttr(b, unix.IFA_ADDRESS, ip.AsSlice()...)
	if ip.Is6() {
		b = netlink.AppendUint32(b, unix.IFA_FLAGS, unix.IFA_F_NODAD|unix.IFA_F_NOPREFIXROUTE)
		// struct ifa_cacheinfo: preferred for 0 s, valid forever. Such an address is deprecated
		// (RFC 6724, rule 3): the kernel uses it as source only for packets to itself. In IPv4 the
		// scope has this effect; in IPv6 the address determines the scope.
		lifetimes := binary.NativeEndian.AppendUint32(make([]byte, 4, 16), math.MaxUint32)
		b = netlink.AppendAttr(b, unix.IFA_CACHEINFO, append(lifetimes, make([]byte, 8)...)...)
	}
	return b
}

func (r Route) body(dev int, own owner) []byte {
	b := header{
		family: familyOf(r.Dst.Addr().Is6()), dstLen: byte(r.Dst.Bits()), protocol: own.protocol(), scope: unix.RT_SCOPE_HOST, kind: unix.RTN_LOCAL,
	}.bytes()
	if r.Dst.Bits() > 0 {
		b = netlink.AppendAttr(b, unix.RTA_DST, r.Dst.Addr().AsSlice()...)
	}
	b = netlink.AppendUint32(b, unix.RTA_OIF, uint32(dev))
	b = netlink.AppendUint32(b, unix.RTA_TABLE, r.Table)
	if own != 0 {
		b = netlink.AppendUint32(b, unix.RTA_PRIORITY, uint32(own))
	}
	if r.Src.IsValid() {
		b = netlink.AppendAttr(b, unix.RTA_PREFSRC, r.Src.AsSlice()...)
	}
	return b
}

func (r Rule) body(own owner) []byte {
	b := header{family: familyOf(r.IPv6), kind: ruleToTable}.bytes()
	b = netlink.AppendUint32(b, fraPriority, r.Priority)
	b = netlink.AppendUint32(b, fraFwmark, r.Mark)
	b = netlink.AppendUint32(b, fraFwmask, r.Mask)
	b = netlink.AppendUint32(b, fraTable, r.Table)
	return netlink.AppendAttr(b, fraProtocol, own.protocol())
}

// address is an address as read from the kernel.
type address struct {
	index  int
	scope  byte
	flags  uint32
	prefix netip.Prefix
}

// global reports whether the kernel may use the address as source of packets to other hosts.
func (a address) global() bool {
	if a.prefix.Addr().Is4() {
		return a.scope != unix.RT_SCOPE_LINK
	}
	return a.flags&unix.IFA_F_DEPRECATED == 0 && !a.prefix.Addr().IsLinkLocalUnicast()
}

// decodeAddr decodes RTM_NEWADDR and RTM_DELADDR. For other messages the prefix is not valid.
func decodeAddr(m netlink.Message) (address, error) {
	if m.Type != unix.RTM_NEWADDR && m.Type != unix.RTM_DELADDR {
		return address{}, nil
	}
	if len(m.Body) < unix.SizeofIfAddrmsg {
		return address{}, netlink.ErrMalformed
	}
	attrs, err := netlink.AttrMap(m.Body[unix.SizeofIfAddrmsg:])
	if err != nil {
		return address{}, err
	}
	a := address{scope: m.Body[3], index: int(binary.NativeEndian.Uint32(m.Body[4:])), flags: attrs[unix.IFA_FLAGS].Host32()}
	// On a point-to-point link IFA_ADDRESS is the address of the peer, and IFA_LOCAL the own one.
	for _, typ := range []uint16{unix.IFA_LOCAL, unix.IFA_ADDRESS} {
		if ip, ok := netip.AddrFromSlice(attrs[typ].Data); ok {
			a.prefix = netip.PrefixFrom(ip, int(m.Body[1]))
			break
		}
	}
	return a, nil
}

// decodeRoute decodes RTM_NEWROUTE and RTM_DELROUTE. ours is false for routes that this package
// would not add.
func (o owner) decodeRoute(m netlink.Message) (r Route, oif int, ours bool, err error) {
	if m.Type != unix.RTM_NEWROUTE && m.Type != unix.RTM_DELROUTE {
		return Route{}, 0, false, nil
	}
	if len(m.Body) < unix.SizeofRtMsg {
		return Route{}, 0, false, netlink.ErrMalformed
	}
	if m.Body[5] != o.protocol() || m.Body[7] != unix.RTN_LOCAL {
		return Route{}, 0, false, nil
	}
	attrs, err := netlink.AttrMap(m.Body[unix.SizeofRtMsg:])
	if err != nil {
		return Route{}, 0, false, err
	}
	dst, ok := netip.AddrFromSlice(attrs[unix.RTA_DST].Data)
	if !ok {
		dst = netip.IPv4Unspecified()
		if m.Body[0] == unix.AF_INET6 {
			dst = netip.IPv6Unspecified()
		}
	}
	r.Dst = netip.PrefixFrom(dst, int(m.Body[1]))
	r.Src, _ = netip.AddrFromSlice(attrs[unix.RTA_PREFSRC].Data)
	// RTA_TABLE is for tables that the header has no space for.
	r.Table = cmp.Or(attrs[unix.RTA_TABLE].Host32(), uint32(m.Body[4]))
	ours = r.Dst.IsValid() && (o == 0 || owner(attrs[unix.RTA_PRIORITY].Host32()) == o)
	return r, int(attrs[unix.RTA_OIF].Host32()), ours, nil
}

// decodeRule decodes RTM_NEWRULE and RTM_DELRULE. ours is false for rules that this package would
// not add.
func (o owner) decodeRule(m netlink.Message) (r Rule, ours bool, err error) {
	if m.Type != unix.RTM_NEWRULE && m.Type != unix.RTM_DELRULE {
		return Rule{}, false, nil
	}
	if len(m.Body) < unix.SizeofRtMsg {
		return Rule{}, false, netlink.ErrMalformed
	}
	attrs, err := netlink.AttrMap(m.Body[unix.SizeofRtMsg:])
	if err != nil {
		return Rule{}, false, err
	}
	r = Rule{
		IPv6:     m.Body[0] == unix.AF_INET6,
		Priority: attrs[fraPriority].Host32(),
		Mark:     attrs[fraFwmark].Host32(),
		Mask:     attrs[fraFwmask].Host32(),
		Table:    cmp.Or(attrs[fraTable].Host32(), uint32(m.Body[4])),
	}
	protocol := attrs[fraProtocol].Data
	ours = len(protocol) > 0 && protocol[0] == o.protocol() && m.Body[7] == ruleToTable
	return r, ours && (o == 0 || r.Table == uint32(o)), nil
}

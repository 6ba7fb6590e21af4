package link

import (
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
	// ruleToTable is the action that looks into a table (FR_ACT_TO_TBL).
	ruleToTable = 1
)

// header is that of routes (rtmsg) and of rules (fib_rule_hdr), which agree in what is used here; the third and fourth
// last byte are reserved in the latter, and the last is its action.
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

// owner is the number of OpenFor.
type owner uint32

func (o owner) protocol() byte {
	if o == 0 {
		return Protocol
	}
	return OwnedProtocol
}

// request is that of a change that is valid; dev is the index of the object's device.
func (own owner) request(c Change, dev int) netlink.Request {
	flags := uint16(unix.NLM_F_CREATE | unix.NLM_F_EXCL)
	if c.Del {
		flags = 0
	}
	pick := func(add, del uint16) uint16 {
		if c.Del {
			return del
		}
		return add
	}
	switch o := c.Object.(type) {
	case Addr:
		return netlink.Request{Type: pick(unix.RTM_NEWADDR, unix.RTM_DELADDR), Flags: flags, Body: o.body(dev)}
	case Route:
		return netlink.Request{Type: pick(unix.RTM_NEWROUTE, unix.RTM_DELROUTE), Flags: flags, Body: o.body(dev, own)}
	case Rule:
		return netlink.Request{Type: pick(unix.RTM_NEWRULE, unix.RTM_DELRULE), Flags: flags, Body: o.body(own)}
	}
	panic("BUG: a change of an unknown kind of object")
}

func (a Addr) body(dev int) []byte {
	ip := a.Prefix.Addr()
	b := append(make([]byte, 0, 64), familyOf(ip.Is6()), byte(a.Prefix.Bits()), 0, unix.RT_SCOPE_LINK)
	b = binary.NativeEndian.AppendUint32(b, uint32(dev))
	b = netlink.AppendAttr(b, unix.IFA_LOCAL, ip.AsSlice()...)
	b = netlink.AppendAttr(b, unix.IFA_ADDRESS, ip.AsSlice()...)
	if ip.Is6() {
		b = netlink.AppendUint32(b, unix.IFA_FLAGS, unix.IFA_F_NODAD|unix.IFA_F_NOPREFIXROUTE)
		// struct ifa_cacheinfo: preferred for 0 s, valid for ever. Such an address is deprecated (RFC 6724, rule 3): the kernel
		// takes it as a source only of what is sent to that address itself. The scope, which has this effect in IPv4, follows
		// from the address in IPv6.
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

// address is an address as it was read.
type address struct {
	index  int
	scope  byte
	flags  uint32
	prefix netip.Prefix
}

// global says whether the kernel may choose the address as the source of packets to elsewhere.
func (a address) global() bool {
	if a.prefix.Addr().Is4() {
		return a.scope != unix.RT_SCOPE_LINK
	}
	return a.flags&unix.IFA_F_DEPRECATED == 0 && !a.prefix.Addr().IsLinkLocalUnicast()
}

// decodeAddr reads RTM_NEWADDR and RTM_DELADDR; the prefix of other messages is not valid.
func decodeAddr(m netlink.Message) (address, error) {
	if m.Type != unix.RTM_NEWADDR && m.Type != unix.RTM_DELADDR {
		return address{}, nil
	}
	if len(m.Body) < unix.SizeofIfAddrmsg {
		return address{}, netlink.ErrMalformed
	}
	a := address{scope: m.Body[3], index: int(binary.NativeEndian.Uint32(m.Body[4:]))}
	local := false
	for at, err := range netlink.Attrs(m.Body[unix.SizeofIfAddrmsg:]) {
		if err != nil {
			return address{}, err
		}
		if at.Type == unix.IFA_FLAGS && len(at.Data) == 4 {
			a.flags = binary.NativeEndian.Uint32(at.Data)
		}
		// IFA_ADDRESS is the other end of a point-to-point link, where IFA_LOCAL is there too.
		if at.Type == unix.IFA_LOCAL || at.Type == unix.IFA_ADDRESS && !local {
			if ip, ok := netip.AddrFromSlice(at.Data); ok {
				a.prefix = netip.PrefixFrom(ip, int(m.Body[1]))
			}
			local = at.Type == unix.IFA_LOCAL
		}
	}
	return a, nil
}

// decodeRoute reads RTM_NEWROUTE and RTM_DELROUTE. ours is false for routes that this package would not make.
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
	dst := netip.IPv4Unspecified()
	if m.Body[0] == unix.AF_INET6 {
		dst = netip.IPv6Unspecified()
	}
	r.Table = uint32(m.Body[4])
	metric := owner(0)
	for a, err := range netlink.Attrs(m.Body[unix.SizeofRtMsg:]) {
		if err != nil {
			return Route{}, 0, false, err
		}
		switch ip, isIP := netip.AddrFromSlice(a.Data); {
		case a.Type == unix.RTA_DST && isIP:
			dst = ip
		case a.Type == unix.RTA_PREFSRC && isIP:
			r.Src = ip
		case a.Type == unix.RTA_OIF:
			oif = int(a.Host32())
		case a.Type == unix.RTA_TABLE:
			r.Table = a.Host32()
		case a.Type == unix.RTA_PRIORITY:
			metric = owner(a.Host32())
		}
	}
	r.Dst = netip.PrefixFrom(dst, int(m.Body[1]))
	return r, oif, r.Dst.IsValid() && (o == 0 || metric == o), nil
}

// decodeRule reads RTM_NEWRULE and RTM_DELRULE. ours is false for rules that this package would not make.
func (o owner) decodeRule(m netlink.Message) (r Rule, ours bool, err error) {
	if m.Type != unix.RTM_NEWRULE && m.Type != unix.RTM_DELRULE {
		return Rule{}, false, nil
	}
	if len(m.Body) < unix.SizeofRtMsg {
		return Rule{}, false, netlink.ErrMalformed
	}
	r = Rule{IPv6: m.Body[0] == unix.AF_INET6, Table: uint32(m.Body[4])}
	for a, err := range netlink.Attrs(m.Body[unix.SizeofRtMsg:]) {
		if err != nil {
			return Rule{}, false, err
		}
		switch a.Type {
		case fraPriority:
			r.Priority = a.Host32()
		case fraFwmark:
			r.Mark = a.Host32()
		case fraFwmask:
			r.Mask = a.Host32()
		case fraTable:
			r.Table = a.Host32()
		case fraProtocol:
			ours = len(a.Data) > 0 && a.Data[0] == o.protocol() && m.Body[7] == ruleToTable
		}
	}
	return r, ours && (o == 0 || r.Table == uint32(o)), nil
}

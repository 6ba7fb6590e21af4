package ipset

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/internal/host/netlink"
)

// What follows is in linux/netfilter/ipset/ip_set.h.

// protocol is the oldest version that kernels speak; what came later is not needed here.
const protocol = 6

// Commands.
const (
	cmdCreate  = 2
	cmdDestroy = 3
	cmdSwap    = 6
	cmdList    = 7
	cmdAdd     = 9
	cmdDel     = 10
)

// Attributes of a command.
const (
	attrProtocol = 1
	attrSetname  = 2
	attrTypename = 3
	attrSetname2 = 3
	attrRevision = 4
	attrFamily   = 5
	attrFlags    = 6
	attrData     = 7
	attrADT      = 8
)

// Attributes of a set and of an entry.
const (
	attrIP        = 1
	attrCIDR      = 3
	attrPort      = 4
	attrPortTo    = 5
	attrTimeout   = 6
	attrProto     = 7
	attrCADTFlags = 8
	attrHashsize  = 18
	attrMaxelem   = 19
	attrNetmask   = 20
	attrIP2       = 20
	attrCIDR2     = 21
	attrElements  = 24

	attrIPv4 = 1
	attrIPv6 = 2
)

// Flags of a list.
const (
	flagListSetname = 1 << 1
	flagListHeader  = 1 << 2
)

// Error numbers.
const (
	errPrivate      unix.Errno = 4096
	errFindType     unix.Errno = 4098
	errBusy         unix.Errno = 4100
	errSetname2     unix.Errno = 4101 // of a swap: the second set is missing
	errTypeMismatch unix.Errno = 4102
	errExist        unix.Errno = 4103
	errReferenced   unix.Errno = 4108
	errFull         unix.Errno = 4352
)

// revisions are the oldest of each type that do what is needed here (SCTP, in those with ports), so that an ipset program
// older than the kernel can list the sets too.
var revisions = map[Type]byte{HashIPPort: 1, HashIPPortIP: 1, HashIPPortNet: 1}

// newRequest begins a message. With NLM_F_EXCL the kernel refuses to make what is there already and to remove what is not.
// (Without it it lets a set of one family pass for one of the other, so that this package compares settings by itself.)
func newRequest(cmd uint16, ipv6 bool) netlink.Request {
	family := byte(unix.NFPROTO_IPV4)
	if ipv6 {
		family = unix.NFPROTO_IPV6
	}
	return netlink.Request{
		Type: unix.NFNL_SUBSYS_IPSET<<8 | cmd, Flags: unix.NLM_F_EXCL,
		Body: netlink.AppendAttr(netlink.NetfilterHeader(family), attrProtocol, protocol),
	}
}

func nameRequest(cmd uint16, name string) netlink.Request {
	r := newRequest(cmd, false)
	r.Body = netlink.AppendText(r.Body, attrSetname, name)
	return r
}

// listRequest asks for all sets where name is empty.
func listRequest(name string, flags uint32) netlink.Request {
	r := newRequest(cmdList, false)
	r.Flags = 0 // of another meaning in a dump
	if name != "" {
		r.Body = netlink.AppendText(r.Body, attrSetname, name)
	}
	if flags != 0 {
		r.Body = appendUint32(r.Body, attrFlags, flags)
	}
	return r
}

func createRequest(s Set) netlink.Request {
	r := newRequest(cmdCreate, s.IPv6)
	b := netlink.AppendText(r.Body, attrSetname, s.Name)
	b = netlink.AppendText(b, attrTypename, string(s.Type))
	b = netlink.AppendAttr(b, attrRevision, revisions[s.Type])
	family := r.Body[0]
	if s.Type == BitmapPort {
		family = unix.AF_UNSPEC
	}
	b = netlink.AppendAttr(b, attrFamily, family)
	r.Body = netlink.AppendNest(b, attrData, func(b []byte) []byte {
		if s.Type == BitmapPort {
			b = appendUint16(b, attrPort, 0)
			return appendUint16(b, attrPortTo, 65535)
		}
		b = appendUint32(b, attrHashsize, hashSize)
		return appendUint32(b, attrMaxelem, s.MaxElem)
	})
	return r
}

// changeRequest is that of a change that fits its set.
func changeRequest(ch Change) netlink.Request {
	cmd := uint16(cmdAdd)
	if ch.Del {
		cmd = cmdDel
	}
	r := newRequest(cmd, ch.Set.IPv6)
	b := netlink.AppendText(r.Body, attrSetname, ch.Set.Name)
	e := ch.Entry
	r.Body = netlink.AppendNest(b, attrData, func(b []byte) []byte {
		switch ch.Set.Type {
		case HashNet:
			b = appendIP(b, attrIP, e.Net.Addr())
			return netlink.AppendAttr(b, attrCIDR, byte(e.Net.Bits()))
		case BitmapPort:
			return appendUint16(b, attrPort, e.Port)
		}
		b = appendIP(b, attrIP, e.Addr)
		if e.Proto != 0 {
			b = appendUint16(b, attrPort, e.Port)
			b = netlink.AppendAttr(b, attrProto, e.Proto)
		}
		if e.Net.IsValid() {
			b = appendIP(b, attrIP2, e.Net.Addr())
		}
		if ch.Set.Type == HashIPPortNet {
			b = netlink.AppendAttr(b, attrCIDR2, byte(e.Net.Bits()))
		}
		return b
	})
	return r
}

func appendUint16(b []byte, typ uint16, v uint16) []byte {
	return netlink.AppendAttr(b, typ|unix.NLA_F_NET_BYTEORDER, byte(v>>8), byte(v))
}

func appendUint32(b []byte, typ uint16, v uint32) []byte {
	return netlink.AppendAttr(b, typ|unix.NLA_F_NET_BYTEORDER, binary.BigEndian.AppendUint32(nil, v)...)
}

func appendIP(b []byte, typ uint16, a netip.Addr) []byte {
	kind := uint16(attrIPv4)
	if a.Is6() {
		kind = attrIPv6
	}
	return netlink.AppendNest(b, typ, func(b []byte) []byte {
		return netlink.AppendAttr(b, kind|unix.NLA_F_NET_BYTEORDER, a.AsSlice()...)
	})
}

// listed is a set as it was listed.
type listed struct {
	Content
	// options are settings that this package never makes.
	options []string
	// size is how many entries the kernel says that the set has.
	size uint32
}

// decodeList reads the messages of a list. A large set comes in several, of which the first has the settings.
func decodeList(msgs []netlink.Message) ([]listed, error) {
	var out []listed
	for _, m := range msgs {
		if m.Type != unix.NFNL_SUBSYS_IPSET<<8|cmdList {
			continue
		}
		attrs, err := m.NetfilterAttrs()
		if err != nil {
			return nil, err
		}
		// The name comes before the rest.
		var c *listed
		for a, err := range netlink.Attrs(attrs) {
			switch {
			case err != nil:
				return nil, err
			case a.Type == attrSetname:
				if name := a.Text(); len(out) == 0 || out[len(out)-1].Name != name {
					out = append(out, listed{Content: Content{Set: Set{Name: name}}})
				}
				c = &out[len(out)-1]
			case c == nil && a.Type != attrProtocol:
				return nil, netlink.ErrMalformed
			case a.Type == attrTypename:
				c.Type = Type(a.Text())
			case a.Type == attrFamily && len(a.Data) > 0:
				c.IPv6 = a.Data[0] == unix.AF_INET6
			case a.Type == attrData:
				err = c.decodeSettings(a.Data)
			case a.Type == attrADT:
				err = c.decodeEntries(a.Data)
			}
			if err != nil {
				return nil, err
			}
		}
	}
	return out, nil
}

func (c *listed) decodeSettings(b []byte) error {
	ports := 0
	for a, err := range netlink.Attrs(b) {
		if err != nil {
			return err
		}
		switch n := number(a); a.Type {
		case attrMaxelem:
			c.MaxElem = n
		case attrElements:
			c.size = n
		case attrTimeout:
			c.options = append(c.options, fmt.Sprintf("timeout %d", n))
		case attrCADTFlags:
			c.options = append(c.options, fmt.Sprintf("extensions %#x", n))
		case attrNetmask:
			c.options = append(c.options, fmt.Sprintf("netmask %d", n))
		case attrPort, attrPortTo:
			ports += int(n)
		}
	}
	if c.Type == BitmapPort && ports != 65535 {
		c.options = append(c.options, "a range that is not all ports")
	}
	return nil
}

// number reads one of up to four bytes in network byte order.
func number(a netlink.Attr) (n uint32) {
	for _, b := range a.Data[:min(len(a.Data), 4)] {
		n = n<<8 | uint32(b)
	}
	return n
}

func (c *listed) decodeEntries(b []byte) error {
	if _, _, _, known := c.Type.shape(); !known {
		return nil
	}
	for a, err := range netlink.Attrs(b) {
		if err != nil {
			return err
		}
		if a.Type != attrData {
			continue
		}
		e, err := c.Type.decodeEntry(a.Data)
		if err != nil {
			return err
		}
		c.Entries = append(c.Entries, e)
	}
	return nil
}

func (t Type) decodeEntry(b []byte) (Entry, error) {
	var e Entry
	var ip, ip2 netip.Addr
	cidr := 0
	for a, err := range netlink.Attrs(b) {
		if err != nil {
			return Entry{}, err
		}
		switch a.Type {
		case attrIP:
			if ip, err = decodeIP(a.Data); err != nil {
				return Entry{}, err
			}
		case attrIP2:
			if ip2, err = decodeIP(a.Data); err != nil {
				return Entry{}, err
			}
		case attrCIDR, attrCIDR2:
			cidr = int(number(a))
		case attrPort:
			e.Port = uint16(number(a))
		case attrProto:
			e.Proto = uint8(number(a))
		}
	}
	switch t {
	case HashNet:
		e.Net = netip.PrefixFrom(ip, cidr)
	case HashIPPortNet:
		e.Addr, e.Net = ip, netip.PrefixFrom(ip2, cidr)
	case HashIPPortIP:
		e.Addr, e.Net = ip, netip.PrefixFrom(ip2, ip2.BitLen())
	default:
		e.Addr = ip
	}
	return e, nil
}

func decodeIP(b []byte) (netip.Addr, error) {
	for a, err := range netlink.Attrs(b) {
		if err != nil {
			return netip.Addr{}, err
		}
		if ip, ok := netip.AddrFromSlice(a.Data); ok && (a.Type == attrIPv4 || a.Type == attrIPv6) {
			return ip, nil
		}
	}
	return netip.Addr{}, netlink.ErrMalformed
}

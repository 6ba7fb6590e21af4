package ipset

import (
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/internal/host/netlink"
)

// The constants below are from linux/netfilter/ipset/ip_set.h.

// protocol is the oldest version of the protocol that kernels support; later ones add nothing that
// is needed here.
const protocol = 6

// netOrder marks a number in network byte order.
const netOrder = unix.NLA_F_NET_BYTEORDER

const maxPort = 65535

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
	errSetname2     unix.Errno = 4101 // swap: the second set does not exist
	errTypeMismatch unix.Errno = 4102
	errExist        unix.Errno = 4103
	errReferenced   unix.Errno = 4108
	errFull         unix.Errno = 4352
)

// revisions are the oldest revision of each type with the needed features (SCTP, in types with
// ports), so that an ipset program older than the kernel can list the sets as well.
var revisions = map[Type]byte{HashIPPort: 1, HashIPPortIP: 1, HashIPPortNet: 1}

// newRequest starts a message. With NLM_F_EXCL the kernel refuses to create what exists and to
// remove what does not. Without the flag it takes a set of one family for one of the other, so this
// package compares settings itself.
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

// listRequest requests one set, or all sets if name is empty.
func listRequest(name string, flags uint32) netlink.Request {
	r := newRequest(cmdList, false)
	r.Flags = 0 // NLM_F_EXCL has another meaning in a dump
	if name != "" {
		r.Body = netlink.AppendText(r.Body, attrSetname, name)
	}
	if flags != 0 {
		r.Body = netlink.AppendNet32(r.Body, attrFlags|netOrder, flags)
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
		family = unix.NFPROTO_UNSPEC
	}
	b = netlink.AppendAttr(b, attrFamily, family)
	r.Body = netlink.AppendNest(b, attrData, func(b []byte) []byte {
		if s.Type == BitmapPort {
			b = netlink.AppendNet16(b, attrPort|netOrder, 0)
			return netlink.AppendNet16(b, attrPortTo|netOrder, maxPort)
		}
		b = netlink.AppendNet32(b, attrHashsize|netOrder, HashSize)
		return netlink.AppendNet32(b, attrMaxelem|netOrder, s.MaxElem)
	})
	return r
}

// changeRequest encodes a valid change.
func changeRequest(c Change) netlink.Request {
	cmd := uint16(cmdAdd)
	if c.Del {
		cmd = cmdDel
	}
	r := newRequest(cmd, c.Set.IPv6)
	b := netlink.AppendText(r.Body, attrSetname, c.Set.Name)
	e := c.Entry
	r.Body = netlink.AppendNest(b, attrData, func(b []byte) []byte {
		if e.Addr.IsValid() {
			b = appendIP(b, attrIP, e.Addr)
		}
		if c.Set.Type != HashIP {
			b = netlink.AppendNet16(b, attrPort|netOrder, e.Port)
		}
		if e.Proto != 0 {
			b = netlink.AppendAttr(b, attrProto, e.Proto)
		}
		if e.Net.IsValid() {
			b = appendIP(b, attrIP2, e.Net.Addr())
		}
		if c.Set.Type == HashIPPortNet {
			b = netlink.AppendAttr(b, attrCIDR2, byte(e.Net.Bits()))
		}
		return b
	})
	return r
}

func appendIP(b []byte, typ uint16, a netip.Addr) []byte {
	version := uint16(attrIPv4)
	if a.Is6() {
		version = attrIPv6
	}
	return netlink.AppendNest(b, typ, func(b []byte) []byte {
		return netlink.AppendAttr(b, version|netOrder, a.AsSlice()...)
	})
}

// listed is a set as the kernel lists it.
type listed struct {
	Content
	// options are settings that this package never makes.
	options []string
	// size is the kernel's count of entries.
	size uint32
}

// decodeList decodes the messages of a list. A large set takes several messages; the first one has
// the settings.
func decodeList(msgs []netlink.Message) (sets []listed, err error) {
	for _, m := range msgs {
		if m.Type != unix.NFNL_SUBSYS_IPSET<<8|cmdList {
			continue
		}
		if sets, err = decodeSet(sets, m); err != nil {
			return nil, err
		}
	}
	return sets, nil
}

// decodeSet appends the set of a message, or adds the message's entries to the last set.
func decodeSet(sets []listed, m netlink.Message) ([]listed, error) {
	body, err := m.NetfilterAttrs()
	if err != nil {
		return nil, err
	}
	attrs, err := netlink.AttrMap(body)
	if err != nil {
		return nil, err
	}
	name, ok := attrs[attrSetname]
	if !ok {
		return nil, netlink.ErrMalformed
	}
	if len(sets) == 0 || sets[len(sets)-1].Name != name.Text() {
		sets = append(sets, listed{Content: Content{Set: Set{Name: name.Text()}}})
	}
	s := &sets[len(sets)-1]
	if a, ok := attrs[attrTypename]; ok {
		s.Type = Type(a.Text())
	}
	if a := attrs[attrFamily]; len(a.Data) > 0 {
		s.IPv6 = a.Data[0] == unix.NFPROTO_IPV6
	}
	if a, ok := attrs[attrData]; ok {
		if err := s.decodeSettings(a.Data); err != nil {
			return nil, err
		}
	}
	return sets, s.decodeEntries(attrs[attrADT].Data)
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
	if c.Type == BitmapPort && ports != maxPort {
		c.options = append(c.options, "a range that is not all ports")
	}
	return nil
}

// number decodes an unsigned number of up to four bytes in network byte order.
func number(a netlink.Attr) (n uint32) {
	for _, b := range a.Data[:min(len(a.Data), 4)] {
		n = n<<8 | uint32(b)
	}
	return n
}

func (c *listed) decodeEntries(b []byte) error {
	if _, known := fieldsOf[c.Type]; !known {
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
	var second netip.Addr
	bits := 0
	for a, err := range netlink.Attrs(b) {
		if err != nil {
			return Entry{}, err
		}
		switch a.Type {
		case attrIP:
			e.Addr, err = decodeIP(a.Data)
		case attrIP2:
			second, err = decodeIP(a.Data)
		case attrCIDR2:
			bits = int(number(a))
		case attrPort:
			e.Port = uint16(number(a))
		case attrProto:
			e.Proto = uint8(number(a))
		}
		if err != nil {
			return Entry{}, err
		}
	}
	switch t {
	case HashIPPortNet:
		e.Net = netip.PrefixFrom(second, bits)
	case HashIPPortIP:
		e.Net = netip.PrefixFrom(second, second.BitLen())
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

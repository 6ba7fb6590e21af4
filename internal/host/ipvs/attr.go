package ipvs

import (
	"encoding/binary"
	"math/bits"
	"net/netip"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/internal/host/netlink"
)

// Numbers of the generic netlink family IPVS, see linux/ip_vs.h.
const (
	genlName    = "IPVS"
	genlVersion = 1

	cmdNewService = 1
	cmdSetService = 2
	cmdDelService = 3
	cmdGetService = 4
	cmdNewDest    = 5
	cmdSetDest    = 6
	cmdDelDest    = 7
	cmdGetDest    = 8
	cmdSetConfig  = 12
	cmdGetConfig  = 13
	cmdGetInfo    = 15

	attrService       = 1
	attrDest          = 2
	attrTimeoutTCP    = 4
	attrTimeoutTCPFin = 5
	attrTimeoutUDP    = 6

	svcFamily    = 1
	svcProtocol  = 2
	svcAddr      = 3
	svcPort      = 4
	svcMark      = 5
	svcScheduler = 6
	svcFlags     = 7
	svcTimeout   = 8
	svcNetmask   = 9

	destAddr     = 1
	destPort     = 2
	destMethod   = 3
	destWeight   = 4
	destUpper    = 5
	destLower    = 6
	destActive   = 7
	destInactive = 8
	destFamily   = 11

	infoConnTableSize = 2
)

var commands = map[Verb]uint8{
	AddServer: cmdNewService, SetServer: cmdSetService, DelServer: cmdDelService,
	AddReal: cmdNewDest, SetReal: cmdSetDest, DelReal: cmdDelDest,
}

func appendUint16(b []byte, typ, v uint16) []byte {
	return netlink.AppendAttr(b, typ, binary.NativeEndian.AppendUint16(nil, v)...)
}

func addressFamily(a netip.Addr) uint16 {
	if a.Is6() {
		return unix.AF_INET6
	}
	return unix.AF_INET
}

// body is the header of a message of generic netlink.
func body(cmd uint8) []byte { return []byte{cmd, genlVersion, 0, 0} }

// sizeofGenlmsg is the length of the header.
const sizeofGenlmsg = 4

// encode returns the message of an operation that passed Check.
func (o Op) encode() []byte {
	switch o.Verb {
	case AddServer, SetServer:
		return appendServer(body(commands[o.Verb]), o.Server, &o.Settings)
	case DelServer:
		return appendServer(body(commands[o.Verb]), o.Server, nil)
	}
	b := appendServer(body(commands[o.Verb]), o.Server, nil)
	return netlink.AppendNest(b, attrDest, func(b []byte) []byte { return appendReal(b, o.Real, o.Verb != DelReal) })
}

// appendServer appends the identity of a virtual server and, unless nil, its settings.
func appendServer(b []byte, v VirtualServer, s *Settings) []byte {
	addr := v.Addr.Addr()
	return netlink.AppendNest(b, attrService, func(b []byte) []byte {
		b = appendUint16(b, svcFamily, addressFamily(addr))
		b = appendUint16(b, svcProtocol, uint16(v.Protocol))
		b = netlink.AppendAttr(b, svcAddr, addr.AsSlice()...)
		b = netlink.AppendNet16(b, svcPort, v.Addr.Port())
		if s == nil {
			return b
		}
		b = netlink.AppendText(b, svcScheduler, s.Scheduler)
		flags := binary.NativeEndian.AppendUint32(nil, uint32(s.Flags))
		b = netlink.AppendAttr(b, svcFlags, binary.NativeEndian.AppendUint32(flags, ^uint32(0))...) // the mask: all bits
		b = netlink.AppendUint32(b, svcTimeout, s.TimeoutSec)
		return netlink.AppendAttr(b, svcNetmask, netmask(addr, s.Prefix)...)
	})
}

func appendReal(b []byte, r RealServer, full bool) []byte {
	addr := r.Addr.Addr()
	b = netlink.AppendAttr(b, destAddr, addr.AsSlice()...)
	b = netlink.AppendNet16(b, destPort, r.Addr.Port())
	b = appendUint16(b, destFamily, addressFamily(addr))
	if !full {
		return b
	}
	b = netlink.AppendUint32(b, destMethod, uint32(r.Method))
	b = netlink.AppendUint32(b, destWeight, r.Weight)
	b = netlink.AppendUint32(b, destUpper, 0) // thresholds, mandatory
	return netlink.AppendUint32(b, destLower, 0)
}

// netmask encodes a Prefix: for IPv4 as a mask in network byte order, for IPv6 as a number in host
// byte order.
func netmask(a netip.Addr, prefix int8) []byte {
	n := int(prefix)
	if n == 0 {
		n = a.BitLen()
	}
	if a.Is6() {
		return binary.NativeEndian.AppendUint32(nil, uint32(n))
	}
	return binary.BigEndian.AppendUint32(nil, ^uint32(0)<<(32-n))
}

// prefix decodes a netmask of four bytes.
func prefix(ipv6 bool, b []byte) int8 {
	n, all := int(binary.NativeEndian.Uint32(b)), 128
	if !ipv6 {
		mask := binary.BigEndian.Uint32(b)
		if n, all = bits.LeadingZeros32(^mask), 32; mask != ^uint32(0)<<(32-n) {
			return OddPrefix
		}
	}
	switch {
	case n == all:
		return 0
	case n <= 0 || n > all:
		return OddPrefix
	}
	return int8(n)
}

// attrs are the attributes of a message by type. An array costs less than a map for each virtual
// server.
type attrs [16][]byte

// parse decodes a list of attributes. Unknown types are ignored.
func (a *attrs) parse(b []byte) error {
	for attr, err := range netlink.Attrs(b) {
		if err != nil {
			return err
		}
		if int(attr.Type) < len(a) {
			a[attr.Type] = attr.Data
		}
	}
	return nil
}

// message decodes the attributes of a message of generic netlink.
func (a *attrs) message(b []byte) error {
	if len(b) < sizeofGenlmsg {
		return netlink.ErrMalformed
	}
	return a.parse(b[sizeofGenlmsg:])
}

// nested decodes the attributes inside one attribute of a message.
func (a *attrs) nested(b []byte, typ uint16) error {
	var outer attrs
	if err := outer.message(b); err != nil {
		return err
	}
	if outer[typ] == nil {
		return netlink.ErrMalformed
	}
	return a.parse(outer[typ])
}

// sized reports whether all of the attributes exist with a length of n.
func (a *attrs) sized(n int, types ...uint16) bool {
	for _, t := range types {
		if len(a[t]) != n {
			return false
		}
	}
	return true
}

func (a *attrs) u16(typ uint16) uint16 { return binary.NativeEndian.Uint16(a[typ]) }
func (a *attrs) u32(typ uint16) uint32 { return binary.NativeEndian.Uint32(a[typ]) }

// addr decodes a port and an address, for which the kernel always sends 16 bytes.
func (a *attrs) addr(family uint16, addr, port uint16) (netip.AddrPort, error) {
	if !a.sized(16, addr) || !a.sized(2, port) {
		return netip.AddrPort{}, netlink.ErrMalformed
	}
	p := binary.BigEndian.Uint16(a[port])
	switch family {
	case unix.AF_INET:
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(a[addr][:4])), p), nil
	case unix.AF_INET6:
		return netip.AddrPortFrom(netip.AddrFrom16([16]byte(a[addr])), p), nil
	}
	return netip.AddrPort{}, netlink.ErrMalformed
}

// decodeServer decodes a virtual server. ok is false for virtual servers for firewall marks.
func decodeServer(b []byte) (s Server, ok bool, err error) {
	var a attrs
	if err := a.nested(b, attrService); err != nil {
		return Server{}, false, err
	}
	if a[svcMark] != nil {
		return Server{}, false, nil
	}
	if !a.sized(2, svcFamily, svcProtocol) || !a.sized(8, svcFlags) || !a.sized(4, svcTimeout, svcNetmask) || a[svcScheduler] == nil {
		return Server{}, false, netlink.ErrMalformed
	}
	family := a.u16(svcFamily)
	s.VirtualServer.Protocol = uint8(a.u16(svcProtocol))
	if s.VirtualServer.Addr, err = a.addr(family, svcAddr, svcPort); err != nil {
		return Server{}, false, err
	}
	s.Settings = Settings{
		Scheduler:  strings.TrimRight(string(a[svcScheduler]), "\x00"),
		Flags:      Flags(binary.NativeEndian.Uint32(a[svcFlags])) &^ hashed, // the mask follows
		TimeoutSec: a.u32(svcTimeout),
		Prefix:     prefix(family == unix.AF_INET6, a[svcNetmask]),
	}
	return s, true, nil
}

// decodeReal decodes a real server of v. It has the address family of v unless the kernel sends one
// (since 3.18).
func decodeReal(b []byte, v VirtualServer) (RealState, error) {
	var a attrs
	if err := a.nested(b, attrDest); err != nil {
		return RealState{}, err
	}
	if !a.sized(4, destMethod, destWeight, destActive, destInactive) {
		return RealState{}, netlink.ErrMalformed
	}
	family := addressFamily(v.Addr.Addr())
	if a.sized(2, destFamily) {
		family = a.u16(destFamily)
	}
	addr, err := a.addr(family, destAddr, destPort)
	if err != nil {
		return RealState{}, err
	}
	return RealState{
		RealServer: RealServer{Addr: addr, Method: Method(a.u32(destMethod)), Weight: a.u32(destWeight)},
		Active:     a.u32(destActive),
		Inactive:   a.u32(destInactive),
	}, nil
}

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
	svcStats     = 10
	svcStats64   = 12

	destAddr       = 1
	destPort       = 2
	destMethod     = 3
	destWeight     = 4
	destUpper      = 5
	destLower      = 6
	destActive     = 7
	destInactive   = 8
	destPersistent = 9
	destFamily     = 11

	statsConns    = 1
	statsInPkts   = 2
	statsOutPkts  = 3
	statsInBytes  = 4
	statsOutBytes = 5

	infoConnTableSize = 2
)

var commands = map[Verb]uint8{
	AddServer: cmdNewService, SetServer: cmdSetService, DelServer: cmdDelService,
	AddReal: cmdNewDest, SetReal: cmdSetDest, DelReal: cmdDelDest,
}

func append16(b []byte, typ, v uint16) []byte {
	return netlink.AppendAttr(b, typ, binary.NativeEndian.AppendUint16(nil, v)...)
}

func addressFamily(a netip.Addr) uint16 {
	if a.Is6() {
		return unix.AF_INET6
	}
	return unix.AF_INET
}

// appendPort appends a port, which is in network byte order.
func appendPort(b []byte, typ, port uint16) []byte {
	return netlink.AppendAttr(b, typ, byte(port>>8), byte(port))
}

// body is a message of generic netlink without attributes.
func body(cmd uint8) []byte { return []byte{cmd, genlVersion, 0, 0} }

// sizeofGenlmsg is the length of that.
const sizeofGenlmsg = 4

// encode returns the message of an operation that passed its check.
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

// appendServer appends what identifies a virtual server and, unless that is nil, how it is set.
func appendServer(b []byte, v VirtualServer, s *Settings) []byte {
	addr := v.Addr.Addr()
	return netlink.AppendNest(b, attrService, func(b []byte) []byte {
		b = append16(b, svcFamily, addressFamily(addr))
		b = append16(b, svcProtocol, uint16(v.Protocol))
		b = netlink.AppendAttr(b, svcAddr, addr.AsSlice()...)
		b = appendPort(b, svcPort, v.Addr.Port())
		if s == nil {
			return b
		}
		b = netlink.AppendText(b, svcScheduler, s.Scheduler)
		flags := binary.NativeEndian.AppendUint32(nil, uint32(s.Flags))
		b = netlink.AppendAttr(b, svcFlags, binary.NativeEndian.AppendUint32(flags, ^uint32(0))...) // which bits are meant: all
		b = netlink.AppendUint32(b, svcTimeout, s.TimeoutSec)
		return netlink.AppendAttr(b, svcNetmask, netmask(addr, s.Prefix)...)
	})
}

func appendReal(b []byte, r RealServer, full bool) []byte {
	addr := r.Addr.Addr()
	b = netlink.AppendAttr(b, destAddr, addr.AsSlice()...)
	b = appendPort(b, destPort, r.Addr.Port())
	b = append16(b, destFamily, addressFamily(addr))
	if !full {
		return b
	}
	b = netlink.AppendUint32(b, destMethod, uint32(r.Method))
	b = netlink.AppendUint32(b, destWeight, r.Weight)
	b = netlink.AppendUint32(b, destUpper, 0) // thresholds, mandatory
	return netlink.AppendUint32(b, destLower, 0)
}

// netmask returns a Prefix as the kernel wants it: for IPv4 a mask in network byte order, for IPv6 a number in the byte
// order of the machine.
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

// prefix is the reverse of netmask for four bytes.
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

// attrs are the attributes of a message by type.
type attrs [16][]byte

// parse reads a list of attributes; those of a type that is not known are passed over.
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

// message reads the attributes of a message of generic netlink.
func (a *attrs) message(b []byte) error {
	if len(b) < sizeofGenlmsg {
		return netlink.ErrMalformed
	}
	return a.parse(b[sizeofGenlmsg:])
}

// nested reads the attributes that are the value of the one attribute of a message.
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

// sized says whether attributes are there with a length.
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
func (a *attrs) u64(typ uint16) uint64 { return binary.NativeEndian.Uint64(a[typ]) }

// addr reads an address, for which the kernel always sends 16 bytes, and a port.
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

// decodeServer reads a virtual server into a Content.
func (c *Content) decodeServer(b []byte) error {
	var a attrs
	if err := a.nested(b, attrService); err != nil {
		return err
	}
	if !a.sized(2, svcFamily) || !a.sized(8, svcFlags) || !a.sized(4, svcTimeout, svcNetmask) || a[svcScheduler] == nil {
		return netlink.ErrMalformed
	}
	family := a.u16(svcFamily)
	s := Settings{
		Scheduler:  strings.TrimRight(string(a[svcScheduler]), "\x00"),
		Flags:      Flags(binary.NativeEndian.Uint32(a[svcFlags])) &^ hashed, // the mask follows
		TimeoutSec: a.u32(svcTimeout),
		Prefix:     prefix(family == unix.AF_INET6, a[svcNetmask]),
	}
	if a[svcMark] != nil {
		if !a.sized(4, svcMark) {
			return netlink.ErrMalformed
		}
		c.Marks = append(c.Marks, MarkServer{Mark: a.u32(svcMark), IPv6: family == unix.AF_INET6, Settings: s})
		return nil
	}
	if !a.sized(2, svcProtocol) {
		return netlink.ErrMalformed
	}
	addr, err := a.addr(family, svcAddr, svcPort)
	if err != nil {
		return err
	}
	stats, err := decodeStats(a[svcStats64], a[svcStats])
	if err != nil {
		return err
	}
	v := VirtualServer{Protocol: uint8(a.u16(svcProtocol)), Addr: addr}
	c.Servers = append(c.Servers, Server{VirtualServer: v, Settings: s, Stats: stats})
	return nil
}

// decodeStats reads counters: all of 64 bits, or, from kernels before 4.1, some of 32.
func decodeStats(wide, narrow []byte) (Stats, error) {
	var a attrs
	if wide == nil {
		if err := a.parse(narrow); err != nil {
			return Stats{}, err
		}
		if !a.sized(4, statsConns, statsInPkts, statsOutPkts) || !a.sized(8, statsInBytes, statsOutBytes) {
			return Stats{}, netlink.ErrMalformed
		}
		return Stats{
			Connections: uint64(a.u32(statsConns)), PacketsIn: uint64(a.u32(statsInPkts)), PacketsOut: uint64(a.u32(statsOutPkts)),
			BytesIn: a.u64(statsInBytes), BytesOut: a.u64(statsOutBytes),
		}, nil
	}
	if err := a.parse(wide); err != nil {
		return Stats{}, err
	}
	if !a.sized(8, statsConns, statsInPkts, statsOutPkts, statsInBytes, statsOutBytes) {
		return Stats{}, netlink.ErrMalformed
	}
	return Stats{
		Connections: a.u64(statsConns), PacketsIn: a.u64(statsInPkts), PacketsOut: a.u64(statsOutPkts),
		BytesIn: a.u64(statsInBytes), BytesOut: a.u64(statsOutBytes),
	}, nil
}

// decodeReal reads a real server of a virtual server, whose family it has where the kernel, before 3.18, does not tell.
func decodeReal(b []byte, v VirtualServer) (RealState, error) {
	var a attrs
	if err := a.nested(b, attrDest); err != nil {
		return RealState{}, err
	}
	if !a.sized(4, destMethod, destWeight, destActive, destInactive, destPersistent) {
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
		Persistent: a.u32(destPersistent),
	}, nil
}

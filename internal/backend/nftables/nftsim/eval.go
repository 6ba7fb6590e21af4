package nftsim

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/internal/fwd"
	"github.com/fairlead/fairlead/internal/host/nft"
)

// at returns n bytes from the register in the attribute on (nft.Register).
func (w *walk) at(a nft.Attr, n int) []byte {
	reg := int(a.Net32())
	i := (reg - unix.NFT_REG_1) * 16
	if reg >= unix.NFT_REG32_00 {
		i = (reg - unix.NFT_REG32_00) * 4
	}
	return w.regs[i : i+n]
}

// store writes to registers, padded with zeros to a multiple of four bytes as in the kernel.
func (w *walk) store(a nft.Attr, data []byte) {
	to := w.at(a, (len(data)+3)&^3)
	clear(to)
	copy(to, data)
}

func host32(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }

// eval evaluates an expression of a rule; next are those after it. ok is false if the rule ends
// there.
func (w *walk) eval(x *expression, next []*expression) (verdict string, ok bool, err error) {
	a := x.attrs
	switch x.name {
	case "cmp":
		ok, err = w.cmp(a)
		return "", ok, err
	case "immediate":
		if x.verdict == "" {
			w.store(a[unix.NFTA_IMMEDIATE_DREG], []byte(value(a[unix.NFTA_IMMEDIATE_DATA])))
		}
		return x.verdict, true, nil
	case "lookup":
		return w.lookup(a)
	case "meta":
		return w.meta(a)
	case "nat":
		return "accept", true, w.nat(a)
	case "masq":
		w.masquerade = true
		return "accept", true, nil
	case "reject":
		w.reset = a[unix.NFTA_REJECT_TYPE].Net32() == unix.NFT_REJECT_TCP_RST
		if w.reset && w.p.Proto != fwd.TCP {
			return "", false, fmt.Errorf("a TCP reset for %s", w.p.Proto)
		}
		return "reject", true, nil
	}
	return "", true, w.load(x, next)
}

// load evaluates an expression that always matches and gives no verdict.
func (w *walk) load(x *expression, next []*expression) error {
	a := x.attrs
	switch x.name {
	case "payload":
		data, err := w.payload(a[unix.NFTA_PAYLOAD_BASE].Net32(), int(a[unix.NFTA_PAYLOAD_OFFSET].Net32()), int(a[unix.NFTA_PAYLOAD_LEN].Net32()))
		w.store(a[unix.NFTA_PAYLOAD_DREG], data)
		return err
	case "ct":
		return w.ct(a)
	case "fib":
		return w.fib(a)
	case "numgen":
		return w.numgen(a, next)
	case "dynset":
		return w.dynset(a)
	case "bitwise":
		mask, xor := value(a[unix.NFTA_BITWISE_MASK]), value(a[unix.NFTA_BITWISE_XOR])
		out := slices.Clone(w.at(a[unix.NFTA_BITWISE_SREG], int(a[unix.NFTA_BITWISE_LEN].Net32())))
		for i := range out {
			out[i] = out[i]&mask[i] ^ xor[i]
		}
		w.store(a[unix.NFTA_BITWISE_DREG], out)
		return nil
	case "byteorder":
		v := binary.NativeEndian.Uint32(w.at(a[unix.NFTA_BYTEORDER_SREG], 4))
		w.store(a[unix.NFTA_BYTEORDER_DREG], binary.BigEndian.AppendUint32(nil, v))
		return nil
	}
	return fmt.Errorf("%s is not simulated", x.name)
}

// payload returns bytes of the packet in its current state.
func (w *walk) payload(base uint32, offset, n int) ([]byte, error) {
	var header []byte
	switch base {
	case unix.NFT_PAYLOAD_NETWORK_HEADER:
		before := 12
		if w.t.family == fwd.IPv6 {
			before = 8
		}
		header = append(make([]byte, before), w.p.Src.AsSlice()...)
		header = append(header, w.dst.Addr().AsSlice()...)
		if offset < before {
			return nil, fmt.Errorf("byte %d of the network header is not simulated", offset)
		}
	case unix.NFT_PAYLOAD_TRANSPORT_HEADER:
		header = binary.BigEndian.AppendUint16(make([]byte, 2), w.dst.Port())
		if offset < 2 {
			return nil, fmt.Errorf("byte %d of the transport header is not simulated", offset)
		}
	default:
		return nil, fmt.Errorf("payload base %d is not simulated", base)
	}
	if offset+n > len(header) {
		return nil, fmt.Errorf("bytes %d to %d of header %d are not simulated", offset, offset+n, base)
	}
	return header[offset : offset+n], nil
}

func (w *walk) meta(a map[uint16]nft.Attr) (string, bool, error) {
	key := a[unix.NFTA_META_KEY].Net32()
	if from, set := a[unix.NFTA_META_SREG]; set {
		if key != unix.NFT_META_MARK {
			return "", false, fmt.Errorf("setting key %d is not simulated", key)
		}
		w.mark = binary.NativeEndian.Uint32(w.at(from, 4))
		return "", true, nil
	}
	var data []byte
	switch key {
	case unix.NFT_META_L4PROTO:
		data = []byte{byte(w.p.Proto)}
	case unix.NFT_META_MARK:
		data = host32(w.mark)
	case unix.NFT_META_IIFNAME:
		if w.in == "" { // without an interface the rule ends
			return "", false, nil
		}
		data = append([]byte(w.in), make([]byte, unix.IFNAMSIZ-len(w.in))...)
	default:
		return "", false, fmt.Errorf("key %d is not simulated", key)
	}
	w.store(a[unix.NFTA_META_DREG], data)
	return "", true, nil
}

func (w *walk) ct(a map[uint16]nft.Attr) error {
	var v uint32
	switch key := a[unix.NFTA_CT_KEY].Net32(); key {
	case unix.NFT_CT_STATE:
		v = 1 << 3 // new: only first packets are simulated
	case unix.NFT_CT_STATUS:
		if w.dnat && w.dst != w.p.Dst { // an unchanged destination does not count as translated
			v = 1 << 5
		}
	default:
		return fmt.Errorf("key %d is not simulated", key)
	}
	w.store(a[unix.NFTA_CT_DREG], host32(v))
	return nil
}

func (w *walk) fib(a map[uint16]nft.Attr) error {
	var addr netip.Addr
	switch flags := a[unix.NFTA_FIB_FLAGS].Net32(); flags {
	case unix.NFTA_FIB_F_SADDR:
		addr = w.p.Src
	case unix.NFTA_FIB_F_DADDR:
		addr = w.dst.Addr()
	default:
		return fmt.Errorf("flags %d are not simulated", flags)
	}
	if res := a[unix.NFTA_FIB_RESULT].Net32(); res != unix.NFT_FIB_RESULT_ADDRTYPE {
		return fmt.Errorf("result %d is not simulated", res)
	}
	typ := uint32(unix.RTN_UNICAST)
	if w.host.isLocal(addr) {
		typ = unix.RTN_LOCAL
	}
	w.store(a[unix.NFTA_FIB_DREG], host32(typ))
	return nil
}

// maxDraws is the maximum number of values of a random number that are followed.
const maxDraws = 1 << 16

// numgen draws a number. If it is only compared with a bound, two values represent all.
func (w *walk) numgen(a map[uint16]nft.Attr, next []*expression) error {
	if a[unix.NFTA_NG_TYPE].Net32() != unix.NFT_NG_RANDOM {
		return fmt.Errorf("type %d is not simulated", a[unix.NFTA_NG_TYPE].Net32())
	}
	mod, offset, to := a[unix.NFTA_NG_MODULUS].Net32(), a[unix.NFTA_NG_OFFSET].Net32(), a[unix.NFTA_NG_DREG]
	if mod == 0 {
		return fmt.Errorf("modulus 0")
	}
	if bound, compared := upperBound(next); compared && bound > offset && bound-offset < mod {
		below := float64(bound-offset) / float64(mod)
		if w.draw(2) == 0 {
			w.store(to, host32(offset))
			w.prob *= below
		} else {
			w.store(to, host32(bound))
			w.prob *= 1 - below
		}
		return nil
	}
	if mod > maxDraws {
		return fmt.Errorf("modulus %d: too many values to follow", mod)
	}
	w.store(to, host32(offset+uint32(w.draw(int(mod)))))
	w.prob /= float64(mod)
	return nil
}

// upperBound recognizes the comparison of a number with a bound: byteorder, then cmp lt.
func upperBound(next []*expression) (uint32, bool) {
	if len(next) < 2 || next[0].name != "byteorder" || next[1].name != "cmp" {
		return 0, false
	}
	a := next[1].attrs
	v := value(a[unix.NFTA_CMP_DATA])
	return binary.BigEndian.Uint32([]byte(v)), a[unix.NFTA_CMP_OP].Net32() == unix.NFT_CMP_LT && len(v) == 4
}

func (w *walk) cmp(a map[uint16]nft.Attr) (bool, error) {
	v := []byte(value(a[unix.NFTA_CMP_DATA]))
	c := bytes.Compare(w.at(a[unix.NFTA_CMP_SREG], len(v)), v)
	switch op := a[unix.NFTA_CMP_OP].Net32(); op {
	case unix.NFT_CMP_EQ:
		return c == 0, nil
	case unix.NFT_CMP_NEQ:
		return c != 0, nil
	case unix.NFT_CMP_LT:
		return c < 0, nil
	default:
		return false, fmt.Errorf("operator %d is not simulated", op)
	}
}

func (w *walk) lookup(a map[uint16]nft.Attr) (string, bool, error) {
	if a[unix.NFTA_LOOKUP_FLAGS].Net32() != 0 {
		return "", false, fmt.Errorf("flags are not simulated")
	}
	s := w.t.state.sets[a[unix.NFTA_LOOKUP_SET].Text()]
	key := string(w.at(a[unix.NFTA_LOOKUP_SREG], int(s.shape.KeyLen)))
	e, found := s.elements[key]
	switch {
	case s.def.Interval:
		found = s.contains(key)
	case s.def.Dynamic:
		found = w.remembers(s.def.Name, key)
	}
	to, isMap := a[unix.NFTA_LOOKUP_DREG]
	if !found || !isMap {
		return "", found, nil
	}
	if s.def.Verdicts {
		return e.Value, true, nil
	}
	w.store(to, []byte(e.Value))
	return "", true, nil
}

// contains reports whether a key is in one of the ranges, that is, whether the last boundary at or
// before it begins a range.
func (s *set) contains(key string) bool {
	best, in := "", false
	for _, e := range s.elements {
		if e.Key <= key && (e.Key > best || e.Key == best && !e.End || best == "") {
			best, in = e.Key, !e.End
		}
	}
	return in
}

func (w *walk) remembers(set, key string) bool {
	for _, n := range w.added {
		if n.Set == set && n.Key == key {
			return true
		}
	}
	return w.host.Remembered[set][key]
}

func (w *walk) dynset(a map[uint16]nft.Attr) error {
	if op := a[unix.NFTA_DYNSET_OP].Net32(); op != unix.NFT_DYNSET_OP_UPDATE {
		return fmt.Errorf("operation %d is not simulated", op)
	}
	s := w.t.state.sets[a[unix.NFTA_DYNSET_SET_NAME].Text()]
	if !s.def.Dynamic {
		return fmt.Errorf("the set %s is not dynamic", s.def.Name)
	}
	msec := binary.BigEndian.Uint64([]byte(a[unix.NFTA_DYNSET_TIMEOUT].Data))
	w.added = append(w.added, Addition{s.def.Name, string(w.at(a[unix.NFTA_DYNSET_SREG_KEY], int(s.shape.KeyLen))), uint32(msec / 1000)})
	return nil
}

func (w *walk) nat(a map[uint16]nft.Attr) error {
	if a[unix.NFTA_NAT_TYPE].Net32() == unix.NFT_NAT_SNAT {
		if a[unix.NFTA_NAT_FLAGS].Net32() != nft.NatMapIPs|nft.NatFullyRandom {
			return fmt.Errorf("only snat to one address and a random port is simulated")
		}
		w.source, _ = netip.AddrFromSlice(w.at(a[unix.NFTA_NAT_REG_ADDR_MIN], w.t.family.Bits()/8))
		w.masquerade = true
		return nil
	}
	if a[unix.NFTA_NAT_TYPE].Net32() != unix.NFT_NAT_DNAT || a[unix.NFTA_NAT_FLAGS].Net32() != nft.NatMapIPs|nft.NatProtoPorts {
		return fmt.Errorf("only dnat to one address and port is simulated")
	}
	addr, _ := netip.AddrFromSlice(w.at(a[unix.NFTA_NAT_REG_ADDR_MIN], w.t.family.Bits()/8))
	port := binary.BigEndian.Uint16(w.at(a[unix.NFTA_NAT_REG_PROTO_MIN], 2))
	// The simulated verdict is forward even if the destination does not change.
	w.dst, w.dnat = netip.AddrPortFrom(addr, port), true
	return nil
}

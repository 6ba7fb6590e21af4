package nft

import (
	"encoding/binary"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/internal/host/netlink"
)

// Register returns the number of the register for a value that begins at a 32-bit word. Where a
// register of 16 bytes begins there, it is that one, which the kernel prefers.
func Register(word int) uint32 {
	if word%4 == 0 {
		return uint32(unix.NFT_REG_1 + word/4)
	}
	return uint32(unix.NFT_REG32_00 + word)
}

// known are the attributes of each expression that define what it does. Newer kernels may send
// others, which are ignored when rules are compared.
var known = map[string][]uint16{
	"payload":   {unix.NFTA_PAYLOAD_DREG, unix.NFTA_PAYLOAD_BASE, unix.NFTA_PAYLOAD_OFFSET, unix.NFTA_PAYLOAD_LEN, unix.NFTA_PAYLOAD_SREG},
	"meta":      {unix.NFTA_META_DREG, unix.NFTA_META_KEY, unix.NFTA_META_SREG},
	"ct":        {unix.NFTA_CT_DREG, unix.NFTA_CT_KEY, unix.NFTA_CT_DIRECTION, unix.NFTA_CT_SREG},
	"fib":       {unix.NFTA_FIB_DREG, unix.NFTA_FIB_RESULT, unix.NFTA_FIB_FLAGS},
	"numgen":    {unix.NFTA_NG_DREG, unix.NFTA_NG_MODULUS, unix.NFTA_NG_TYPE, unix.NFTA_NG_OFFSET},
	"cmp":       {unix.NFTA_CMP_SREG, unix.NFTA_CMP_OP, unix.NFTA_CMP_DATA},
	"bitwise":   {unix.NFTA_BITWISE_SREG, unix.NFTA_BITWISE_DREG, unix.NFTA_BITWISE_LEN, unix.NFTA_BITWISE_MASK, unix.NFTA_BITWISE_XOR},
	"byteorder": {unix.NFTA_BYTEORDER_SREG, unix.NFTA_BYTEORDER_DREG, unix.NFTA_BYTEORDER_OP, unix.NFTA_BYTEORDER_LEN, unix.NFTA_BYTEORDER_SIZE},
	"lookup":    {unix.NFTA_LOOKUP_SET, unix.NFTA_LOOKUP_SREG, unix.NFTA_LOOKUP_DREG, unix.NFTA_LOOKUP_FLAGS},
	"dynset":    {unix.NFTA_DYNSET_SET_NAME, unix.NFTA_DYNSET_OP, unix.NFTA_DYNSET_SREG_KEY, unix.NFTA_DYNSET_SREG_DATA, unix.NFTA_DYNSET_TIMEOUT},
	"immediate": {unix.NFTA_IMMEDIATE_DREG, unix.NFTA_IMMEDIATE_DATA},
	"nat": {unix.NFTA_NAT_TYPE, unix.NFTA_NAT_FAMILY, unix.NFTA_NAT_REG_ADDR_MIN, unix.NFTA_NAT_REG_ADDR_MAX,
		unix.NFTA_NAT_REG_PROTO_MIN, unix.NFTA_NAT_REG_PROTO_MAX, unix.NFTA_NAT_FLAGS},
	"masq":   {unix.NFTA_MASQ_FLAGS, unix.NFTA_MASQ_REG_PROTO_MIN, unix.NFTA_MASQ_REG_PROTO_MAX},
	"reject": {unix.NFTA_REJECT_TYPE, unix.NFTA_REJECT_ICMP_CODE},
}

// normal returns an expression in the form in which expressions are compared: with known attributes
// only, sorted.
func normal(name, attrs string) (Expr, error) {
	types, ok := known[name]
	if !ok {
		return Expr{name, attrs}, nil
	}
	var keep []Attr
	for a, err := range netlink.Attrs(attrs) {
		if err != nil {
			return Expr{}, err
		}
		if slices.Contains(types, a.Type) {
			keep = append(keep, a)
		}
	}
	slices.SortStableFunc(keep, func(a, b Attr) int { return int(a.Type) - int(b.Type) })
	var b []byte
	for _, a := range keep {
		b = netlink.AppendRaw(b, a.Type, a.Data)
	}
	return Expr{name, string(b)}, nil
}

// builder collects the attributes of one expression, which must be added in the order of their
// types.
type builder struct {
	name  string
	attrs []byte
}

func build(name string) *builder { return &builder{name: name} }

func (b *builder) raw(typ uint16, v string) *builder {
	b.attrs = netlink.AppendRaw(b.attrs, typ, v)
	return b
}

func (b *builder) text(typ uint16, v string) *builder { return b.raw(typ, v+"\x00") }

func (b *builder) num(typ uint16, v uint32) *builder {
	b.attrs = netlink.AppendNet32(b.attrs, typ, v)
	return b
}

func (b *builder) reg(typ uint16, word int) *builder { return b.num(typ, Register(word)) }

// data adds an attribute with a value (NFTA_DATA_VALUE).
func (b *builder) data(typ uint16, v string) *builder {
	return b.raw(typ, string(netlink.AppendRaw(nil, unix.NFTA_DATA_VALUE, v)))
}

func (b *builder) expr() Expr { return Expr{b.name, string(b.attrs)} }

// Payload loads bytes of the packet; base is unix.NFT_PAYLOAD_NETWORK_HEADER or
// unix.NFT_PAYLOAD_TRANSPORT_HEADER.
func Payload(base, offset, length uint32, to int) Expr {
	return build("payload").reg(unix.NFTA_PAYLOAD_DREG, to).num(unix.NFTA_PAYLOAD_BASE, base).
		num(unix.NFTA_PAYLOAD_OFFSET, offset).num(unix.NFTA_PAYLOAD_LEN, length).expr()
}

// Meta loads a property of the packet (unix.NFT_META_*).
func Meta(key uint32, to int) Expr {
	return build("meta").reg(unix.NFTA_META_DREG, to).num(unix.NFTA_META_KEY, key).expr()
}

// SetMeta sets a property of the packet.
func SetMeta(key uint32, from int) Expr {
	return build("meta").num(unix.NFTA_META_KEY, key).reg(unix.NFTA_META_SREG, from).expr()
}

// Ct loads a property of the connection (unix.NFT_CT_*).
func Ct(key uint32, to int) Expr {
	return build("ct").reg(unix.NFTA_CT_DREG, to).num(unix.NFTA_CT_KEY, key).expr()
}

// FibType loads the type that an address has in the routing table; flags are unix.NFTA_FIB_F_SADDR
// or NFTA_FIB_F_DADDR.
func FibType(flags uint32, to int) Expr {
	return build("fib").reg(unix.NFTA_FIB_DREG, to).num(unix.NFTA_FIB_RESULT, unix.NFT_FIB_RESULT_ADDRTYPE).num(unix.NFTA_FIB_FLAGS, flags).expr()
}

// Random loads a random number from offset to offset+mod-1, in the byte order of the machine.
func Random(mod, offset uint32, to int) Expr {
	return build("numgen").reg(unix.NFTA_NG_DREG, to).num(unix.NFTA_NG_MODULUS, mod).
		num(unix.NFTA_NG_TYPE, unix.NFT_NG_RANDOM).num(unix.NFTA_NG_OFFSET, offset).expr()
}

// Compare ends the rule unless the relation op holds (unix.NFT_CMP_*). Numbers are compared in
// network byte order.
func Compare(op uint32, from int, with string) Expr {
	return build("cmp").reg(unix.NFTA_CMP_SREG, from).num(unix.NFTA_CMP_OP, op).data(unix.NFTA_CMP_DATA, with).expr()
}

// Bitwise computes register & mask ^ xor.
func Bitwise(word int, mask, xor string) Expr {
	return build("bitwise").reg(unix.NFTA_BITWISE_SREG, word).reg(unix.NFTA_BITWISE_DREG, word).
		num(unix.NFTA_BITWISE_LEN, uint32(len(mask))).data(unix.NFTA_BITWISE_MASK, mask).data(unix.NFTA_BITWISE_XOR, xor).expr()
}

// ToNetworkOrder converts a number of 32 bits to network byte order.
func ToNetworkOrder(word int) Expr {
	return build("byteorder").reg(unix.NFTA_BYTEORDER_SREG, word).reg(unix.NFTA_BYTEORDER_DREG, word).
		num(unix.NFTA_BYTEORDER_OP, unix.NFT_BYTEORDER_HTON).num(unix.NFTA_BYTEORDER_LEN, 4).num(unix.NFTA_BYTEORDER_SIZE, 4).expr()
}

// In ends the rule unless the set contains the key in the registers.
func In(set string, from int) Expr {
	return build("lookup").text(unix.NFTA_LOOKUP_SET, set).reg(unix.NFTA_LOOKUP_SREG, from).num(unix.NFTA_LOOKUP_FLAGS, 0).expr()
}

// Map loads the value of the key in the registers, and ends the rule if the map does not have the
// key.
func Map(set string, from, to int) Expr {
	return build("lookup").text(unix.NFTA_LOOKUP_SET, set).reg(unix.NFTA_LOOKUP_SREG, from).reg(unix.NFTA_LOOKUP_DREG, to).num(unix.NFTA_LOOKUP_FLAGS, 0).expr()
}

// VerdictMap returns the verdict of the key in the registers, and ends the rule if the map does not
// have the key.
func VerdictMap(set string, from int) Expr {
	return build("lookup").text(unix.NFTA_LOOKUP_SET, set).reg(unix.NFTA_LOOKUP_SREG, from).num(unix.NFTA_LOOKUP_DREG, unix.NFT_REG_VERDICT).num(unix.NFTA_LOOKUP_FLAGS, 0).expr()
}

// Update adds an element to a set, or resets its timeout. It ends the rule if the set is full.
func Update(set string, from int, timeoutSec uint32) Expr {
	msec := binary.BigEndian.AppendUint64(nil, uint64(timeoutSec)*1000)
	return build("dynset").text(unix.NFTA_DYNSET_SET_NAME, set).num(unix.NFTA_DYNSET_OP, unix.NFT_DYNSET_OP_UPDATE).
		reg(unix.NFTA_DYNSET_SREG_KEY, from).raw(unix.NFTA_DYNSET_TIMEOUT, string(msec)).expr()
}

// Immediate loads a constant.
func Immediate(v string, to int) Expr {
	return build("immediate").reg(unix.NFTA_IMMEDIATE_DREG, to).data(unix.NFTA_IMMEDIATE_DATA, v).expr()
}

// Verdict returns a verdict: "accept", "drop", "return", "goto CHAIN" or "jump CHAIN".
func Verdict(v string) Expr {
	return build("immediate").num(unix.NFTA_IMMEDIATE_DREG, unix.NFT_REG_VERDICT).
		raw(unix.NFTA_IMMEDIATE_DATA, string(appendVerdict(nil, v))).expr()
}

// The flags of address translation (linux/netfilter/nf_nat.h).
const (
	NatMapIPs      = 1
	NatProtoPorts  = 2
	NatFullyRandom = 16
)

// DNAT sends the connection to the address and port in the registers; the family is
// unix.NFPROTO_IPV4 or NFPROTO_IPV6.
func DNAT(family uint32, addr, port int) Expr {
	return build("nat").num(unix.NFTA_NAT_TYPE, unix.NFT_NAT_DNAT).num(unix.NFTA_NAT_FAMILY, family).
		reg(unix.NFTA_NAT_REG_ADDR_MIN, addr).reg(unix.NFTA_NAT_REG_ADDR_MAX, addr).
		reg(unix.NFTA_NAT_REG_PROTO_MIN, port).reg(unix.NFTA_NAT_REG_PROTO_MAX, port).
		num(unix.NFTA_NAT_FLAGS, NatMapIPs|NatProtoPorts).expr()
}

// SNAT changes the source of the connection to the address in the registers and a random port; the
// family is as for DNAT.
func SNAT(family uint32, addr int) Expr {
	return build("nat").num(unix.NFTA_NAT_TYPE, unix.NFT_NAT_SNAT).num(unix.NFTA_NAT_FAMILY, family).
		reg(unix.NFTA_NAT_REG_ADDR_MIN, addr).reg(unix.NFTA_NAT_REG_ADDR_MAX, addr).
		num(unix.NFTA_NAT_FLAGS, NatMapIPs|NatFullyRandom).expr()
}

// Masquerade changes the source of the connection to an address of this host and a random port.
func Masquerade() Expr {
	return build("masq").num(unix.NFTA_MASQ_FLAGS, NatFullyRandom).expr()
}

// Reject drops the packet and sends an ICMP error with the code.
func Reject(code uint8) Expr {
	return build("reject").num(unix.NFTA_REJECT_TYPE, unix.NFT_REJECT_ICMP_UNREACH).raw(unix.NFTA_REJECT_ICMP_CODE, string([]byte{code})).expr()
}

// Reset drops a TCP packet and sends a reset.
func Reset() Expr { return build("reject").num(unix.NFTA_REJECT_TYPE, unix.NFT_REJECT_TCP_RST).expr() }

// HostUint32 encodes a number in the byte order of the machine.
func HostUint32(v uint32) string { return string(binary.NativeEndian.AppendUint32(nil, v)) }

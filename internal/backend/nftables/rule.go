package nftables

import (
	"fmt"
	"net/netip"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/internal/fwd"
	"github.com/fairlead/fairlead/internal/host/nft"
)

// rule is a rule, or a part of one, in nft's syntax and in the kernel's encoding. The expressions
// are those that nft makes from the text, so that it does not matter which of both wrote a table.
type rule struct {
	text  string
	exprs nft.Rule
}

// all joins parts of a rule; empty ones match everything.
func all(parts ...rule) rule {
	var r rule
	var words []string
	for _, p := range parts {
		if p.text != "" {
			words = append(words, p.text)
			r.exprs = append(r.exprs, p.exprs...)
		}
	}
	r.text = strings.Join(words, " ")
	return r
}

// lang writes rules for one family.
type lang struct{ family fwd.Family }

func (l lang) ip() string {
	if l.family == fwd.IPv6 {
		return "ip6"
	}
	return "ip"
}

// operand is a value that is loaded into registers from a word on.
type operand struct {
	text  string
	bytes int
	load  func(word int) nft.Expr
}

func (l lang) addr(f nft.Field) operand {
	name := " daddr"
	if f == nft.SourceAddr {
		name = " saddr"
	}
	n := f.Len(l.family)
	return operand{l.ip() + name, n, func(word int) nft.Expr {
		return nft.Payload(unix.NFT_PAYLOAD_NETWORK_HEADER, f.Offset(l.family), uint32(n), word)
	}}
}

func (l lang) source() operand { return l.addr(nft.SourceAddr) }
func (l lang) dest() operand   { return l.addr(nft.DestAddr) }

func protocol() operand {
	return operand{"meta l4proto", 1, func(word int) nft.Expr { return nft.Meta(unix.NFT_META_L4PROTO, word) }}
}

func destPort() operand {
	return operand{"th dport", 2, func(word int) nft.Expr { return nft.Payload(unix.NFT_PAYLOAD_TRANSPORT_HEADER, 2, 2, word) }}
}

// byteOf is byte i of an address, counted from 0.
func (l lang) byteOf(f nft.Field, i int) operand {
	at := f.Offset(l.family) + uint32(i)
	return operand{fmt.Sprintf("@nh,%d,8", 8*at), 1, func(word int) nft.Expr { return nft.Payload(unix.NFT_PAYLOAD_NETWORK_HEADER, at, 1, word) }}
}

// hairpin matches packets with the same address as source and destination. Before 6.13 the kernel
// cannot compare two fields of a packet, but it can look up a pair of bytes. The last bytes come
// first: they differ most often.
func (l lang) hairpin() rule {
	var pairs []rule
	for i := l.family.Bits()/8 - 1; i >= 0; i-- {
		pairs = append(pairs, in(setEqualBytes, l.byteOf(nft.SourceAddr, i), l.byteOf(nft.DestAddr, i)))
	}
	return all(pairs...)
}

// random is a random number from offset to offset+mod-1. With mod 1 it is a constant, where nft's
// syntax does not allow one.
func random(mod, offset uint32) operand {
	text := fmt.Sprintf("numgen random mod %d", mod)
	if offset > 0 {
		text += fmt.Sprintf(" offset %d", offset)
	}
	return operand{text, 4, func(word int) nft.Expr { return nft.Random(mod, offset, word) }}
}

// concat loads operands into consecutive registers from the first one on.
func concat(ops []operand) rule {
	var c rule
	word := 0
	for i, o := range ops {
		if i > 0 {
			c.text += " . "
		}
		c.text += o.text
		c.exprs = append(c.exprs, o.load(word))
		word += (o.bytes + 3) / 4
	}
	return c
}

// in matches if the set contains the operands.
func in(set string, ops ...operand) rule {
	c := concat(ops)
	return rule{c.text + " @" + set, append(c.exprs, nft.In(set, 0))}
}

// verdictOf returns the verdict that the map has for the operands.
func verdictOf(m string, ops ...operand) rule {
	c := concat(ops)
	return rule{c.text + " vmap @" + m, append(c.exprs, nft.VerdictMap(m, 0))}
}

// update adds the operands to a dynamic set, or resets their timeout.
func update(set string, timeoutSec uint32, ops ...operand) rule {
	c := concat(ops)
	return rule{fmt.Sprintf("update @%s { %s timeout %ds }", set, c.text, timeoutSec), append(c.exprs, nft.Update(set, 0, timeoutSec))}
}

func isProto(p fwd.Proto) rule {
	return rule{"meta l4proto " + p.String(), nft.Rule{
		nft.Meta(unix.NFT_META_L4PROTO, 0), nft.Compare(unix.NFT_CMP_EQ, 0, string([]byte{byte(p)}))}}
}

func (l lang) nfproto() uint32 {
	if l.family == fwd.IPv6 {
		return unix.NFPROTO_IPV6
	}
	return unix.NFPROTO_IPV4
}

// addrWords is how many registers of 32 bits an address takes.
func (l lang) addrWords() int { return l.family.Bits() / 32 }

// dnatBy changes the destination to the endpoint that the map has for the operands.
func (l lang) dnatBy(m string, ops ...operand) rule {
	c := concat(ops)
	return rule{fmt.Sprintf("dnat %s to %s map @%s", l.ip(), c.text, m),
		append(c.exprs, nft.Map(m, 0, 0), nft.DNAT(l.nfproto(), 0, l.addrWords()))}
}

// dnatTo changes the destination to an endpoint.
func (l lang) dnatTo(a netip.AddrPort) rule {
	const second = 4 // nft loads each constant into a register of 16 bytes
	return rule{"dnat to " + a.String(), nft.Rule{nft.Immediate(string(a.Addr().AsSlice()), 0),
		nft.Immediate(string([]byte{byte(a.Port() >> 8), byte(a.Port())}), second), nft.DNAT(l.nfproto(), 0, second)}}
}

func verdict(v string) rule { return rule{v, nft.Rule{nft.Verdict(v)}} }

func goTo(chain string) rule { return verdict("goto " + chain) }

// reset rejects TCP with a reset: the kernel limits the rate of ICMP errors to a client, but not
// that of resets.
func reset() rule { return rule{"reject with tcp reset", nft.Rule{nft.Reset()}} }

// reject sends the ICMP error port unreachable.
func (l lang) reject() rule {
	code := uint8(3)
	if l.family == fwd.IPv6 {
		code = 4
	}
	return rule{"reject", nft.Rule{nft.Reject(code)}}
}

// compare compares an operand with a constant.
func compare(o operand, op uint32, text, data string) rule {
	return rule{o.text + " " + text, nft.Rule{o.load(0), nft.Compare(op, 0, data)}}
}

// prefix matches addresses in the prefix, or with not addresses outside of it.
func (l lang) prefix(f nft.Field, p netip.Prefix, not bool) rule {
	op, text := uint32(unix.NFT_CMP_EQ), l.addr(f).text+" "
	if not {
		op, text = unix.NFT_CMP_NEQ, text+"!= "
	}
	addr := p.Masked().Addr().AsSlice()
	if p.IsSingleIP() {
		text += p.Addr().String()
	} else {
		text += p.String()
	}
	n := uint32(p.Bits() / 8)
	switch {
	case p.Bits() == 0 && not:
		panic("BUG: nothing is outside of " + p.String())
	case p.Bits() == 0:
		return rule{}
	case p.Bits()%8 == 0: // whole bytes are compared as they are
		return rule{text, nft.Rule{nft.Payload(unix.NFT_PAYLOAD_NETWORK_HEADER, f.Offset(l.family), n, 0), nft.Compare(op, 0, string(addr[:n]))}}
	}
	mask := make([]byte, len(addr))
	for i := range p.Bits() {
		mask[i/8] |= 1 << (7 - i%8)
	}
	return rule{text, nft.Rule{l.addr(f).load(0), nft.Bitwise(0, string(mask), string(make([]byte, len(mask)))), nft.Compare(op, 0, string(addr))}}
}

// arrivedOn matches packets from the interface with the name, or with begins from all whose names
// begin with it.
func arrivedOn(name string, begins bool) rule {
	data, text := name, fmt.Sprintf("iifname %q", name+"*")
	if !begins {
		data, text = name+strings.Repeat("\x00", unix.IFNAMSIZ-len(name)), fmt.Sprintf("iifname %q", name)
	}
	return rule{text, nft.Rule{nft.Meta(unix.NFT_META_IIFNAME, 0), nft.Compare(unix.NFT_CMP_EQ, 0, data)}}
}

// isLocal matches if an address is one of this host, or with not if it is none.
func isLocal(f nft.Field, not bool) rule {
	which, flag := "daddr", uint32(unix.NFTA_FIB_F_DADDR)
	if f == nft.SourceAddr {
		which, flag = "saddr", unix.NFTA_FIB_F_SADDR
	}
	op, rel := uint32(unix.NFT_CMP_EQ), "local"
	if not {
		op, rel = unix.NFT_CMP_NEQ, "!= local"
	}
	return compare(operand{"fib " + which + " type", 4, func(w int) nft.Expr { return nft.FibType(flag, w) }}, op, rel, nft.HostUint32(unix.RTN_LOCAL))
}

// chance matches in x of n cases.
func chance(x, n uint32) rule {
	be := []byte{byte(x >> 24), byte(x >> 16), byte(x >> 8), byte(x)}
	return rule{fmt.Sprintf("numgen random mod %d < %d", n, x),
		nft.Rule{nft.Random(n, 0, 0), nft.ToNetworkOrder(0), nft.Compare(unix.NFT_CMP_LT, 0, string(be))}}
}

func setMark(text string, mask, xor uint32) rule {
	return rule{"meta mark set meta mark " + text, nft.Rule{nft.Meta(unix.NFT_META_MARK, 0),
		nft.Bitwise(0, nft.HostUint32(mask), nft.HostUint32(xor)), nft.SetMeta(unix.NFT_META_MARK, 0)}}
}

func addMark(bit uint32) rule   { return setMark(fmt.Sprintf("| 0x%08x", bit), ^bit, bit) }
func clearMark(bit uint32) rule { return setMark(fmt.Sprintf("& 0x%08x", ^bit), ^bit, 0) }

func hasMark(bit uint32) rule {
	return rule{fmt.Sprintf("meta mark & 0x%08x == 0x%08x", bit, bit), nft.Rule{nft.Meta(unix.NFT_META_MARK, 0),
		nft.Bitwise(0, nft.HostUint32(bit), nft.HostUint32(0)), nft.Compare(unix.NFT_CMP_EQ, 0, nft.HostUint32(bit))}}
}

// masquerade changes the source to the address, or if that is the zero Addr to one that the kernel
// chooses.
func (l lang) masquerade(source netip.Addr) rule {
	if !source.IsValid() {
		return rule{"masquerade fully-random", nft.Rule{nft.Masquerade()}}
	}
	return rule{fmt.Sprintf("snat to %s fully-random", source), nft.Rule{nft.Immediate(string(source.AsSlice()), 0), nft.SNAT(l.nfproto(), 0)}}
}

// Bits of conntrack's states and status (linux/netfilter/nf_conntrack_common.h, nf_tables.h).
const (
	ctEstablished = 1 << 1
	ctRelated     = 1 << 2
	ctDNAT        = 1 << 5
)

func ct(key uint32, text string, bits uint32) rule {
	return rule{"ct " + text, nft.Rule{nft.Ct(key, 0), nft.Bitwise(0, nft.HostUint32(bits), nft.HostUint32(0)),
		nft.Compare(unix.NFT_CMP_NEQ, 0, nft.HostUint32(0))}}
}

func ctKnown() rule {
	return ct(unix.NFT_CT_STATE, "state established,related", ctEstablished|ctRelated)
}
func ctIsDNAT() rule { return ct(unix.NFT_CT_STATUS, "status dnat", ctDNAT) }

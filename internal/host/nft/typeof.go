package nft

import (
	"encoding/binary"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/internal/fwd"
)

// Shape is what the kernel knows about a set. Only nft(8) knows the fields of its key.
type Shape struct {
	KeyType, KeyLen uint32
	// DataType and DataLen are 0 for a set that is not a map.
	DataType, DataLen uint32
	// Flags are unix.NFT_SET_*.
	Flags, Size uint32
}

// Shape returns the shape of a set in a table of the family.
func (s *Set) Shape(fam fwd.Family) Shape {
	sh := Shape{KeyType: typeOf(fam, s.Key), KeyLen: uint32(Len(fam, s.Key)), Flags: s.flags(), Size: s.Size}
	switch {
	case s.Verdicts:
		sh.DataType = dataVerdict
	case len(s.Value) > 0:
		sh.DataType, sh.DataLen = typeOf(fam, s.Value), uint32(Len(fam, s.Value))
	}
	return sh
}

// Dynamic reports whether packets add the elements.
func (s Shape) Dynamic() bool { return s.Flags&unix.NFT_SET_EVAL != 0 }

// Verdicts reports whether it is a map to verdicts.
func (s Shape) Verdicts() bool { return s.DataType == dataVerdict }

// dataVerdict is the type of the values of a map to verdicts (NFT_DATA_VERDICT).
const dataVerdict = 0xffffff00

// flags returns the flags of a set (NFT_SET_*).
func (s *Set) flags() uint32 {
	var f uint32
	if s.Interval {
		f |= unix.NFT_SET_INTERVAL
	}
	if s.Dynamic {
		f |= unix.NFT_SET_EVAL | unix.NFT_SET_TIMEOUT
	}
	if s.Verdicts || len(s.Value) > 0 {
		f |= unix.NFT_SET_MAP
	}
	return f
}

// typeOf combines the types of fields as nft does, six bits each.
func typeOf(fam fwd.Family, fields []Field) uint32 {
	var t uint32
	for _, f := range fields {
		t = t<<6 | f.info(fam).nftType
	}
	return t
}

// NumberModulus is the modulus in the declaration of a Number for nft(8): typeof numgen random mod
// NumberModulus.
const NumberModulus = 1<<32 - 1

// What nft(8) stores in the userdata of a set, so that it can print and check rules that use the
// set: "typeof ip daddr . ...". The numbers are those of libnftnl's udata.h and of nft's
// expression.h and proto.h, on which different versions of nft agree. An item is a byte with its
// type, a byte with its length, and its data; numbers are in the byte order of the machine.
const (
	udataKeyOrder   = 0
	udataDataOrder  = 1
	udataKeyTypeof  = 3
	udataDataTypeof = 4
	udataDataRange  = 6

	exprVerdict = 1
	exprPayload = 7
	exprMeta    = 9
	exprConcat  = 13
	exprNumgen  = 23

	descUnknown    = 0
	descTransport  = 11
	descIP         = 12
	descIP6        = 13
	baseNetwork    = 2
	orderBigEndian = 2
)

type userdata []byte

func (u userdata) item(typ byte, data []byte) userdata {
	return append(append(u, typ, byte(len(data))), data...)
}

func (u userdata) num(typ byte, v uint32) userdata {
	return u.item(typ, binary.NativeEndian.AppendUint32(nil, v))
}

// typeofExpr describes an expression by its kind and the properties of that kind.
func typeofExpr(kind uint32, of userdata) userdata {
	return userdata{}.num(0, kind).item(1, of)
}

func (f Field) typeof(fam fwd.Family) userdata {
	payload := func(desc, field uint32) userdata {
		return typeofExpr(exprPayload, userdata{}.num(0, desc).num(1, field))
	}
	desc, source := uint32(descIP), uint32(11)
	if fam == fwd.IPv6 {
		desc, source = descIP6, 8
	}
	switch f {
	case SourceAddr:
		return payload(desc, source)
	case DestAddr:
		return payload(desc, source+1)
	case DestPort:
		return payload(descTransport, 2)
	case Protocol:
		return typeofExpr(exprMeta, userdata{}.num(0, unix.NFT_META_L4PROTO))
	case SourceLast, DestLast: // @nh,OFFSET,8
		return typeofExpr(exprPayload, userdata{}.num(0, descUnknown).num(1, 0).num(2, baseNetwork).num(3, 8*f.Offset(fam)).num(4, 8))
	}
	return typeofExpr(exprNumgen, userdata{}.num(0, unix.NFT_NG_RANDOM).num(1, NumberModulus).num(2, 0))
}

func typeofFields(fam fwd.Family, fields []Field) userdata {
	if len(fields) == 1 {
		return fields[0].typeof(fam)
	}
	var parts userdata
	for i, f := range fields {
		parts = parts.item(byte(i), f.typeof(fam))
	}
	return typeofExpr(exprConcat, parts)
}

// userdata returns what nft(8) writes for a set that is declared with typeof.
func (s *Set) userdata(fam fwd.Family) string {
	order := uint32(0)
	if len(s.Key) == 1 && s.Key[0] != Number {
		order = orderBigEndian
	}
	u := userdata{}.num(udataKeyOrder, order)
	isMap := s.Verdicts || len(s.Value) > 0
	if isMap {
		u = u.num(udataDataOrder, 0)
	}
	u = u.item(udataKeyTypeof, typeofFields(fam, s.Key))
	if s.Verdicts {
		u = u.item(udataDataTypeof, typeofExpr(exprVerdict, nil))
	} else if isMap {
		u = u.item(udataDataTypeof, typeofFields(fam, s.Value))
	}
	if isMap {
		u = u.num(udataDataRange, 0)
	}
	return string(u)
}

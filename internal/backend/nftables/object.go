package nftables

import (
	"encoding/binary"
	"fmt"
	"iter"
	"net/netip"
	"slices"
	"strings"

	"github.com/fairlead/fairlead/internal/fwd"
	"github.com/fairlead/fairlead/internal/host/nft"
)

// Kind is a kind of kernel object.
type Kind uint8

// The kinds.
const (
	// KindTable is the table itself; it holds everything else.
	KindTable Kind = iota
	// KindSet is a set or map. The elements of a set of ranges belong to it; those of others are objects of their own.
	KindSet
	// KindChain is a chain with its rules.
	KindChain
	// KindFrontend is a frontend: an element of a map to verdicts, and its endpoints in the map of endpoints beside that.
	KindFrontend
	// KindElement is an element of another set.
	KindElement
)

// ID identifies an object of a table.
type ID struct {
	Kind Kind
	// Name is that of the chain or set; of a frontend or element it is that of the set that the Key is in.
	Name string
	// Key is that of the frontend or element, as the kernel has it.
	Key string
}

// Object is what an object holds.
type Object struct {
	// Value is compared: all that the kernel knows of the object, in a form of our own (chainValue, setValue, targets).
	Value string
	// chain or set is what is written; nil for what was read.
	chain *chain
	set   *rangeSet
}

// sameValue compares what the kernel holds.
func sameValue(a, b Object) bool { return a.Value == b.Value }

// chain is a chain as it is wanted.
type chain struct {
	base  nft.Base
	rules []rule
}

// rule is a rule in nft's syntax and as the kernel takes it. Both are made of the same values (rule.go).
type rule struct {
	text  string
	exprs nft.Rule
}

func (c *chain) exprs() []nft.Rule {
	out := make([]nft.Rule, len(c.rules))
	for i, r := range c.rules {
		out[i] = r.exprs
	}
	return out
}

// chainObject is the object of a chain.
func chainObject(c *chain) Object { return Object{Value: chainValue(c.base, c.exprs()), chain: c} }

// chainValue is the same string exactly for the same chain.
func chainValue(b nft.Base, rules []nft.Rule) string {
	var s strings.Builder
	if b != (nft.Base{}) {
		fmt.Fprintf(&s, "%+v\n", b)
	}
	for _, r := range rules {
		for _, x := range r {
			s.WriteString(x.Name)
			s.WriteByte('0' + byte(len(x.Attrs)/4)) // so that no attribute is taken for a name
			s.WriteString(x.Attrs)
		}
		s.WriteByte('\n')
	}
	return s.String()
}

// rangeSet is a set as it is wanted, with the ranges of one that holds ranges.
type rangeSet struct {
	nft.Set
	prefixes []netip.Prefix
}

func setObject(fam fwd.Family, s *rangeSet) Object {
	return Object{Value: setValue(s.Shape(fam), s.elements()), set: s}
}

// setValue is the same string exactly for the same set. ranges are its elements if it holds ranges; however the kernel
// splits them, the value tells the same.
func setValue(sh nft.Shape, ranges []nft.Element) string {
	var s strings.Builder
	fmt.Fprintf(&s, "%+v", sh)
	for _, b := range boundaries(ranges) {
		fmt.Fprintf(&s, " %x", b)
	}
	return s.String()
}

// ID of an element.
func elementID(set, key string) ID { return ID{Kind: KindElement, Name: set, Key: key} }

// Keys and values are written as the kernel has them: each field padded to four bytes if there are several.

func keyAddr(b []byte, a netip.Addr) []byte { return append(b, a.AsSlice()...) }
func keyProto(b []byte, p fwd.Proto) []byte { return append(b, byte(p), 0, 0, 0) }
func keyPort(b []byte, p uint16) []byte     { return append(b, byte(p>>8), byte(p), 0, 0) }
func keyByte(b []byte, v byte) []byte       { return append(b, v, 0, 0, 0) }
func keyNumber(b []byte, n uint32) []byte   { return binary.NativeEndian.AppendUint32(b, n) }

// frontendKey is the key in one of the maps to verdicts.
func frontendKey(b []byte, k fwd.Key) []byte {
	if !k.IsNodePort() {
		b = keyAddr(b, k.Addr)
	}
	return keyPort(keyProto(b, k.Proto), k.Port)
}

// keyOf is the key of a frontend's element: what frontendKey was made of.
func keyOf(fam fwd.Family, id ID) fwd.Key {
	k := fwd.Key{Family: fam}
	b := []byte(id.Key)
	if id.Name != setNodePorts {
		k.Addr, _ = netip.AddrFromSlice(b[:fam.Bits()/8])
		b = b[fam.Bits()/8:]
	}
	k.Proto, k.Port = fwd.Proto(b[0]), binary.BigEndian.Uint16(b[4:])
	return k
}

// endpointValue is the value of a map to endpoints.
func endpointValue(b []byte, a netip.AddrPort) []byte { return keyPort(keyAddr(b, a.Addr()), a.Port()) }

// targets is the value of a frontend: its verdict, a zero byte, and for each index, in the order of the bytes of its
// number, four bytes of that and the endpoint.
type targets string

// newTargets joins a verdict and a list of indexes with their endpoints, which it sorts.
func newTargets(verdict string, list []string) targets {
	slices.Sort(list)
	size := len(verdict) + 1
	for _, s := range list {
		size += len(s)
	}
	var b strings.Builder
	b.Grow(size)
	b.WriteString(verdict)
	b.WriteByte(0)
	for _, s := range list {
		b.WriteString(s)
	}
	return targets(b.String())
}

func (t targets) verdict() string {
	v, _, _ := strings.Cut(string(t), "\x00")
	return v
}

// endpoints yields the indexes with their endpoints.
func (t targets) endpoints(fam fwd.Family) iter.Seq2[string, string] {
	return func(yield func(index, endpoint string) bool) {
		_, list, _ := strings.Cut(string(t), "\x00")
		for size := indexLen + nft.Len(fam, endpointFields); len(list) >= size; list = list[size:] {
			if !yield(list[:indexLen], list[indexLen:size]) {
				return
			}
		}
	}
}

// indexLen is the length of an index in bytes.
const indexLen = 4

var endpointFields = []nft.Field{nft.DestAddr, nft.DestPort}

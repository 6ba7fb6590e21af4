package nftables

import (
	"encoding/binary"
	"fmt"
	"net/netip"
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
	// KindElement is an element of a set or map.
	KindElement
)

// ID identifies an object of a table.
type ID struct {
	Kind Kind
	// Name is that of the chain, the set, or the set of the element.
	Name string
	// Key is that of the element, as the kernel has it.
	Key string
}

// Object is what an object holds.
type Object struct {
	// Value is compared: of an element what its map gives, of anything else all that the kernel knows of it.
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
			fmt.Fprintf(&s, "%s%q ", x.Name, x.Attrs)
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
func keyNumber(b []byte, n uint32) []byte   { return binary.NativeEndian.AppendUint32(b, n) }

// frontendKey is the key in one of the maps to verdicts.
func frontendKey(b []byte, k fwd.Key) []byte {
	if !k.IsNodePort() {
		b = keyAddr(b, k.Addr)
	}
	return keyPort(keyProto(b, k.Proto), k.Port)
}

// endpointValue is the value of a map to endpoints.
func endpointValue(a netip.AddrPort) string {
	b := make([]byte, 0, 20)
	return string(keyPort(keyAddr(b, a.Addr()), a.Port()))
}

// hairpinKey is the key of an address that is source and destination.
func hairpinKey(a netip.Addr) string {
	b := make([]byte, 0, 32)
	return string(keyAddr(keyAddr(b, a), a))
}

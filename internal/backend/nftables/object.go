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
	// KindTable is the table itself, which contains everything else.
	KindTable Kind = iota
	// KindSet is a set or map. The elements of a set of ranges belong to it; those of others are
	// separate objects.
	KindSet
	// KindChain is a chain with its rules.
	KindChain
	// KindFrontend is a frontend: an element of a map to verdicts, and its endpoints in the map
	// endpointsOf it.
	KindFrontend
	// KindElement is an element of another set.
	KindElement
)

// ID identifies an object of a table.
type ID struct {
	Kind Kind
	// Name is the name of the chain or set; of a frontend or element it is that of its set.
	Name string
	// Key is the key of the frontend or element in the kernel's encoding.
	Key string
}

// Object is the content of a kernel object.
type Object struct {
	// Value is compared: what the kernel knows about the object, encoded by chainValue, setValue or
	// targets.
	Value string
	// chain or set is what is written; both are nil for an object that was read.
	chain *chain
	set   *rangeSet
}

// sameValue reports whether the kernel holds the same.
func sameValue(a, b Object) bool { return a.Value == b.Value }

// chain is a wanted chain.
type chain struct {
	base  nft.Base
	rules []rule
}

func (c *chain) exprs() []nft.Rule {
	out := make([]nft.Rule, len(c.rules))
	for i, r := range c.rules {
		out[i] = r.exprs
	}
	return out
}

// chainObject returns the object of a chain.
func chainObject(c *chain) Object { return Object{Value: chainValue(c.base, c.exprs()), chain: c} }

// chainValue encodes a chain; equal chains have equal values.
func chainValue(b nft.Base, rules []nft.Rule) string {
	var s strings.Builder
	if b != (nft.Base{}) {
		fmt.Fprintf(&s, "%+v\n", b)
	}
	for _, r := range rules {
		for _, x := range r {
			s.WriteString(x.Name)
			s.WriteByte('0' + byte(len(x.Attrs)/4)) // so that an attribute cannot be confused with a name
			s.WriteString(x.Attrs)
		}
		s.WriteByte('\n')
	}
	return s.String()
}

// rangeSet is a wanted set, with its prefixes if it is a set of ranges.
type rangeSet struct {
	nft.Set
	prefixes []netip.Prefix
}

func setObject(fam fwd.Family, s *rangeSet) Object {
	return Object{Value: setValue(s.Shape(fam), s.elements()), set: s}
}

// setValue encodes a set; equal sets have equal values. ranges are the elements of a set of ranges,
// in whatever way the kernel splits them.
func setValue(sh nft.Shape, ranges []nft.Element) string {
	var s strings.Builder
	fmt.Fprintf(&s, "%+v", sh)
	for _, b := range boundaries(ranges) {
		fmt.Fprintf(&s, " %x", b)
	}
	return s.String()
}

// elementID returns the ID of an element.
func elementID(set, key string) ID { return ID{Kind: KindElement, Name: set, Key: key} }

// The kernel's encoding of keys and values: each field is padded to four bytes if there are
// several.

func keyAddr(b []byte, a netip.Addr) []byte { return append(b, a.AsSlice()...) }
func keyProto(b []byte, p fwd.Proto) []byte { return append(b, byte(p), 0, 0, 0) }
func keyPort(b []byte, p uint16) []byte     { return append(b, byte(p>>8), byte(p), 0, 0) }
func keyByte(b []byte, v byte) []byte       { return append(b, v, 0, 0, 0) }
func keyNumber(b []byte, n uint32) []byte   { return binary.NativeEndian.AppendUint32(b, n) }

// frontendKey appends the key in a map to verdicts.
func frontendKey(b []byte, k fwd.Key) []byte {
	if !k.IsNodePort() {
		b = keyAddr(b, k.Addr)
	}
	return keyPort(keyProto(b, k.Proto), k.Port)
}

// keyOf is the inverse of frontendKey.
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

// endpointValue appends the value in a map to endpoints.
func endpointValue(b []byte, a netip.AddrPort) []byte { return keyPort(keyAddr(b, a.Addr()), a.Port()) }

// targets is the value of a frontend: its verdict, a zero byte, and for each index its number in
// four bytes and the endpoint, sorted by these bytes.
type targets string

// newTargets encodes a verdict and a list of indexes with their endpoints, which it sorts.
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

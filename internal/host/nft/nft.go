package nft

import (
	"context"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/internal/fwd"
)

// Interface is one table of one family.
type Interface interface {
	// Read returns what is in the table, the zero Content if the table does not exist.
	Read(context.Context) (Content, error)
	// Commit carries out all operations, in order, or none. If the kernel refuses them the error is
	// an *Error.
	Commit(context.Context, []Op) error
	// Check returns the error that Commit would return, without changing anything.
	Check(context.Context, []Op) error
}

// Content is what a table holds.
type Content struct {
	// Exists says whether there is such a table.
	Exists bool
	Chains []Chain
	// Sets by their names.
	Sets map[string]Shape
	// Elements by the name of the set, sorted, without those of Dynamic sets.
	Elements map[string]Elements
}

// Chain is a list of rules. A base chain, one with a Base, is called from a hook of the kernel.
type Chain struct {
	Name  string
	Base  Base
	Rules []Rule
}

// Base is the hook of a base chain. The zero Base is that of a regular chain.
type Base struct {
	// Type is "nat" or "filter".
	Type string
	Hook Hook
	// Priority orders the chains of a hook, the lowest first.
	Priority int32
	// Drop makes the policy drop instead of accept.
	Drop bool
}

// Hook is a point on the path of a packet.
type Hook uint32

// The hooks (NF_INET_*).
const (
	Prerouting  Hook = unix.NF_INET_PRE_ROUTING
	Input       Hook = unix.NF_INET_LOCAL_IN
	Forward     Hook = unix.NF_INET_FORWARD
	Output      Hook = unix.NF_INET_LOCAL_OUT
	Postrouting Hook = unix.NF_INET_POST_ROUTING
)

func (h Hook) String() string {
	names := [...]string{"prerouting", "input", "forward", "output", "postrouting"}
	if int(h) < len(names) {
		return names[h]
	}
	return fmt.Sprintf("hook%d", uint32(h))
}

// Rule is a list of expressions.
type Rule []Expr

// Expr is an expression of a rule: its name in the kernel, and its netlink attributes, encoded and
// sorted by type.
type Expr struct {
	Name, Attrs string
}

// Set is the definition of a set or a map, without its elements.
type Set struct {
	Name string
	// Key are the fields of a key.
	Key []Field
	// Value are the fields of a map's values; empty for a set and for a map to verdicts.
	Value []Field
	// Verdicts makes it a map to verdicts.
	Verdicts bool
	// Interval allows ranges: an element begins a range, one with End ends it. The key must have
	// one field.
	Interval bool
	// Dynamic lets packets add elements, each with a timeout.
	Dynamic bool
	// Size is the maximum number of elements; 0 means no limit.
	Size uint32
}

// Field is a field of a key or a value.
type Field uint8

// The fields. Addresses are those of the table's family.
const (
	SourceAddr Field = iota + 1
	DestAddr
	// Protocol is the number of the transport protocol.
	Protocol
	DestPort
	// Number is an integer of 32 bits in the byte order of the machine.
	Number
	// SourceLast and DestLast are the last bytes of the addresses.
	SourceLast
	DestLast
)

// fieldInfo is what the kernel and nft(8) need to know about a field.
type fieldInfo struct {
	len int
	// offset is the offset of an address, or of its last byte, in the network header, in bytes.
	offset uint32
	// nftType is the number of the type in nft(8) (TYPE_* in its datatype.h). The kernel only
	// stores it.
	nftType uint32
}

func (f Field) info(fam fwd.Family) fieldInfo {
	const integer = 4 // the type of an integer of any length
	addr, source, dest, typ := fam.Bits()/8, uint32(12), uint32(16), uint32(7)
	if fam == fwd.IPv6 {
		source, dest, typ = 8, 24, 8
	}
	last := uint32(addr) - 1
	switch f {
	case SourceAddr:
		return fieldInfo{addr, source, typ}
	case DestAddr:
		return fieldInfo{addr, dest, typ}
	case SourceLast:
		return fieldInfo{1, source + last, integer}
	case DestLast:
		return fieldInfo{1, dest + last, integer}
	case Protocol:
		return fieldInfo{len: 1, nftType: 12}
	case DestPort:
		return fieldInfo{len: 2, nftType: 13}
	}
	return fieldInfo{len: 4, nftType: integer}
}

// Len is the length in bytes.
func (f Field) Len(fam fwd.Family) int { return f.info(fam).len }

// Offset is the offset of an address, or of its last byte, in the network header, in bytes.
func (f Field) Offset(fam fwd.Family) uint32 { return f.info(fam).offset }

// Padded is the length in bytes in a key or value of several fields, each of which is padded to a
// multiple of four bytes.
func (f Field) Padded(fam fwd.Family) int { return (f.Len(fam) + 3) &^ 3 }

// Len is the length of a key or a value of these fields in bytes.
func Len(fam fwd.Family, fields []Field) int {
	if len(fields) == 1 {
		return fields[0].Len(fam)
	}
	n := 0
	for _, f := range fields {
		n += f.Padded(fam)
	}
	return n
}

// Element is an element of a set or map.
type Element struct {
	// Key has the length of the set's fields.
	Key string
	// Value is the value in a map: its fields, or a verdict such as "drop" or "goto CHAIN".
	Value string
	// End says that Key is the first key after a range.
	End bool
}

// OpKind is the kind of an Op.
type OpKind uint8

// The kinds of operations, with the fields of Op that they use in addition to Name.
const (
	// AddTable adds the table if it does not exist.
	AddTable OpKind = iota
	// DelTable deletes the table with everything in it.
	DelTable
	// AddChain adds a chain without rules (Base).
	AddChain
	// FlushChain deletes all rules of a chain.
	FlushChain
	// AddRules adds rules at the end of a chain (Rules).
	AddRules
	// DelChain deletes a chain that nothing refers to, with its rules.
	DelChain
	// AddSet adds a set or map (Set).
	AddSet
	// DelSet deletes a set that no rule uses, with its elements.
	DelSet
	// AddElements adds elements (Set, Elements).
	AddElements
	// DelElements deletes elements (Set, Elements).
	DelElements
)

// Op is an operation of a transaction.
type Op struct {
	Kind OpKind
	// Name is the name of the chain or set.
	Name     string
	Base     Base
	Rules    []Rule
	Set      Set
	Elements []Element
}

func (o Op) String() string {
	what := [...]string{"add table", "delete table", "add chain", "flush chain", "add rules to chain", "delete chain",
		"add set", "delete set", "add elements to set", "delete elements of set"}[o.Kind]
	return what + " " + o.Name
}

// Error is the kernel's refusal of a transaction.
type Error struct {
	// Op is the operation that was refused; empty if it was the transaction as a whole.
	Op string
	// Name is the name of its chain or set. Elements are those in the refused message; at least one
	// of them is at fault.
	Name     string
	Elements []Element
	Errno    unix.Errno
	// Text is the kernel's explanation, often empty.
	Text string
}

func (e *Error) Error() string {
	s := "nf_tables: " + e.Errno.Error()
	if e.Op != "" {
		s = "nf_tables: " + e.Op + ": " + e.Errno.Error()
	}
	if e.Text != "" {
		s += " (" + e.Text + ")"
	}
	return s
}

// Unwrap returns the error number.
func (e *Error) Unwrap() error { return e.Errno }

// permanent are the errors with which the kernel refuses what it will refuse again. If something is
// missing, exists already or is in use, the next attempt may succeed, since others may write to the
// table.
var permanent = []unix.Errno{
	unix.EINVAL, unix.EOPNOTSUPP, unix.EAFNOSUPPORT, unix.ERANGE, unix.E2BIG, unix.ENAMETOOLONG, unix.ELOOP, unix.EPERM,
	// A limit of the kernel: a full set, a chain with too many references. Without the Services
	// that exceed it the others fit.
	unix.ENFILE, unix.EMFILE, unix.ENOSPC,
}

// Refused reports whether the kernel will refuse the same operations again. An element that exists
// already counts as refused: either it excludes another one in the table, such as a range that
// overlaps, or somebody else added it, which the next reading finds out.
func (e *Error) Refused() bool {
	return slices.Contains(permanent, e.Errno) || e.Errno == unix.EEXIST && len(e.Elements) > 0
}

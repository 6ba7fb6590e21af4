package nft

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/internal/fwd"
)

// Interface is one table of one family.
type Interface interface {
	// Read returns all that is in the table; the zero Content if there is no such table.
	Read(context.Context) (Content, error)
	// Commit carries out operations in one transaction: all of them, in order, or none. An error of the kernel is an *Error.
	Commit(context.Context, []Op) error
	// Check returns the error that Commit would return, and changes nothing.
	Check(context.Context, []Op) error
}

// Content is what a table holds.
type Content struct {
	// Exists says whether the table is there at all.
	Exists bool
	Chains []Chain
	// Sets by their names.
	Sets map[string]Shape
	// Elements by the name of the set, sorted. Those of sets with Dynamic, which packets make, are left out.
	Elements map[string]Elements
}

// Chain is a list of rules. With a Base it hangs on a hook of the kernel.
type Chain struct {
	Name  string
	Base  Base
	Rules []Rule
}

// Base says where a base chain hangs; the zero Base is that of a regular chain.
type Base struct {
	// Type is "nat" or "filter".
	Type string
	Hook Hook
	// Priority orders the chains of a hook, the lowest first.
	Priority int32
	// Drop is the policy drop; otherwise it is accept.
	Drop bool
}

// Hook is a place in the way of a packet.
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

// Expr is one expression of a rule: its name in the kernel and its netlink attributes, encoded and sorted by type.
type Expr struct {
	Name, Attrs string
}

// Set is a set or a map; its elements are apart from it.
type Set struct {
	Name string
	// Key are the fields that are looked up together.
	Key []Field
	// Value are the fields that a map gives; empty for a set, and for a map to verdicts.
	Value []Field
	// Verdicts makes it a map to verdicts.
	Verdicts bool
	// Interval allows ranges: an element is where one begins, one with End where it ends. Only for a key of one field.
	Interval bool
	// Dynamic lets packets add elements, each with a time after which it goes.
	Dynamic bool
	// Size is the most elements that fit; 0 means no bound.
	Size uint32
}

// Field is a part of a key or a value.
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

// Len is the length in bytes.
func (f Field) Len(fam fwd.Family) int {
	switch f {
	case SourceAddr, DestAddr:
		return fam.Bits() / 8
	case Protocol, SourceLast, DestLast:
		return 1
	case DestPort:
		return 2
	}
	return 4
}

// Offset is where an address, or its last byte, begins in the network header, in bytes.
func (f Field) Offset(fam fwd.Family) uint32 {
	switch f {
	case SourceLast:
		return SourceAddr.Offset(fam) + uint32(fam.Bits()/8) - 1
	case DestLast:
		return DestAddr.Offset(fam) + uint32(fam.Bits()/8) - 1
	}
	v6 := fam == fwd.IPv6
	switch {
	case f == SourceAddr && v6:
		return 8
	case f == SourceAddr:
		return 12
	case v6:
		return 24
	}
	return 16
}

// Padded is the length in bytes in a key or value of several fields, in which each begins at a multiple of four bytes.
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
	// Key is as long as the set's fields are.
	Key string
	// Value is that of a map: the fields, or a verdict as "drop" or "goto CHAIN".
	Value string
	// End says that the Key is the first one after a range.
	End bool
}

// OpKind is what an Op does.
type OpKind uint8

// The kinds of operations, with the fields of Op that they need beside Name.
const (
	// AddTable makes the table; it is harmless if it is there.
	AddTable OpKind = iota
	// DelTable removes the table with all that is in it.
	DelTable
	// AddChain makes a chain without rules (Base).
	AddChain
	// FlushChain removes all rules of a chain.
	FlushChain
	// AddRules adds rules at the end of a chain (Rules).
	AddRules
	// DelChain removes a chain that nothing goes to, with its rules.
	DelChain
	// AddSet makes a set or map (Set).
	AddSet
	// DelSet removes a set that no rule uses, with its elements.
	DelSet
	// AddElements adds elements (Set, Elements).
	AddElements
	// DelElements removes elements (Set, Elements).
	DelElements
)

// Op is a step of a transaction.
type Op struct {
	Kind OpKind
	// Name is that of the chain or set.
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
	// Name is that of the operation's chain or set. Elements are those of them among which the one is that was refused.
	Name     string
	Elements []Element
	Errno    unix.Errno
	// Text is the kernel's own explanation, often empty.
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

// Refused says whether the kernel will not accept the same again, however often it is tried. What is missing, there
// already or in use can be otherwise the next time, since others may write to the table. An element that is there already is
// refused nevertheless: it is one of two that exclude each other, such as ranges that overlap, or others have made it, which
// a reading finds out. So is what finds no room (ENFILE: a set is full; EMFILE: a chain is referred to too often; ENOSPC): the
// limits are the kernel's, and without the Services that exceed them the others fit.
func (e *Error) Refused() bool {
	if errors.Is(e.Errno, unix.EEXIST) && len(e.Elements) > 0 {
		return true
	}
	for _, no := range []unix.Errno{unix.EINVAL, unix.EOPNOTSUPP, unix.EAFNOSUPPORT, unix.ERANGE, unix.E2BIG, unix.ENAMETOOLONG, unix.ELOOP, unix.EPERM,
		unix.ENFILE, unix.EMFILE, unix.ENOSPC} {
		if errors.Is(e.Errno, no) {
			return true
		}
	}
	return false
}

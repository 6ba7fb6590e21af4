package ipset

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Type is the type of a set, by the kernel's name.
type Type string

// The types that can be written. For other types only name and settings can be read.
const (
	// HashIP contains addresses.
	HashIP Type = "hash:ip"
	// HashIPPort contains addresses with protocol and port.
	HashIPPort Type = "hash:ip,port"
	// HashIPPortIP contains addresses with protocol and port, and a second address.
	HashIPPortIP Type = "hash:ip,port,ip"
	// HashIPPortNet contains addresses with protocol and port, and a network.
	HashIPPortNet Type = "hash:ip,port,net"
	// BitmapPort contains ports from 0 to 65535 without a protocol.
	BitmapPort Type = "bitmap:port"
)

// fields says which fields the entries of a type have. All types except HashIP have ports.
type fields struct{ addr, proto, net bool }

var fieldsOf = map[Type]fields{
	HashIP:        {addr: true},
	HashIPPort:    {addr: true, proto: true},
	HashIPPortIP:  {addr: true, proto: true, net: true},
	HashIPPortNet: {addr: true, proto: true, net: true},
	BitmapPort:    {},
}

// DefaultMaxElem is the kernel's default for the size of a hash.
const DefaultMaxElem = 65536

// HashSize is the initial number of buckets of a hash. The kernel grows it as needed.
const HashSize = 1024

// MaxName is the maximum length of the name of a set.
const MaxName = 31

// Set is a set without its entries.
type Set struct {
	Name string
	Type Type
	// IPv6 is the address family. It is false for types without a family, such as BitmapPort.
	IPv6 bool
	// MaxElem is the maximum number of entries; 0 for BitmapPort.
	MaxElem uint32
}

// Entry is an entry of a set. The type of the set determines which fields are used:
//
//	HashIP         Addr
//	HashIPPort     Addr, Proto, Port
//	HashIPPortIP   Addr, Proto, Port, Net (a single address)
//	HashIPPortNet  Addr, Proto, Port, Net
//	BitmapPort     Port
type Entry struct {
	Addr netip.Addr
	// Proto is the IP protocol: TCP, UDP or SCTP.
	Proto uint8
	Port  uint16
	// Net has no host bits, and its length is not 0.
	Net netip.Prefix
}

// Content is a set with its entries.
type Content struct {
	Set
	// Entries are sorted by Entry.Compare. Sets of unknown types have none.
	Entries []Entry
}

// Change adds an entry to a set or deletes one.
type Change struct {
	// Set is the set. Its MaxElem is ignored.
	Set   Set
	Entry Entry
	Del   bool
}

// Failure is a Change that was not applied.
type Failure struct {
	// Index is the position of the Change in the list.
	Index int
	// Err names the entry and the set.
	Err error
}

// Sets are the sets of a network namespace. Kernel implements it.
type Sets interface {
	// List returns the sets whose names begin with prefix, sorted by name, with their entries.
	List(ctx context.Context, prefix string) ([]Content, error)
	// Create creates an empty set. A set that exists with the same settings is left as it is. If
	// the settings differ, the error is ErrExist and says what differs.
	Create(ctx context.Context, s Set) error
	// Destroy removes a set and its entries. ErrNoSet: it does not exist. ErrInUse: a rule uses it.
	Destroy(ctx context.Context, name string) error
	// Swap exchanges two sets of the same type and family. Rules refer to sets by name, so they see
	// the change at once.
	Swap(ctx context.Context, a, b string) error
	// Apply adds and deletes entries, in order. failed are the refused changes: ErrExist,
	// ErrMissing, ErrFull, ErrNoSet, ErrInvalid, or the kernel's error. err means that it is
	// unknown which changes were applied.
	Apply(ctx context.Context, changes []Change) (failed []Failure, err error)
}

// Errors that callers test for.
var (
	// ErrExist: the entry exists already, or the set exists with other settings.
	ErrExist = errors.New("exists already")
	// ErrMissing: the entry to delete does not exist.
	ErrMissing = errors.New("no such entry")
	// ErrFull: the set has its maximum number of entries; see Grow.
	ErrFull = errors.New("the set is full")
	// ErrNoSet: the set does not exist.
	ErrNoSet = errors.New("no such set")
	// ErrInUse: a rule or another set uses the set.
	ErrInUse = errors.New("the set is in use")
	// ErrInvalid: the kernel cannot have such a set or entry.
	ErrInvalid = errors.New("invalid")
)

// Family is the kernel's name of the address family.
func (s Set) Family() string {
	if s.IPv6 {
		return "inet6"
	}
	return "inet"
}

// Difference describes how the settings of an existing set differ from the wanted ones. options are
// settings of the existing set that this package never makes.
func (s Set) Difference(want Set, options ...string) string {
	var d []string
	if s.Type != want.Type {
		d = append(d, fmt.Sprintf("type %s, want %s", s.Type, want.Type))
	}
	if s.IPv6 != want.IPv6 {
		d = append(d, fmt.Sprintf("family %s, want %s", s.Family(), want.Family()))
	}
	if s.MaxElem != want.MaxElem {
		d = append(d, fmt.Sprintf("maxelem %d, want %d", s.MaxElem, want.MaxElem))
	}
	return strings.Join(append(d, options...), ", ")
}

// Validate returns ErrInvalid and the reason if a set cannot be created.
func (s Set) Validate() error {
	_, known := fieldsOf[s.Type]
	switch {
	case s.Name == "" || len(s.Name) > MaxName:
		return fmt.Errorf("set %q: %w name, want 1 to %d characters", s.Name, ErrInvalid, MaxName)
	case !known:
		return fmt.Errorf("set %s: %w type %q", s.Name, ErrInvalid, s.Type)
	case s.Type == BitmapPort && (s.IPv6 || s.MaxElem != 0):
		return fmt.Errorf("set %s: %w: %s has neither family nor maximum number of entries", s.Name, ErrInvalid, s.Type)
	case s.Type != BitmapPort && s.MaxElem == 0:
		return fmt.Errorf("set %s: %w: at most 0 entries", s.Name, ErrInvalid)
	}
	return nil
}

// Validate returns ErrInvalid and the reason if an entry does not fit the set. The error names
// both.
func (e Entry) Validate(s Set) error {
	if reason := e.invalid(s); reason != "" {
		return fmt.Errorf("%s in %s (%s %s): %w: %s", e, s.Name, s.Type, s.Family(), ErrInvalid, reason)
	}
	return nil
}

// invalid returns why an entry does not fit the set, or "" if it does.
func (e Entry) invalid(s Set) string {
	want, known := fieldsOf[s.Type]
	switch {
	case !known:
		return "unknown type"
	case want != fields{addr: e.Addr.IsValid(), proto: e.Proto != 0, net: e.Net.IsValid()}:
		return "the type has other fields"
	case s.Type == HashIP && e.Port != 0:
		return "the type has no port"
	case want.proto && protocolNames[e.Proto] == "":
		return "a protocol without ports"
	}
	if want.addr {
		switch {
		case !storable(e.Addr, s.IPv6):
			return "an address of another family"
		case e.Addr.IsUnspecified():
			return "the unspecified address, which kernels refuse in hash:ip and newer ones in hash:ip,port"
		}
	}
	if want.net {
		return e.invalidNet(s)
	}
	return ""
}

func (e Entry) invalidNet(s Set) string {
	switch {
	case !storable(e.Net.Addr(), s.IPv6):
		return "an address of another family"
	case e.Net != e.Net.Masked():
		return "a network with host bits"
	case e.Net.Bits() == 0:
		return "a network of length 0; write two of length 1"
	case s.Type == HashIPPortIP && !e.Net.IsSingleIP():
		return "a network where an address belongs"
	}
	return ""
}

// storable reports whether the kernel stores an address of the family unchanged.
func storable(a netip.Addr, ipv6 bool) bool {
	return a.Is6() == ipv6 && !a.Is4In6() && a.Zone() == ""
}

// protocolNames are ipset's names of the protocols that have ports.
var protocolNames = map[uint8]string{unix.IPPROTO_TCP: "tcp", unix.IPPROTO_UDP: "udp", unix.IPPROTO_SCTP: "sctp"}

// String returns the entry as ipset prints it: 10.96.0.1,tcp:443 or 192.0.2.1,tcp:80,10.0.0.0/8.
func (e Entry) String() string {
	var parts []string
	if e.Addr.IsValid() {
		parts = append(parts, e.Addr.String())
	}
	if e.Proto != 0 {
		name := cmp.Or(protocolNames[e.Proto], strconv.Itoa(int(e.Proto)))
		parts = append(parts, name+":"+strconv.Itoa(int(e.Port)))
	}
	switch {
	case e.Net.IsSingleIP():
		parts = append(parts, e.Net.Addr().String())
	case e.Net.IsValid():
		parts = append(parts, e.Net.String())
	}
	if len(parts) == 0 {
		return strconv.Itoa(int(e.Port))
	}
	return strings.Join(parts, ",")
}

// Compare orders entries by address, protocol, port and network.
func (e Entry) Compare(o Entry) int {
	return cmp.Or(e.Addr.Compare(o.Addr), cmp.Compare(e.Proto, o.Proto), cmp.Compare(e.Port, o.Port), e.Net.Compare(o.Net))
}

// Refused is the error of a change that was refused with err.
func (c Change) Refused(err error) error {
	if c.Del {
		return fmt.Errorf("delete %s from %s: %w", c.Entry, c.Set.Name, err)
	}
	return fmt.Errorf("add %s to %s: %w", c.Entry, c.Set.Name, err)
}

// Grow raises the maximum number of entries of a set. The kernel has no setting for that, so Grow
// creates a larger set, fills it, and swaps the two; rules do not notice. Entries that others
// change meanwhile are lost.
func Grow(ctx context.Context, sets Sets, name string, maxElem uint32) error {
	if err := grow(ctx, sets, name, maxElem); err != nil {
		return fmt.Errorf("grow set %s: %w", name, err)
	}
	return nil
}

func grow(ctx context.Context, sets Sets, name string, maxElem uint32) error {
	found, err := sets.List(ctx, name)
	if err != nil {
		return err
	}
	if len(found) == 0 || found[0].Name != name { // sorted: a name comes before longer ones
		return ErrNoSet
	}
	old := found[0]
	larger := old.Set
	larger.Name, larger.MaxElem = "fairlead-grow-"+old.Family(), maxElem
	// An interrupted Grow may have left the set.
	if err := sets.Destroy(ctx, larger.Name); err != nil && !errors.Is(err, ErrNoSet) {
		return err
	}
	if err := sets.Create(ctx, larger); err != nil {
		return err
	}
	changes := make([]Change, len(old.Entries))
	for i, e := range old.Entries {
		changes[i] = Change{Set: larger, Entry: e}
	}
	failed, err := sets.Apply(ctx, changes)
	if err == nil && len(failed) > 0 {
		err = failed[0].Err
	}
	if err == nil {
		err = sets.Swap(ctx, name, larger.Name)
	}
	return errors.Join(err, sets.Destroy(ctx, larger.Name))
}

package ipset

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strconv"

	"golang.org/x/sys/unix"
)

// Type is the type of a set, by the kernel's name.
type Type string

// The types that can be written. Of others the name and settings can be listed.
const (
	// HashIP has addresses.
	HashIP Type = "hash:ip"
	// HashIPPort has addresses with protocol and port.
	HashIPPort Type = "hash:ip,port"
	// HashIPPortIP has addresses with protocol and port, and a second address.
	HashIPPortIP Type = "hash:ip,port,ip"
	// HashIPPortNet has addresses with protocol and port, and a network.
	HashIPPortNet Type = "hash:ip,port,net"
	// HashNet has networks.
	HashNet Type = "hash:net"
	// BitmapPort has ports, all 65536, of no protocol.
	BitmapPort Type = "bitmap:port"
)

// DefaultMaxElem is the number of entries that a hash can have unless it was made for more.
const DefaultMaxElem = 65536

// MaxName is the length of the longest name of a set.
const MaxName = 31

// Set is a set without its entries.
type Set struct {
	Name string
	Type Type
	// IPv6 is the family; of a set that has none, such as BitmapPort, it is false.
	IPv6 bool
	// MaxElem is the largest number of entries; 0 for BitmapPort.
	MaxElem uint32
}

// Entry is an entry of a set. Which fields it has depends on the type of the set:
//
//	HashIP         Addr
//	HashIPPort     Addr, Proto, Port
//	HashIPPortIP   Addr, Proto, Port, Net of one address
//	HashIPPortNet  Addr, Proto, Port, Net
//	HashNet        Net
//	BitmapPort     Port
type Entry struct {
	Addr netip.Addr
	// Proto is the IP protocol: TCP, UDP or SCTP.
	Proto uint8
	Port  uint16
	// Net has no bits set beyond its length, which is not 0.
	Net netip.Prefix
}

// Content is a set with its entries.
type Content struct {
	Set
	// Entries are sorted by Entry.Compare. Of types that this package does not know there are none.
	Entries []Entry
}

// Change is an entry to add to a set, or to delete from one.
type Change struct {
	// Set is the set; its MaxElem does not matter.
	Set   Set
	Entry Entry
	Del   bool
}

// Failure is a Change that was not carried out.
type Failure struct {
	// Index is that of the Change in the list.
	Index int
	// Err names entry and set.
	Err error
}

// Sets are the sets of a network namespace. Kernel and Fake implement it.
type Sets interface {
	// List returns the sets whose names begin with prefix, sorted by name, with their entries.
	List(ctx context.Context, prefix string) ([]Content, error)
	// Create makes an empty set. One that is there already, with the same settings, is left as it is; with others the error
	// is ErrExist and says what differs.
	Create(ctx context.Context, s Set) error
	// Destroy removes a set and its entries. ErrNoSet: it is not there. ErrInUse: a rule uses it.
	Destroy(ctx context.Context, name string) error
	// Swap exchanges two sets of the same type and family under their names; rules see the change at once.
	Swap(ctx context.Context, a, b string) error
	// Apply adds and deletes entries, in order. failed are those that were refused: ErrExist, ErrMissing, ErrFull, ErrNoSet,
	// ErrInvalid, or the kernel's error. err says that it is not known which changes were carried out.
	Apply(ctx context.Context, changes []Change) (failed []Failure, err error)
}

// Errors that callers test for.
var (
	// ErrExist says that an entry, or a set with other settings, is there already.
	ErrExist = errors.New("exists already")
	// ErrMissing says that an entry to delete is not there.
	ErrMissing = errors.New("no such entry")
	// ErrFull says that a set has as many entries as it can have; see Grow.
	ErrFull = errors.New("the set is full")
	// ErrNoSet says that a set is not there.
	ErrNoSet = errors.New("no such set")
	// ErrInUse says that a rule, or another set, uses a set.
	ErrInUse = errors.New("the set is in use")
	// ErrInvalid says that a set or an entry is not one that the kernel could have.
	ErrInvalid = errors.New("invalid")
)

func (s Set) family() string {
	if s.IPv6 {
		return "inet6"
	}
	return "inet"
}

// shape tells which fields the entries of a type have.
func (t Type) shape() (addr, proto, net, known bool) {
	switch t {
	case HashIP:
		return true, false, false, true
	case HashIPPort:
		return true, true, false, true
	case HashIPPortIP, HashIPPortNet:
		return true, true, true, true
	case HashNet:
		return false, false, true, true
	case BitmapPort:
		return false, false, false, true
	}
	return false, false, false, false
}

// Validate says what is wrong with a set that is to be made; the error is ErrInvalid.
func (s Set) Validate() error {
	_, _, _, known := s.Type.shape()
	switch {
	case s.Name == "" || len(s.Name) > MaxName:
		return fmt.Errorf("set %q: %w name, want 1 to %d characters", s.Name, ErrInvalid, MaxName)
	case !known:
		return fmt.Errorf("set %s: %w type %q", s.Name, ErrInvalid, s.Type)
	case s.Type == BitmapPort && (s.IPv6 || s.MaxElem != 0):
		return fmt.Errorf("set %s: %w: %s has neither family nor largest number of entries", s.Name, ErrInvalid, s.Type)
	case s.Type != BitmapPort && s.MaxElem == 0:
		return fmt.Errorf("set %s: %w: at most 0 entries", s.Name, ErrInvalid)
	}
	return nil
}

// Validate says what is wrong with an entry of a set; the error is ErrInvalid and names both.
func (e Entry) Validate(s Set) error {
	if why := e.unfit(s); why != "" {
		return fmt.Errorf("%s in %s (%s %s): %w: %s", e, s.Name, s.Type, s.family(), ErrInvalid, why)
	}
	return nil
}

func (e Entry) unfit(s Set) string {
	addr, proto, net, known := s.Type.shape()
	switch {
	case !known:
		return "unknown type"
	case addr != e.Addr.IsValid() || proto != (e.Proto != 0) || net != e.Net.IsValid():
		return "the type has other fields"
	case !proto && s.Type != BitmapPort && e.Port != 0:
		return "the type has no port"
	case proto && e.Proto != unix.IPPROTO_TCP && e.Proto != unix.IPPROTO_UDP && e.Proto != unix.IPPROTO_SCTP:
		return "a protocol without ports"
	case addr && !ofFamily(e.Addr, s.IPv6), net && !ofFamily(e.Net.Addr(), s.IPv6):
		return "an address of another family"
	case addr && e.Addr.IsUnspecified():
		return "the unspecified address, which kernels refuse in hash:ip and newer ones in hash:ip,port"
	case net && e.Net != e.Net.Masked():
		return "a network with host bits"
	case net && e.Net.Bits() == 0:
		return "a network of length 0; write two of length 1"
	case s.Type == HashIPPortIP && !e.Net.IsSingleIP():
		return "a network where an address belongs"
	}
	return ""
}

// ofFamily says whether an address is one that the kernel stores as it is.
func ofFamily(a netip.Addr, ipv6 bool) bool {
	return a.Is6() == ipv6 && !a.Is4In6() && a.Zone() == ""
}

// String is the entry as ipset prints it: 10.96.0.1,tcp:443 or 10.0.0.0/8.
func (e Entry) String() string {
	s := ""
	add := func(part string) {
		if s != "" {
			s += ","
		}
		s += part
	}
	if e.Addr.IsValid() {
		add(e.Addr.String())
	}
	if e.Proto != 0 {
		add(protoName(e.Proto) + ":" + strconv.Itoa(int(e.Port)))
	}
	switch {
	case e.Net.IsSingleIP():
		add(e.Net.Addr().String())
	case e.Net.IsValid():
		add(e.Net.String())
	}
	if s == "" {
		return strconv.Itoa(int(e.Port))
	}
	return s
}

// Compare orders entries.
func (e Entry) Compare(o Entry) int {
	return cmp.Or(e.Addr.Compare(o.Addr), cmp.Compare(e.Proto, o.Proto), cmp.Compare(e.Port, o.Port), e.Net.Compare(o.Net))
}

// Grow gives a set room for more entries. There is no setting for that in the kernel: a larger one is made, filled and
// put in the place of the old one, which rules do not notice. Only what changes the set meanwhile is lost.
func Grow(ctx context.Context, sets Sets, name string, maxElem uint32) error {
	found, err := sets.List(ctx, name)
	if err != nil {
		return fmt.Errorf("grow set %s: %w", name, err)
	}
	if len(found) == 0 || found[0].Name != name { // sorted: a name comes before longer ones
		return fmt.Errorf("grow set %s: %w", name, ErrNoSet)
	}
	old := found[0]
	larger := old.Set
	larger.Name, larger.MaxElem = "fairlead-grow-"+old.family(), maxElem
	if err := sets.Destroy(ctx, larger.Name); err != nil && !errors.Is(err, ErrNoSet) { // left by one that was cut off
		return fmt.Errorf("grow set %s: %w", name, err)
	}
	if err := sets.Create(ctx, larger); err != nil {
		return fmt.Errorf("grow set %s: %w", name, err)
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
	if err = errors.Join(err, sets.Destroy(ctx, larger.Name)); err != nil {
		return fmt.Errorf("grow set %s: %w", name, err)
	}
	return nil
}

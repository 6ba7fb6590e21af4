package link

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
)

// Protocol is the protocol number of our routes and rules: ip route show proto 102. Those with an
// owner (Open) have OwnedProtocol instead; their routes have the owner's number as metric, their
// rules as table.
const (
	Protocol      = 102
	OwnedProtocol = 103
)

// LocalTable is the kernel's routing table of local addresses.
const LocalTable uint32 = unix.RT_TABLE_LOCAL

// Loopback is the name of the loopback device.
const Loopback = "lo"

// Host has the devices, addresses and routes of a network namespace. Kernel implements it.
type Host interface {
	// Device returns a device by name. The error is ErrNoDevice if it does not exist.
	Device(ctx context.Context, name string) (Device, error)
	// EnsureDummy creates a dummy device, down and without ARP. An existing one is left as it is,
	// even if it is up. The error is ErrNotDummy if the device is of another kind.
	EnsureDummy(ctx context.Context, name string) (Device, error)
	// RemoveDummy removes a dummy device with all its addresses. The errors are ErrNoDevice and
	// ErrNotDummy.
	RemoveDummy(ctx context.Context, name string) error
	// Addrs returns the addresses on a device, and those on all other devices like LocalAddrs. A
	// device that does not exist has none.
	Addrs(ctx context.Context, dev string) (on []Addr, others []netip.Addr, err error)
	// Routes returns our routes in all tables and both families, sorted.
	Routes(ctx context.Context) ([]Route, error)
	// Rules returns our rules of both families, sorted.
	Rules(ctx context.Context) ([]Rule, error)
	// Apply adds and removes objects, in order. failed are the refused changes, see Failure. err
	// means that it is unknown which changes were applied.
	Apply(ctx context.Context, changes []Change) (failed []Failure, err error)
}

// Device is a network device.
type Device struct {
	Index int
	// Up means administratively up, with or without carrier.
	Up    bool
	Dummy bool
}

// Object can be added and removed: an Addr, Route or Rule. Objects are comparable.
type Object interface {
	fmt.Stringer
	// validate returns why the object cannot be added, or removed if del is true; "" if it can.
	validate(del bool) string
}

// Addr is an address on a device. It is added as a single address without prefix route and, in
// IPv6, without duplicate address detection. The kernel uses it as source only for packets to
// itself: in IPv4 it has scope link, in IPv6 it is deprecated.
type Addr struct {
	Dev    string
	Prefix netip.Prefix
	// Global means that the kernel may use it as source of packets to other hosts, like the
	// addresses that kube-proxy adds. It is ignored when an address is removed.
	Global bool
}

// Route is a route that makes the addresses of a network local to the node.
type Route struct {
	Dst netip.Prefix
	// Dev is a device. IPv6 requires it to be up. The kernel removes IPv4 routes with the last IPv4
	// address of their device, so Loopback is the better choice.
	Dev string
	// Src is the source address of the node's own packets to Dst. It must be an address of the
	// node. If that is removed, the route remains, either with this source (IPv4 outside of the
	// main table; IPv6 in Linux 6.1) or without one (IPv6 in Linux 6.18). Without Src the kernel
	// uses the destination as source.
	Src   netip.Addr
	Table uint32
}

// Rule routes packets whose mark, masked with Mask, is Mark by a table.
type Rule struct {
	IPv6 bool
	// Priority orders rules, lowest first. Rule 0 is for LocalTable, 32766 for the main table.
	Priority   uint32
	Mark, Mask uint32
	Table      uint32
}

// Change adds an object or removes it.
type Change struct {
	Object Object
	Del    bool
}

// Failure is a Change that was not applied.
type Failure struct {
	// Index is the position of the Change in the list.
	Index int
	// Err names the object and wraps the kernel's error, such as unix.EEXIST, or ErrInvalid or
	// ErrNoDevice. See Missing.
	Err error
}

// Errors that callers test for.
var (
	ErrNoDevice = errors.New("no such device")
	ErrNotDummy = errors.New("not a dummy device")
	// ErrInvalid means that this package cannot add such an object.
	ErrInvalid = errors.New("invalid")
)

// Missing reports whether a removal failed because the object or its device does not exist.
func Missing(err error) bool {
	return slices.ContainsFunc([]error{ErrNoDevice, unix.EADDRNOTAVAIL, unix.ESRCH, unix.ENOENT, unix.ENODEV},
		func(e error) bool { return errors.Is(err, e) })
}

// MarkRoute is the default route of a table that makes all addresses of a family local. Together
// with a Rule it delivers packets to the node whose destination is not one of its addresses.
func MarkRoute(ipv6 bool, table uint32) Route {
	dst := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	if ipv6 {
		dst = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	}
	return Route{Dst: dst, Dev: Loopback, Table: table}
}

func (a Addr) String() string {
	scope := ""
	if a.Global {
		scope = " scope global"
	}
	return fmt.Sprintf("address %s dev %s%s", a.Prefix, a.Dev, scope)
}

func (r Route) String() string {
	src := ""
	if r.Src.IsValid() {
		src = " src " + r.Src.String()
	}
	return fmt.Sprintf("route local %s dev %s table %d%s", r.Dst, r.Dev, r.Table, src)
}

func (r Rule) String() string {
	family := "IPv4"
	if r.IPv6 {
		family = "IPv6"
	}
	return fmt.Sprintf("%s rule %d fwmark %#x/%#x lookup %d", family, r.Priority, r.Mark, r.Mask, r.Table)
}

func (a Addr) validate(del bool) string {
	switch ip := a.Prefix.Addr(); {
	case !a.Prefix.IsValid() || ip.Is4In6() || ip.Zone() != "" || a.Dev == "":
		return "no address on a device"
	case !del && (!a.Prefix.IsSingleIP() || a.Global):
		return "not a single address of scope link"
	}
	return ""
}

func (r Route) validate(bool) string {
	switch ip := r.Dst.Addr(); {
	case !r.Dst.IsValid() || ip.Is4In6() || r.Dst != r.Dst.Masked() || r.Dev == "" || r.Table == 0:
		return "no route to a network"
	case r.Src.IsValid() && (r.Src.Is6() != ip.Is6() || r.Src.Is4In6() || r.Src.Zone() != ""):
		return "a source of another family"
	}
	return ""
}

func (r Rule) validate(bool) string {
	if r.Priority == 0 || r.Mark == 0 || r.Mark&^r.Mask != 0 || r.Table == 0 {
		return "priority, mark and table must not be 0, nor the mark beyond its mask"
	}
	return ""
}

// Refused is the error of a change that was refused with err.
func (c Change) Refused(err error) error {
	if c.Del {
		return fmt.Errorf("remove %s: %w", c.Object, err)
	}
	return fmt.Errorf("add %s: %w", c.Object, err)
}

// Check refuses changes that this package cannot encode, with ErrInvalid.
func (c Change) Check() error {
	if c.Object == nil {
		return fmt.Errorf("change without an object: %w", ErrInvalid)
	}
	if why := c.Object.validate(c.Del); why != "" {
		return c.Refused(fmt.Errorf("%w: %s", ErrInvalid, why))
	}
	return nil
}

// Device returns the name of the object's device, "" for a rule.
func (c Change) Device() string {
	switch o := c.Object.(type) {
	case Addr:
		return o.Dev
	case Route:
		return o.Dev
	}
	return ""
}

// Compare orders routes by table, destination and device.
func (r Route) Compare(o Route) int {
	return cmp.Or(cmp.Compare(r.Table, o.Table), r.Dst.Compare(o.Dst), cmp.Compare(r.Dev, o.Dev))
}

// Compare orders rules by family, priority, mark and table.
func (r Rule) Compare(o Rule) int {
	return cmp.Or(cmp.Compare(familyOf(r.IPv6), familyOf(o.IPv6)), cmp.Compare(r.Priority, o.Priority), cmp.Compare(r.Mark, o.Mark), cmp.Compare(r.Table, o.Table))
}

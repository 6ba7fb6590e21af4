package link

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Protocol is the number by which routes and rules of this program are recognised: ip route show proto 102. Those of an owner
// (OpenFor) have OwnedProtocol, and the routes have the owner's number as their metric, the rules as their table.
const (
	Protocol      = 102
	OwnedProtocol = 103
)

// LocalTable is the kernel's routing table of local addresses.
const LocalTable uint32 = unix.RT_TABLE_LOCAL

// Loopback is the name of the loopback device.
const Loopback = "lo"

// Host is the devices, addresses and routes of a network namespace. Kernel and Fake implement it.
type Host interface {
	// Device returns a device by name. The error is ErrNoDevice where there is none.
	Device(ctx context.Context, name string) (Device, error)
	// EnsureDummy makes a dummy device that is down and does without ARP, if it is not there. One that is there is left as
	// it is, also where it is up; the error is ErrNotDummy if it is of another kind.
	EnsureDummy(ctx context.Context, name string) (Device, error)
	// RemoveDummy removes a dummy device with all its addresses. The errors are ErrNoDevice and ErrNotDummy.
	RemoveDummy(ctx context.Context, name string) error
	// Addrs returns the addresses on a device, and those on all others as LocalAddrs does. A device that is not there has
	// none.
	Addrs(ctx context.Context, dev string) (on []Addr, others []netip.Addr, err error)
	// Routes returns the routes that have our Protocol, in all tables, of both families, sorted.
	Routes(ctx context.Context) ([]Route, error)
	// Rules returns the rules that have our Protocol, of both families, sorted.
	Rules(ctx context.Context) ([]Rule, error)
	// Apply makes and removes objects, in order. failed are those that were refused, see Failure. err says that it is not
	// known which changes were carried out.
	Apply(ctx context.Context, changes []Change) (failed []Failure, err error)
}

// Device is a network device.
type Device struct {
	Index int
	// Up says that it was set up, whether or not it has a carrier.
	Up bool
	// Dummy says that it is a dummy device.
	Dummy bool
}

// Object is what can be made and removed: an Addr, Route or Rule, all of which can be compared with ==.
type Object interface {
	fmt.Stringer
	// validate says what is wrong with it.
	validate(del bool) string
}

// Addr is an address on a device. Those that are made are single addresses without a prefix route, and, in IPv6, without a
// look for others that have it. The kernel does not choose them as the source of anything but packets to themselves: in IPv4
// they have scope link, in IPv6 they are deprecated.
type Addr struct {
	Dev    string
	Prefix netip.Prefix
	// Global says that the kernel may choose it as the source of packets to elsewhere, as those that kube-proxy makes. It is
	// of no importance when one is removed.
	Global bool
}

// Route makes the addresses of a network local to the node.
type Route struct {
	Dst netip.Prefix
	// Dev is a device; IPv6 takes only one that is up. The kernel removes IPv4 routes together with the last IPv4 address
	// of their device, so that Loopback is the better one.
	Dev string
	// Src is the address that the node uses when it speaks to Dst itself. It is one of the node's; when that goes, the route
	// stays, and keeps it (IPv4 outside of the main table, IPv6 in Linux 6.1, not in 6.18) or has none any more. The zero value
	// leaves the choice to the kernel, which takes the destination itself.
	Src   netip.Addr
	Table uint32
}

// Rule lets packets whose mark is Mark under Mask look for their route in a table.
type Rule struct {
	IPv6 bool
	// Priority is the rule's place: the lower comes first. Rule 0 looks into LocalTable, 32766 into the main table.
	Priority   uint32
	Mark, Mask uint32
	Table      uint32
}

// Change is an object to make or to remove.
type Change struct {
	Object Object
	Del    bool
}

// Failure is a Change that was not carried out.
type Failure struct {
	// Index is that of the Change in the list.
	Index int
	// Err names the object and wraps the kernel's error, unix.EEXIST for one; Missing recognises those for an object that
	// is not there. It is ErrInvalid or ErrNoDevice where the kernel was not asked.
	Err error
}

// Errors that callers test for.
var (
	ErrNoDevice = errors.New("no such device")
	ErrNotDummy = errors.New("not a dummy device")
	// ErrInvalid says that an object is not one that this package makes.
	ErrInvalid = errors.New("invalid")
)

// Missing says whether the error of a removal is that the object, or its device, is not there.
func Missing(err error) bool {
	for _, e := range []error{ErrNoDevice, unix.EADDRNOTAVAIL, unix.ESRCH, unix.ENOENT, unix.ENODEV} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// VIP is the object that makes an address the node's own on a device.
func VIP(dev string, a netip.Addr) Addr {
	return Addr{Dev: dev, Prefix: netip.PrefixFrom(a, a.BitLen())}
}

// MarkRoute makes all addresses of a family local for packets that look into a table; together with a Rule it brings
// packets to the node whose destination is no address of it.
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

// refusal is the error of a change.
func (c Change) refusal(err error) error {
	if c.Del {
		return fmt.Errorf("remove %s: %w", c.Object, err)
	}
	return fmt.Errorf("add %s: %w", c.Object, err)
}

// check returns the error of a change that the kernel need not be asked about, nil if it has to be.
func (c Change) check() error {
	if c.Object == nil {
		return fmt.Errorf("a change of nothing: %w", ErrInvalid)
	}
	if why := c.Object.validate(c.Del); why != "" {
		return c.refusal(fmt.Errorf("%w: %s", ErrInvalid, why))
	}
	return nil
}

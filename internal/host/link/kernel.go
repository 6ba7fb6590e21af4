package link

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	library "github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/internal/host/netlink"
)

// Kernel is the network namespace in which Open was called. It needs CAP_NET_ADMIN there and is safe for concurrent use.
type Kernel struct {
	conn *netlink.Conn
	// handle is for single calls.
	handle *library.Handle
	owner  owner
}

var _ Host = (*Kernel)(nil)

// Open connects to the kernel.
func Open() (*Kernel, error) { return OpenFor(0) }

// OpenFor is Open for one of several programs like this one on a node, each of which has a number of its own: it sees no routes and
// rules but its own. The table of its rules is to be that number, and no other program's. 0 stands for the one that has no number.
func OpenFor(number uint32) (*Kernel, error) {
	c, err := netlink.Dial(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("addresses and routes: %w", err)
	}
	h, err := library.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("addresses and routes: %w", errors.Join(err, c.Close()))
	}
	return &Kernel{conn: c, handle: h, owner: owner(number)}, nil
}

// Close gives the sockets back; what was written stays.
func (k *Kernel) Close() error {
	k.handle.Close()
	return k.conn.Close()
}

// Device implements Host.
func (k *Kernel) Device(ctx context.Context, name string) (Device, error) {
	if err := ctx.Err(); err != nil {
		return Device{}, err
	}
	l, err := k.handle.LinkByName(name)
	switch {
	case errors.As(err, &library.LinkNotFoundError{}):
		return Device{}, fmt.Errorf("device %s: %w", name, ErrNoDevice)
	case err != nil:
		return Device{}, fmt.Errorf("find device %s: %w", name, err)
	}
	a := l.Attrs()
	return Device{Index: a.Index, Up: a.RawFlags&unix.IFF_UP != 0, Dummy: l.Type() == "dummy"}, nil
}

// EnsureDummy implements Host.
func (k *Kernel) EnsureDummy(ctx context.Context, name string) (Device, error) {
	d, err := k.Device(ctx, name)
	if errors.Is(err, ErrNoDevice) {
		// A dummy device is without ARP by itself, and down until somebody sets it up.
		err = k.handle.LinkAdd(&library.Dummy{LinkAttrs: library.LinkAttrs{Name: name}})
		if err != nil && !errors.Is(err, unix.EEXIST) { // somebody else was faster
			return Device{}, fmt.Errorf("make dummy device %s: %w", name, err)
		}
		d, err = k.Device(ctx, name)
	}
	if err == nil && !d.Dummy {
		err = fmt.Errorf("device %s: %w", name, ErrNotDummy)
	}
	return d, err
}

// RemoveDummy implements Host.
func (k *Kernel) RemoveDummy(ctx context.Context, name string) error {
	d, err := k.Device(ctx, name)
	switch {
	case err != nil:
		return err
	case !d.Dummy:
		return fmt.Errorf("device %s: %w", name, ErrNotDummy)
	}
	if err := k.handle.LinkDel(&library.Dummy{LinkAttrs: library.LinkAttrs{Name: name, Index: d.Index}}); err != nil {
		return fmt.Errorf("remove dummy device %s: %w", name, err)
	}
	return nil
}

// Addrs implements Host.
func (k *Kernel) Addrs(ctx context.Context, dev string) (on []Addr, others []netip.Addr, err error) {
	d, err := k.Device(ctx, dev)
	if err != nil && !errors.Is(err, ErrNoDevice) {
		return nil, nil, err
	}
	msgs, err := k.conn.List(ctx, netlink.Request{Type: unix.RTM_GETADDR, Body: make([]byte, unix.SizeofIfAddrmsg)})
	if err != nil {
		return nil, nil, fmt.Errorf("list the addresses of the node: %w", err)
	}
	for _, m := range msgs {
		a, err := decodeAddr(m)
		if err != nil {
			return nil, nil, fmt.Errorf("list the addresses of the node: %w", err)
		}
		switch {
		case !a.prefix.IsValid():
		case d.Index != 0 && a.index == d.Index:
			on = append(on, Addr{Dev: dev, Prefix: a.prefix, Global: a.global()})
		default:
			others = append(others, a.prefix.Addr())
		}
	}
	slices.SortFunc(on, func(a, b Addr) int { return a.Prefix.Compare(b.Prefix) })
	slices.SortFunc(others, netip.Addr.Compare)
	return on, slices.Compact(others), nil
}

// families are those of routes and rules, which are listed one after the other.
var families = []byte{unix.AF_INET, unix.AF_INET6}

// Routes implements Host. The kernel leaves out those of others (4.20); elsewhere they are left out here.
func (k *Kernel) Routes(ctx context.Context) ([]Route, error) {
	var out []Route
	names := make(map[int]string)
	for _, family := range families {
		if family == unix.AF_INET6 && !HasIPv6() {
			continue
		}
		msgs, err := k.conn.List(ctx, netlink.Request{Type: unix.RTM_GETROUTE, Body: header{family: family, protocol: k.owner.protocol()}.bytes()})
		if err != nil {
			return nil, fmt.Errorf("list routes: %w", err)
		}
		for _, m := range msgs {
			r, oif, ours, err := k.owner.decodeRoute(m)
			if err != nil {
				return nil, fmt.Errorf("list routes: %w", err)
			}
			if !ours {
				continue
			}
			if r.Dev, err = k.deviceName(names, oif); err != nil {
				return nil, fmt.Errorf("list routes: %w", err)
			}
			out = append(out, r)
		}
	}
	slices.SortFunc(out, compareRoutes)
	return out, nil
}

func compareRoutes(a, b Route) int {
	return cmp.Or(cmp.Compare(a.Table, b.Table), a.Dst.Compare(b.Dst), cmp.Compare(a.Dev, b.Dev))
}

// deviceName looks a device up once; one that is gone has no name.
func (k *Kernel) deviceName(names map[int]string, index int) (string, error) {
	if name, ok := names[index]; ok {
		return name, nil
	}
	l, err := k.handle.LinkByIndex(index)
	switch {
	case errors.As(err, &library.LinkNotFoundError{}):
		names[index] = ""
	case err != nil:
		return "", fmt.Errorf("find device %d: %w", index, err)
	default:
		names[index] = l.Attrs().Name
	}
	return names[index], nil
}

// Rules implements Host.
func (k *Kernel) Rules(ctx context.Context) ([]Rule, error) {
	var out []Rule
	for _, family := range families {
		if family == unix.AF_INET6 && !HasIPv6() {
			continue
		}
		msgs, err := k.conn.List(ctx, netlink.Request{Type: unix.RTM_GETRULE, Body: header{family: family}.bytes()})
		if err != nil {
			return nil, fmt.Errorf("list routing rules: %w", err)
		}
		for _, m := range msgs {
			switch r, ours, err := k.owner.decodeRule(m); {
			case err != nil:
				return nil, fmt.Errorf("list routing rules: %w", err)
			case ours:
				out = append(out, r)
			}
		}
	}
	slices.SortFunc(out, compareRules)
	return out, nil
}

func compareRules(a, b Rule) int {
	v6 := func(r Rule) int {
		if r.IPv6 {
			return 1
		}
		return 0
	}
	return cmp.Or(cmp.Compare(v6(a), v6(b)), cmp.Compare(a.Priority, b.Priority), cmp.Compare(a.Mark, b.Mark), cmp.Compare(a.Table, b.Table))
}

// Apply implements Host. Devices are looked up once for all changes.
func (k *Kernel) Apply(ctx context.Context, changes []Change) ([]Failure, error) {
	var failed []Failure
	reqs := make([]netlink.Request, 0, len(changes))
	index := make([]int, 0, len(changes))
	devices := make(map[string]int)
	lookUp := func(name string) (int, error) {
		if i, ok := devices[name]; ok {
			return i, nil
		}
		d, err := k.Device(ctx, name)
		if err == nil || errors.Is(err, ErrNoDevice) {
			devices[name] = d.Index
		}
		if errors.Is(err, ErrNoDevice) {
			return 0, nil
		}
		return d.Index, err
	}
	for i, c := range changes {
		err := c.check()
		if err != nil {
			failed = append(failed, Failure{Index: i, Err: err})
			continue
		}
		dev := 0
		if name := device(c.Object); name != "" {
			if dev, err = lookUp(name); err != nil {
				return failed, err
			}
			if dev == 0 {
				failed = append(failed, Failure{Index: i, Err: c.refusal(ErrNoDevice)})
				continue
			}
		}
		reqs, index = append(reqs, k.owner.request(c, dev)), append(index, i)
	}
	errs, err := k.conn.Do(ctx, reqs)
	for i, e := range errs {
		if e != nil {
			failed = append(failed, Failure{Index: index[i], Err: changes[index[i]].refusal(e)})
		}
	}
	slices.SortFunc(failed, func(a, b Failure) int { return a.Index - b.Index })
	if err != nil {
		return failed, fmt.Errorf("write %d addresses, routes and rules: %w", len(changes), err)
	}
	return failed, nil
}

// device is the name of the device that an object is on, empty for those that are on none.
func device(o Object) string {
	switch o := o.(type) {
	case Addr:
		return o.Dev
	case Route:
		return o.Dev
	}
	return ""
}

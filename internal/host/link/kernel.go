package link

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	library "github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/internal/host/netlink"
)

// Kernel accesses the network namespace in which Open was called. It needs CAP_NET_ADMIN there and
// is safe for concurrent use.
type Kernel struct {
	conn *netlink.Conn
	// handle is for single calls.
	handle *library.Handle
	owner  owner
}

var _ Host = (*Kernel)(nil)

// Open connects to the kernel for one of several programs like this one on a node. A program with
// an owner number sees only its own routes and rules; the table of its rules must be that number,
// which no other program may use. 0 means no owner.
func Open(number uint32) (*Kernel, error) {
	c, err := netlink.Dial(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open rtnetlink: %w", err)
	}
	h, err := library.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open rtnetlink: %w", errors.Join(err, c.Close()))
	}
	return &Kernel{conn: c, handle: h, owner: owner(number)}, nil
}

// Close closes the sockets; all objects stay.
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
		// A new dummy device is down and does not use ARP.
		err = k.handle.LinkAdd(&library.Dummy{LinkAttrs: library.LinkAttrs{Name: name}})
		if err != nil && !errors.Is(err, unix.EEXIST) { // created by another program meanwhile
			return Device{}, fmt.Errorf("create dummy device %s: %w", name, err)
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

// dump lists routes or rules of both families.
func (k *Kernel) dump(ctx context.Context, typ uint16, protocol byte) ([]netlink.Message, error) {
	var out []netlink.Message
	for _, family := range []byte{unix.AF_INET, unix.AF_INET6} {
		if family == unix.AF_INET6 && !HasIPv6() {
			continue
		}
		msgs, err := k.conn.List(ctx, netlink.Request{Type: typ, Body: header{family: family, protocol: protocol}.bytes()})
		if err != nil {
			return nil, err
		}
		out = append(out, msgs...)
	}
	return out, nil
}

// Routes implements Host. The kernel filters by protocol since 4.20; decodeRoute does it for older
// ones.
func (k *Kernel) Routes(ctx context.Context) ([]Route, error) {
	msgs, err := k.dump(ctx, unix.RTM_GETROUTE, k.owner.protocol())
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	var out []Route
	names := make(map[int]string)
	for _, m := range msgs {
		r, oif, ours, err := k.owner.decodeRoute(m)
		if err == nil && ours {
			r.Dev, err = k.deviceName(names, oif)
			out = append(out, r)
		}
		if err != nil {
			return nil, fmt.Errorf("list routes: %w", err)
		}
	}
	slices.SortFunc(out, Route.Compare)
	return out, nil
}

// deviceName looks up the name of a device and caches it in names. A removed device has the name
// "".
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
	msgs, err := k.dump(ctx, unix.RTM_GETRULE, 0)
	if err != nil {
		return nil, fmt.Errorf("list routing rules: %w", err)
	}
	var out []Rule
	for _, m := range msgs {
		switch r, ours, err := k.owner.decodeRule(m); {
		case err != nil:
			return nil, fmt.Errorf("list routing rules: %w", err)
		case ours:
			out = append(out, r)
		}
	}
	slices.SortFunc(out, Rule.Compare)
	return out, nil
}

// Apply implements Host. It looks up each device once.
func (k *Kernel) Apply(ctx context.Context, changes []Change) ([]Failure, error) {
	var failed []Failure
	reqs := make([]netlink.Request, 0, len(changes))
	index := make([]int, 0, len(changes))
	devices := make(map[string]int)
	for i, c := range changes {
		err := c.Check()
		if err == nil {
			err = k.lookUp(ctx, c.Device(), devices)
			if err != nil && !errors.Is(err, ErrNoDevice) {
				return failed, err
			}
			if err != nil {
				err = c.Refused(ErrNoDevice)
			}
		}
		if err != nil {
			failed = append(failed, Failure{Index: i, Err: err})
			continue
		}
		reqs, index = append(reqs, k.owner.request(c, devices[c.Device()])), append(index, i)
	}
	errs, err := k.conn.Do(ctx, reqs)
	for i, e := range errs {
		if e != nil {
			failed = append(failed, Failure{Index: index[i], Err: changes[index[i]].Refused(e)})
		}
	}
	slices.SortFunc(failed, func(a, b Failure) int { return a.Index - b.Index })
	if err != nil {
		return failed, fmt.Errorf("write %d addresses, routes and rules: %w", len(changes), err)
	}
	return failed, nil
}

// lookUp adds the index of a device to devices, 0 for one that does not exist and for "".
func (k *Kernel) lookUp(ctx context.Context, name string, devices map[string]int) error {
	index, known := devices[name]
	if !known && name != "" {
		d, err := k.Device(ctx, name)
		if err != nil && !errors.Is(err, ErrNoDevice) {
			return err
		}
		index = d.Index
	}
	devices[name] = index
	if index == 0 && name != "" {
		return ErrNoDevice
	}
	return nil
}

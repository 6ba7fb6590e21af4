package linkfake

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/internal/host/link"
)

// Host implements link.Host in memory. It refuses what the kernel refuses, with the same errors.
// The zero value has a loopback device that is up. It is safe for concurrent use.
type Host struct {
	// Fail, if set, is called before each operation (device, ensure, remove, addrs, routes, rules,
	// apply). Its error is returned and nothing else is done.
	Fail func(op string) error
	// FailChange, if set, is called before each change. Its error is the change's.
	FailChange func(link.Change) error

	mu      sync.Mutex // guards the fields below
	devices map[string]link.Device
	objects map[link.Object]bool
	counts  map[string]int
}

var _ link.Host = (*Host)(nil)

// AddDevice adds or changes a device. The fake chooses its Index.
func (f *Host) AddDevice(name string, d link.Device) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.addDevice(name, d)
}

func (f *Host) addDevice(name string, d link.Device) link.Device {
	f.init()
	d.Index = len(f.devices) + 1
	if old, ok := f.devices[name]; ok {
		d.Index = old.Index
	}
	f.devices[name] = d
	return d
}

// AddForeign adds an address as another program would, of any length and scope.
func (f *Host) AddForeign(a link.Addr) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.init()
	f.objects[a] = true
}

// Lose removes an object as another program would.
func (f *Host) Lose(o link.Object) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.lose(o)
}

// Dump returns all devices and objects, one per line, sorted.
func (f *Host) Dump() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.init()
	var lines []string
	for name, d := range f.devices {
		state := "down"
		if d.Up {
			state = "up"
		}
		lines = append(lines, fmt.Sprintf("device %s %s\n", name, state))
	}
	for o := range f.objects {
		lines = append(lines, o.String()+"\n")
	}
	slices.Sort(lines)
	return strings.Join(lines, "")
}

// Counts returns how often each operation was called since the last call of Counts, by name;
// "added" and "removed" count objects.
func (f *Host) Counts() map[string]int {
	f.mu.Lock()
	defer f.mu.Unlock()
	c := f.counts
	f.counts = nil
	return c
}

func (f *Host) init() {
	if f.devices == nil {
		f.devices = map[string]link.Device{link.Loopback: {Index: 1, Up: true}}
		f.objects = make(map[link.Object]bool)
	}
}

// begin counts an operation and calls Fail. It returns with f.mu locked.
func (f *Host) begin(ctx context.Context, op string) error {
	err := ctx.Err()
	if f.Fail != nil && err == nil {
		err = f.Fail(op)
	}
	f.mu.Lock()
	f.init()
	f.count(op)
	return err
}

func (f *Host) count(what string) {
	if f.counts == nil {
		f.counts = make(map[string]int)
	}
	f.counts[what]++
}

// Device implements link.Host.
func (f *Host) Device(ctx context.Context, name string) (link.Device, error) {
	err := f.begin(ctx, "device")
	defer f.mu.Unlock()
	if err != nil {
		return link.Device{}, err
	}
	d, ok := f.devices[name]
	if !ok {
		return link.Device{}, fmt.Errorf("device %s: %w", name, link.ErrNoDevice)
	}
	return d, nil
}

// EnsureDummy implements link.Host.
func (f *Host) EnsureDummy(ctx context.Context, name string) (link.Device, error) {
	err := f.begin(ctx, "ensure")
	defer f.mu.Unlock()
	if err != nil {
		return link.Device{}, err
	}
	d, ok := f.devices[name]
	switch {
	case !ok:
		d = f.addDevice(name, link.Device{Dummy: true})
	case !d.Dummy:
		return link.Device{}, fmt.Errorf("device %s: %w", name, link.ErrNotDummy)
	}
	return d, nil
}

// RemoveDummy implements link.Host.
func (f *Host) RemoveDummy(ctx context.Context, name string) error {
	err := f.begin(ctx, "remove")
	defer f.mu.Unlock()
	if err != nil {
		return err
	}
	switch d, ok := f.devices[name]; {
	case !ok:
		return fmt.Errorf("device %s: %w", name, link.ErrNoDevice)
	case !d.Dummy:
		return fmt.Errorf("device %s: %w", name, link.ErrNotDummy)
	}
	delete(f.devices, name)
	maps.DeleteFunc(f.objects, func(o link.Object, _ bool) bool { return link.Change{Object: o}.Device() == name })
	return nil
}

// Addrs implements link.Host.
func (f *Host) Addrs(ctx context.Context, dev string) (on []link.Addr, others []netip.Addr, err error) {
	err = f.begin(ctx, "addrs")
	defer f.mu.Unlock()
	if err != nil {
		return nil, nil, err
	}
	for o := range f.objects {
		switch a, ok := o.(link.Addr); {
		case ok && a.Dev == dev:
			on = append(on, a)
		case ok:
			others = append(others, a.Prefix.Addr())
		}
	}
	slices.SortFunc(on, func(a, b link.Addr) int { return a.Prefix.Compare(b.Prefix) })
	slices.SortFunc(others, netip.Addr.Compare)
	return on, slices.Compact(others), nil
}

// Routes implements link.Host.
func (f *Host) Routes(ctx context.Context) (out []link.Route, err error) {
	err = f.begin(ctx, "routes")
	defer f.mu.Unlock()
	if err != nil {
		return nil, err
	}
	for o := range f.objects {
		if r, ok := o.(link.Route); ok {
			out = append(out, r)
		}
	}
	slices.SortFunc(out, link.Route.Compare)
	return out, nil
}

// Rules implements link.Host.
func (f *Host) Rules(ctx context.Context) (out []link.Rule, err error) {
	err = f.begin(ctx, "rules")
	defer f.mu.Unlock()
	if err != nil {
		return nil, err
	}
	for o := range f.objects {
		if r, ok := o.(link.Rule); ok {
			out = append(out, r)
		}
	}
	slices.SortFunc(out, link.Rule.Compare)
	return out, nil
}

// Apply implements link.Host.
func (f *Host) Apply(ctx context.Context, changes []link.Change) (failed []link.Failure, err error) {
	err = f.begin(ctx, "apply")
	defer f.mu.Unlock()
	if err != nil {
		return nil, err
	}
	for i, c := range changes {
		err := c.Check()
		if err == nil {
			if err = f.change(c); err != nil {
				err = c.Refused(err)
			}
		}
		if err != nil {
			failed = append(failed, link.Failure{Index: i, Err: err})
		}
	}
	return failed, nil
}

func (f *Host) change(c link.Change) error {
	if f.FailChange != nil {
		if err := f.FailChange(c); err != nil {
			return err
		}
	}
	if name := c.Device(); name != "" {
		if _, ok := f.devices[name]; !ok {
			return link.ErrNoDevice
		}
	}
	have, found := f.find(c.Object)
	if c.Del {
		if !found {
			return missing(c.Object)
		}
		f.lose(have)
		f.count("removed")
		return nil
	}
	if found {
		return unix.EEXIST
	}
	if r, ok := c.Object.(link.Route); ok {
		if err := f.routable(r); err != nil {
			return err
		}
	}
	f.objects[c.Object] = true
	f.count("added")
	return nil
}

// lose removes an object. With an address the kernel changes routes: with the last IPv4 address of
// a device it removes the device's IPv4 routes, and IPv6 routes lose a source that is no longer
// local, as in Linux 6.18.
func (f *Host) lose(o link.Object) {
	delete(f.objects, o)
	gone, ok := o.(link.Addr)
	if !ok {
		return
	}
	ip := gone.Prefix.Addr()
	last, local := true, false
	for o := range f.objects {
		if a, ok := o.(link.Addr); ok {
			last = last && !(a.Dev == gone.Dev && a.Prefix.Addr().Is4())
			local = local || a.Prefix.Addr() == ip
		}
	}
	for o := range f.objects {
		if r, ok := o.(link.Route); ok && r.Dst.Addr().Is4() == ip.Is4() {
			f.adjust(r, gone, last, local)
		}
	}
}

// adjust changes a route after the removal of an address of its family. last means that the address
// was the last IPv4 address of its device, local that another device still has it.
func (f *Host) adjust(r link.Route, gone link.Addr, last, local bool) {
	ip := gone.Prefix.Addr()
	switch {
	case ip.Is4() && last && r.Dev == gone.Dev:
		delete(f.objects, r)
	case ip.Is6() && r.Src == ip && !local:
		delete(f.objects, r)
		r.Src = netip.Addr{}
		f.objects[r] = true
	}
}

// find returns the existing object that the kernel considers the same.
func (f *Host) find(o link.Object) (link.Object, bool) {
	if a, ok := o.(link.Addr); ok {
		for _, global := range []bool{false, true} {
			a.Global = global
			if f.objects[a] {
				return a, true
			}
		}
		return nil, false
	}
	return o, f.objects[o]
}

// missing is the kernel's error for the removal of an object that does not exist.
func missing(o link.Object) error {
	switch o.(type) {
	case link.Addr:
		return unix.EADDRNOTAVAIL
	case link.Route:
		return unix.ESRCH
	}
	return unix.ENOENT
}

// routable returns why the kernel would refuse a new route.
func (f *Host) routable(r link.Route) error {
	if r.Dst.Addr().Is6() && !f.devices[r.Dev].Up {
		return unix.ENETDOWN
	}
	local := !r.Src.IsValid()
	for o := range f.objects {
		switch o := o.(type) {
		case link.Addr:
			local = local || o.Prefix.Addr() == r.Src
			// The kernel adds a route to the local table for each IPv4 address.
			if r.Table == link.LocalTable && o.Prefix.Addr().Is4() && r.Dst == netip.PrefixFrom(o.Prefix.Addr(), 32) {
				return unix.EEXIST
			}
		case link.Route:
			if o.Dst == r.Dst && o.Table == r.Table {
				return unix.EEXIST
			}
		}
	}
	if !local {
		return unix.EINVAL
	}
	return nil
}

package link

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// Fake is a node in memory. It refuses what the kernel refuses, with the same errors. Its zero value has a loopback device
// that is up. It is safe for concurrent use.
type Fake struct {
	// Fail is called before each operation (device, ensure, remove, addrs, routes, rules, apply), if it is set; its error
	// is returned and nothing is done.
	Fail func(op string) error
	// FailChange is called before each change, if it is set; its error is that of the change.
	FailChange func(Change) error

	mu      sync.Mutex // guards what follows
	devices map[string]Device
	objects map[Object]bool
	counts  map[string]int
}

var _ Host = (*Fake)(nil)

// AddDevice makes a device, or changes the one of that name; its Index is chosen.
func (f *Fake) AddDevice(name string, d Device) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.addDevice(name, d)
}

func (f *Fake) addDevice(name string, d Device) Device {
	f.init()
	d.Index = len(f.devices) + 1
	if old, ok := f.devices[name]; ok {
		d.Index = old.Index
	}
	f.devices[name] = d
	return d
}

// AddForeign makes an object that others make: an address of any length and scope.
func (f *Fake) AddForeign(a Addr) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.init()
	f.objects[a] = true
}

// Lose removes an object behind the caller's back, with all that goes with it.
func (f *Fake) Lose(o Object) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.lose(o)
}

// Dump is all devices and objects, a line each, sorted; for golden files.
func (f *Fake) Dump() string {
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

// Counts returns how often each operation was called since the last call of Counts, by name; "added" and "removed" count
// objects.
func (f *Fake) Counts() map[string]int {
	f.mu.Lock()
	defer f.mu.Unlock()
	c := f.counts
	f.counts = nil
	return c
}

func (f *Fake) init() {
	if f.devices == nil {
		f.devices = map[string]Device{Loopback: {Index: 1, Up: true}}
		f.objects = make(map[Object]bool)
	}
}

// begin counts an operation, and fails where it is told to; afterwards f.mu is held.
func (f *Fake) begin(ctx context.Context, op string) error {
	err := ctx.Err()
	if f.Fail != nil && err == nil {
		err = f.Fail(op)
	}
	f.mu.Lock()
	f.init()
	f.count(op)
	return err
}

func (f *Fake) count(what string) {
	if f.counts == nil {
		f.counts = make(map[string]int)
	}
	f.counts[what]++
}

// Device implements Host.
func (f *Fake) Device(ctx context.Context, name string) (Device, error) {
	err := f.begin(ctx, "device")
	defer f.mu.Unlock()
	if err != nil {
		return Device{}, err
	}
	d, ok := f.devices[name]
	if !ok {
		return Device{}, fmt.Errorf("device %s: %w", name, ErrNoDevice)
	}
	return d, nil
}

// EnsureDummy implements Host.
func (f *Fake) EnsureDummy(ctx context.Context, name string) (Device, error) {
	err := f.begin(ctx, "ensure")
	defer f.mu.Unlock()
	if err != nil {
		return Device{}, err
	}
	d, ok := f.devices[name]
	switch {
	case !ok:
		d = f.addDevice(name, Device{Dummy: true})
	case !d.Dummy:
		return Device{}, fmt.Errorf("device %s: %w", name, ErrNotDummy)
	}
	return d, nil
}

// RemoveDummy implements Host.
func (f *Fake) RemoveDummy(ctx context.Context, name string) error {
	err := f.begin(ctx, "remove")
	defer f.mu.Unlock()
	if err != nil {
		return err
	}
	switch d, ok := f.devices[name]; {
	case !ok:
		return fmt.Errorf("device %s: %w", name, ErrNoDevice)
	case !d.Dummy:
		return fmt.Errorf("device %s: %w", name, ErrNotDummy)
	}
	delete(f.devices, name)
	maps.DeleteFunc(f.objects, func(o Object, _ bool) bool { return device(o) == name })
	return nil
}

// Addrs implements Host.
func (f *Fake) Addrs(ctx context.Context, dev string) (on []Addr, others []netip.Addr, err error) {
	err = f.begin(ctx, "addrs")
	defer f.mu.Unlock()
	if err != nil {
		return nil, nil, err
	}
	for o := range f.objects {
		switch a, ok := o.(Addr); {
		case ok && a.Dev == dev:
			on = append(on, a)
		case ok:
			others = append(others, a.Prefix.Addr())
		}
	}
	slices.SortFunc(on, func(a, b Addr) int { return a.Prefix.Compare(b.Prefix) })
	slices.SortFunc(others, netip.Addr.Compare)
	return on, slices.Compact(others), nil
}

// Routes implements Host.
func (f *Fake) Routes(ctx context.Context) (out []Route, err error) {
	err = f.begin(ctx, "routes")
	defer f.mu.Unlock()
	if err != nil {
		return nil, err
	}
	for o := range f.objects {
		if r, ok := o.(Route); ok {
			out = append(out, r)
		}
	}
	slices.SortFunc(out, compareRoutes)
	return out, nil
}

// Rules implements Host.
func (f *Fake) Rules(ctx context.Context) (out []Rule, err error) {
	err = f.begin(ctx, "rules")
	defer f.mu.Unlock()
	if err != nil {
		return nil, err
	}
	for o := range f.objects {
		if r, ok := o.(Rule); ok {
			out = append(out, r)
		}
	}
	slices.SortFunc(out, compareRules)
	return out, nil
}

// Apply implements Host.
func (f *Fake) Apply(ctx context.Context, changes []Change) (failed []Failure, err error) {
	err = f.begin(ctx, "apply")
	defer f.mu.Unlock()
	if err != nil {
		return nil, err
	}
	for i, c := range changes {
		err := c.check()
		if err == nil {
			if err = f.change(c); err != nil {
				err = c.refusal(err)
			}
		}
		if err != nil {
			failed = append(failed, Failure{Index: i, Err: err})
		}
	}
	return failed, nil
}

func (f *Fake) change(c Change) error {
	if f.FailChange != nil {
		if err := f.FailChange(c); err != nil {
			return err
		}
	}
	if name := device(c.Object); name != "" {
		if _, ok := f.devices[name]; !ok {
			return ErrNoDevice
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
	if r, ok := c.Object.(Route); ok {
		if err := f.routable(r); err != nil {
			return err
		}
	}
	f.objects[c.Object] = true
	f.count("added")
	return nil
}

// lose removes an object, and what the kernel changes with an address: the IPv4 routes of its device go with the last one
// there, and IPv6 routes lose the source that is gone, as in Linux 6.18.
func (f *Fake) lose(o Object) {
	delete(f.objects, o)
	gone, ok := o.(Addr)
	if !ok {
		return
	}
	ip := gone.Prefix.Addr()
	last, local := true, false
	for o := range f.objects {
		if a, ok := o.(Addr); ok {
			last = last && !(a.Dev == gone.Dev && a.Prefix.Addr().Is4())
			local = local || a.Prefix.Addr() == ip
		}
	}
	for o := range f.objects {
		r, ok := o.(Route)
		switch {
		case !ok || r.Dst.Addr().Is4() != ip.Is4():
		case ip.Is4() && last && r.Dev == gone.Dev:
			delete(f.objects, r)
		case ip.Is6() && r.Src == ip && !local:
			delete(f.objects, r)
			r.Src = netip.Addr{}
			f.objects[r] = true
		}
	}
}

// find returns the object that the kernel takes for the same.
func (f *Fake) find(o Object) (Object, bool) {
	if a, ok := o.(Addr); ok {
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

// missing is the kernel's error where an object is to be removed that is not there.
func missing(o Object) error {
	switch o.(type) {
	case Addr:
		return unix.EADDRNOTAVAIL
	case Route:
		return unix.ESRCH
	}
	return unix.ENOENT
}

// routable says what the kernel has against a route that is not there.
func (f *Fake) routable(r Route) error {
	if r.Dst.Addr().Is6() && !f.devices[r.Dev].Up {
		return unix.ENETDOWN
	}
	local := !r.Src.IsValid()
	for o := range f.objects {
		switch o := o.(type) {
		case Addr:
			local = local || o.Prefix.Addr() == r.Src
			// An IPv4 address has a route of its own in the local table.
			if r.Table == LocalTable && o.Prefix.Addr().Is4() && r.Dst == netip.PrefixFrom(o.Prefix.Addr(), 32) {
				return unix.EEXIST
			}
		case Route:
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

package ipset

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/internal/host/netlink"
)

// Kernel accesses the sets of the network namespace in which Open was called. It needs
// CAP_NET_ADMIN there and is safe for concurrent use.
type Kernel struct{ conn *netlink.Conn }

var _ Sets = (*Kernel)(nil)

// Open connects to the kernel.
func Open() (*Kernel, error) {
	c, err := netlink.Dial(unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("open ip_set: %w", err)
	}
	return &Kernel{conn: c}, nil
}

// Close closes the socket; the sets stay.
func (k *Kernel) Close() error { return k.conn.Close() }

// List implements Sets. It lists names first, so that large sets of others are not read.
func (k *Kernel) List(ctx context.Context, prefix string) ([]Content, error) {
	all, err := k.list(ctx, "", flagListSetname)
	if err != nil {
		return nil, fmt.Errorf("list names of sets: %w", err)
	}
	var out []Content
	for _, c := range all {
		if !strings.HasPrefix(c.Name, prefix) {
			continue
		}
		switch s, err := k.get(ctx, c.Name, 0); {
		case errors.Is(err, ErrNoSet): // removed since its name was listed
		case err != nil:
			return nil, err
		default:
			slices.SortFunc(s.Entries, Entry.Compare)
			out = append(out, s.Content)
		}
	}
	slices.SortFunc(out, func(a, b Content) int { return cmp.Compare(a.Name, b.Name) })
	return out, nil
}

// list reads one set, or all sets if name is empty.
func (k *Kernel) list(ctx context.Context, name string, flags uint32) ([]listed, error) {
	msgs, err := k.conn.List(ctx, listRequest(name, flags))
	if err != nil {
		return nil, named(err)
	}
	return decodeList(msgs)
}

// get reads one set.
func (k *Kernel) get(ctx context.Context, name string, flags uint32) (listed, error) {
	all, err := k.list(ctx, name, flags)
	if err == nil && len(all) == 0 {
		err = ErrNoSet
	}
	if err != nil {
		return listed{}, fmt.Errorf("list set %s: %w", name, err)
	}
	return all[0], nil
}

// Exists reports whether a set exists, without reading its entries.
func (k *Kernel) Exists(ctx context.Context, name string) (bool, error) {
	_, err := k.get(ctx, name, flagListHeader)
	if errors.Is(err, ErrNoSet) {
		return false, nil
	}
	return err == nil, err
}

// Sizes returns the number of entries of each set whose name begins with prefix, by name, without
// reading the entries.
func (k *Kernel) Sizes(ctx context.Context, prefix string) (map[string]uint32, error) {
	all, err := k.list(ctx, "", flagListHeader)
	if err != nil {
		return nil, fmt.Errorf("list sizes of sets: %w", err)
	}
	sizes := make(map[string]uint32)
	for _, c := range all {
		if strings.HasPrefix(c.Name, prefix) {
			sizes[c.Name] = c.size
		}
	}
	return sizes, nil
}

// Create implements Sets.
func (k *Kernel) Create(ctx context.Context, s Set) error {
	if err := s.Validate(); err != nil {
		return err
	}
	_, err := k.conn.Get(ctx, createRequest(s))
	if !errors.Is(err, unix.EEXIST) {
		return wrap(err, "create set %s", s.Name)
	}
	have, err := k.get(ctx, s.Name, flagListHeader)
	if err != nil {
		return fmt.Errorf("create set %s: %w", s.Name, err)
	}
	if have.Set != s || len(have.options) > 0 {
		return fmt.Errorf("create set %s: %w: %s", s.Name, ErrExist, have.Difference(s, have.options...))
	}
	return nil
}

// Destroy implements Sets.
func (k *Kernel) Destroy(ctx context.Context, name string) error {
	_, err := k.conn.Get(ctx, nameRequest(cmdDestroy, name))
	return wrap(err, "destroy set %s", name)
}

// Swap implements Sets.
func (k *Kernel) Swap(ctx context.Context, a, b string) error {
	req := nameRequest(cmdSwap, a)
	req.Body = netlink.AppendText(req.Body, attrSetname2, b)
	_, err := k.conn.Get(ctx, req)
	return wrap(err, "swap sets %s and %s", a, b)
}

// Apply implements Sets.
func (k *Kernel) Apply(ctx context.Context, changes []Change) ([]Failure, error) {
	var failed []Failure
	reqs := make([]netlink.Request, 0, len(changes))
	index := make([]int, 0, len(changes))
	for i, ch := range changes {
		if err := ch.Entry.Validate(ch.Set); err != nil {
			failed = append(failed, Failure{Index: i, Err: err})
			continue
		}
		reqs, index = append(reqs, changeRequest(ch)), append(index, i)
	}
	errs, err := k.conn.Do(ctx, reqs)
	for i, e := range errs {
		if e != nil {
			c := changes[index[i]]
			if e = named(e); c.Del && errors.Is(e, ErrExist) { // the kernel has one error number for both
				e = ErrMissing
			}
			failed = append(failed, Failure{Index: index[i], Err: c.Refused(e)})
		}
	}
	slices.SortFunc(failed, func(a, b Failure) int { return a.Index - b.Index })
	if err != nil {
		return failed, fmt.Errorf("write %d entries of sets: %w", len(changes), err)
	}
	return failed, nil
}

// wrap adds to an error what was tried; nil stays nil.
func wrap(err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf(format+": %w", append(args, named(err))...)
}

// named translates ip_set's error numbers into the errors that callers test for, and others into
// words.
func named(err error) error {
	var e *netlink.Error
	if !errors.As(err, &e) {
		return err
	}
	switch e.Errno {
	case unix.ENOENT, errSetname2:
		return ErrNoSet
	case errExist:
		return ErrExist
	case errFull:
		return ErrFull
	case errBusy, errReferenced:
		return ErrInUse
	case errFindType:
		return errors.New("the kernel does not know this type of set (4098)")
	case errTypeMismatch:
		return fmt.Errorf("%w: they differ in type or family", ErrInvalid)
	}
	if e.Errno >= errPrivate {
		return fmt.Errorf("error %d of the kernel's ipset", int(e.Errno))
	}
	return err
}

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

// Kernel is the sets of the network namespace in which Open was called. It needs CAP_NET_ADMIN there and is safe for
// concurrent use.
type Kernel struct{ conn *netlink.Conn }

var _ Sets = (*Kernel)(nil)

// Open connects to the kernel.
func Open() (*Kernel, error) {
	c, err := netlink.Dial(unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("sets: %w", err)
	}
	return &Kernel{conn: c}, nil
}

// Close gives the socket back; the sets stay.
func (k *Kernel) Close() error { return k.conn.Close() }

// List implements Sets. It asks for names first, so that large sets of others are not read.
func (k *Kernel) List(ctx context.Context, prefix string) ([]Content, error) {
	msgs, err := k.conn.List(ctx, listRequest("", flagListSetname))
	if err != nil {
		return nil, fmt.Errorf("list the names of sets: %w", named(err))
	}
	all, err := decodeList(msgs)
	if err != nil {
		return nil, fmt.Errorf("list the names of sets: %w", err)
	}
	var out []Content
	for _, c := range all {
		if !strings.HasPrefix(c.Name, prefix) {
			continue
		}
		switch d, err := k.list(ctx, c.Name, 0); {
		case errors.Is(err, ErrNoSet): // gone meanwhile
		case err != nil:
			return nil, err
		default:
			out = append(out, d.Content)
		}
	}
	slices.SortFunc(out, func(a, b Content) int { return cmp.Compare(a.Name, b.Name) })
	return out, nil
}

// list reads one set.
func (k *Kernel) list(ctx context.Context, name string, flags uint32) (listed, error) {
	msgs, err := k.conn.List(ctx, listRequest(name, flags))
	if err != nil {
		return listed{}, fmt.Errorf("list set %s: %w", name, named(err))
	}
	all, err := decodeList(msgs)
	switch {
	case err != nil:
		return listed{}, fmt.Errorf("list set %s: %w", name, err)
	case len(all) == 0:
		return listed{}, fmt.Errorf("list set %s: %w", name, ErrNoSet)
	}
	slices.SortFunc(all[0].Entries, Entry.Compare)
	return all[0], nil
}

// Exists says whether there is a set of that name, without reading its entries.
func (k *Kernel) Exists(ctx context.Context, name string) (bool, error) {
	_, err := k.list(ctx, name, flagListHeader)
	if errors.Is(err, ErrNoSet) {
		return false, nil
	}
	return err == nil, err
}

// Sizes returns the numbers of entries of the sets whose names begin with prefix, by name, without reading the entries.
func (k *Kernel) Sizes(ctx context.Context, prefix string) (map[string]uint32, error) {
	msgs, err := k.conn.List(ctx, listRequest("", flagListHeader))
	if err != nil {
		return nil, fmt.Errorf("list the sizes of sets: %w", named(err))
	}
	all, err := decodeList(msgs)
	if err != nil {
		return nil, fmt.Errorf("list the sizes of sets: %w", err)
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
	have, err := k.list(ctx, s.Name, flagListHeader)
	if err != nil {
		return fmt.Errorf("create set %s: %w", s.Name, err)
	}
	if have.Set != s || len(have.options) > 0 {
		return fmt.Errorf("create set %s: %w: %s", s.Name, ErrExist, difference(have.Set, s, have.options))
	}
	return nil
}

// difference says in which settings a set that is there differs from the one that is wanted. options are settings that
// this package never makes.
func difference(have, want Set, options []string) string {
	var d []string
	if have.Type != want.Type {
		d = append(d, fmt.Sprintf("type %s, want %s", have.Type, want.Type))
	}
	if have.IPv6 != want.IPv6 {
		d = append(d, fmt.Sprintf("family %s, want %s", have.family(), want.family()))
	}
	if have.MaxElem != want.MaxElem {
		d = append(d, fmt.Sprintf("maxelem %d, want %d", have.MaxElem, want.MaxElem))
	}
	return strings.Join(append(d, options...), ", ")
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
			failed = append(failed, Failure{Index: index[i], Err: refusal(changes[index[i]], named(e))})
		}
	}
	slices.SortFunc(failed, func(a, b Failure) int { return a.Index - b.Index })
	if err != nil {
		return failed, fmt.Errorf("write %d entries of sets: %w", len(changes), err)
	}
	return failed, nil
}

// refusal is the error of a change.
func refusal(ch Change, err error) error {
	if ch.Del {
		if errors.Is(err, ErrExist) { // the kernel has one error for both
			err = ErrMissing
		}
		return fmt.Errorf("delete %s from %s: %w", ch.Entry, ch.Set.Name, err)
	}
	return fmt.Errorf("add %s to %s: %w", ch.Entry, ch.Set.Name, err)
}

// wrap says what was tried; it returns nil where nothing failed.
func wrap(err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf(format+": %w", append(args, named(err))...)
}

// named turns the kernel's error numbers into errors that callers test for, and others of its own into words.
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

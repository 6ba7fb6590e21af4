package ipsetfake

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/fairlead/fairlead/internal/host/ipset"
)

// Sets implements ipset.Sets in memory. It refuses what the kernel refuses, and is safe for
// concurrent use.
type Sets struct {
	// Fail, if set, is called before each operation (list, create, destroy, swap, apply). Its error
	// is returned and nothing else is done.
	Fail func(op string) error
	// FailChange, if set, is called before each change. Its error is the change's.
	FailChange func(ipset.Change) error

	mu     sync.Mutex // guards the fields below
	sets   map[string]*fakeSet
	counts map[string]int
}

type fakeSet struct {
	ipset.Set
	entries map[ipset.Entry]bool
	uses    int
}

var _ ipset.Sets = (*Sets)(nil)

// Dump returns all sets, sorted, as "ipset save" prints them.
func (f *Sets) Dump() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return Save(f.contents(""))
}

// Use sets the number of rules that use a set.
func (f *Sets) Use(name string, rules int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.sets[name].uses = rules
}

// Counts returns how often each operation was called since the last call of Counts, by name;
// "added" and "deleted" count entries.
func (f *Sets) Counts() map[string]int {
	f.mu.Lock()
	defer f.mu.Unlock()
	c := f.counts
	f.counts = nil
	return c
}

// begin counts an operation and calls Fail. It returns with f.mu locked.
func (f *Sets) begin(ctx context.Context, op string) error {
	err := ctx.Err()
	if f.Fail != nil && err == nil {
		err = f.Fail(op)
	}
	f.mu.Lock()
	f.count(op)
	return err
}

func (f *Sets) count(what string) {
	if f.counts == nil {
		f.counts = make(map[string]int)
	}
	f.counts[what]++
}

func (f *Sets) contents(prefix string) []ipset.Content {
	var out []ipset.Content
	for _, name := range slices.Sorted(maps.Keys(f.sets)) {
		if s := f.sets[name]; strings.HasPrefix(name, prefix) {
			out = append(out, ipset.Content{Set: s.Set, Entries: slices.SortedFunc(maps.Keys(s.entries), ipset.Entry.Compare)})
		}
	}
	return out
}

// List implements ipset.Sets.
func (f *Sets) List(ctx context.Context, prefix string) ([]ipset.Content, error) {
	err := f.begin(ctx, "list")
	defer f.mu.Unlock()
	if err != nil {
		return nil, err
	}
	return f.contents(prefix), nil
}

// Create implements ipset.Sets.
func (f *Sets) Create(ctx context.Context, s ipset.Set) error {
	err := f.begin(ctx, "create")
	defer f.mu.Unlock()
	if err != nil {
		return err
	}
	return f.create(s)
}

func (f *Sets) create(s ipset.Set) error {
	if err := s.Validate(); err != nil {
		return err
	}
	if have := f.sets[s.Name]; have != nil {
		if have.Set == s {
			return nil
		}
		return fmt.Errorf("create set %s: %w: %s", s.Name, ipset.ErrExist, have.Difference(s))
	}
	if f.sets == nil {
		f.sets = make(map[string]*fakeSet)
	}
	f.sets[s.Name] = &fakeSet{Set: s, entries: make(map[ipset.Entry]bool)}
	return nil
}

// Destroy implements ipset.Sets.
func (f *Sets) Destroy(ctx context.Context, name string) error {
	err := f.begin(ctx, "destroy")
	defer f.mu.Unlock()
	if err != nil {
		return err
	}
	switch s, ok := f.sets[name]; {
	case !ok:
		return fmt.Errorf("destroy set %s: %w", name, ipset.ErrNoSet)
	case s.uses > 0:
		return fmt.Errorf("destroy set %s: %w", name, ipset.ErrInUse)
	}
	delete(f.sets, name)
	return nil
}

// Swap implements ipset.Sets.
func (f *Sets) Swap(ctx context.Context, a, b string) error {
	err := f.begin(ctx, "swap")
	defer f.mu.Unlock()
	if err != nil {
		return err
	}
	x, y := f.sets[a], f.sets[b]
	switch {
	case x == nil || y == nil:
		return fmt.Errorf("swap sets %s and %s: %w", a, b, ipset.ErrNoSet)
	case x.Type != y.Type || x.IPv6 != y.IPv6:
		return fmt.Errorf("swap sets %s and %s: %w: they differ in type or family", a, b, ipset.ErrInvalid)
	}
	// Rules refer to the name.
	x.Name, y.Name, x.uses, y.uses = y.Name, x.Name, y.uses, x.uses
	f.sets[a], f.sets[b] = y, x
	return nil
}

// Apply implements ipset.Sets.
func (f *Sets) Apply(ctx context.Context, changes []ipset.Change) (failed []ipset.Failure, err error) {
	err = f.begin(ctx, "apply")
	defer f.mu.Unlock()
	if err != nil {
		return nil, err
	}
	for i, ch := range changes {
		if err := f.change(ch); err != nil {
			failed = append(failed, ipset.Failure{Index: i, Err: err})
		}
	}
	return failed, nil
}

func (f *Sets) change(ch ipset.Change) error {
	if err := ch.Entry.Validate(ch.Set); err != nil {
		return err
	}
	if f.FailChange != nil {
		if err := f.FailChange(ch); err != nil {
			return ch.Refused(err)
		}
	}
	s := f.sets[ch.Set.Name]
	if s == nil {
		return ch.Refused(ipset.ErrNoSet)
	}
	if err := ch.Entry.Validate(s.Set); err != nil { // the existing set has another type
		return err
	}
	switch {
	case ch.Del && !s.entries[ch.Entry]:
		return ch.Refused(ipset.ErrMissing)
	case ch.Del:
		delete(s.entries, ch.Entry)
		f.count("deleted")
	case s.entries[ch.Entry]:
		return ch.Refused(ipset.ErrExist)
	case s.Type != ipset.BitmapPort && len(s.entries) == int(s.MaxElem):
		return ch.Refused(ipset.ErrFull)
	default:
		s.entries[ch.Entry] = true
		f.count("added")
	}
	return nil
}

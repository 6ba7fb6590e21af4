package ipset

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
)

// Fake is sets in memory. It refuses what the kernel refuses. It is safe for concurrent use.
type Fake struct {
	// Fail is called before each operation (list, create, destroy, swap, apply), if it is set; its error is returned and
	// nothing is done.
	Fail func(op string) error
	// FailChange is called before each change, if it is set; its error is that of the change.
	FailChange func(Change) error

	mu     sync.Mutex // guards what follows
	sets   map[string]*fakeSet
	counts map[string]int
}

type fakeSet struct {
	Set
	entries map[Entry]bool
	uses    int
}

var _ Sets = (*Fake)(nil)

// Load makes the sets of a text that Parse reads; it panics where the kernel would refuse one.
func (f *Fake) Load(text string) {
	contents, err := Parse(text)
	if err != nil {
		panic(fmt.Sprintf("ipset.Fake: %v", err))
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range contents {
		s := &fakeSet{Set: c.Set, entries: make(map[Entry]bool)}
		for _, e := range c.Entries {
			s.entries[e] = true
		}
		f.put(s)
	}
}

// Dump is all sets as ipset save prints them, sorted.
func (f *Fake) Dump() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return Save(f.contents(""))
}

// Use says how many rules use a set, by name.
func (f *Fake) Use(name string, rules int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.sets[name].uses = rules
}

// Counts returns how often each operation was called since the last call of Counts, by name; "added" and "deleted" count
// entries.
func (f *Fake) Counts() map[string]int {
	f.mu.Lock()
	defer f.mu.Unlock()
	c := f.counts
	f.counts = nil
	return c
}

// begin counts an operation, and fails where it is told to; afterwards f.mu is held.
func (f *Fake) begin(ctx context.Context, op string) error {
	err := ctx.Err()
	if f.Fail != nil && err == nil {
		err = f.Fail(op)
	}
	f.mu.Lock()
	f.count(op)
	return err
}

func (f *Fake) count(what string) {
	if f.counts == nil {
		f.counts = make(map[string]int)
	}
	f.counts[what]++
}

func (f *Fake) put(s *fakeSet) {
	if f.sets == nil {
		f.sets = make(map[string]*fakeSet)
	}
	f.sets[s.Name] = s
}

func (f *Fake) contents(prefix string) []Content {
	var out []Content
	for _, name := range slices.Sorted(maps.Keys(f.sets)) {
		if s := f.sets[name]; strings.HasPrefix(name, prefix) {
			out = append(out, Content{Set: s.Set, Entries: slices.SortedFunc(maps.Keys(s.entries), Entry.Compare)})
		}
	}
	return out
}

// List implements Sets.
func (f *Fake) List(ctx context.Context, prefix string) ([]Content, error) {
	err := f.begin(ctx, "list")
	defer f.mu.Unlock()
	if err != nil {
		return nil, err
	}
	return f.contents(prefix), nil
}

// Create implements Sets.
func (f *Fake) Create(ctx context.Context, s Set) error {
	err := f.begin(ctx, "create")
	defer f.mu.Unlock()
	if err == nil {
		err = s.Validate()
	}
	if err != nil {
		return err
	}
	if have, ok := f.sets[s.Name]; ok {
		if have.Set == s {
			return nil
		}
		return fmt.Errorf("create set %s: %w: %s", s.Name, ErrExist, difference(have.Set, s, nil))
	}
	f.put(&fakeSet{Set: s, entries: make(map[Entry]bool)})
	return nil
}

// Destroy implements Sets.
func (f *Fake) Destroy(ctx context.Context, name string) error {
	err := f.begin(ctx, "destroy")
	defer f.mu.Unlock()
	if err != nil {
		return err
	}
	switch s, ok := f.sets[name]; {
	case !ok:
		return fmt.Errorf("destroy set %s: %w", name, ErrNoSet)
	case s.uses > 0:
		return fmt.Errorf("destroy set %s: %w", name, ErrInUse)
	}
	delete(f.sets, name)
	return nil
}

// Swap implements Sets.
func (f *Fake) Swap(ctx context.Context, a, b string) error {
	err := f.begin(ctx, "swap")
	defer f.mu.Unlock()
	if err != nil {
		return err
	}
	x, y := f.sets[a], f.sets[b]
	switch {
	case x == nil || y == nil:
		return fmt.Errorf("swap sets %s and %s: %w", a, b, ErrNoSet)
	case x.Type != y.Type || x.IPv6 != y.IPv6:
		return fmt.Errorf("swap sets %s and %s: %w: they differ in type or family", a, b, ErrInvalid)
	}
	// Rules stay with the name.
	x.Name, y.Name, x.uses, y.uses = y.Name, x.Name, y.uses, x.uses
	f.sets[a], f.sets[b] = y, x
	return nil
}

// Apply implements Sets.
func (f *Fake) Apply(ctx context.Context, changes []Change) (failed []Failure, err error) {
	err = f.begin(ctx, "apply")
	defer f.mu.Unlock()
	if err != nil {
		return nil, err
	}
	for i, ch := range changes {
		if err := f.change(ch); err != nil {
			failed = append(failed, Failure{Index: i, Err: err})
		}
	}
	return failed, nil
}

func (f *Fake) change(ch Change) error {
	if err := ch.Entry.Validate(ch.Set); err != nil {
		return err
	}
	if f.FailChange != nil {
		if err := f.FailChange(ch); err != nil {
			return refusal(ch, err)
		}
	}
	s := f.sets[ch.Set.Name]
	if s == nil {
		return refusal(ch, ErrNoSet)
	}
	if err := ch.Entry.Validate(s.Set); err != nil { // the caller has another set in mind
		return err
	}
	switch {
	case ch.Del && !s.entries[ch.Entry]:
		return refusal(ch, ErrMissing)
	case ch.Del:
		delete(s.entries, ch.Entry)
		f.count("deleted")
	case s.entries[ch.Entry]:
		return refusal(ch, ErrExist)
	case s.Type != BitmapPort && len(s.entries) == int(s.MaxElem):
		return refusal(ch, ErrFull)
	default:
		s.entries[ch.Entry] = true
		f.count("added")
	}
	return nil
}

package rulesim

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/fairlead/fairlead/internal/fwd"
)

// maxChainName is XT_EXTENSION_MAXNAMELEN without its terminating NUL.
const maxChainName = 28

// maxDepth is the maximum depth of jumps. With the nft userland the kernel refuses more.
const maxDepth = 16

// hooks lists the built-in chains of each table, in the order in which iptables-save prints them.
var hooks = map[string][]string{
	"filter": {"INPUT", "FORWARD", "OUTPUT"},
	"mangle": {"PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"},
	"nat":    {"PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"},
}

// Ruleset is all tables of one address family. Make one with Parse or New. Several goroutines may
// read it, but not during a Restore.
type Ruleset struct {
	// HaveSet returns whether a set exists; Restore refuses rules with other sets. If it is nil,
	// all sets exist.
	HaveSet func(name string) bool

	family fwd.Family
	tables map[string]*table
}

// table is immutable while it is in a Ruleset, and so are its chains: Restore changes copies.
type table struct {
	name   string
	chains map[string]*chain
	// refs counts the rules that jump or go to a chain.
	refs map[string]int
	// owned are the chains that this edit has already copied.
	owned map[string]bool
}

type chain struct {
	name string
	// policy is ACCEPT or DROP for a built-in chain, empty for others.
	policy string
	rules  []*rule
}

// New returns the Ruleset of a host without rules: built-in chains with policy ACCEPT.
func New(f fwd.Family) *Ruleset {
	rs := &Ruleset{family: f, tables: make(map[string]*table)}
	for name := range hooks {
		rs.tables[name] = newTable(name)
	}
	return rs
}

func newTable(name string) *table {
	t := &table{name: name, chains: make(map[string]*chain), refs: make(map[string]int)}
	for _, h := range hooks[name] {
		t.chains[h] = &chain{name: h, policy: "ACCEPT"}
	}
	return t
}

// Parse returns the Ruleset after iptables-restore of text on a host without rules. text may be
// iptables-save output.
func Parse(f fwd.Family, text string) (*Ruleset, error) {
	rs := New(f)
	return rs, rs.Restore(text)
}

// Family is the address family of the rules.
func (rs *Ruleset) Family() fwd.Family { return rs.family }

// Chains returns the names of a table's chains, built-in ones first, then the others sorted.
func (rs *Ruleset) Chains(table string) []string {
	t := rs.tables[table]
	if t == nil {
		return nil
	}
	names := slices.Clone(hooks[table])
	for _, name := range slices.Sorted(maps.Keys(t.chains)) {
		if t.chains[name].policy == "" {
			names = append(names, name)
		}
	}
	return names
}

// Rules returns the rules of a chain as iptables-save prints them, without "-A CHAIN "; nil if
// there is no such chain.
func (rs *Ruleset) Rules(table, chain string) []string {
	t := rs.tables[table]
	if t == nil || t.chains[chain] == nil {
		return nil
	}
	out := make([]string, 0, len(t.chains[chain].rules))
	for _, r := range t.chains[chain].rules {
		out = append(out, r.text)
	}
	return out
}

// Save prints tables as iptables-save does, without its two comment lines. Without arguments it
// prints all tables, sorted by name.
func (rs *Ruleset) Save(tables ...string) string {
	if len(tables) == 0 {
		tables = slices.Sorted(maps.Keys(rs.tables))
	}
	var b strings.Builder
	for _, name := range tables {
		t := rs.tables[name]
		if t == nil {
			continue
		}
		fmt.Fprintf(&b, "*%s\n", name)
		names := rs.Chains(name)
		for _, c := range names {
			policy := t.chains[c].policy
			if policy == "" {
				policy = "-"
			}
			fmt.Fprintf(&b, ":%s %s [0:0]\n", c, policy)
		}
		for _, c := range names {
			for _, r := range t.chains[c].rules {
				b.WriteString("-A " + c)
				if r.text != "" {
					b.WriteString(" " + r.text)
				}
				b.WriteByte('\n')
			}
		}
		b.WriteString("COMMIT\n")
	}
	return b.String()
}

// edit returns a copy of the table that shares its chains.
func (t *table) edit() *table {
	return &table{name: t.name, chains: maps.Clone(t.chains), refs: maps.Clone(t.refs), owned: make(map[string]bool)}
}

// own returns a chain that this edit may change, or nil if there is none of that name.
func (t *table) own(name string) *chain {
	c := t.chains[name]
	if c == nil || t.owned[name] {
		return c
	}
	c = &chain{name: c.name, policy: c.policy, rules: slices.Clone(c.rules)}
	t.chains[name], t.owned[name] = c, true
	return c
}

func (t *table) create(name string) error {
	switch {
	case t.chains[name] != nil:
		return fmt.Errorf("chain %q exists", name)
	case len(name) > maxChainName:
		return fmt.Errorf("chain name %q is longer than %d bytes", name, maxChainName)
	case name == "" || name[0] == '-' || name[0] == '!':
		return fmt.Errorf("chain name %q: must not be empty or begin with - or !", name)
	case isTarget(name):
		return fmt.Errorf("chain name %q is that of a target", name)
	}
	t.chains[name], t.owned[name] = &chain{name: name}, true
	return nil
}

func (t *table) flush(c *chain) {
	for _, r := range c.rules {
		t.unref(r)
	}
	c.rules = nil
}

func (t *table) remove(name string) error {
	c := t.chains[name]
	switch {
	case c == nil:
		return fmt.Errorf("no chain %q", name)
	case c.policy != "":
		return fmt.Errorf("chain %q is built in", name)
	case len(c.rules) > 0:
		return fmt.Errorf("chain %q is not empty", name)
	case t.refs[name] > 0:
		return fmt.Errorf("chain %q is referred to by %d rules", name, t.refs[name])
	}
	delete(t.chains, name)
	return nil
}

func (t *table) ref(r *rule) {
	if r.jump != "" {
		t.refs[r.jump]++
	}
}

func (t *table) unref(r *rule) {
	if r.jump == "" {
		return
	}
	if t.refs[r.jump]--; t.refs[r.jump] == 0 {
		delete(t.refs, r.jump)
	}
}

// check refuses what the kernel refuses when a table is committed: loops, jumps that are too deep,
// and targets in chains that are reachable from a hook in which the target is not allowed.
func (t *table) check() error {
	height := make(map[string]int)
	for _, name := range slices.Sorted(maps.Keys(t.chains)) {
		h, err := t.height(name, height)
		if err != nil {
			return err
		}
		if t.chains[name].policy != "" && h > maxDepth {
			return fmt.Errorf("chain %s: jumps are nested %d deep, the kernel allows %d", name, h, maxDepth)
		}
	}
	for _, hook := range hooks[t.name] {
		if err := t.checkHook(hook, hook, make(map[string]bool)); err != nil {
			return err
		}
	}
	return nil
}

// height is the length of the longest path of chains that begins at name; -1 in known means that
// the chain is being visited.
func (t *table) height(name string, known map[string]int) (int, error) {
	if h, ok := known[name]; ok {
		if h < 0 {
			return 0, fmt.Errorf("chain %s: jumps lead back to it", name)
		}
		return h, nil
	}
	known[name] = -1
	below := 0
	for _, r := range t.chains[name].rules {
		if r.jump == "" {
			continue
		}
		h, err := t.height(r.jump, known)
		if err != nil {
			return 0, err
		}
		below = max(below, h)
	}
	known[name] = below + 1
	return below + 1, nil
}

func (t *table) checkHook(hook, name string, seen map[string]bool) error {
	if seen[name] {
		return nil
	}
	seen[name] = true
	for _, r := range t.chains[name].rules {
		if r.target != nil {
			if allowed := r.target.hooks(); allowed != nil && !slices.Contains(allowed, hook) {
				return fmt.Errorf("chain %s, rule %q: target not possible in %s", name, r.text, hook)
			}
		}
		if r.jump != "" {
			if err := t.checkHook(hook, r.jump, seen); err != nil {
				return err
			}
		}
	}
	return nil
}

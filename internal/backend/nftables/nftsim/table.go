package nftsim

import (
	"cmp"
	"context"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/internal/fwd"
	"github.com/fairlead/fairlead/internal/host/netlink"
	"github.com/fairlead/fairlead/internal/host/nft"
)

// Table is a table of one family, which may not exist yet. It belongs to one goroutine.
type Table struct {
	family fwd.Family
	state  *state
	parse  parser
	// bases are the base chains by priority.
	bases []*chain
	// Before, if set, is called at the start of each Commit, which returns its error.
	Before func() error
	// Refuse, if set, is called for every operation of a Commit or Check and returns its error, or
	// 0.
	Refuse func(nft.Op) unix.Errno
	// Room is the maximum number of elements of a set without a size, by its name; 0 means no
	// limit.
	Room map[string]int
}

// state is the content of a table; nil if it does not exist. Chains and sets are replaced and never
// changed, so that it is enough to copy the maps.
type state struct {
	chains map[string]*chain
	sets   map[string]*set
	// leads are the chains that rules and elements refer to; nil if it has to be computed.
	leads map[string]bool
	// fresh are the sets that were copied in the current transaction.
	fresh map[*set]bool
	parse parser
}

type chain struct {
	nft.Chain
	rules [][]*expression
}

// expression is a decoded nft.Expr.
type expression struct {
	name  string
	attrs map[uint16]nft.Attr
	// set is the set that it uses, verdict the verdict of an immediate expression.
	set, verdict string
}

// parser caches decoded expressions.
type parser map[nft.Expr]*expression

type set struct {
	def   nft.Set
	shape nft.Shape
	// elements by key; in a set of ranges the value of End follows the key.
	elements map[string]nft.Element
}

var _ nft.Interface = (*Table)(nil)

// New returns a table that does not exist.
func New(f fwd.Family) *Table { return &Table{family: f, parse: make(parser)} }

func (s *state) clone() *state {
	if s == nil {
		return nil
	}
	return &state{chains: maps.Clone(s.chains), sets: maps.Clone(s.sets), fresh: make(map[*set]bool), parse: s.parse}
}

// Read implements nft.Interface.
func (t *Table) Read(context.Context) (nft.Content, error) {
	out := nft.Content{Sets: make(map[string]nft.Shape), Elements: make(map[string]nft.Elements)}
	if t.state == nil {
		return out, nil
	}
	out.Exists = true
	for _, name := range slices.Sorted(maps.Keys(t.state.chains)) {
		out.Chains = append(out.Chains, t.state.chains[name].Chain)
	}
	for name, s := range t.state.sets {
		out.Sets[name] = s.shape
		if !s.def.Dynamic {
			els := nft.NewElements(s.shape)
			for _, el := range s.elements {
				els.Add(el)
			}
			els.Sort()
			out.Elements[name] = els
		}
	}
	return out, nil
}

// Check implements nft.Interface.
func (t *Table) Check(_ context.Context, ops []nft.Op) error {
	_, err := t.after(ops)
	return err
}

// after returns the state after operations, or the error with which the kernel refuses them.
func (t *Table) after(ops []nft.Op) (*state, error) {
	next := t.state.clone()
	for i := range ops {
		no := next.apply(t, &ops[i], &next)
		if no == 0 && t.Refuse != nil {
			no = t.Refuse(ops[i])
		}
		if no != 0 {
			return nil, &nft.Error{Op: ops[i].String(), Name: ops[i].Name, Elements: ops[i].Elements, Errno: no}
		}
	}
	if next != nil {
		if no, what := next.validate(); no != 0 {
			return nil, &nft.Error{Op: what, Errno: no}
		}
	}
	return next, nil
}

// Commit implements nft.Interface.
func (t *Table) Commit(_ context.Context, ops []nft.Op) error {
	if t.Before != nil {
		if err := t.Before(); err != nil {
			return err
		}
	}
	next, err := t.after(ops)
	if err != nil {
		return err
	}
	t.state, t.bases = next, nil
	if next != nil {
		for _, c := range next.chains {
			if c.Base.Type != "" {
				t.bases = append(t.bases, c)
			}
		}
		slices.SortFunc(t.bases, func(a, b *chain) int { return cmp.Compare(a.Base.Priority, b.Base.Priority) })
	}
	return nil
}

// apply carries out one operation, which may add or delete the table itself.
func (s *state) apply(t *Table, o *nft.Op, table **state) unix.Errno {
	switch {
	case o.Kind == nft.AddTable:
		if s == nil {
			*table = &state{chains: make(map[string]*chain), sets: make(map[string]*set), fresh: make(map[*set]bool), parse: t.parse}
		}
		return 0
	case s == nil:
		return unix.ENOENT
	case o.Kind == nft.DelTable:
		*table = nil
		return 0
	case o.Kind == nft.AddSet:
		return s.addSet(t.family, o)
	case o.Kind == nft.DelSet:
		return s.delSet(o.Name)
	case o.Kind == nft.AddElements || o.Kind == nft.DelElements:
		return s.change(t, o)
	}
	return s.chain(o)
}

func (s *state) chain(o *nft.Op) unix.Errno {
	c := s.chains[o.Name]
	if o.Kind == nft.AddChain {
		switch {
		case c == nil:
			s.chains[o.Name] = &chain{Chain: nft.Chain{Name: o.Name, Base: o.Base}}
		case c.Base != o.Base:
			return unix.EEXIST
		}
		return 0
	}
	if c == nil {
		return unix.ENOENT
	}
	switch o.Kind {
	case nft.FlushChain:
		s.chains[o.Name] = &chain{Chain: nft.Chain{Name: c.Name, Base: c.Base}}
		s.leads = nil
	case nft.AddRules:
		return s.addRules(c, o.Rules)
	case nft.DelChain:
		delete(s.chains, o.Name)
		if len(c.rules) > 0 {
			s.leads = nil
		}
		if s.used(o.Name) {
			return unix.EBUSY
		}
	}
	return 0
}

func (s *state) addRules(c *chain, rules []nft.Rule) unix.Errno {
	cc := *c
	for _, r := range rules {
		var parsed []*expression
		for _, x := range r {
			e := s.parse.expression(x)
			if e.set != "" && s.sets[e.set] == nil {
				return unix.ENOENT
			}
			if to := chainOf(e.verdict); to != "" && s.chains[to] == nil {
				return unix.ENOENT
			}
			parsed = append(parsed, e)
		}
		cc.Rules, cc.rules = append(slices.Clip(cc.Rules), r), append(slices.Clip(cc.rules), parsed)
	}
	s.chains[c.Name], s.leads = &cc, nil
	return 0
}

func (p parser) expression(x nft.Expr) *expression {
	if e := p[x]; e != nil {
		return e
	}
	e := &expression{name: x.Name, attrs: attrsOf(x.Attrs)}
	switch x.Name {
	case "lookup":
		e.set = e.attrs[unix.NFTA_LOOKUP_SET].Text()
	case "dynset":
		e.set = e.attrs[unix.NFTA_DYNSET_SET_NAME].Text()
	case "immediate":
		if e.attrs[unix.NFTA_IMMEDIATE_DREG].Net32() == unix.NFT_REG_VERDICT {
			v, err := nft.ParseVerdict(e.attrs[unix.NFTA_IMMEDIATE_DATA].Data)
			if err != nil {
				panic("BUG: " + err.Error())
			}
			e.verdict = v
		}
	}
	p[x] = e
	return e
}

// attrsOf decodes attributes.
func attrsOf(b string) map[uint16]nft.Attr {
	m, err := netlink.AttrMap(b)
	if err != nil {
		panic("BUG: " + err.Error())
	}
	return m
}

// chainOf returns the chain in a verdict, if any.
func chainOf(verdict string) string {
	_, chain, _ := strings.Cut(verdict, " ")
	return chain
}

// expressions yields the expressions of all rules.
func (s *state) expressions() iter.Seq[*expression] {
	return func(yield func(*expression) bool) {
		for _, c := range s.chains {
			for _, r := range c.rules {
				for _, e := range r {
					if !yield(e) {
						return
					}
				}
			}
		}
	}
}

// used reports whether a rule or an element refers to the chain.
func (s *state) used(name string) bool {
	if s.leads == nil {
		s.leads = make(map[string]bool)
		for e := range s.expressions() {
			s.leads[chainOf(e.verdict)] = true
		}
		for _, x := range s.sets {
			for _, e := range x.elements {
				if x.def.Verdicts {
					s.leads[chainOf(e.Value)] = true
				}
			}
		}
	}
	return s.leads[name]
}

func (s *state) addSet(fam fwd.Family, o *nft.Op) unix.Errno {
	if have := s.sets[o.Name]; have != nil {
		if have.shape != o.Set.Shape(fam) {
			return unix.EEXIST
		}
		return 0
	}
	s.sets[o.Name] = &set{def: o.Set, shape: o.Set.Shape(fam), elements: make(map[string]nft.Element)}
	return 0
}

func (s *state) delSet(name string) unix.Errno {
	if s.sets[name] == nil {
		return unix.ENOENT
	}
	for e := range s.expressions() {
		if e.set == name {
			return unix.EBUSY
		}
	}
	delete(s.sets, name)
	s.leads = nil
	return 0
}

// change adds or deletes elements.
func (s *state) change(t *Table, o *nft.Op) unix.Errno {
	x := s.sets[o.Name]
	if x == nil {
		return unix.ENOENT
	}
	if !s.fresh[x] {
		x = &set{def: x.def, shape: x.shape, elements: maps.Clone(x.elements)}
		s.sets[o.Name], s.fresh[x] = x, true
	}
	s.leads = nil
	for _, e := range o.Elements {
		if len(e.Key) != nft.Len(t.family, x.def.Key) {
			return unix.EINVAL
		}
		if errno := s.changeElement(t, x, o.Kind, e); errno != 0 {
			return errno
		}
	}
	return 0
}

func (s *state) changeElement(t *Table, x *set, kind nft.OpKind, e nft.Element) unix.Errno {
	at := e.Key
	if x.def.Interval {
		at += fmt.Sprint(e.End)
	}
	have, there := x.elements[at]
	if kind == nft.DelElements {
		if !there {
			return unix.ENOENT
		}
		delete(x.elements, at)
		return 0
	}
	to := chainOf(e.Value)
	switch {
	case there && have != e:
		return unix.EEXIST
	case !x.def.Verdicts && len(e.Value) != nft.Len(t.family, x.def.Value):
		return unix.EINVAL
	case x.def.Verdicts && to != "" && s.chains[to] == nil:
		return unix.ENOENT
	}
	if x.elements[at] = e; x.full(t) {
		return unix.ENFILE
	}
	return 0
}

// verdictsOf yields the verdicts that an expression may give: its own, or those of its map.
func (s *state) verdictsOf(x *expression) iter.Seq[string] {
	return func(yield func(string) bool) {
		if x.verdict != "" && !yield(x.verdict) {
			return
		}
		if m := s.sets[x.set]; m != nil && m.def.Verdicts {
			for _, e := range m.elements {
				if !yield(e.Value) {
					return
				}
			}
		}
	}
}

// full reports whether a set has more elements than it may have.
func (x *set) full(t *Table) bool {
	room := t.Room[x.def.Name]
	if x.def.Size > 0 {
		room = int(x.def.Size)
	}
	return room > 0 && len(x.elements) > room
}

// allowed are the expressions that work only in some chains, with the hooks, and the type if it
// matters.
var allowed = map[string]struct {
	typ   string
	hooks []nft.Hook
}{
	"dnat":   {"nat", []nft.Hook{nft.Prerouting, nft.Output}},
	"snat":   {"nat", []nft.Hook{nft.Postrouting}},
	"masq":   {"nat", []nft.Hook{nft.Postrouting}},
	"reject": {"", []nft.Hook{nft.Prerouting, nft.Input, nft.Forward, nft.Output}},
}

// maxJumps is the maximum depth of chains (NFT_JUMP_STACK_SIZE).
const maxJumps = 16

// allows says whether an expression works in chains that are reached from a base chain.
func allows(b nft.Base, x *expression) bool {
	name := x.name
	if name == "nat" {
		name = "dnat"
		if x.attrs[unix.NFTA_NAT_TYPE].Net32() == unix.NFT_NAT_SNAT {
			name = "snat"
		}
	}
	a, limited := allowed[name]
	return !limited || (a.typ == "" || a.typ == b.Type) && slices.Contains(a.hooks, b.Hook)
}

// validate follows every base chain to all chains that can be reached from it. what names the chain
// at fault.
func (s *state) validate() (errno unix.Errno, what string) {
	for _, c := range s.chains {
		if c.Base == (nft.Base{}) {
			continue
		}
		if errno, what := s.reach(c.Base, c, make(map[string]bool), 0); errno != 0 {
			return errno, what
		}
	}
	return 0, ""
}

func (s *state) reach(b nft.Base, c *chain, seen map[string]bool, depth int) (errno unix.Errno, what string) {
	if depth >= maxJumps {
		return unix.EMLINK, "chain " + c.Name
	}
	if seen[c.Name] {
		return 0, ""
	}
	seen[c.Name] = true
	for _, r := range c.rules {
		for _, x := range r {
			if !allows(b, x) {
				return unix.EOPNOTSUPP, "chain " + c.Name + ": " + x.name
			}
			for v := range s.verdictsOf(x) {
				if to := chainOf(v); to != "" {
					if errno, what := s.reach(b, s.chains[to], seen, depth+1); errno != 0 {
						return errno, what
					}
				}
			}
		}
	}
	return 0, ""
}

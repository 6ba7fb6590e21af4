package nftsim

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/internal/fwd"
	"github.com/fairlead/fairlead/internal/host/nft"
)

// Table is the table of one family, or its absence. It belongs to one goroutine.
type Table struct {
	family fwd.Family
	state  *state
	// Before is called at the begin of each Commit, if it is set; an error of it is that of the Commit.
	Before func() error
}

// state is what a table holds; nil if there is no table.
type state struct {
	chains map[string]*nft.Chain
	sets   map[string]*set
}

type set struct {
	def   nft.Set
	shape nft.Shape
	// elements by key; of a set of ranges the keys with "end" or "begin" behind them.
	elements map[string]nft.Element
}

var _ nft.Interface = (*Table)(nil)

// New returns a table that does not exist yet.
func New(f fwd.Family) *Table { return &Table{family: f} }

func (s *state) clone() *state {
	if s == nil {
		return nil
	}
	out := &state{chains: make(map[string]*nft.Chain, len(s.chains)), sets: make(map[string]*set, len(s.sets))}
	for name, c := range s.chains {
		cc := *c
		cc.Rules = slices.Clone(c.Rules)
		out.chains[name] = &cc
	}
	for name, x := range s.sets {
		xx := *x
		xx.elements = maps.Clone(x.elements)
		out.sets[name] = &xx
	}
	return out
}

// Read implements nft.Interface.
func (t *Table) Read(context.Context) (nft.Content, error) {
	out := nft.Content{Sets: make(map[string]nft.Shape), Elements: make(map[string][]nft.Element)}
	if t.state == nil {
		return out, nil
	}
	out.Exists = true
	for _, name := range slices.Sorted(maps.Keys(t.state.chains)) {
		out.Chains = append(out.Chains, *t.state.chains[name])
	}
	for name, s := range t.state.sets {
		out.Sets[name] = s.shape
		if !s.def.Dynamic {
			out.Elements[name] = slices.Collect(maps.Values(s.elements))
		}
	}
	return out, nil
}

// Commit implements nft.Interface.
func (t *Table) Commit(_ context.Context, ops []nft.Op) error {
	if t.Before != nil {
		if err := t.Before(); err != nil {
			return err
		}
	}
	next := t.state.clone()
	for i := range ops {
		if no := next.apply(t.family, &ops[i], &next); no != 0 {
			return &nft.Error{Op: ops[i].String(), Errno: no}
		}
	}
	if next != nil {
		if no, what := next.validate(); no != 0 {
			return &nft.Error{Op: what, Errno: no}
		}
	}
	t.state = next
	return nil
}

// apply carries out one operation; the table itself may come or go.
func (s *state) apply(fam fwd.Family, o *nft.Op, table **state) unix.Errno {
	switch {
	case o.Kind == nft.AddTable:
		if s == nil {
			*table = &state{chains: make(map[string]*nft.Chain), sets: make(map[string]*set)}
		}
		return 0
	case s == nil:
		return unix.ENOENT
	case o.Kind == nft.DelTable:
		*table = nil
		return 0
	case o.Kind == nft.AddSet:
		return s.addSet(fam, o)
	case o.Kind == nft.DelSet:
		return s.delSet(o.Name)
	case o.Kind == nft.AddElements || o.Kind == nft.DelElements:
		return s.change(fam, o)
	}
	return s.chain(o)
}

func (s *state) chain(o *nft.Op) unix.Errno {
	c := s.chains[o.Name]
	if o.Kind == nft.AddChain {
		switch {
		case c == nil:
			s.chains[o.Name] = &nft.Chain{Name: o.Name, Base: o.Base}
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
		c.Rules = nil
	case nft.AddRules:
		for _, r := range o.Rules {
			for _, x := range r {
				if no := s.check(x); no != 0 {
					return no
				}
			}
			c.Rules = append(c.Rules, r)
		}
	case nft.DelChain:
		if s.used(o.Name) {
			return unix.EBUSY
		}
		delete(s.chains, o.Name)
	}
	return 0
}

// check says whether what an expression refers to is there.
func (s *state) check(x nft.Expr) unix.Errno {
	if name := setOf(x); name != "" && s.sets[name] == nil {
		return unix.ENOENT
	}
	if to := chainOf(verdictOf(x)); to != "" && s.chains[to] == nil {
		return unix.ENOENT
	}
	return 0
}

// setOf is the set that an expression uses, if any.
func setOf(x nft.Expr) string {
	a := attrsOf(x)
	switch x.Name {
	case "lookup":
		return a[unix.NFTA_LOOKUP_SET].Text()
	case "dynset":
		return a[unix.NFTA_DYNSET_SET_NAME].Text()
	}
	return ""
}

// verdictOf is the verdict of an immediate expression, if it is one.
func verdictOf(x nft.Expr) string {
	a := attrsOf(x)
	if x.Name != "immediate" || a[unix.NFTA_IMMEDIATE_DREG].Uint32() != unix.NFT_REG_VERDICT {
		return ""
	}
	v, err := nft.ParseVerdict(a[unix.NFTA_IMMEDIATE_DATA].Data)
	if err != nil {
		return ""
	}
	return v
}

// chainOf is the chain to which a verdict leads, if any.
func chainOf(verdict string) string {
	_, chain, _ := strings.Cut(verdict, " ")
	return chain
}

// used says whether a rule or an element leads to the chain.
func (s *state) used(chain string) bool {
	for _, c := range s.chains {
		for _, r := range c.Rules {
			for _, x := range r {
				if c.Name != chain && chainOf(verdictOf(x)) == chain {
					return true
				}
			}
		}
	}
	for _, x := range s.sets {
		for _, e := range x.elements {
			if x.def.Verdicts && chainOf(e.Value) == chain {
				return true
			}
		}
	}
	return false
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
	for _, c := range s.chains {
		for _, r := range c.Rules {
			for _, x := range r {
				if setOf(x) == name {
					return unix.EBUSY
				}
			}
		}
	}
	delete(s.sets, name)
	return 0
}

// change adds or deletes elements.
func (s *state) change(fam fwd.Family, o *nft.Op) unix.Errno {
	x := s.sets[o.Name]
	if x == nil {
		return unix.ENOENT
	}
	for _, e := range o.Elements {
		at := e.Key
		if x.def.Interval {
			at += fmt.Sprint(e.End)
		}
		have, there := x.elements[at]
		switch {
		case len(e.Key) != nft.Len(fam, x.def.Key):
			return unix.EINVAL
		case o.Kind == nft.DelElements && !there:
			return unix.ENOENT
		case o.Kind == nft.DelElements:
			delete(x.elements, at)
			continue
		case there && have != e:
			return unix.EEXIST
		case !x.def.Verdicts && len(e.Value) != nft.Len(fam, x.def.Value):
			return unix.EINVAL
		}
		if to := chainOf(e.Value); x.def.Verdicts && to != "" && s.chains[to] == nil {
			return unix.ENOENT
		}
		x.elements[at] = e
	}
	return 0
}

// allowed are the expressions that work in some chains only: the hooks, and the type if it matters.
var allowed = map[string]struct {
	typ   string
	hooks []nft.Hook
}{
	"nat":    {"nat", []nft.Hook{nft.Prerouting, nft.Output}},
	"masq":   {"nat", []nft.Hook{nft.Postrouting}},
	"reject": {"", []nft.Hook{nft.Prerouting, nft.Input, nft.Forward, nft.Output}},
}

// maxJumps is the depth of chains that the kernel accepts (NFT_JUMP_STACK_SIZE).
const maxJumps = 16

// validate goes from every base chain to all that can be reached from it.
func (s *state) validate() (unix.Errno, string) {
	for _, c := range s.chains {
		if c.Base == (nft.Base{}) {
			continue
		}
		if no, what := s.reach(c.Base, c, make(map[string]bool), 0); no != 0 {
			return no, what
		}
	}
	return 0, ""
}

func (s *state) reach(b nft.Base, c *nft.Chain, seen map[string]bool, depth int) (unix.Errno, string) {
	if depth >= maxJumps {
		return unix.EMLINK, "chain " + c.Name
	}
	if seen[c.Name] {
		return 0, ""
	}
	seen[c.Name] = true
	follow := func(v string) (unix.Errno, string) {
		if to := chainOf(v); to != "" {
			return s.reach(b, s.chains[to], seen, depth+1)
		}
		return 0, ""
	}
	for _, r := range c.Rules {
		for _, x := range r {
			if a, limited := allowed[x.Name]; limited && (a.typ != "" && a.typ != b.Type || !slices.Contains(a.hooks, b.Hook)) {
				return unix.EOPNOTSUPP, "chain " + c.Name + ": " + x.Name
			}
			if no, what := follow(verdictOf(x)); no != 0 {
				return no, what
			}
			m := s.sets[setOf(x)]
			if m == nil || !m.def.Verdicts {
				continue
			}
			for _, e := range m.elements {
				if no, what := follow(e.Value); no != 0 {
					return no, what
				}
			}
		}
	}
	return 0, ""
}

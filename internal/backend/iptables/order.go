package iptables

import (
	"bytes"
	"maps"
	"slices"
	"strings"
)

// The order of chains in the input of a restore.
//
// Both userlands need a chain to be declared before a rule jumps to it. The order also decides the
// speed of the nft userland (1.8.9, nft-cache.c). For each command it looks up the names of the
// chain and of the target in a sorted list of all names so far, starting at the front. With 10,000
// Services in one input, these lookups took 30 of 35 seconds. They take no time if names come in
// descending order, each chain with its rules, because the name is then the first in the list. For
// this reason the letters of chains are in the order of dependence, and rules mark packets by a
// jump to FAIRLEAD-ADD-MARK, the smallest name, instead of the target MARK, which sorts after all
// of them. What remains is a dispatch rule's frontend, somewhere in the list. Limiting the number
// of chains in a restore limits that.

// step is the input of one restore and the chains that are complete after it.
type step struct {
	before, nat, after section
	completes          []ChainID
}

// split divides a plan into steps. No packet enters a new chain until a chain in use jumps to it,
// so new chains can be written in advance, in any number of steps. In the same way, chains that are
// no longer used can be deleted afterwards.
func split(p plan, maxChains int) []step {
	if maxChains == 0 || len(p.Upserts)+len(p.Deletes) <= maxChains {
		return []step{switchOver(p)}
	}
	var steps []step
	last := plan{Upserts: maps.Clone(p.Upserts), Deletes: p.Deletes, Actual: p.Actual}
	fresh := func(id ChainID) bool {
		_, there := p.Actual(id)
		return !there && !builtin(id.Name)
	}
	ahead := slices.DeleteFunc(inOrder(p.Upserts), func(id ChainID) bool { return !fresh(id) })
	for piece := range slices.Chunk(ahead, maxChains) {
		part := plan{Upserts: make(map[ChainID]Chain), Actual: p.Actual}
		for _, id := range piece {
			// The chains that it jumps to are in this step, in an earlier one, or already in the
			// kernel.
			part.Upserts[id] = p.Upserts[id]
			delete(last.Upserts, id)
		}
		steps = append(steps, switchOver(part))
	}
	if len(p.Deletes) <= maxChains {
		return append(steps, switchOver(last))
	}

	// Empty all of them before deleting any: they may jump to each other.
	last.Deletes = make(map[ChainID]Chain)
	var old []ChainID
	for id, c := range p.Deletes {
		if builtin(id.Name) {
			last.Deletes[id] = c
		} else {
			old = append(old, id)
		}
	}
	steps = append(steps, switchOver(last))
	slices.SortFunc(old, compareIDs)
	var flush, remove []step
	for piece := range slices.Chunk(old, maxChains) {
		part := plan{Deletes: make(map[ChainID]Chain), Upserts: make(map[ChainID]Chain), Actual: func(ChainID) (Chain, bool) { return Chain{}, false }}
		for _, id := range piece {
			part.Deletes[id] = p.Deletes[id]
			part.Upserts[id] = Chain{}
		}
		f := switchOver(plan{Upserts: part.Upserts, Actual: part.Actual})
		f.completes = nil
		flush = append(flush, f)
		remove = append(remove, switchOver(plan{Deletes: part.Deletes, Actual: part.Actual}))
	}
	return slices.Concat(steps, flush, remove)
}

// switchOver carries out a plan in one restore.
func switchOver(p plan) step {
	var s step
	for _, id := range inOrder(p.Upserts) {
		want := p.Upserts[id]
		have, there := p.Actual(id)
		to := &s.nat
		if id.Table == Filter {
			to = &s.before
			if there && !builtin(id.Name) {
				if union, lost, gained := compare(have, want); lost {
					if gained {
						s.before.replace(id.Name, have, union)
					}
					to = &s.after
				}
			}
		}
		to.replace(id.Name, have, want)
		s.completes = append(s.completes, id)
	}
	for _, id := range slices.SortedFunc(maps.Keys(p.Deletes), compareIDs) {
		to := &s.nat
		if id.Table == Filter {
			to = &s.after
		}
		to.remove(id.Name, p.Deletes[id])
		s.completes = append(s.completes, id)
	}
	return s
}

// input is the text of the restore. If the nat table does not change, the two parts of the filter
// table become one.
func (s step) input() []byte {
	var b bytes.Buffer
	b.Grow(s.before.size() + s.nat.size() + s.after.size())
	if s.nat.empty() {
		both := section{
			chains: slices.Concat(s.before.chains, s.after.chains),
			base:   slices.Concat(s.before.base, s.after.base),
			drop:   slices.Concat(s.before.drop, s.after.drop),
		}
		both.print(&b, Filter)
		return b.Bytes()
	}
	s.before.print(&b, Filter)
	s.nat.print(&b, NAT)
	s.after.print(&b, Filter)
	return b.Bytes()
}

func compareIDs(a, b ChainID) int {
	if a.Table != b.Table {
		return int(a.Table) - int(b.Table)
	}
	return strings.Compare(a.Name, b.Name)
}

// inOrder returns the chains in descending order of names, with the ones that every node has at the
// end. A chain comes after the chains in the map that its rules jump to.
func inOrder(chains map[ChainID]Chain) []ChainID {
	ids := slices.SortedFunc(maps.Keys(chains), func(a, b ChainID) int {
		if x, y := many(a.Name), many(b.Name); x != y {
			if x {
				return -1
			}
			return 1
		}
		return compareIDs(b, a)
	})
	out := make([]ChainID, 0, len(ids))
	seen := make(map[ChainID]bool, len(ids))
	var visit func(ChainID)
	visit = func(id ChainID) {
		if seen[id] {
			return
		}
		seen[id] = true
		for r := range strings.SplitSeq(chains[id].Rules, "\n") {
			if name := ruleTarget(r); name != "" {
				t := ChainID{id.Table, name}
				if _, here := chains[t]; here {
					visit(t)
				}
			}
		}
		out = append(out, id)
	}
	for _, id := range ids {
		visit(id)
	}
	return out
}

// many returns whether the chain is not one that every node has once: FAIRLEAD-<letter>-….
func many(name string) bool {
	rest, ours := strings.CutPrefix(name, chainPrefix)
	return ours && len(rest) > 1 && rest[1] == '-'
}

// ruleTarget is the chain of ours that a rule jumps to, or empty. It is the last word of the rule.
func ruleTarget(rule string) string {
	i := strings.LastIndexByte(rule, ' ')
	if i < 0 || !strings.HasPrefix(rule[i+1:], chainPrefix) {
		return ""
	}
	return rule[i+1:]
}

// compare returns whether rules are lost and gained between two versions of a chain, and the new
// rules followed by the lost ones. The rules of a chain of the filter table match different
// frontends, so their order does not matter.
func compare(have, want Chain) (union Chain, lost, gained bool) {
	old, now := have.lines(), want.lines()
	both := slices.Clone(now)
	for _, r := range old {
		if !slices.Contains(now, r) {
			lost = true
			both = append(both, r)
		}
	}
	gained = slices.ContainsFunc(now, func(r string) bool { return !slices.Contains(old, r) })
	return Chain{Rules: strings.Join(both, "\n")}, lost, gained
}

// section is the part of a restore's input for one table.
type section struct {
	chains []chainText
	base   []string // commands that change built-in chains
	drop   []string // chains to delete; nothing jumps to them at that point
}

type chainText struct {
	name  string
	rules string
}

func (s *section) empty() bool { return len(s.chains) == 0 && len(s.base) == 0 && len(s.drop) == 0 }

// size estimates the length of what print prints.
func (s *section) size() int {
	n := 0
	for _, c := range s.chains {
		n += len(c.name) + len(":  - [0:0]\n") + len(c.rules) + (strings.Count(c.rules, "\n")+1)*len("-A  \n"+c.name)
	}
	for _, l := range slices.Concat(s.base, s.drop) {
		n += len("-X \n") + len(l)
	}
	return n + 20
}

// replace sets the rules of a chain. Declaring an existing chain empties it. In a built-in chain,
// our jumps are removed and inserted at the top.
func (s *section) replace(name string, have, want Chain) {
	if !builtin(name) {
		s.chains = append(s.chains, chainText{name, want.Rules})
		return
	}
	s.remove(name, have)
	for _, r := range slices.Backward(want.lines()) {
		s.base = append(s.base, "-I "+name+" "+r)
	}
}

func (s *section) remove(name string, have Chain) {
	if !builtin(name) {
		s.chains = append(s.chains, chainText{name: name})
		s.drop = append(s.drop, name)
		return
	}
	for _, r := range have.lines() {
		s.base = append(s.base, "-D "+name+" "+r)
	}
}

func (s *section) print(b *bytes.Buffer, t Table) {
	if s.empty() {
		return
	}
	b.WriteString("*" + t.String() + "\n")
	for _, c := range s.chains {
		b.WriteString(":" + c.name + " - [0:0]\n")
		for r := range strings.SplitSeq(c.rules, "\n") {
			if r == "" {
				continue
			}
			for _, part := range [...]string{"-A ", c.name, " ", r, "\n"} {
				b.WriteString(part)
			}
		}
	}
	for _, l := range s.base {
		b.WriteString(l + "\n")
	}
	for _, name := range s.drop {
		b.WriteString("-X " + name + "\n")
	}
	b.WriteString("COMMIT\n")
}

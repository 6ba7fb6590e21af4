package iptables

import (
	"bytes"
	"context"
	"errors"
	"maps"
	"slices"
	"strings"

	"github.com/fairlead/fairlead/internal/backend"
	"github.com/fairlead/fairlead/internal/fwd"
	"github.com/fairlead/fairlead/internal/host/xtables"
)

// target reads and writes the tables of one family.
type target struct {
	family fwd.Family
	tables xtables.Interface
	// culprit finds the Service that a refused rule belongs to.
	culprit func(ChainID, string, Chain) (fwd.Service, bool)
}

type plan = backend.Plan[ChainID, Chain]

// builtin says whether the chain is the kernel's, in which only our jump rules are ours.
func builtin(name string) bool { return !strings.HasPrefix(name, chainPrefix) }

// Read implements backend.Target.
func (t *target) Read(ctx context.Context) (map[ChainID]Chain, error) {
	out := make(map[ChainID]Chain)
	for _, table := range []Table{Filter, NAT} {
		text, err := t.tables.Save(ctx, table.String())
		if err != nil {
			return nil, err
		}
		parsed, err := xtables.ParseSave(bytes.NewReader(text))
		if err != nil {
			return nil, err
		}
		for name, c := range parsed[table.String()] {
			rules := c.Rules
			if builtin(name) {
				rules = slices.DeleteFunc(rules, func(r string) bool { return !jumpsToOurs(r) })
				if len(rules) == 0 {
					continue
				}
			}
			out[ChainID{table, name}] = Chain{Rules: strings.Join(rules, "\n")}
		}
	}
	return out, nil
}

// jumpsToOurs says whether a rule of a built-in chain leads to a chain of ours.
func jumpsToOurs(rule string) bool {
	return strings.HasPrefix(rule, "-j "+chainPrefix) || strings.Contains(rule, " -j "+chainPrefix) || strings.Contains(rule, " -g "+chainPrefix)
}

// Write implements backend.Target with one restore.
//
// Each table is committed at once, but one after the other. What the filter table rejects or drops meets only
// connections that the nat table did not forward; so its rules may be there too early, but must not go too early:
//
//	filter  with the new rules, and still with those that will go
//	nat     pools, frontends and dispatch in one step
//	filter  without the old rules
func (t *target) Write(ctx context.Context, p plan, done func(ChainID)) error {
	input := restoreInput(p)
	if err := t.tables.Restore(ctx, input); err != nil {
		return t.explain(ctx, p, err)
	}
	for id := range p.Upserts {
		done(id)
	}
	for id := range p.Deletes {
		done(id)
	}
	return nil
}

// restoreInput is the program that carries out a plan, in an order that depends on the plan alone.
func restoreInput(p plan) []byte {
	var before, nat, after section
	for _, id := range sortedIDs(p.Upserts) {
		want := p.Upserts[id]
		have, there := p.Actual(id)
		s := &nat
		if id.Table == Filter {
			s = &before
			if kept, lost, gained := compare(have, want); there && lost && !builtin(id.Name) {
				if !gained {
					s = &after
				} else {
					before.replace(id.Name, have, kept)
					s = &after
				}
			}
		}
		s.replace(id.Name, have, want)
	}
	for _, id := range sortedIDs(p.Deletes) {
		if id.Table == Filter {
			after.remove(id.Name, p.Deletes[id])
		} else {
			nat.remove(id.Name, p.Deletes[id])
		}
	}
	var b bytes.Buffer
	if nat.empty() {
		// Nothing to wait for between the two.
		before.append(after)
		after = section{}
	}
	before.print(&b, Filter)
	nat.print(&b, NAT)
	after.print(&b, Filter)
	return b.Bytes()
}

// compare says whether rules are lost and gained from one content to the other, and returns the new content followed by
// what would be lost. Rules of one chain of the filter table speak of different frontends, so their order is free.
func compare(have, want Chain) (both Chain, lost, gained bool) {
	old, now := have.lines(), want.lines()
	union := slices.Clone(now)
	for _, r := range old {
		if !slices.Contains(now, r) {
			lost = true
			union = append(union, r)
		}
	}
	for _, r := range now {
		if !slices.Contains(old, r) {
			gained = true
			break
		}
	}
	return Chain{Rules: strings.Join(union, "\n")}, lost, gained
}

func sortedIDs(m map[ChainID]Chain) []ChainID {
	return slices.SortedFunc(maps.Keys(m), func(a, b ChainID) int {
		if a.Table != b.Table {
			return int(a.Table) - int(b.Table)
		}
		return strings.Compare(a.Name, b.Name)
	})
}

// section is a part of restore input for one table. Chains are declared first, so that rules can jump to all of them;
// chains are deleted last, when nothing jumps to them any more.
type section struct {
	declare, rules, base, drop []string
}

func (s *section) empty() bool {
	return len(s.declare) == 0 && len(s.base) == 0 && len(s.drop) == 0
}

// replace gives a chain its rules. A declaration empties a chain that is there. In a built-in chain our jumps are taken
// out and put in at the top.
func (s *section) replace(name string, have, want Chain) {
	if builtin(name) {
		s.remove(name, have)
		lines := want.lines()
		for _, r := range slices.Backward(lines) {
			s.base = append(s.base, "-I "+name+" "+r)
		}
		return
	}
	s.declare = append(s.declare, name)
	for _, r := range want.lines() {
		s.rules = append(s.rules, "-A "+name+" "+r)
	}
}

func (s *section) remove(name string, have Chain) {
	if builtin(name) {
		for _, r := range have.lines() {
			s.base = append(s.base, "-D "+name+" "+r)
		}
		return
	}
	s.declare = append(s.declare, name)
	s.drop = append(s.drop, name)
}

func (s *section) append(o section) {
	for _, name := range o.declare {
		if !slices.Contains(s.declare, name) {
			s.declare = append(s.declare, name)
		}
	}
	s.rules = append(s.rules, o.rules...)
	s.base = append(s.base, o.base...)
	s.drop = append(s.drop, o.drop...)
}

func (s *section) print(b *bytes.Buffer, t Table) {
	if s.empty() {
		return
	}
	b.WriteString("*" + t.String() + "\n")
	for _, name := range s.declare {
		b.WriteString(":" + name + " - [0:0]\n")
	}
	for _, lines := range [][]string{s.rules, s.base} {
		for _, l := range lines {
			b.WriteString(l)
			b.WriteByte('\n')
		}
	}
	for _, name := range s.drop {
		b.WriteString("-X " + name + "\n")
	}
	b.WriteString("COMMIT\n")
}

// explain turns the failure of a restore into an error that says whom it concerns.
func (t *target) explain(ctx context.Context, p plan, err error) error {
	fe := &backend.FamilyError{Family: t.family, Err: err}
	var re *xtables.RestoreError
	if !errors.As(err, &re) || re.Transient || ctx.Err() != nil {
		return fe
	}
	fe.Refused = true
	if id, rule, ok := parseRule(re.LineText); ok {
		for _, table := range []Table{Filter, NAT} {
			id.Table = table
			if owner, found := t.culprit(id, rule, p.Upserts[id]); found {
				fe.Culprits = []fwd.Service{owner}
				return fe
			}
		}
	}
	fe.Culprits = t.bisect(ctx, p)
	return fe
}

// parseRule takes a line "-A CHAIN RULE" apart.
func parseRule(line string) (ChainID, string, bool) {
	rest, ok := strings.CutPrefix(line, "-A ")
	if !ok {
		return ChainID{}, "", false
	}
	name, rule, _ := strings.Cut(rest, " ")
	return ChainID{Name: name}, rule, true
}

// bisect finds the Services whose own chains the kernel refuses, by writing the chains of ever smaller halves of them.
// No packet meets a chain that was not in use before; one that was gets what it is meant to hold.
func (t *target) bisect(ctx context.Context, p plan) []fwd.Service {
	owned := make(map[fwd.Service][]ChainID)
	for id, c := range p.Upserts {
		if c.Owner != (fwd.Service{}) {
			owned[c.Owner] = append(owned[c.Owner], id)
		}
	}
	accepted := func(owners []fwd.Service) bool {
		part := plan{Upserts: make(map[ChainID]Chain), Actual: func(ChainID) (Chain, bool) { return Chain{}, false }}
		for _, o := range owners {
			for _, id := range owned[o] {
				part.Upserts[id] = p.Upserts[id]
			}
		}
		// Chains of a Service jump to shared ones; those are there after the first successful write, and until then an empty
		// declaration stands in.
		for id, c := range p.Upserts {
			if _, there := p.Actual(id); !there && c.Owner == (fwd.Service{}) && !builtin(id.Name) {
				part.Upserts[id] = Chain{}
			}
		}
		var re *xtables.RestoreError
		err := t.tables.Restore(ctx, restoreInput(part))
		return err == nil || !errors.As(err, &re) || re.Transient
	}
	var culprits []fwd.Service
	var search func([]fwd.Service)
	search = func(owners []fwd.Service) {
		if len(owners) == 0 || ctx.Err() != nil || accepted(owners) {
			return
		}
		if len(owners) == 1 {
			culprits = append(culprits, owners[0])
			return
		}
		search(owners[:len(owners)/2])
		search(owners[len(owners)/2:])
	}
	search(slices.SortedFunc(maps.Keys(owned), fwd.Service.Compare))
	return culprits
}

package iptables

import (
	"context"
	"errors"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/fairlead/fairlead/internal/backend"
	"github.com/fairlead/fairlead/internal/fwd"
	"github.com/fairlead/fairlead/internal/host/xtables"
)

// target reads and writes the tables of one family.
type target struct {
	family fwd.Family
	tables xtables.Interface
	// maxChains bounds how many chains a restore holds, where that is possible; 0 means no bound.
	maxChains int
	// culprit finds the Service that a refused rule belongs to.
	culprit func(ChainID, string, Chain) (fwd.Service, bool)
	counts  *counts
	// found, if not nil, takes the frontends that were read.
	found *backend.Found
}

type plan = backend.Plan[ChainID, Chain]

// builtin says whether the chain is the kernel's, in which only our jump rules are ours.
func builtin(name string) bool { return !strings.HasPrefix(name, chainPrefix) }

// Read implements backend.Target.
func (t *target) Read(ctx context.Context) (map[ChainID]Chain, error) {
	out := make(map[ChainID]Chain)
	for _, table := range []Table{Filter, NAT} {
		chains, err := t.tables.Read(ctx, table.String())
		if err != nil {
			return nil, err
		}
		addOurs(out, table, chains)
	}
	if t.found != nil {
		t.found.Record(t.family, func(yield func(fwd.Key)) {
			for id, c := range out {
				if id.Table != NAT || builtin(id.Name) {
					continue
				}
				for _, rule := range c.lines() {
					if k, ok := parseFrontend(t.family, rule); ok {
						yield(k)
					}
				}
			}
		})
	}
	return out, nil
}

// parseFrontend reads the key of a frontend from a rule that dispatches to it (writer.dispatch); other rules have none.
func parseFrontend(fam fwd.Family, rule string) (k fwd.Key, ok bool) {
	k.Family = fam
	if rest, found := strings.CutPrefix(rule, "-d "); found {
		dst, after, _ := strings.Cut(rest, " ")
		p, err := netip.ParsePrefix(dst)
		if err != nil || !p.IsSingleIP() {
			return k, false
		}
		k.Addr, rule = p.Addr(), after
	}
	for _, proto := range digitProto {
		rest, found := strings.CutPrefix(rule, "-p "+proto.String()+" -m "+proto.String()+" --dport ")
		if !found {
			continue
		}
		port, _, _ := strings.Cut(rest, " ")
		n, err := strconv.ParseUint(port, 10, 16) // a range of ports dispatches further
		k.Proto, k.Port = proto, uint16(n)
		return k, err == nil
	}
	return k, false
}

// addOurs adds what is ours of a table that was read.
func addOurs(out map[ChainID]Chain, table Table, chains xtables.Table) {
	for name, c := range chains {
		rules := c.Rules
		if builtin(name) {
			rules = slices.DeleteFunc(slices.Clone(rules), func(r string) bool { return !jumpsToOurs(r) })
			if len(rules) == 0 {
				continue
			}
		}
		out[ChainID{table, name}] = Chain{Rules: strings.Join(rules, "\n")}
	}
}

// jumpsToOurs says whether a rule of a built-in chain leads to a chain of ours.
func jumpsToOurs(rule string) bool {
	return strings.HasPrefix(rule, "-j "+chainPrefix) || strings.Contains(rule, " -j "+chainPrefix) || strings.Contains(rule, " -g "+chainPrefix)
}

// Write implements backend.Target: new chains ahead, in pieces of maxChains, then everything else in one restore, then
// what is left to delete. With maxChains 0 it is one restore.
//
// Each table is committed at once, but one after the other. What the filter table rejects or drops meets only
// connections that the nat table did not forward; so its rules may be there too early, but must not go too early:
//
//	filter  with the new rules, and still with those that will go
//	nat     pools, frontends and dispatch in one step
//	filter  without the old rules
func (t *target) Write(ctx context.Context, p plan, done func(ChainID)) error {
	for _, step := range split(p, t.maxChains) {
		if err := t.tables.Restore(ctx, step.input()); err != nil {
			return t.explain(ctx, p, err)
		}
		for _, id := range step.completes {
			done(id)
		}
	}
	t.counts.wrote(p)
	return nil
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
		err := t.tables.Restore(ctx, switchOver(part).input())
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

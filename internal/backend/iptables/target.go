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
	// maxChains limits the number of chains in a restore where possible; 0 means no limit.
	maxChains int
	// culprit returns the Service that owns a refused rule.
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

// parseFrontend parses the key of a frontend from a rule that dispatches to it (writer.dispatch).
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
		n, err := strconv.ParseUint(port, 10, 16) // fails for a range of ports, which leads to another dispatch chain
		k.Proto, k.Port = proto, uint16(n)
		return k, err == nil
	}
	return k, false
}

// addOurs adds our chains, and our rules in built-in chains, from a table that was read.
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

// jumpsToOurs returns whether a rule of a built-in chain jumps to a chain of ours.
func jumpsToOurs(rule string) bool {
	return strings.HasPrefix(rule, "-j "+chainPrefix) || strings.Contains(rule, " -j "+chainPrefix) || strings.Contains(rule, " -g "+chainPrefix)
}

// Write implements backend.Target. It writes new chains in advance, at most maxChains per restore,
// then everything else in one restore, then deletes what is left. If maxChains is 0, it is one
// restore.
//
// Each table is committed atomically, one after the other. Rules of the filter table only reject or
// drop connections that the nat table did not forward. So they may come too early, but must not be
// removed too early:
//
//	filter  with the new rules and the old ones
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

// explain turns a failed restore into an error that names the Services that caused it.
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

// parseRule parses a line "-A CHAIN RULE".
func parseRule(line string) (ChainID, string, bool) {
	rest, ok := strings.CutPrefix(line, "-A ")
	if !ok {
		return ChainID{}, "", false
	}
	name, rule, _ := strings.Cut(rest, " ")
	return ChainID{Name: name}, rule, true
}

// bisect finds the Services whose chains the kernel refuses, by writing the chains of smaller and
// smaller groups of Services. No packet enters a new chain; a chain in use gets its desired rules.
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
		// Chains of a Service jump to shared ones, which exist after the first successful write.
		// Before that, declare them empty.
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

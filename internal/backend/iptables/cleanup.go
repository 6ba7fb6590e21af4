package iptables

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"

	"github.com/fairlead/fairlead/internal/fwd"
	"github.com/fairlead/fairlead/internal/host/xtables"
	"github.com/fairlead/fairlead/internal/instance"
)

// Leftover is the state of one instance in the kernel, for one flavour and family.
type Leftover struct {
	Instance instance.ID
	Flavour  xtables.Flavour
	Family   fwd.Family
	// Chains counts our chains, and built-in chains with a jump to them.
	Chains int
	// Guard is whether the rules protect loopback addresses from neighbours, which
	// net.ipv4.conf.all.route_localnet=1 exposes. Without such rules it should be 0.
	Guard bool

	tables xtables.Interface
}

// Leftovers finds everything that Fairlead has written, for every instance, in every installed
// flavour of iptables (a node may have changed its flavour), in the given families or in both. It
// changes nothing. The error names what cannot be read; there may be a result as well.
func Leftovers(ctx context.Context, families ...fwd.Family) ([]Leftover, error) {
	if len(families) == 0 {
		families = fwd.Families[:]
	}
	return leftovers(ctx, xtables.Installed(), families)
}

// leftovers is Leftovers for some flavours and families. Each pair takes two runs of iptables-save,
// which reads the rules of all programs.
func leftovers(ctx context.Context, flavours []xtables.Flavour, families []fwd.Family) ([]Leftover, error) {
	var out []Leftover
	var errs []error
	for _, fl := range flavours {
		for _, f := range families {
			tables, err := xtables.New(fl, f == fwd.IPv6)
			if errors.Is(err, xtables.ErrNotFound) {
				continue
			}
			var found map[instance.ID]map[ChainID]Chain
			if err == nil {
				found, err = byInstance(ctx, tables)
			}
			if err != nil {
				errs = append(errs, fmt.Errorf("%s, %s: %w", fl, f, err))
			}
			for _, id := range slices.Sorted(maps.Keys(found)) {
				chains := found[id]
				guard := strings.Contains(chains[ChainID{Filter, chainInput}].Rules, "-d 127.0.0.0/8")
				out = append(out, Leftover{Instance: id, Flavour: fl, Family: f, Chains: len(chains), Guard: guard, tables: tables})
			}
		}
	}
	return out, errors.Join(errs...)
}

// byInstance reads the chains of every instance, with the names of this package.
func byInstance(ctx context.Context, tables xtables.Interface) (map[instance.ID]map[ChainID]Chain, error) {
	read := make(map[Table]xtables.Table)
	ids := make(map[instance.ID]bool)
	for _, table := range []Table{Filter, NAT} {
		chains, err := tables.Read(ctx, table.String())
		if err != nil {
			return nil, err
		}
		read[table] = chains
		for name := range chains {
			if id, ok := instance.OfObject(name); ok {
				ids[id] = true
			}
		}
	}
	out := make(map[instance.ID]map[ChainID]Chain)
	for id := range ids {
		own := make(map[ChainID]Chain)
		for table, chains := range read {
			addOurs(own, table, names(id).Table(chains))
		}
		out[id] = own
	}
	return out, nil
}

// Remove deletes it from the kernel. Rules of other programs stay, and established connections
// continue.
func (l Leftover) Remove(ctx context.Context) error {
	o := FamilyOptions{Instance: l.Instance, Tables: l.tables}
	if l.Flavour != xtables.Legacy {
		o.MaxChains = nftMaxChains
	}
	return New(map[fwd.Family]FamilyOptions{l.Family: o}).Cleanup(ctx)
}

// RemoveOthers deletes what an instance wrote for one family with a userland other than the one in
// use, for example after a node changed from legacy to nft: otherwise both sets of rules would
// apply. If inUse is empty, because another mode is in use, it deletes everything. Call it when the
// rules in use are complete. before, if not nil, is called before each removal.
func RemoveOthers(ctx context.Context, id instance.ID, inUse xtables.Flavour, f fwd.Family, before func(Leftover), log *slog.Logger) {
	if inUse == xtables.Plain { // there is no other userland
		return
	}
	others := slices.DeleteFunc(xtables.Installed(), func(fl xtables.Flavour) bool { return fl == inUse })
	left, err := leftovers(ctx, others, []fwd.Family{f})
	if err != nil {
		log.Debug("cannot read all flavours of iptables", "error", err)
	}
	for _, l := range left {
		if l.Instance != id {
			continue
		}
		if before != nil {
			before(l)
		}
		if err := l.Remove(ctx); err != nil {
			log.Warn("cannot remove old rules from iptables", "flavour", string(l.Flavour), "family", f.String(), "error", err)
			continue
		}
		log.Info("removed old rules from iptables", "flavour", string(l.Flavour), "family", f.String(), "chains", l.Chains)
	}
}

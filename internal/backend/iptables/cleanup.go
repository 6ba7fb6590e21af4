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

// Leftover is what one instance has in one flavour and family of the kernel's tables.
type Leftover struct {
	Instance instance.ID
	Flavour  xtables.Flavour
	Family   fwd.Family
	// Chains counts chains of ours, and built-in chains with a jump to them.
	Chains int
	// Guard says that the rules keep neighbours from loopback addresses, to which net.ipv4.conf.all.route_localnet opens
	// the way. Without them it should not be 1.
	Guard bool

	tables xtables.Interface
}

// Leftovers finds all that Fairlead has written, of every instance, in every flavour of iptables that is installed: a node can have changed
// from one to the other; in the families that are named, or in both. It changes nothing. What cannot be read is in the error,
// which may come with a result.
func Leftovers(ctx context.Context, families ...fwd.Family) ([]Leftover, error) {
	if len(families) == 0 {
		families = fwd.Families[:]
	}
	return leftovers(ctx, xtables.Installed(), families)
}

// leftovers is Leftovers for some flavours and families. Each costs two runs of a program, and reads all rules of all programs.
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

// byInstance reads what every instance has, under the names of this package.
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

// Remove takes it out of the kernel. Nobody else's rule is touched; connections that are established go on.
func (l Leftover) Remove(ctx context.Context) error {
	o := FamilyOptions{Instance: l.Instance, Tables: l.tables}
	if l.Flavour != xtables.Legacy {
		o.MaxChains = nftMaxChains
	}
	return New(map[fwd.Family]FamilyOptions{l.Family: o}).Cleanup(ctx)
}

// RemoveOthers takes out what an instance wrote for one family with another userland than the one in use, as it is when a
// node changes from legacy to nft: both would be in force. With no userland in use, because another mode is, it takes out
// all. It is called when the rules in use are complete; before, which may be nil, is called before each removal.
func RemoveOthers(ctx context.Context, id instance.ID, inUse xtables.Flavour, f fwd.Family, before func(Leftover), log *slog.Logger) {
	if inUse == xtables.Plain { // there is no other
		return
	}
	others := slices.DeleteFunc(xtables.Installed(), func(fl xtables.Flavour) bool { return fl == inUse })
	left, err := leftovers(ctx, others, []fwd.Family{f})
	if err != nil {
		log.Debug("not all flavours of iptables can be read", "error", err)
	}
	for _, l := range left {
		if l.Instance != id {
			continue
		}
		if before != nil {
			before(l)
		}
		if err := l.Remove(ctx); err != nil {
			log.Warn("old rules in iptables stay in force", "flavour", string(l.Flavour), "family", f.String(), "error", err)
			continue
		}
		log.Info("removed old rules from iptables", "flavour", string(l.Flavour), "family", f.String(), "chains", l.Chains)
	}
}

package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"

	"github.com/fairlead/fairlead/internal/backend"
	"github.com/fairlead/fairlead/internal/backend/iptables"
	"github.com/fairlead/fairlead/internal/backend/nftables"
	"github.com/fairlead/fairlead/internal/config"
	"github.com/fairlead/fairlead/internal/fwd"
)

// dataplane is a backend with what belongs to it outside of the loop.
type dataplane struct {
	backend.Backend
	// complete is called once for each family, when everything is in the kernel.
	complete func(context.Context, fwd.Family)
}

// openDataplane opens the dataplane of a mode on this node's kernel.
func openDataplane(ctx context.Context, cfg *config.Config, log *slog.Logger) (dataplane, error) {
	switch cfg.Mode {
	case config.ModeIPTables:
		b, flavour, err := iptables.Open(ctx, log, dropInvalid(log))
		return dataplane{b, func(ctx context.Context, f fwd.Family) {
			routeLocalnet(cfg, f, log)
			iptables.RemoveOthers(ctx, flavour, f, log)
			removeTable(ctx, f, log)
		}}, err
	case config.ModeNFTables:
		b, err := nftables.Open(ctx, log)
		if err == nil && dropInvalid(log) {
			log.Warn("packets that conntrack cannot place reach their peers untranslated in this mode; set net.netfilter.nf_conntrack_tcp_be_liberal to 1")
		}
		return dataplane{b, func(ctx context.Context, f fwd.Family) { removeChains(ctx, f, log) }}, err
	}
	return dataplane{}, fmt.Errorf("mode %q has no dataplane", cfg.Mode)
}

// removeTable takes away what mode nftables left, now that mode iptables is complete.
func removeTable(ctx context.Context, f fwd.Family, log *slog.Logger) {
	found, err := nftables.Remove(ctx, f)
	switch {
	case err != nil:
		log.Debug("what mode nftables left cannot be removed", "family", f.String(), "error", err)
	case found:
		log.Info("removed the table of mode nftables", "family", f.String())
	}
}

// removeChains takes away what mode iptables left, now that mode nftables is complete.
func removeChains(ctx context.Context, f fwd.Family, log *slog.Logger) {
	left, err := iptables.Leftovers(ctx)
	if err != nil {
		log.Debug("what mode iptables left cannot be found", "error", err)
	}
	for _, l := range left {
		if l.Family != f {
			continue
		}
		if err := l.Remove(ctx); err != nil {
			log.Warn("chains of mode iptables stay in force", "flavour", string(l.Flavour), "family", f.String(), "error", err)
			continue
		}
		log.Info("removed the chains of mode iptables", "flavour", string(l.Flavour), "family", f.String(), "chains", l.Chains)
	}
}

// render prints the program of one family as a kernel with all features gets it.
func render(w io.Writer, mode config.Mode, f fwd.Family, t *fwd.Table) error {
	switch mode {
	case config.ModeIPTables:
		return iptables.Render(w, f, iptables.FamilyOptions{HairpinBPF: true, RandomFully: true, DropInvalid: true}, t)
	case config.ModeNFTables:
		return nftables.Render(w, f, t)
	}
	return fmt.Errorf("mode %q has no text form", mode)
}

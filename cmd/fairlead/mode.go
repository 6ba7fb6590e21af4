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
	// drift receives when others have changed what is ours; nil where the kernel does not say.
	drift <-chan struct{}
}

// openDataplane opens the dataplane of a mode on this node's kernel.
func openDataplane(ctx context.Context, cfg *config.Config, log *slog.Logger) (dataplane, error) {
	switch cfg.Mode {
	case config.ModeIPTables:
		b, flavour, err := iptables.Open(ctx, log, dropInvalid(log))
		return dataplane{b, func(ctx context.Context, f fwd.Family) {
			routeLocalnet(cfg, f, log)
			iptables.RemoveOthers(ctx, flavour, f, nil, log)
			removeNFTables(ctx, f, log)
		}, nil}, err
	case config.ModeNFTables:
		b, drift, err := nftables.Open(ctx, log)
		return dataplane{b, func(ctx context.Context, f fwd.Family) {
			iptables.RemoveOthers(ctx, "", f, func(l iptables.Leftover) { closeLoopback(l, log) }, log)
		}, drift}, err
	}
	return dataplane{}, fmt.Errorf("mode %q has no dataplane", cfg.Mode)
}

// removeNFTables takes out what mode nftables left, now that other rules are complete.
func removeNFTables(ctx context.Context, f fwd.Family, log *slog.Logger) {
	switch removed, err := nftables.Remove(ctx, f, false); {
	case err != nil:
		log.Warn("the table of mode nftables stays in force", "family", f.String(), "error", err)
	case removed:
		log.Info("removed the table of mode nftables", "family", f.String())
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

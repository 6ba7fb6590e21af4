package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/fairlead/fairlead/internal/backend/nftables"
	"github.com/fairlead/fairlead/internal/config"
	"github.com/fairlead/fairlead/internal/fwd"
	"github.com/fairlead/fairlead/internal/instance"
	"github.com/fairlead/fairlead/internal/metrics"
)

var nftablesMode = mode{
	metrics:   metrics.Mode{Name: string(config.ModeNFTables), FullAndPartial: true, WriteFailures: "kubeproxy_sync_proxy_rules_nftables_sync_failures_total"},
	open:      openNFTables,
	render:    renderNFTables,
	leftovers: nftablesLeftovers,
	retire:    retireNFTables,
}

func openNFTables(ctx context.Context, s setup) (*dataplane, error) {
	p, err := nftables.Open(ctx, s.log, s.id())
	if err != nil {
		return nil, err
	}
	narrowIPVS(ctx, s)
	return &dataplane{Families: p.Families, finder: p.Found, drift: p.Drift, written: func(fwd.Family) { p.Listen() }}, nil
}

func renderNFTables(w io.Writer, cfg *config.Config, f fwd.Family, t *fwd.Table) error {
	return nftables.Render(w, f, instance.Of(cfg.ServiceProxyName), t)
}

func nftablesLeftovers(ctx context.Context, _ leftoverOptions) (out []leftover, closeAll func(), err error) {
	var errs []error
	for _, f := range fwd.Families {
		ids, err := nftables.Leftovers(ctx, f)
		errs = append(errs, err)
		for _, id := range ids {
			out = append(out, leftover{id, f, fmt.Sprintf("the table %s of nf_tables", id.Table()), func(ctx context.Context) error {
				_, err := nftables.Remove(ctx, f, id)
				return err
			}})
		}
	}
	return out, func() {}, errors.Join(errs...)
}

func retireNFTables(ctx context.Context, s setup, inUse *dataplane, f fwd.Family) {
	if inUse.mode == string(config.ModeNFTables) {
		return
	}
	switch removed, err := nftables.Remove(ctx, f, s.id()); {
	case err != nil:
		s.log.Warn("cannot remove the table of mode nftables, its rules stay in force", "family", f.String(), "error", err)
	case removed:
		s.log.Info("removed the table of mode nftables", "family", f.String())
	}
}

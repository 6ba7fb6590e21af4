package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"

	"github.com/fairlead/fairlead/internal/backend"
	"github.com/fairlead/fairlead/internal/backend/iptables"
	"github.com/fairlead/fairlead/internal/config"
	"github.com/fairlead/fairlead/internal/fwd"
)

// openBackend opens the dataplane of a mode on this node's kernel. dropInvalid asks for protection from packets that
// conntrack cannot place.
func openBackend(ctx context.Context, mode config.Mode, log *slog.Logger, dropInvalid bool) (backend.Backend, error) {
	switch mode {
	case config.ModeIPTables:
		return iptables.Open(ctx, log, dropInvalid)
	}
	return nil, fmt.Errorf("mode %q has no dataplane", mode)
}

// render prints the program of one family as a kernel with all features gets it.
func render(w io.Writer, mode config.Mode, f fwd.Family, t *fwd.Table) error {
	switch mode {
	case config.ModeIPTables:
		return iptables.Render(w, f, iptables.FamilyOptions{HairpinBPF: true, RandomFully: true, DropInvalid: true}, t)
	}
	return fmt.Errorf("mode %q has no text form", mode)
}

package iptables

import (
	"context"
	"testing"

	"github.com/fairlead/fairlead/internal/backend"
	"github.com/fairlead/fairlead/internal/benchtest"
	"github.com/fairlead/fairlead/internal/fwd"
	"github.com/fairlead/fairlead/internal/host/xtables"
)

// discard accepts every restore and has no rules.
type discard struct{}

func (discard) Read(context.Context, string) (xtables.Table, error) { return nil, nil }
func (discard) Restore(context.Context, []byte) error               { return nil }

func onDiscard() backend.Backend {
	return New(map[fwd.Family]FamilyOptions{fwd.IPv4: {Tables: discard{}, HairpinBPF: true, RandomFully: true, DropInvalid: true}})
}

func BenchmarkRender(b *testing.B) { benchtest.Render(b, onDiscard) }
func BenchmarkApply(b *testing.B)  { benchtest.Apply(b, onDiscard) }
func BenchmarkChange(b *testing.B) { benchtest.Change(b, onDiscard) }

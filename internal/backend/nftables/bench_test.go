package nftables

import (
	"context"
	"testing"

	"github.com/fairlead/fairlead/internal/backend"
	"github.com/fairlead/fairlead/internal/benchtest"
	"github.com/fairlead/fairlead/internal/fwd"
	"github.com/fairlead/fairlead/internal/host/nft"
)

// discard accepts every transaction and stores nothing.
type discard struct{}

func (discard) Read(context.Context) (nft.Content, error) { return nft.Content{}, nil }
func (discard) Commit(context.Context, []nft.Op) error    { return nil }
func (discard) Check(context.Context, []nft.Op) error     { return nil }

func onDiscard() backend.Backend { return New(map[fwd.Family]nft.Interface{fwd.IPv4: discard{}}, nil) }

func BenchmarkRender(b *testing.B) { benchtest.Render(b, onDiscard) }
func BenchmarkApply(b *testing.B)  { benchtest.Apply(b, onDiscard) }
func BenchmarkChange(b *testing.B) { benchtest.Change(b, onDiscard) }

package ipvs

import (
	"context"
	"testing"

	"github.com/fairlead/fairlead/internal/backend"
	"github.com/fairlead/fairlead/internal/benchtest"
	"github.com/fairlead/fairlead/internal/fwd"
	"github.com/fairlead/fairlead/internal/host/ipset/ipsetfake"
	"github.com/fairlead/fairlead/internal/host/ipvs/ipvsfake"
	"github.com/fairlead/fairlead/internal/host/link/linkfake"
	"github.com/fairlead/fairlead/internal/host/xtables"
)

// discard takes every restore and holds nothing.
type discard struct{}

func (discard) Read(context.Context, string) (xtables.Table, error) { return nil, nil }
func (discard) Restore(context.Context, []byte) error               { return nil }

// onFakes is a backend on a kernel that holds virtual servers, sets and addresses, since the
// backend looks at them as it writes; what the kernel takes is in the numbers.
func onFakes() backend.Backend {
	return New(map[fwd.Family]FamilyOptions{fwd.IPv4: {
		RenderOptions: RenderOptions{VIPs: VIPAddress, Scheduler: "rr", HairpinBPF: true, RandomFully: true},
		Servers:       &ipvsfake.Table{}, Sets: &ipsetfake.Sets{}, Links: &linkfake.Host{}, Tables: discard{},
	}})
}

func BenchmarkRender(b *testing.B) { benchtest.Render(b, onFakes) }
func BenchmarkApply(b *testing.B)  { benchtest.Apply(b, onFakes) }
func BenchmarkChange(b *testing.B) { benchtest.Change(b, onFakes) }

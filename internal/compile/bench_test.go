package compile_test

import (
	"testing"

	"github.com/fairlead/fairlead/internal/benchtest"
	"github.com/fairlead/fairlead/internal/cluster"
	"github.com/fairlead/fairlead/internal/compile"
	"github.com/fairlead/fairlead/internal/fwd"
)

// BenchmarkCompileAll compiles all Services of a cluster and keeps the fragments.
func BenchmarkCompileAll(b *testing.B) {
	for _, size := range benchtest.Sizes {
		b.Run(size.String(), func(b *testing.B) {
			services := make([]*cluster.Service, size.Services)
			slices := make([][]*cluster.Slice, size.Services)
			for i := range services {
				services[i], slices[i] = benchtest.Service(i), []*cluster.Slice{benchtest.Slice(i, size.Endpoints)}
			}
			facts := benchtest.Facts()
			benchtest.PerService(b, size.Services, func() func() {
				out := make([]*fwd.Fragment, size.Services)
				return func() {
					for i, s := range services {
						out[i], _ = compile.Compile(s, slices[i], facts)
					}
				}
			})
		})
	}
}

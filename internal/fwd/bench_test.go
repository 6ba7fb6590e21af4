package fwd_test

import (
	"testing"

	"github.com/fairlead/fairlead/internal/benchtest"
	"github.com/fairlead/fairlead/internal/fwd"
)

// BenchmarkPut puts the fragments of all Services of a cluster into an empty table.
func BenchmarkPut(b *testing.B) {
	for _, size := range benchtest.Sizes {
		b.Run(size.String(), func(b *testing.B) {
			fragments := benchtest.Fragments(size)
			benchtest.PerService(b, size.Services, func() func() {
				table := &fwd.Table{}
				table.SetHeader(benchtest.Header())
				return func() {
					for _, f := range fragments {
						table.Put(f)
					}
				}
			})
		})
	}
}

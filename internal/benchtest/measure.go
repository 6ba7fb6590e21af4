package benchtest

import (
	"runtime"
	"testing"
)

// PerService measures what prepare returns, again and again: time, and what is allocated, for each
// of so many Services. What prepare itself does counts nowhere. Only one goroutine may allocate.
func PerService(b *testing.B, services int, prepare func() (run func())) {
	b.Helper()
	var before, after runtime.MemStats
	var bytes, objects uint64
	for b.Loop() {
		b.StopTimer()
		run := prepare()
		runtime.GC() // so that what prepare left behind is not collected in the time of run
		runtime.ReadMemStats(&before)
		b.StartTimer()
		run()
		b.StopTimer()
		runtime.ReadMemStats(&after)
		bytes, objects = bytes+after.TotalAlloc-before.TotalAlloc, objects+after.Mallocs-before.Mallocs
		b.StartTimer()
	}
	n := float64(services) * float64(b.N)
	b.ReportMetric(float64(b.Elapsed().Microseconds())/n, "µs/Service")
	b.ReportMetric(float64(bytes)/n, "B/Service")
	b.ReportMetric(float64(objects)/n, "allocs/Service")
}

package main

import (
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"sync"
)

// How much memory may be garbage before it is collected. Most memory in use is long-lived.
const (
	// At startup the heap may always grow to gcFloor bytes; beyond that, gcStarting percent of the
	// memory in use may be garbage. Startup must not wait for collections of a small heap.
	gcFloor    = 32 << 20
	gcStarting = 50
	// gcPercent applies once everything was written in a family. With 10,000 Services of 10
	// endpoints in mode nftables the daemon's peak was 95 MiB with 25 and 102 MiB with 50, after a
	// restart 91 and 104 MiB. Changes took the same CPU time.
	//
	// Memory is not returned to the system beyond that, because each verification reads the kernel
	// and needs it again.
	gcPercent = 25
)

// tuneGC sets the garbage collector for startup. Call the function that it returns when startup is
// over; more than once is harmless. If the operator set GOGC, that stays in force.
func tuneGC() (over func()) {
	if os.Getenv("GOGC") != "" {
		return func() {}
	}
	var mu sync.Mutex
	starting := true
	live := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	var adjust func()
	adjust = func() {
		mu.Lock()
		defer mu.Unlock()
		if !starting {
			return
		}
		metrics.Read(live)
		// The runtime has a minimum heap size (heapMinimum), 4 MiB for each 100 percent.
		const smallest = 4 << 20
		inUse := max(int64(live[0].Value.Uint64()), smallest*gcFloor/(gcFloor+smallest))
		debug.SetGCPercent(int(max(gcStarting, (gcFloor-inUse)*100/inUse)))
		// Adjust again after the next collection, which frees this object.
		runtime.AddCleanup(new([16]byte), func(struct{}) { adjust() }, struct{}{})
	}
	adjust()
	return func() {
		mu.Lock()
		defer mu.Unlock()
		starting = false
		debug.SetGCPercent(gcPercent)
	}
}

package main

import (
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"sync"
)

// How much memory may be garbage before it is collected. Most of what is in use stays for long.
const (
	// gcFloor is the size in bytes that the heap may always have at the start, and gcStarting what more than that may be garbage, in
	// percent of what is in use: a start is not to wait for collections of what is little yet.
	gcFloor    = 32 << 20
	gcStarting = 50
	// gcPercent is what may be garbage once everything of a family was written. With 10,000 Services of 10 endpoints in mode nftables
	// the daemon's peak was 95 MiB with 25 and 102 MiB with 50, after a restart 91 and 104 MiB. Changes took the same CPU time.
	//
	// Memory is not given back to the system beyond that: each verification reads the kernel and needs it again.
	gcPercent = 25
)

// tuneGC sets what may be garbage for the start. Call the function that it returns when that is over; more than once is harmless.
// An operator's GOGC stays in force.
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
		// What is less than smallest counts as much (the runtime's heapMinimum, 4 MiB for each 100 percent).
		const smallest = 4 << 20
		inUse := max(int64(live[0].Value.Uint64()), smallest*gcFloor/(gcFloor+smallest))
		debug.SetGCPercent(int(max(gcStarting, (gcFloor-inUse)*100/inUse)))
		// The next collection finds that nobody refers to this, and what is right for the one after it depends on what it leaves.
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

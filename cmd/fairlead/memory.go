package main

import (
	"os"
	"runtime/debug"
)

// gcPercent is how much memory may be garbage, in relation to what is in use, before it is collected. Most of what is in use
// stays for long, and a collection costs a few milliseconds: with 2,500 Services of 10 endpoints behind an API server the
// daemon's peak was 66 MiB with 50 and 75 MiB with Go's default of 100, and its start and changes took the same time.
//
// Memory is not given back to the system beyond that: each verification reads the kernel and needs it again.
const gcPercent = 50

// saveMemory sets how much memory may be garbage, but for an operator who says so in GOGC.
func saveMemory() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
}

package main

import (
	"os"
	"runtime/debug"
)

// How much memory may be garbage, in percent of what is in use, before it is collected. Most of what is in use stays for long.
const (
	// gcStarting is until everything of a family was written. Until then there is not much yet, and a start is not to wait: with 10,000 Services
	// of 10 endpoints in mode nftables it takes a quarter less time than with gcPercent.
	gcStarting = 50
	// gcPercent is from then on. With as many Services the daemon's peak was 95 MiB with 25 and 102 MiB with 50, after a restart
	// 91 and 104 MiB. Changes took the same CPU time.
	//
	// Memory is not given back to the system beyond that: each verification reads the kernel and needs it again.
	gcPercent = 25
)

// setGC sets how much memory may be garbage, but for an operator who says so in GOGC.
func setGC(percent int) {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(percent)
	}
}

package main

import (
	"runtime"
	"runtime/debug"
	"testing"
	"time"
)

// gcPercentNow is what may be garbage now.
func gcPercentNow() int {
	p := debug.SetGCPercent(100)
	debug.SetGCPercent(p)
	return p
}

func TestStartGC(t *testing.T) {
	t.Setenv("GOGC", "")
	before := gcPercentNow()
	defer debug.SetGCPercent(before)

	over := tuneGC()
	if p := gcPercentNow(); p <= 400 {
		t.Errorf("at the start %d %% may be garbage, want more", p)
	}
	held := make([]byte, gcFloor)
	for deadline := time.Now().Add(time.Minute); gcPercentNow() != gcStarting; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("with %d bytes in use %d %% may be garbage, want %d", len(held), gcPercentNow(), gcStarting)
		}
		runtime.GC()
	}
	runtime.KeepAlive(held)
	over()
	over()
	for range 5 { // what was to follow a collection follows no more
		runtime.GC()
		time.Sleep(time.Millisecond)
	}
	if p := gcPercentNow(); p != gcPercent {
		t.Errorf("after the start %d %% may be garbage, want %d", p, gcPercent)
	}

	t.Setenv("GOGC", "70")
	debug.SetGCPercent(70)
	tuneGC()()
	if p := gcPercentNow(); p != 70 {
		t.Errorf("GOGC=70: %d %% may be garbage", p)
	}
}

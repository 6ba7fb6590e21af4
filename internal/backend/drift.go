package backend

import "github.com/fairlead/fairlead/internal/fwd"

// Drift is a hint that another program may have changed what a Backend wrote.
type Drift struct {
	Family fwd.Family
	// What was changed, and by which Process, is for the log; empty if the kernel does not report
	// it.
	What, Process string
}

// Hints carries hints from the watchers of the kernel to the loop.
type Hints chan Drift

// NewHints returns Hints with a buffer.
func NewHints() Hints { return make(Hints, 64) }

// Send sends a hint. It does not block: if the buffer is full, the hints in it make the loop read
// the kernel anyway.
func (h Hints) Send(d Drift) {
	select {
	case h <- d:
	default:
	}
}

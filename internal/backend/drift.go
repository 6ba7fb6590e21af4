package backend

import "github.com/fairlead/fairlead/internal/fwd"

// Drift is a hint that somebody else may have changed what a Backend wrote.
type Drift struct {
	Family fwd.Family
	// What was changed and Process, the program that did it, are for the log; empty where the kernel does not tell.
	What, Process string
}

// Hints takes hints of Drift from those who watch the kernel to the loop.
type Hints chan Drift

// NewHints returns Hints with room for many.
func NewHints() Hints { return make(Hints, 64) }

// Send gives a hint. It does not wait: where there is no room, the hints that wait make the loop read the kernel anyway.
func (h Hints) Send(d Drift) {
	select {
	case h <- d:
	default:
	}
}

package localport

import "sync/atomic"

// Stats are what a Forwarder has done since the start of the process, and what it does now. Arrays are by
// fwd.Family.Index.
type Stats struct {
	// Listeners is how many node ports are listened on.
	Listeners [2]int
	// Connections is how many are open.
	Connections int
	// Accepted counts connections that were forwarded or were to be.
	Accepted [2]uint64
	// Refused counts connections that were reset at once: too many, or from an address that is not loopback.
	Refused [2]uint64
	// DialFailures counts accepted connections that were reset because the endpoint did not answer.
	DialFailures [2]uint64
	// BindFailures counts attempts to listen that failed.
	BindFailures [2]uint64
}

// counters are the Stats as they are kept.
type counters struct {
	listeners                                     [2]atomic.Int64
	open                                          atomic.Int64
	accepted, refused, dialFailures, bindFailures [2]atomic.Uint64
}

// Stats returns the totals. Numbers that belong together may be from slightly different times.
func (f *Forwarder) Stats() Stats {
	c := &f.count
	s := Stats{Connections: int(c.open.Load())}
	for i := range s.Listeners {
		s.Listeners[i] = int(c.listeners[i].Load())
		s.Accepted[i] = c.accepted[i].Load()
		s.Refused[i] = c.refused[i].Load()
		s.DialFailures[i] = c.dialFailures[i].Load()
		s.BindFailures[i] = c.bindFailures[i].Load()
	}
	return s
}

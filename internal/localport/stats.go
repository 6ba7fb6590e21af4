package localport

import "sync/atomic"

// Stats are what a Forwarder has done since the process started, and what it does now. Arrays are
// by fwd.Family.Index.
type Stats struct {
	// Listeners is the number of node ports with a listener.
	Listeners [2]int
	// Connections is the number of open connections.
	Connections int
	// Accepted counts connections that were accepted.
	Accepted [2]uint64
	// Refused counts connections that were reset at once: too many, or from an address that is not
	// loopback.
	Refused [2]uint64
	// DialFailures counts accepted connections that were reset because the endpoint did not
	// respond.
	DialFailures [2]uint64
	// BindFailures counts failed attempts to listen.
	BindFailures [2]uint64
}

// counters hold the Stats.
type counters struct {
	listeners                                     [2]atomic.Int64
	open                                          atomic.Int64
	accepted, refused, dialFailures, bindFailures [2]atomic.Uint64
}

// Stats returns the totals. They may be from slightly different times.
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

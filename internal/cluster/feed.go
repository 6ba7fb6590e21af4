package cluster

import "time"

// Drained says what a feed has put into a Store at one time.
type Drained struct {
	// Services and Slices count the changes seen, including those that a later one replaced.
	Services, Slices int
	// Triggers are, for IPv4 and for IPv6, the times of the changes in the cluster that led to the
	// new slices, as the control plane recorded them, if they are newer than this process.
	// Deletions have none.
	Triggers [2][]time.Time
	// NodeChanged says that the facts about the node, or the service CIDRs, changed.
	NodeChanged bool
}

// Empty says that no object of a Service has changed.
func (d *Drained) Empty() bool {
	return d.Services+d.Slices+len(d.Triggers[0])+len(d.Triggers[1]) == 0
}

// Watch is the state of the watch of one resource of the API server.
type Watch struct {
	// Resource is its name, such as "services".
	Resource string
	// LastSeen is when the last sign of life came: an event, a bookmark, or an answer to a request.
	// Before the first one it is when the watch was set up.
	LastSeen time.Time
	// Open says that the API server accepted the watch and that neither side has ended it since.
	Open bool
}

// Backlog says what has ever been put into a feed, and what of it nobody has taken out yet.
type Backlog struct {
	// Services and Slices count all changes, including those that a later one replaced.
	// WaitingServices and WaitingSlices count those that wait.
	Services, Slices, WaitingServices, WaitingSlices int
	// WaitingSince is when the oldest change that waits came. It is zero if none waits, or the
	// first lists are not complete.
	WaitingSince time.Time
	// LastChange is when the newest change came.
	LastChange time.Time
}

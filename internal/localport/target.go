package localport

import (
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/fairlead/fairlead/internal/fwd"
)

// loopback are the addresses with listeners, by fwd.Family.Index.
var loopback = [2]netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()}

// target is where connections to one node port go. It is immutable. The zero target means that
// there is no listener.
type target struct {
	owner fwd.ServicePort
	// endpoints is sorted by address.
	endpoints []fwd.Endpoint
	// total is the sum of the weights.
	total    uint64
	affinity time.Duration
}

func (t target) empty() bool { return len(t.endpoints) == 0 }

func (t target) has(a netip.AddrPort) bool {
	_, ok := slices.BinarySearchFunc(t.endpoints, a, func(e fwd.Endpoint, a netip.AddrPort) int { return e.Addr.Compare(a) })
	return ok
}

// at returns the endpoint whose share of the numbers below total includes n.
func (t target) at(n uint64) netip.AddrPort {
	for _, e := range t.endpoints {
		if n < uint64(e.Weight) {
			return e.Addr
		}
		n -= uint64(e.Weight)
	}
	panic("BUG: localport: the weights do not add up to the total")
}

// isLocalPort says whether a frontend can be served here.
func isLocalPort(k fwd.Key) bool { return k.IsNodePort() && k.Proto == fwd.TCP }

// targetOf returns the target of a node port of a fragment.
func targetOf(f *fwd.Fragment, fe *fwd.Frontend) target {
	route := fe.Routes[fwd.Outside]
	if route.Action != fwd.Forward || !fe.Admits(loopback[fe.Key.Family.Index()]) {
		return target{}
	}
	pool := f.Pool(fe.Pool(route))
	endpoints := pool.Endpoints
	if remote := func(e fwd.Endpoint) bool { return !e.Local }; route.Scope == fwd.Local && slices.ContainsFunc(endpoints, remote) {
		endpoints = slices.DeleteFunc(slices.Clone(endpoints), remote)
	}
	if len(endpoints) == 0 {
		return target{}
	}
	t := target{owner: fe.Owner, endpoints: endpoints, affinity: time.Duration(pool.AffinitySec) * time.Second}
	for _, e := range endpoints {
		t.total += uint64(e.Weight)
	}
	return t
}

// chooser chooses endpoints for one node port. It is safe for concurrent use.
type chooser struct {
	mu     sync.Mutex // guards all fields
	target target
	// pinned is the endpoint that session affinity remembers, invalid if there is none; last is
	// when it was last chosen.
	pinned netip.AddrPort
	last   time.Time
}

// set replaces the target.
func (c *chooser) set(t target) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if t.owner != c.target.owner || t.affinity == 0 || !t.has(c.pinned) {
		c.pinned = netip.AddrPort{}
	}
	c.target = t
}

func (c *chooser) owner() fwd.ServicePort {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.target.owner
}

// choose returns the endpoint for a new connection. random(n) returns a number in [0, n).
func (c *chooser) choose(now time.Time, random func(uint64) uint64) netip.AddrPort {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.target.affinity == 0 {
		return c.target.at(random(c.target.total))
	}
	if !c.pinned.IsValid() || now.Sub(c.last) >= c.target.affinity {
		c.pinned = c.target.at(random(c.target.total))
	}
	c.last = now
	return c.pinned
}

package ipvs

import (
	"net/netip"

	"github.com/fairlead/fairlead/internal/fwd"
)

// pods knows which endpoints shut down, and which of these have ended since the last look. It belongs to the loop's
// goroutine.
type pods struct {
	// shutting counts, for an endpoint, the Services in which it shuts down.
	shutting map[netip.AddrPort]int
	// over are those that ended.
	over map[netip.AddrPort]struct{}
}

func newPods() *pods {
	return &pods{shutting: make(map[netip.AddrPort]int), over: make(map[netip.AddrPort]struct{})}
}

// update takes in changes of the table. Of endpoints whose Service goes nothing is known afterwards.
func (p *pods) update(ch fwd.Changes) {
	for _, c := range ch.Services {
		now := make(map[netip.AddrPort]bool)
		if c.New != nil {
			for _, a := range c.New.Leaving {
				now[a] = true
				p.shutting[a]++
				delete(p.over, a)
			}
		}
		if c.Old == nil {
			continue
		}
		for _, a := range c.Old.Leaving {
			if p.shutting[a]--; p.shutting[a] <= 0 {
				delete(p.shutting, a)
			}
			if !now[a] && c.New != nil {
				p.over[a] = struct{}{}
			}
		}
	}
}

// leaving says that the endpoint shuts down.
func (p *pods) leaving(a netip.AddrPort) bool { return p.shutting[a] > 0 }

// takeEnded returns the endpoints that have ended since it was called last.
func (p *pods) takeEnded() map[netip.AddrPort]struct{} {
	over := p.over
	if len(over) > 0 {
		p.over = make(map[netip.AddrPort]struct{})
	}
	return over
}

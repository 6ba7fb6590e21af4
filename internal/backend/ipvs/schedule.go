package ipvs

import (
	"slices"

	"github.com/fairlead/fairlead/internal/fwd"
	"github.com/fairlead/fairlead/internal/instance"
)

// Flags of a virtual server, see linux/ip_vs.h.
const (
	flagPersistent = 0x01
	// flagFallback and flagPort are those of the schedulers sh and mh (IP_VS_SVC_F_SCHED1 and 2).
	flagFallback = 0x08
	flagPort     = 0x10
	// flagTag is IP_VS_SVC_F_SCHED3, which no scheduler of the kernel uses: it says that a virtual server is ours. The bits above it
	// (ipvs.Free) are the instance.
	flagTag     = 0x20
	instanceBit = 6
	// ownerMask are the bits of tagOf.
	ownerMask = ^uint32(flagTag - 1)
)

// tagOf are the flags that all virtual servers of an instance have, and no others.
func tagOf(id instance.ID) uint32 { return uint32(id)<<instanceBit | flagTag }

// ownerOf says to which instance a virtual server with these flags belongs; false for other programs'.
func ownerOf(flags uint32) (instance.ID, bool) {
	return instance.ID(flags >> instanceBit), flags&flagTag != 0
}

// defaultScheduler is that of nodes that are not told otherwise.
const defaultScheduler = "rr"

// weighted are the schedulers that take the place of those that look at no weights, but for weight 0.
var weighted = map[string]string{"rr": "wrr", "lc": "wlc"}

// serverOf is the virtual server for a pool; nil makes one without real servers, at which the kernel answers port
// unreachable.
func serverOf(o *RenderOptions, p *fwd.Pool) *Server {
	s := &Server{Scheduler: o.Scheduler, Flags: tagOf(o.Instance)}
	if s.Scheduler == "" {
		s.Scheduler = defaultScheduler
	}
	if p == nil {
		s.Flags |= hashFlags(s.Scheduler, 0)
		return s
	}
	if p.Scheduler != "" {
		s.Scheduler = p.Scheduler
	}
	uneven := func(e fwd.Endpoint) bool { return e.Weight != p.Endpoints[0].Weight }
	if w := weighted[s.Scheduler]; w != "" && slices.ContainsFunc(p.Endpoints, uneven) {
		s.Scheduler = w
	}
	s.Flags |= hashFlags(s.Scheduler, p.SchedulerFlags)
	if p.AffinitySec > 0 {
		s.Flags |= flagPersistent
		s.TimeoutSec = p.AffinitySec
	}
	s.Endpoints = p.Endpoints
	return s
}

// hashFlags are the flags of the schedulers that choose by a hash. Without fallback they refuse the clients of a real
// server with weight 0, that is, of one that drains.
func hashFlags(scheduler string, f fwd.SchedulerFlags) uint32 {
	if scheduler != "sh" && scheduler != "mh" {
		return 0
	}
	flags := uint32(flagFallback)
	if f&fwd.SchedulerPort != 0 {
		flags |= flagPort
	}
	return flags
}

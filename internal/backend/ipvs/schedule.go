package ipvs

import (
	"cmp"
	"slices"

	"github.com/fairlead/fairlead/internal/fwd"
	hostipvs "github.com/fairlead/fairlead/internal/host/ipvs"
	"github.com/fairlead/fairlead/internal/instance"
)

// flagTag marks a virtual server as ours. No scheduler of the kernel uses the flag. The bits above
// it (hostipvs.Free) are the instance.
const (
	flagTag     = hostipvs.Sched3
	instanceBit = 6
	// ownerMask are the bits of tagOf.
	ownerMask = flagTag | hostipvs.Free
)

// tagOf returns the flags that identify the virtual servers of an instance.
func tagOf(id instance.ID) hostipvs.Flags { return hostipvs.Flags(id)<<instanceBit | flagTag }

// ownerOf returns the instance of a virtual server with these flags; false for other programs'.
func ownerOf(flags hostipvs.Flags) (instance.ID, bool) {
	return instance.ID(flags >> instanceBit), flags&flagTag != 0
}

// defaultScheduler is the scheduler of nodes without a setting.
const defaultScheduler = "rr"

// weighted replaces schedulers that ignore weights other than 0.
var weighted = map[string]string{"rr": "wrr", "lc": "wlc"}

// serverOf returns the virtual server for a pool. For nil it has no real servers, and the kernel
// answers with port unreachable.
func serverOf(o *RenderOptions, p *fwd.Pool) *Server {
	s := &Server{Settings: hostipvs.Settings{Scheduler: cmp.Or(o.Scheduler, defaultScheduler), Flags: tagOf(o.Instance)}}
	if p == nil {
		s.Flags |= hashFlags(s.Scheduler, 0)
		return s
	}
	s.Scheduler = cmp.Or(p.Scheduler, s.Scheduler)
	uneven := func(e fwd.Endpoint) bool { return e.Weight != p.Endpoints[0].Weight }
	if w := weighted[s.Scheduler]; w != "" && slices.ContainsFunc(p.Endpoints, uneven) {
		s.Scheduler = w
	}
	s.Flags |= hashFlags(s.Scheduler, p.SchedulerFlags)
	if p.AffinitySec > 0 {
		s.Flags |= hostipvs.Persistent
		s.TimeoutSec = p.AffinitySec
	}
	s.Endpoints = p.Endpoints
	return s
}

// hashFlags returns the flags of the schedulers that hash. Without Fallback they refuse the clients
// of a real server with weight 0, that is, of one that drains.
func hashFlags(scheduler string, f fwd.SchedulerFlags) hostipvs.Flags {
	if scheduler != "sh" && scheduler != "mh" {
		return 0
	}
	flags := hostipvs.Fallback
	if f&fwd.SchedulerPort != 0 {
		flags |= hostipvs.SourcePort
	}
	return flags
}

package ipvs

import (
	"net/netip"
	"testing"

	"github.com/fairlead/fairlead/internal/fwd"
	hostipvs "github.com/fairlead/fairlead/internal/host/ipvs"
)

func TestServerOf(t *testing.T) {
	even := []fwd.Endpoint{{Addr: netip.MustParseAddrPort("10.0.0.1:80"), Weight: 5}, {Addr: netip.MustParseAddrPort("10.0.0.2:80"), Weight: 5}}
	uneven := []fwd.Endpoint{even[0], {Addr: even[1].Addr, Weight: 6}}
	const none = fwd.SchedulerFlags(0)
	for _, tc := range []struct {
		name       string
		node       string
		pool       *fwd.Pool
		scheduler  string
		flags      hostipvs.Flags
		timeoutSec uint32
	}{
		{"default", "", &fwd.Pool{Endpoints: even}, "rr", flagTag, 0},
		{"rr with weights", "", &fwd.Pool{Endpoints: uneven}, "wrr", flagTag, 0},
		{"lc with weights", "lc", &fwd.Pool{Endpoints: uneven}, "wlc", flagTag, 0},
		{"lc without weights", "lc", &fwd.Pool{Endpoints: even}, "lc", flagTag, 0},
		{"of the node", "sed", &fwd.Pool{Endpoints: uneven}, "sed", flagTag, 0},
		{"of the Service", "sed", &fwd.Pool{Endpoints: uneven, Scheduler: "rr"}, "wrr", flagTag, 0},
		{"mh", "", &fwd.Pool{Endpoints: even, Scheduler: "mh"}, "mh", flagTag | hostipvs.Fallback, 0},
		{"sh by port", "", &fwd.Pool{Endpoints: even, Scheduler: "sh", SchedulerFlags: fwd.SchedulerPort}, "sh", flagTag | hostipvs.Fallback | hostipvs.SourcePort, 0},
		{"flags that mean nothing", "", &fwd.Pool{Endpoints: even, SchedulerFlags: fwd.SchedulerPort | fwd.SchedulerFallback}, "rr", flagTag, 0},
		{"affinity", "", &fwd.Pool{Endpoints: even, SchedulerFlags: none, AffinitySec: 600}, "rr", flagTag | hostipvs.Persistent, 600},
		{"nothing", "", nil, "rr", flagTag, 0},
		{"nothing with mh", "mh", nil, "mh", flagTag | hostipvs.Fallback, 0},
	} {
		s := serverOf(&RenderOptions{Scheduler: tc.node}, tc.pool)
		if s.Scheduler != tc.scheduler || s.Flags != tc.flags || s.TimeoutSec != tc.timeoutSec {
			t.Errorf("%s: got %+v, want %s %#x %d", tc.name, *s, tc.scheduler, tc.flags, tc.timeoutSec)
		}
		if tc.pool != nil && &s.Endpoints[0] != &tc.pool.Endpoints[0] {
			t.Errorf("%s: the endpoints are a copy", tc.name)
		}
	}
}

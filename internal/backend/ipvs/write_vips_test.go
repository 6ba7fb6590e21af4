package ipvs

import (
	"testing"
	"time"

	"github.com/fairlead/fairlead/internal/fwd"
)

// Objects of another VIPMode are removed after the current one is complete.
func TestChangeOfVIPMode(t *testing.T) {
	modes := []VIPMode{VIPAddress, VIPRoute, VIPMark}
	for _, from := range modes {
		for _, to := range modes {
			t.Run(from.String()+" to "+to.String(), func(t *testing.T) {
				fresh := newBench(t, func(o *FamilyOptions) { o.VIPs = to })
				fresh.put(web)
				fresh.apply()

				b := newBench(t, func(o *FamilyOptions) { o.VIPs = from })
				b.put(web)
				b.apply()
				b.options.VIPs = to
				b.restart()
				b.apply()
				if got, want := b.links.Dump(), fresh.links.Dump(); got != want {
					t.Errorf("got\n%s\nwant\n%s", got, want)
				}
				b.idle()
			})
		}
	}
}

// Objects of another VIPMode stay while connections need them. The later removal of the device's
// last address removes nothing of the current mode.
func TestChangeOfVIPModeWhileDraining(t *testing.T) {
	gone := service{name: "gone", vip: "10.96.0.11", endpoints: web.endpoints}
	goneV := vs(fwd.TCP, "10.96.0.11:80")
	modes := []VIPMode{VIPAddress, VIPRoute, VIPMark}
	for _, from := range modes {
		for _, to := range modes {
			if from == to {
				continue
			}
			t.Run(from.String()+" to "+to.String(), func(t *testing.T) {
				fresh := newBench(t, func(o *FamilyOptions) { o.VIPs = to })
				fresh.put(web)
				fresh.apply()

				b := newBench(t, func(o *FamilyOptions) { o.VIPs = from })
				b.put(web)
				b.put(gone)
				b.apply()
				b.servers.SetConnections(goneV, one, 1, 0)
				b.remove(gone)
				b.apply()
				b.options.VIPs = to
				b.restart()
				b.apply()
				if b.links.Dump() == fresh.links.Dump() {
					t.Errorf("nothing of the old way is left while a connection needs it:\n%s", b.links.Dump())
				}
				b.idle()
				b.servers.SetConnections(goneV, one, 0, 0)
				b.now = b.now.Add(time.Minute)
				b.tend()
				b.has(goneV, "gone")
				if got, want := b.links.Dump(), fresh.links.Dump(); got != want {
					t.Errorf("got\n%s\nwant\n%s", got, want)
				}
				b.idle()
			})
		}
	}
}

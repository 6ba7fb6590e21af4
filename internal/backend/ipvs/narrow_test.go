package ipvs

import (
	"strings"
	"testing"
	"time"

	"github.com/fairlead/fairlead/internal/fwd"
	"github.com/fairlead/fairlead/internal/host/link"
)

// Marked packets are delivered to this node by address while another mode serves as well, and
// whatever their address afterwards.
func TestMarkIsNarrowUntilNoOtherModeServes(t *testing.T) {
	mark := func(o *FamilyOptions) { o.VIPs = VIPMark }
	fresh := newBench(t, mark)
	fresh.put(web)
	fresh.apply()
	wide := link.MarkRoute(false, divertTable).String()
	if !strings.Contains(fresh.links.Dump(), wide) {
		t.Fatalf("no %s in\n%s", wide, fresh.links.Dump())
	}

	b := newBench(t, mark, func(o *FamilyOptions) { o.Narrow = true })
	b.put(web)
	b.apply()
	route := narrowRoute(0, webV.Addr.Addr()).String()
	if got := b.links.Dump(); strings.Contains(got, wide) || !strings.Contains(got, route) {
		t.Errorf("while another mode serves:\n%s", got)
	}
	b.idle()
	added := service{name: "added", vip: "10.96.0.12", endpoints: web.endpoints}
	b.put(added)
	b.apply()
	if got := b.links.Dump(); !strings.Contains(got, narrowRoute(0, vs(fwd.TCP, "10.96.0.12:80").Addr.Addr()).String()) {
		t.Errorf("with a Service more:\n%s", got)
	}
	b.remove(added)
	b.apply()

	if err := b.backend.Widen(t.Context(), fwd.IPv4); err != nil {
		t.Fatal(err)
	}
	if got := b.links.Dump(); !strings.Contains(got, wide) {
		t.Errorf("when no other mode serves:\n%s", got)
	}
	b.idle()
	b.tend()
	if got, want := b.links.Dump(), fresh.links.Dump(); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

// A change to another mode keeps the virtual servers, with routes for their addresses; when their
// connections have ended nothing is left.
func TestNarrowBeforeAnotherMode(t *testing.T) {
	b := newBench(t, func(o *FamilyOptions) { o.VIPs = VIPMark })
	b.put(web)
	b.apply()
	routes, err := b.links.Routes(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time there is nothing to do
		if err := narrow(t.Context(), 0, &b.links, &b.servers, routes); err != nil {
			t.Fatal(err)
		}
		if routes, err = b.links.Routes(t.Context()); err != nil {
			t.Fatal(err)
		}
		got := b.links.Dump()
		if strings.Contains(got, link.MarkRoute(false, divertTable).String()) || !strings.Contains(got, narrowRoute(0, webV.Addr.Addr()).String()) {
			t.Errorf("got\n%s", got)
		}
	}

	// Back to this mode.
	b.restart()
	b.apply()
	b.tend()
	fresh := newBench(t, func(o *FamilyOptions) { o.VIPs = VIPMark })
	fresh.put(web)
	fresh.apply()
	if got, want := b.links.Dump(), fresh.links.Dump(); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}

	// Or the other mode removes everything.
	if routes, err = b.links.Routes(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := narrow(t.Context(), 0, &b.links, &b.servers, routes); err != nil {
		t.Fatal(err)
	}
	l := Leftover{Family: fwd.IPv4, host: host{servers: &b.servers, sets: &b.sets, links: &b.links}}
	if err := l.Retire(t.Context(), time.Minute); err != nil {
		t.Fatal(err)
	}
	if got := b.links.Dump(); strings.Contains(got, "9650") {
		t.Errorf("left:\n%s", got)
	}
}

package ipvs

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/internal/backend"
	"github.com/fairlead/fairlead/internal/fwd"
	"github.com/fairlead/fairlead/internal/host/ipset"
	"github.com/fairlead/fairlead/internal/host/ipset/ipsetfake"
	hostipvs "github.com/fairlead/fairlead/internal/host/ipvs"
	"github.com/fairlead/fairlead/internal/host/ipvs/ipvsfake"
	"github.com/fairlead/fairlead/internal/host/link"
	"github.com/fairlead/fairlead/internal/host/link/linkfake"
	"github.com/fairlead/fairlead/internal/host/xtables"
	"github.com/fairlead/fairlead/internal/host/xtables/rulesim"
)

// bench is a Backend for IPv4 on a fake kernel, with a clock that the test sets.
type bench struct {
	t       *testing.T
	servers ipvsfake.Table
	sets    ipsetfake.Sets
	links   linkfake.Host
	tables  *rulesim.Tables
	now     time.Time
	options FamilyOptions
	table   fwd.Table
	backend *Backend
	// stale are the destinations passed to Stale, warned the messages passed to Warn.
	stale, warned []string
}

const nodeIP = "192.0.2.10"

func newBench(t *testing.T, adjust ...func(*FamilyOptions)) *bench {
	t.Helper()
	b := &bench{t: t, tables: &rulesim.Tables{Rules: rulesim.New(fwd.IPv4)}, now: time.Unix(1_000_000, 0)}
	b.links.AddDevice(Device, link.Device{Dummy: true})
	b.links.AddForeign(link.Addr{Dev: link.Loopback, Prefix: netip.MustParsePrefix(nodeIP + "/32"), Global: true})
	b.options = FamilyOptions{
		RenderOptions: RenderOptions{HairpinBPF: true},
		Servers:       &b.servers, Sets: &b.sets, Links: &b.links, Tables: b.tables, Seed: 7,
		FinTimeout: 2 * time.Minute, DrainTimeout: 15 * time.Minute, Now: func() time.Time { return b.now },
		Stale: func(p fwd.Proto, dst []netip.AddrPort, gone bool) {
			for _, d := range dst {
				b.stale = append(b.stale, fmt.Sprintf("%s %s%s", p, d, map[bool]string{true: " gone"}[gone]))
			}
		},
		Warn: func(s fwd.Service, reason, _ string) { b.warned = append(b.warned, s.String()+" "+reason) },
	}
	for _, f := range adjust {
		f(&b.options)
	}
	b.restart()
	h := fwd.Header{MasqueradeBit: 14, LocalAddrs: []netip.Addr{netip.MustParseAddr(nodeIP)}}
	h.NodePorts[0].All = true
	b.update(b.table.SetHeader(h))
	return b
}

// restart creates a Backend like a new process, with the same table.
func (b *bench) restart() {
	b.backend = New(map[fwd.Family]FamilyOptions{fwd.IPv4: b.options})
	if _, err := b.backend.Observe(b.t.Context()); err != nil {
		b.t.Fatal(err)
	}
	h := b.table.Header()
	ch := fwd.Changes{Header: &h}
	for f := range b.table.Services() {
		ch.Services = append(ch.Services, fwd.ServiceChange{Owner: f.Owner, New: f})
	}
	for _, v := range b.table.VIPs() {
		ch.VIPs = append(ch.VIPs, fwd.VIPChange{VIP: v})
	}
	b.update(ch)
}

func (b *bench) update(ch fwd.Changes) { b.backend.Update(ch) }

// service describes a Service with one port.
type service struct {
	name      string
	vip       string
	nodePort  uint16
	proto     fwd.Proto
	endpoints []fwd.Endpoint
	leaving   []string
	scheduler string
}

// ep is an endpoint with an instance.
func ep(addr string, instance uint32) fwd.Endpoint {
	return fwd.Endpoint{Addr: netip.MustParseAddrPort(addr), Weight: 1, Instance: instance}
}

func (s service) owner() fwd.Service { return fwd.Service{Namespace: "ns", Name: s.name} }

func (s service) fragment() *fwd.Fragment {
	if s.proto == 0 {
		s.proto = fwd.TCP
	}
	f := &fwd.Fragment{Owner: s.owner()}
	port := fwd.ServicePort{Service: f.Owner, Port: "p", Proto: s.proto}
	route := fwd.Route{Action: fwd.Reject, Reason: fwd.ReasonNoEndpoints}
	if len(s.endpoints) > 0 {
		route = fwd.Route{Action: fwd.Forward, Reason: fwd.ReasonCluster}
		f.Pools = []fwd.Pool{{Key: fwd.PoolKey{Port: port, Family: fwd.IPv4}, Endpoints: s.endpoints, Scheduler: s.scheduler}}
	}
	add := func(k fwd.Key, kind fwd.Kind) {
		f.Frontends = append(f.Frontends, fwd.Frontend{Key: k, Kind: kind, Owner: port, Routes: [fwd.NumClasses]fwd.Route{route, route, route}})
	}
	if s.nodePort != 0 {
		add(fwd.Key{Family: fwd.IPv4, Proto: s.proto, Port: s.nodePort}, fwd.NodePort)
	}
	add(fwd.Key{Family: fwd.IPv4, Addr: netip.MustParseAddr(s.vip), Proto: s.proto, Port: 80}, fwd.ClusterIP)
	for _, l := range s.leaving {
		f.Leaving = append(f.Leaving, netip.MustParseAddrPort(l))
	}
	return f
}

func (b *bench) put(s service)    { b.update(b.table.Put(s.fragment())) }
func (b *bench) remove(s service) { b.update(b.table.Remove(s.owner())) }

func (b *bench) apply() {
	b.t.Helper()
	if _, err := b.backend.Apply(b.t.Context()); err != nil {
		b.t.Fatal(err)
	}
	b.tend()
}

func (b *bench) tend() time.Time { return b.backend.Tend(b.t.Context(), b.now) }

// idle checks that there is nothing to write, even after a Read.
func (b *bench) idle() {
	b.t.Helper()
	b.servers.Written()
	n, err := b.backend.Observe(b.t.Context())
	if err != nil || n != 0 {
		b.t.Fatalf("Observe found %d differences, %v", n, err)
	}
	res, err := b.backend.Apply(b.t.Context())
	if err != nil || res != (backend.Result{}) || len(b.servers.Written()) > 0 {
		b.t.Fatalf("there was something to write: %v, %v", res, err)
	}
}

func vs(proto fwd.Proto, addr string) hostipvs.VirtualServer {
	return hostipvs.VirtualServer{Protocol: uint8(proto), Addr: netip.MustParseAddrPort(addr)}
}

// has checks the real servers of a virtual server: "address weight", sorted; none if it does not
// exist.
func (b *bench) has(v hostipvs.VirtualServer, want ...string) {
	b.t.Helper()
	var got []string
	reals, err := b.servers.RealServers(b.t.Context(), v)
	if err != nil {
		got = []string{"gone"}
	}
	for _, r := range reals {
		got = append(got, fmt.Sprintf("%s %d", r.Addr, r.Weight))
	}
	if !slices.Equal(got, want) {
		b.t.Errorf("%v has %q, want %q", v, got, want)
	}
}

// ops returns the operations on virtual servers, in order.
func (b *bench) ops() (out []string) {
	for _, op := range b.servers.Written() {
		out = append(out, op.String())
	}
	return out
}

var (
	web  = service{name: "web", vip: "10.96.0.10", endpoints: []fwd.Endpoint{ep("10.0.0.2:8080", 0), ep("10.0.0.3:8080", 0)}}
	webV = vs(fwd.TCP, "10.96.0.10:80")
	one  = netip.MustParseAddrPort("10.0.0.2:8080")
	two  = netip.MustParseAddrPort("10.0.0.3:8080")
)

// with returns the Service with other endpoints.
func (s service) with(eps ...fwd.Endpoint) service { s.endpoints = eps; return s }

func TestRestartWritesNothing(t *testing.T) {
	for _, mode := range []VIPMode{VIPAddress, VIPRoute, VIPMark} {
		t.Run(mode.String(), func(t *testing.T) {
			b := newBench(t, func(o *FamilyOptions) { o.VIPs = mode })
			b.put(web)
			b.put(service{name: "dns", vip: "10.96.0.11", proto: fwd.UDP, nodePort: 30053, endpoints: web.endpoints})
			b.put(service{name: "none", vip: "10.96.0.12"})
			b.apply()
			b.idle()
			b.restart()
			b.idle()
			b.has(webV, "10.0.0.2:8080 1", "10.0.0.3:8080 1")
			b.has(vs(fwd.UDP, nodeIP+":30053"), "10.0.0.2:8080 1", "10.0.0.3:8080 1")
			b.has(vs(fwd.TCP, "10.96.0.12:80"))
		})
	}
}

// Objects are written in an order in which no packet reaches something incomplete.
func TestOrder(t *testing.T) {
	b := newBench(t)
	var order []string
	note := func(s string) {
		if len(order) == 0 || order[len(order)-1] != s {
			order = append(order, s)
		}
	}
	b.sets.Fail = func(op string) error {
		if op != "list" {
			note("sets")
		}
		return nil
	}
	b.links.Fail = func(op string) error {
		if op == "apply" {
			note("addresses")
		}
		return nil
	}
	b.servers.Fail = func(op hostipvs.Op) error {
		switch op.Verb {
		case hostipvs.AddServer:
			note("new servers")
		case hostipvs.AddReal:
			note("endpoints")
		case hostipvs.SetReal:
			note(fmt.Sprintf("weight %d", op.Real.Weight))
		case hostipvs.DelServer:
			note("server goes")
		case hostipvs.DelReal:
			note("endpoint goes")
		}
		return nil
	}
	b.tables.Hook = func([]byte) error { note("rules"); return nil }
	b.put(web)
	b.apply()
	if want := []string{"sets", "rules", "new servers", "endpoints", "addresses"}; !slices.Equal(order, want) {
		t.Errorf("at first %q, want %q", order, want)
	}
	order = nil
	b.put(web.with(ep("10.0.0.3:8080", 0), ep("10.0.0.4:8080", 0)))
	b.remove(service{name: "none"})
	b.apply()
	if want := []string{"endpoints", "weight 0", "endpoint goes"}; !slices.Equal(order, want) {
		t.Errorf("a change: %q, want %q", order, want)
	}
	order = nil
	b.remove(web)
	b.apply()
	if want := []string{"weight 0", "server goes", "addresses", "sets"}; !slices.Equal(order, want) {
		t.Errorf("a removal: %q, want %q", order, want)
	}
}

// The rules of Read for whose a virtual server is.
func TestOwnership(t *testing.T) {
	const tagged, untagged = flagTag, hostipvs.Flags(0)
	tests := []struct {
		name   string
		addr   string
		flags  hostipvs.Flags
		device bool // its address is on the device
		ours   bool
	}{
		{"tagged", "10.96.0.50:80", tagged, false, true},
		{"tagged on the device", "10.96.0.50:80", tagged, true, true},
		{"kube-proxy's", "10.96.0.50:80", untagged, true, true},
		{"somebody's", "10.96.0.50:80", untagged, false, false},
		{"somebody's on an address of the node", nodeIP + ":30000", untagged, false, false},
		{"excluded and tagged", "10.97.0.50:80", tagged, true, false},
		{"excluded", "10.97.0.50:80", untagged, true, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b := newBench(t, func(o *FamilyOptions) { o.Exclude = []netip.Prefix{netip.MustParsePrefix("10.97.0.0/16")} })
			v := vs(fwd.TCP, tt.addr)
			if tt.device {
				b.links.AddForeign(link.Addr{Dev: Device, Prefix: netip.PrefixFrom(v.Addr.Addr(), 32), Global: true})
			}
			b.servers.Put(v, hostipvs.Settings{Scheduler: "rr", Flags: tt.flags}, hostipvs.RealServer{Addr: one, Weight: 1})
			b.restart()
			b.put(web)
			b.apply()
			if tt.ours {
				b.has(v, "gone")
			} else {
				b.has(v, "10.0.0.2:8080 1")
			}
			if on := strings.Contains(b.links.Dump(), v.Addr.Addr().String()+"/32 dev "+Device); on != (tt.device && !tt.ours) {
				t.Errorf("address on the device: %v", on)
			}
			b.idle()
		})
	}
}

// A wanted virtual server that exists without our tag is adopted if it is kube-proxy's, and not
// changed otherwise.
func TestAdoption(t *testing.T) {
	t.Run("on the device", func(t *testing.T) {
		b := newBench(t)
		b.links.AddForeign(link.Addr{Dev: Device, Prefix: netip.MustParsePrefix("10.96.0.10/32"), Global: true})
		b.servers.Put(webV, hostipvs.Settings{Scheduler: "lc"}, hostipvs.RealServer{Addr: one, Weight: 1}, hostipvs.RealServer{Addr: netip.MustParseAddrPort("10.0.0.9:1"), Weight: 1})
		b.servers.SetConnections(webV, one, 3, 0)
		b.restart()
		b.put(web)
		b.apply()
		b.has(webV, "10.0.0.2:8080 1", "10.0.0.3:8080 1")
		if n := b.servers.Cut(); n != 0 {
			t.Errorf("cut %d connections", n)
		}
		if !strings.Contains(b.servers.Dump(), "-A -t 10.96.0.10:80 -s rr -b flag-3\n") {
			t.Errorf("settings not ours:\n%s", b.servers.Dump())
		}
		b.idle()
	})
	t.Run("node port", func(t *testing.T) {
		b := newBench(t)
		v := vs(fwd.TCP, nodeIP+":30080")
		b.servers.Put(v, hostipvs.Settings{Scheduler: "rr"}, hostipvs.RealServer{Addr: one, Weight: 1}, hostipvs.RealServer{Addr: two, Weight: 0})
		b.servers.SetConnections(v, one, 3, 0)
		s := web
		s.nodePort = 30080
		b.put(s)
		b.apply()
		b.has(v, "10.0.0.2:8080 1", "10.0.0.3:8080 1")
		if n := b.servers.Cut(); n != 0 {
			t.Errorf("cut %d connections", n)
		}
		b.idle()
	})
	t.Run("somebody else's", func(t *testing.T) {
		b := newBench(t)
		b.servers.Put(webV, hostipvs.Settings{Scheduler: "lc"}, hostipvs.RealServer{Addr: two, Weight: 5})
		b.put(web)
		other := service{name: "other", vip: "10.96.0.20", endpoints: web.endpoints}
		b.put(other)
		_, err := b.backend.Apply(t.Context())
		var fe *backend.FamilyError
		if !errors.As(err, &fe) || !fe.Refused || !slices.Equal(fe.Culprits, []fwd.Service{web.owner()}) {
			t.Fatalf("got %v", err)
		}
		b.has(webV, "10.0.0.3:8080 5")
		b.has(vs(fwd.TCP, "10.96.0.20:80"), "10.0.0.2:8080 1", "10.0.0.3:8080 1")
		b.remove(web) // as the loop does
		b.apply()
		b.has(webV, "10.0.0.3:8080 5")
		b.idle()
	})
}

func TestEndpointComesBack(t *testing.T) {
	b := newBench(t)
	b.put(web.with(ep("10.0.0.2:8080", 1), ep("10.0.0.3:8080", 2)))
	b.apply()
	b.servers.SetConnections(webV, one, 4, 1)
	b.put(web.with(ep("10.0.0.3:8080", 2)))
	b.apply()
	b.has(webV, "10.0.0.2:8080 0", "10.0.0.3:8080 1")
	b.idle()

	b.servers.Written()
	b.put(web.with(ep("10.0.0.2:8080", 1), ep("10.0.0.3:8080", 2)))
	b.apply()
	if got := b.ops(); len(got) != 1 || !strings.HasPrefix(got[0], "set real server 10.0.0.2:8080 to weight 1") {
		t.Errorf("wrote %q", got)
	}
	if b.servers.Cut() != 0 {
		t.Error("the connections of a pod that came back were cut")
	}
	if d := b.backend.Draining()[0]; d.Count != [NumReasons]int{} {
		t.Errorf("still drains: %+v", d)
	}

	// Another pod with the same address does not know the connections.
	b.put(web.with(ep("10.0.0.3:8080", 2)))
	b.apply()
	b.put(web.with(ep("10.0.0.2:8080", 9), ep("10.0.0.3:8080", 2)))
	b.apply()
	b.has(webV, "10.0.0.2:8080 1", "10.0.0.3:8080 1")
	if n := b.servers.Cut(); n != 5 {
		t.Errorf("cut %d connections, want those 5 of the pod that is gone", n)
	}
	b.idle()
}

func TestUDPIsNotDrained(t *testing.T) {
	b := newBench(t)
	dns := service{name: "dns", vip: "10.96.0.53", proto: fwd.UDP, endpoints: web.endpoints}
	v := vs(fwd.UDP, "10.96.0.53:80")
	b.put(dns)
	b.apply()
	b.servers.SetConnections(v, one, 0, 9)
	b.stale = nil
	b.put(dns.with(ep("10.0.0.3:8080", 0)))
	b.apply()
	b.has(v, "10.0.0.3:8080 1")
	b.put(dns.with())
	b.apply()
	b.has(v)
	if len(b.stale) != 0 {
		t.Errorf("flows removed without need: %q", b.stale)
	}
	b.put(dns)
	b.apply()
	if want := []string{"udp 10.96.0.53:80"}; !slices.Equal(b.stale, want) {
		t.Errorf("flows removed when the first endpoint came: %q", b.stale)
	}
	b.stale = nil
	b.remove(dns)
	b.apply()
	b.has(v, "gone")
	if want := []string{"udp 10.96.0.53:80 gone"}; !slices.Equal(b.stale, want) {
		t.Errorf("flows removed with the virtual server: %q", b.stale)
	}
}

func TestStaleFlowsOfNewServers(t *testing.T) {
	b := newBench(t)
	b.put(web)
	b.put(service{name: "sctp", vip: "10.96.0.20", proto: fwd.SCTP, endpoints: web.endpoints})
	b.apply()
	slices.Sort(b.stale)
	if want := []string{"sctp 10.96.0.20:80", "tcp 10.96.0.10:80"}; !slices.Equal(b.stale, want) {
		t.Errorf("got %q, want %q", b.stale, want)
	}
	b.stale = nil
	b.put(web.with(ep("10.0.0.3:8080", 0)))
	b.apply()
	if len(b.stale) != 0 {
		t.Errorf("flows of a virtual server that was there: %q", b.stale)
	}
}

// The address of a removed Service stays until its connections have ended, and does not count as
// drift.
func TestServerDrains(t *testing.T) {
	for _, mode := range []VIPMode{VIPAddress, VIPRoute, VIPMark} {
		t.Run(mode.String(), func(t *testing.T) {
			b := newBench(t, func(o *FamilyOptions) { o.VIPs = mode })
			empty := service{name: "empty", vip: "10.96.0.20"}
			b.put(empty)
			b.apply()
			without := b.links.Dump() + b.sets.Dump() + b.servers.Dump()
			b.put(web)
			b.apply()
			full := b.links.Dump()
			b.servers.SetConnections(webV, one, 1, 0)
			b.remove(web)
			b.apply()
			b.has(webV, "10.0.0.2:8080 0")
			if got := b.links.Dump(); got != full {
				t.Errorf("while connections last:\n%s\nbefore:\n%s", got, full)
			}
			inSet := func(set string) bool {
				return strings.Contains(b.sets.Dump(), "add "+setName(fwd.IPv4, set)+" 10.96.0.10")
			}
			if !inSet(setVIPs) || inSet(setFrontends) || inSet(setDivert) != (mode == VIPMark) {
				t.Errorf("sets:\n%s", b.sets.Dump())
			}
			b.idle()
			if d := b.backend.Draining()[0]; d.Count[DrainServer] != 1 || d.Connections != 1 {
				t.Errorf("got %+v", d)
			}

			// A new process finds the same.
			b.restart()
			b.apply()
			b.has(webV, "10.0.0.2:8080 0")
			b.idle()

			b.servers.SetConnections(webV, one, 0, 0)
			b.now = b.now.Add(time.Minute)
			if next := b.tend(); !next.IsZero() {
				t.Errorf("still something to do at %v", next)
			}
			b.has(webV, "gone")
			if got := b.links.Dump() + b.sets.Dump() + b.servers.Dump(); got != without {
				t.Errorf("left:\n%s\nwant:\n%s", got, without)
			}
			b.idle()
		})
	}
}

// A Service with the address of a removed one that still has connections gets the existing virtual
// server.
func TestServerTakenOverWhileItDrains(t *testing.T) {
	b := newBench(t)
	b.put(web)
	b.apply()
	b.servers.SetConnections(webV, one, 1, 0)
	b.remove(web)
	b.apply()
	b.servers.Written()
	next := web
	next.name, next.scheduler = "next", "lc"
	b.put(next.with(ep("10.0.0.2:8080", 0), ep("10.0.0.9:8080", 0)))
	b.apply()
	b.has(webV, "10.0.0.2:8080 1", "10.0.0.9:8080 1")
	for _, op := range b.servers.Written() {
		if op.Verb == hostipvs.AddServer || op.Verb == hostipvs.DelServer || op.Verb == hostipvs.DelReal {
			t.Errorf("%v", op)
		}
	}
	if b.servers.Cut() != 0 {
		t.Error("connections were cut")
	}
	b.idle()
}

func TestFullSetGrows(t *testing.T) {
	b := newBench(t)
	b.put(web)
	b.apply()
	full := 2
	b.sets.FailChange = func(c ipset.Change) error {
		if strings.HasSuffix(c.Set.Name, setFrontends) && !c.Del && full > 0 {
			full--
			return ipset.ErrFull
		}
		return nil
	}
	b.put(service{name: "more", vip: "10.96.0.20", endpoints: web.endpoints})
	b.apply()
	if dump := b.sets.Dump(); !strings.Contains(dump, "add FAIRLEAD-4-FRONTENDS 10.96.0.20,tcp:80\n") ||
		!strings.Contains(dump, "create FAIRLEAD-4-FRONTENDS hash:ip,port family inet hashsize 1024 maxelem 1048576\n") {
		t.Errorf("got\n%s", dump)
	}
	b.idle()
	b.restart()
	b.idle()
}

func TestSchedulerThatIsMissing(t *testing.T) {
	b := newBench(t)
	b.servers.Schedulers = []string{"rr", "wrr"}
	s := web
	s.scheduler = "mh"
	b.put(s)
	b.apply()
	if !strings.Contains(b.servers.Dump(), "-A -t 10.96.0.10:80 -s rr -b flag-3\n") {
		t.Errorf("got\n%s", b.servers.Dump())
	}
	if want := []string{"ns/web SchedulerMissing"}; !slices.Equal(b.warned, want) {
		t.Errorf("told users %q, want %q", b.warned, want)
	}
	b.has(webV, "10.0.0.2:8080 1", "10.0.0.3:8080 1")
	b.idle()
	b.put(s.with(ep("10.0.0.3:8080", 0)))
	b.apply()
	if len(b.warned) != 1 {
		t.Errorf("told again: %q", b.warned)
	}
	b.idle()
}

// A failure does not prevent other writes, and is retried.
func TestFailures(t *testing.T) {
	other := service{name: "other", vip: "10.96.0.20", endpoints: web.endpoints}
	otherV := vs(fwd.TCP, "10.96.0.20:80")
	tests := []struct {
		name    string
		err     unix.Errno
		refused bool
	}{
		{"passing", unix.ENOMEM, false},
		{"answer lost", unix.ENOBUFS, false},
		{"refused", unix.EINVAL, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b := newBench(t)
			b.servers.Fail = func(op hostipvs.Op) error {
				if op.Server == webV && op.Verb == hostipvs.AddReal {
					return tt.err
				}
				return nil
			}
			b.put(web)
			b.put(other)
			_, err := b.backend.Apply(t.Context())
			var fe *backend.FamilyError
			if !errors.As(err, &fe) || fe.Refused != tt.refused || !errors.Is(err, tt.err) {
				t.Fatalf("got %v", err)
			}
			if tt.refused != slices.Equal(fe.Culprits, []fwd.Service{web.owner()}) {
				t.Errorf("culprits %v", fe.Culprits)
			}
			b.has(otherV, "10.0.0.2:8080 1", "10.0.0.3:8080 1")
			b.servers.Fail = nil
			b.apply()
			b.has(webV, "10.0.0.2:8080 1", "10.0.0.3:8080 1")
			b.idle()
		})
	}
}

func TestRulesThatFail(t *testing.T) {
	b := newBench(t)
	b.tables.Hook = func([]byte) error { return &xtables.RestoreError{Transient: true, Err: errors.New("lock held")} }
	b.put(web)
	_, err := b.backend.Apply(t.Context())
	var fe *backend.FamilyError
	if !errors.As(err, &fe) || fe.Refused {
		t.Fatalf("got %v", err)
	}
	b.tables.Hook = nil
	b.apply()
	b.idle()
}

func TestDrift(t *testing.T) {
	b := newBench(t)
	b.put(web)
	b.apply()
	full := b.links.Dump() + b.sets.Dump() + b.servers.Dump()
	for name, spoil := range map[string]func() error{
		"device removed":  func() error { return b.links.RemoveDummy(t.Context(), Device) },
		"servers flushed": func() error { b.servers.Flush(); return nil },
		"real server made useless": func() error {
			b.servers.Put(webV, hostipvs.Settings{Scheduler: "rr", Flags: flagTag}, hostipvs.RealServer{Addr: one, Weight: 0}, hostipvs.RealServer{Addr: two, Weight: 1, Method: hostipvs.Tunnel})
			return nil
		},
		"element deleted": func() error {
			_, err := b.sets.Apply(t.Context(), []ipset.Change{{Set: b.backend.families[0].target.set(setName(fwd.IPv4, setFrontends), ipset.HashIPPort),
				Entry: ipset.Entry{Addr: webV.Addr.Addr(), Proto: 6, Port: 80}, Del: true}})
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			if err := spoil(); err != nil {
				t.Fatal(err)
			}
			n, err := b.backend.Observe(t.Context())
			if n == 0 || err != nil {
				t.Fatalf("Observe: %d, %v", n, err)
			}
			b.apply()
			if got := b.links.Dump() + b.sets.Dump() + b.servers.Dump(); got != full {
				t.Errorf("repaired to\n%s\nwant\n%s", got, full)
			}
			b.idle()
		})
	}
}

// Nodes start with different endpoints, and one node always with the same.
func TestFirstEndpointsAreShuffled(t *testing.T) {
	var eps []fwd.Endpoint
	for i := range 20 {
		eps = append(eps, ep(fmt.Sprintf("10.0.1.%d:80", i+10), 0))
	}
	order := func(seed uint64) string {
		b := newBench(t, func(o *FamilyOptions) { o.Seed = seed })
		b.put(web.with(eps...))
		b.apply()
		return strings.Join(b.ops(), "\n")
	}
	if a := order(1); a != order(1) || a == order(2) {
		t.Error("the order does not depend on the seed alone")
	}
}

func TestCleanup(t *testing.T) {
	for _, mode := range []VIPMode{VIPAddress, VIPRoute, VIPMark} {
		t.Run(mode.String(), func(t *testing.T) {
			b := newBench(t, func(o *FamilyOptions) { o.VIPs = mode })
			foreign := vs(fwd.TCP, "10.96.7.7:80")
			b.servers.Put(foreign, hostipvs.Settings{Scheduler: "rr"}, hostipvs.RealServer{Addr: one, Weight: 1})
			before := b.servers.Dump()
			b.put(web)
			b.apply()
			b.servers.SetConnections(webV, one, 1, 1)
			b.put(web.with(ep("10.0.0.3:8080", 0)))
			b.apply() // one drains
			h := host{servers: &b.servers, sets: &b.sets, links: &b.links, mangle: []xtables.Interface{b.tables}}
			for _, want := range []bool{true, false} {
				// Package iptables cleans up nat and filter.
				if err := b.tables.Restore(t.Context(), []byte("*nat\n:PREROUTING ACCEPT\n-F PREROUTING\n-F OUTPUT\n-F POSTROUTING\nCOMMIT\n*filter\n-F INPUT\n-F FORWARD\n-F OUTPUT\nCOMMIT\n")); err != nil {
					t.Fatal(err)
				}
				l, err := h.leftover(t.Context(), fwd.IPv4)
				if err != nil || l.any() != want {
					t.Fatalf("found %+v, %v; want something: %v", l, err, want)
				}
				if err := l.Remove(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			if got := b.servers.Dump(); got != before {
				t.Errorf("virtual servers:\n%s\nwant\n%s", got, before)
			}
			if got := b.sets.Dump(); got != "" {
				t.Errorf("sets:\n%s", got)
			}
			if got, want := b.links.Dump(), "address "+nodeIP+"/32 dev lo scope global\ndevice lo up\n"; got != want {
				t.Errorf("links:\n%s\nwant\n%s", got, want)
			}
			if text := b.tables.Save(tableMangle); strings.Contains(text, chainPrefix) {
				t.Errorf("mangle:\n%s", text)
			}
		})
	}
}

// Clean-up does not change kube-proxy's virtual servers and addresses.
func TestCleanupLeavesKubeProxy(t *testing.T) {
	b := newBench(t)
	b.put(web)
	b.apply()
	v := vs(fwd.TCP, "10.96.0.99:80")
	a := link.Addr{Dev: Device, Prefix: netip.MustParsePrefix("10.96.0.99/32"), Global: true}
	b.links.AddForeign(a)
	b.servers.Put(v, hostipvs.Settings{Scheduler: "rr"}, hostipvs.RealServer{Addr: one, Weight: 1})
	h := host{servers: &b.servers, sets: &b.sets, links: &b.links}
	l, err := h.leftover(context.Background(), fwd.IPv4)
	if err != nil || l.Servers != 1 || l.VIPs != 1 {
		t.Fatalf("found %+v, %v", l, err)
	}
	if err := l.Remove(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.has(v, "10.0.0.2:8080 1")
	b.has(webV, "gone")
	if dump := b.links.Dump(); !strings.Contains(dump, a.String()) || strings.Contains(dump, "10.96.0.10") {
		t.Errorf("links:\n%s", dump)
	}
}

// TestAdoptedAddress adopts an address that the kernel may use as source, as kube-proxy adds them:
// it becomes one that the kernel does not use.
func TestAdoptedAddress(t *testing.T) {
	b := newBench(t)
	vip := netip.MustParsePrefix(web.vip + "/32")
	b.links.AddForeign(link.Addr{Dev: Device, Prefix: vip, Global: true})
	b.restart()
	b.put(web)
	b.apply()
	on, _, err := b.links.Addrs(t.Context(), Device)
	if err != nil {
		t.Fatal(err)
	}
	if want := []link.Addr{{Dev: Device, Prefix: vip}}; !slices.Equal(on, want) {
		t.Errorf("addresses %v, want %v", on, want)
	}
}

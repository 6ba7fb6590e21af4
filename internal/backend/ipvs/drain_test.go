package ipvs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/internal/fwd"
	"github.com/fairlead/fairlead/internal/host/conntrack"
	"github.com/fairlead/fairlead/internal/host/conntrack/conntrackfake"
	"github.com/fairlead/fairlead/internal/host/ipset"
	hostipvs "github.com/fairlead/fairlead/internal/host/ipvs"
	"github.com/fairlead/fairlead/internal/host/ipvs/ipvsfake"
	"github.com/fairlead/fairlead/internal/host/link"
	"github.com/fairlead/fairlead/internal/host/sysctl"
)

// TestDrainConditions covers each condition for deleting a draining real server, with a fin timeout
// of 2 minutes and a limit of 15. At second 0 the endpoint 10.0.0.2:8080 is removed; steps say what
// happens when, and whether it still exists afterwards.
func TestDrainConditions(t *testing.T) {
	type step struct {
		at               int // seconds
		active, inactive uint32
		ended            bool // the pod is no longer among those that shut down
		there            bool
	}
	tests := []struct {
		name string
		// terminating means that the endpoint was shutting down while it served; leaving that it is
		// known to shut down now.
		terminating, leaving bool
		whole                bool
		reason               Reason
		steps                []step
	}{
		{"no connection", false, false, false, DrainRemoved, []step{{0, 0, 0, false, false}}},
		{"closed in time", false, false, false, DrainRemoved, []step{{0, 1, 0, false, true}, {5, 0, 1, false, true}, {60, 0, 0, false, false}}},
		{"only closing ones for the fin timeout", false, false, false, DrainRemoved,
			[]step{{0, 1, 0, false, true}, {10, 0, 3, false, true}, {120, 0, 3, false, true}, {131, 0, 3, false, false}}},
		{"established again meanwhile", false, false, false, DrainRemoved,
			[]step{{0, 0, 3, false, true}, {100, 1, 2, false, true}, {130, 0, 2, false, true}, {249, 0, 2, false, true}, {250, 0, 2, false, false}}},
		{"the bound", false, false, false, DrainRemoved, []step{{0, 1, 0, false, true}, {899, 1, 0, false, true}, {900, 1, 0, false, false}}},
		{"shuts down", false, true, false, DrainTerminating, []step{{0, 1, 0, false, true}, {600, 1, 0, false, true}, {900, 1, 0, false, false}}},
		{"its pod ends", false, true, false, DrainTerminating,
			[]step{{0, 1, 0, false, true}, {30, 1, 0, true, true}, {34, 1, 0, false, true}, {35, 1, 0, false, false}}},
		{"its pod had ended", true, false, false, DrainTerminating, []step{{0, 1, 0, false, true}, {4, 1, 0, false, true}, {5, 1, 0, false, false}}},
		{"whole server", false, false, true, DrainServer, []step{{0, 1, 0, false, true}, {60, 0, 0, false, false}}},
		{"whole server, the bound", false, false, true, DrainServer, []step{{0, 1, 0, false, true}, {900, 1, 0, false, false}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b := newBench(t)
			start := b.now
			e := ep("10.0.0.2:8080", 1)
			e.Terminating = tt.terminating
			b.put(web.with(e, ep("10.0.0.3:8080", 2)))
			b.apply()
			b.servers.SetConnections(webV, one, tt.steps[0].active, tt.steps[0].inactive)
			after := web.with(ep("10.0.0.3:8080", 2))
			if tt.leaving {
				after.leaving = []string{"10.0.0.2:8080"}
			}
			if tt.whole {
				b.remove(web)
			} else {
				b.put(after)
			}
			b.apply()
			var next time.Time
			for _, s := range tt.steps {
				b.now = start.Add(time.Duration(s.at) * time.Second)
				reals, _ := b.servers.RealServers(t.Context(), webV)
				if slices.ContainsFunc(reals, func(r hostipvs.RealState) bool { return r.Addr == one }) {
					b.servers.SetConnections(webV, one, s.active, s.inactive)
				}
				if s.ended {
					after.leaving = nil
					b.put(after)
					b.apply()
				}
				next = b.tend()
				reals, _ = b.servers.RealServers(t.Context(), webV)
				there := slices.ContainsFunc(reals, func(r hostipvs.RealState) bool { return r.Addr == one })
				if there != s.there {
					t.Fatalf("at %d s: there %v, want %v", s.at, there, s.there)
				}
				d := b.backend.Draining()[0]
				if there && (d.Count[tt.reason] != 1 || d.Objects == 0 || d.Oldest != b.now.Sub(start) || d.Connections != uint64(s.active+s.inactive)) {
					t.Errorf("at %d s: %+v", s.at, d)
				}
				if there && (!next.After(b.now) || next.Sub(b.now) > lastPoll) {
					t.Errorf("at %d s: next look after %v", s.at, next.Sub(b.now))
				}
			}
			if !next.IsZero() || b.backend.Draining()[0] != (Draining{}) {
				t.Errorf("in the end: next %v, %+v", next, b.backend.Draining()[0])
			}
			b.idle()
		})
	}
}

// TestPolling proves that the kernel is polled after 1, 2, 4 seconds, later every 15, only about
// what drains, and exactly at known expiries.
func TestPolling(t *testing.T) {
	b := newBench(t)
	b.put(web)
	b.put(service{name: "other", vip: "10.96.0.20", endpoints: web.endpoints})
	b.apply()
	b.servers.SetConnections(webV, one, 1, 0)
	start := b.now
	b.put(web.with(ep("10.0.0.3:8080", 0)))
	b.apply()
	asked := 0
	b.servers.FailCall = func(method string) error {
		asked++
		if method != "RealServers" && method != "Apply" {
			t.Errorf("%s of everything for one real server", method)
		}
		return nil
	}
	var at []int
	for next := b.tend(); !next.IsZero(); next = b.tend() {
		b.now = next
		at = append(at, int(next.Sub(start)/time.Second))
	}
	if want := []int{1, 3, 7, 15, 30, 45}; !slices.Equal(at[:len(want)], want) || at[len(at)-1] != 900 {
		t.Errorf("asked at %v", at)
	}
	if asked != len(at)+1 { // and the deletion
		t.Errorf("%d calls at %d times", asked, len(at))
	}
}

// Many draining virtual servers are polled by one Read.
func TestManyDrain(t *testing.T) {
	b := newBench(t)
	var all []service
	for i := range manyServers + 50 {
		s := web
		s.name, s.vip = fmt.Sprintf("s%d", i), fmt.Sprintf("10.96.%d.%d", 1+i/200, 1+i%200)
		all = append(all, s)
		b.put(s)
	}
	b.apply()
	for _, s := range all {
		b.servers.SetConnections(vs(fwd.TCP, s.vip+":80"), one, 1, 0)
		b.remove(s)
	}
	calls := make(map[string]int)
	b.servers.FailCall = func(method string) error { calls[method]++; return nil }
	b.apply()
	if calls["RealServers"] != 0 || calls["Read"] != 1 {
		t.Errorf("calls %v", calls)
	}
	if d := b.backend.Draining()[0]; d.Count[DrainServer] != len(all) {
		t.Errorf("drains: %+v", d)
	}
	b.now = b.now.Add(15 * time.Minute)
	b.tend()
	if dump := b.servers.Dump(); dump != "" {
		t.Errorf("left:\n%s", dump)
	}
}

// What drained under an earlier process continues to drain, unless it is wanted again.
func TestDrainFoundAtStart(t *testing.T) {
	b := newBench(t)
	v := vs(fwd.TCP, "10.96.0.50:80")
	s := hostipvs.Settings{Scheduler: "rr", Flags: flagTag}
	b.servers.Put(webV, s, hostipvs.RealServer{Addr: one}, hostipvs.RealServer{Addr: two}, hostipvs.RealServer{Addr: netip.MustParseAddrPort("10.0.0.4:8080")})
	b.servers.Put(v, s, hostipvs.RealServer{Addr: one})
	for _, a := range []netip.AddrPort{one, two} {
		b.servers.SetConnections(webV, a, 1, 0)
	}
	b.servers.SetConnections(v, one, 1, 0)
	b.restart()
	b.put(web.with(ep("10.0.0.2:8080", 0)))
	b.apply()
	b.has(webV, "10.0.0.2:8080 1", "10.0.0.3:8080 0")
	b.has(v, "10.0.0.2:8080 0")
	if d := b.backend.Draining()[0]; d.Count[DrainFound] != 2 || b.servers.Cut() != 0 {
		t.Errorf("%+v, cut %d", d, b.servers.Cut())
	}
	b.idle()
	b.now = b.now.Add(15 * time.Minute)
	b.tend()
	b.has(webV, "10.0.0.2:8080 1")
	b.has(v, "gone")
}

// The kernel may fail, and other programs may interfere.
func TestDrainTrouble(t *testing.T) {
	b := newBench(t)
	b.put(web)
	b.apply()
	b.servers.SetConnections(webV, one, 1, 0)
	b.put(web.with(ep("10.0.0.3:8080", 0)))
	b.apply()
	b.servers.FailCall = func(string) error { return unix.ENOMEM }
	b.now = b.now.Add(time.Minute)
	if next := b.tend(); next.Sub(b.now) < firstPoll || next.Sub(b.now) > lastPoll {
		t.Errorf("after a failure: next in %v", next.Sub(b.now))
	}
	b.servers.FailCall = nil
	b.servers.Put(webV, hostipvs.Settings{Scheduler: "rr", Flags: flagTag}, hostipvs.RealServer{Addr: one, Weight: 5}, hostipvs.RealServer{Addr: two, Weight: 1})
	b.now = b.now.Add(time.Hour)
	if next := b.tend(); !next.IsZero() {
		t.Errorf("looks after a real server that serves: %v", next)
	}
	b.has(webV, "10.0.0.2:8080 5", "10.0.0.3:8080 1") // which is drift, and none of Tend's business
	b.servers.Flush()
	b.remove(web)
	b.apply()
	if next := b.tend(); !next.IsZero() {
		t.Errorf("looks after what is not there: %v", next)
	}
}

func TestSweeper(t *testing.T) {
	addr := netip.MustParseAddrPort
	flow := func(proto uint8, dst string) conntrack.Flow {
		return conntrack.Flow{Proto: proto, OrigSrc: addr("10.0.0.1:1"), OrigDst: addr(dst), ReplySrc: addr(dst), ReplyDst: addr("10.0.0.1:1")}
	}
	for _, many := range []bool{false, true} {
		t.Run(fmt.Sprintf("many=%v", many), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var table conntrackfake.Table
				table.Add(flow(6, "10.96.0.1:80"), flow(6, "10.96.0.1:81"), flow(17, "10.96.0.1:80"), flow(132, "10.96.0.2:80"))
				// Connections through the virtual server, and a flow of a deleted one.
				live, old := flow(6, "10.96.0.1:80"), flow(17, "10.96.0.3:53")
				live.OrigSrc, live.ReplySrc, old.ReplySrc = addr("10.0.0.1:2"), addr("10.244.0.1:8080"), addr("10.244.0.1:53")
				live.ReplyDst = live.OrigSrc
				table.Add(live, old)
				ops := make(map[string]int)
				table.Fail = func(q *conntrack.Query) error {
					switch {
					case q == nil:
					case q.Dst.IsValid():
						ops["dump to"]++
					default:
						ops["dump"]++
					}
					return nil
				}
				s := newSweeper(&table, FamilyOptions{}.withDefaults().Logger)
				dst := []netip.AddrPort{addr("10.96.0.1:80")}
				if many {
					for i := range 100 {
						dst = append(dst, netip.AddrPortFrom(addr("10.96.9.1:1").Addr(), uint16(i+1)))
					}
				}
				s.submit(fwd.TCP, dst, false)
				s.submit(fwd.SCTP, []netip.AddrPort{addr("10.96.0.2:80")}, false)
				s.submit(fwd.UDP, []netip.AddrPort{addr("10.96.0.3:53")}, true)
				s.submit(fwd.UDP, []netip.AddrPort{addr("10.96.0.3:53")}, false)
				// Start only now; otherwise the batches depend on the scheduler.
				ctx, cancel := context.WithCancel(t.Context())
				done := make(chan struct{})
				go func() { s.run(ctx); close(done) }()
				synctest.Wait()
				if many != (ops["dump"] == 1) || ops["dump to"] != map[bool]int{false: 3, true: 2}[many] {
					t.Errorf("calls %v", ops)
				}
				// Later requests work as well.
				late := flow(132, "10.96.0.4:80")
				table.Add(late)
				s.submit(fwd.SCTP, []netip.AddrPort{late.OrigDst}, false)
				synctest.Wait()
				cancel()
				<-done
				var left []string
				for _, f := range table.Flows() {
					left = append(left, fmt.Sprintf("%d %s by %s", f.Proto, f.OrigDst, f.ReplySrc))
				}
				slices.Sort(left)
				want := []string{"17 10.96.0.1:80 by 10.96.0.1:80", "6 10.96.0.1:80 by 10.244.0.1:8080", "6 10.96.0.1:81 by 10.96.0.1:81"}
				if !slices.Equal(left, want) {
					t.Errorf("left %q, want %q", left, want)
				}
			})
		})
	}
}

// TestSweeperTriesAgain proves that flows that could not be removed are removed later, without
// another change.
func TestSweeperTriesAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		vip := netip.MustParseAddrPort("10.96.0.3:53")
		var table conntrackfake.Table
		table.Add(conntrack.Flow{Proto: 17, OrigSrc: netip.MustParseAddrPort("10.0.0.1:1"), OrigDst: vip, ReplySrc: netip.MustParseAddrPort("10.244.0.1:53")})
		var tries []time.Duration
		begin := time.Now()
		table.Fail = func(q *conntrack.Query) error {
			if q == nil || len(tries) == 3 {
				return nil
			}
			tries = append(tries, time.Since(begin))
			return errors.New("no")
		}
		s := newSweeper(&table, slog.New(slog.DiscardHandler))
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { s.run(ctx); close(done) }()
		s.submit(fwd.UDP, []netip.AddrPort{vip}, true)
		time.Sleep(time.Minute)
		cancel()
		<-done
		if want := []time.Duration{0, time.Second, 3 * time.Second}; !slices.Equal(tries, want) || len(table.Flows()) != 0 {
			t.Errorf("failed after %v, want after %v; %d flows left", tries, want, len(table.Flows()))
		}
	})
}

func TestKnobs(t *testing.T) {
	values := map[string]string{}
	for _, k := range knobs(true, true) {
		values[k.name] = k.value
	}
	tree := func(t *testing.T, files map[string]string) sysctl.FS {
		root := t.TempDir()
		for name, v := range files {
			path := filepath.Join(root, name)
			if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(v), 0o644)); err != nil {
				t.Fatal(err)
			}
		}
		return sysctl.FS{Root: root}
	}
	log := FamilyOptions{}.withDefaults().Logger
	all := make(map[string]string)
	for name := range values {
		all[name] = "7"
	}
	fs := tree(t, all)
	if err := ensureKnobs(log, fs, knobs(true, true)); err != nil {
		t.Fatal(err)
	}
	for name, want := range values {
		if got, _ := fs.Get(name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	err := ensureKnobs(log, tree(t, nil), knobs(true, true))
	for name, must := range map[string]bool{
		"net/ipv4/vs/conntrack": true, "net/ipv4/ip_forward": true, "net/ipv4/conf/all/arp_ignore": true, "net/ipv4/conf/all/arp_announce": true,
		"net/ipv4/vs/expire_nodest_conn": false, "net/ipv4/vs/expire_quiescent_template": false, "net/ipv4/vs/conn_reuse_mode": false,
	} {
		if strings.Contains(fmt.Sprint(err), name+" must be "+values[name]) != must {
			t.Errorf("%s: must %v, error %v", name, must, err)
		}
	}
	fs = tree(t, all)
	if err := ensureKnobs(log, fs, knobs(false, false)); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"net/ipv4/conf/all/arp_ignore", "net/ipv4/vs/conn_reuse_mode"} {
		if got, _ := fs.Get(name); got != "7" {
			t.Errorf("%s is set to %q without need", name, got)
		}
	}
	for release, older := range map[string]bool{"4.19.0": true, "5.4.0-generic": true, "5.8": true, "5.9.1": false, "5.10.0": false, "6.1.176": false, "?": false, "5.9-rc1": false} {
		if olderThan(release, 5, 9) != older {
			t.Errorf("%s older than 5.9: want %v", release, older)
		}
	}
}

func TestTimeouts(t *testing.T) {
	var f ipvsfake.Table
	sets := 0
	f.FailCall = func(method string) error {
		if method == "SetTimeouts" {
			sets++
		}
		return nil
	}
	for _, tt := range []struct {
		set, want hostipvs.Timeouts
		calls     int
	}{
		{hostipvs.Timeouts{}, hostipvs.Timeouts{TCP: 15 * time.Minute, TCPFin: 2 * time.Minute, UDP: 5 * time.Minute}, 0},
		{hostipvs.Timeouts{TCP: time.Hour}, hostipvs.Timeouts{TCP: time.Hour, TCPFin: 2 * time.Minute, UDP: 5 * time.Minute}, 1},
		{hostipvs.Timeouts{TCP: time.Hour}, hostipvs.Timeouts{TCP: time.Hour, TCPFin: 2 * time.Minute, UDP: 5 * time.Minute}, 1},
		{hostipvs.Timeouts{UDP: time.Second, TCPFin: time.Second}, hostipvs.Timeouts{TCP: time.Hour, TCPFin: time.Second, UDP: time.Second}, 2},
	} {
		got, err := setTimeouts(t.Context(), &f, tt.set)
		if now, _ := f.Timeouts(t.Context()); err != nil || got != tt.want || now != tt.want || sets != tt.calls {
			t.Errorf("%v: got %v, in force %v, %d calls, %v", tt.set, got, now, sets, err)
		}
	}
}

// A removed virtual server without connections is deleted by the same write, and so is its address.
// Otherwise packets to other ports of the address would be rejected although it is no longer ours.
func TestFailureToDeleteServer(t *testing.T) {
	b := newBench(t)
	b.put(web)
	b.apply()
	b.servers.Fail = func(op hostipvs.Op) error {
		if op.Verb == hostipvs.DelServer {
			return unix.EBUSY
		}
		return nil
	}
	b.remove(web)
	if _, err := b.backend.Apply(t.Context()); !errors.Is(err, unix.EBUSY) {
		t.Fatalf("the virtual server cannot be deleted, and that is reported as %v", err)
	}
	b.servers.Fail = nil
	b.apply() // at the same time: nothing waits
	b.has(webV, "gone")
	if l, s := b.links.Dump(), b.sets.Dump(); strings.Contains(l, web.vip) || strings.Contains(s, web.vip) {
		t.Errorf("something is left of the address:\n%s%s", l, s)
	}
	b.idle()
}

// One number tells whether the kernel still has objects of removed Services: Draining.Objects is 0
// when nothing is left, and not before, in whatever order the objects are removed.
func TestDrainingObjectsAreAllThatGoes(t *testing.T) {
	objects := func(b *bench) int { return b.backend.Draining()[0].Objects }
	dns := service{name: "dns", vip: "10.96.0.53", proto: fwd.UDP, endpoints: web.endpoints}
	for _, mode := range []VIPMode{VIPAddress, VIPRoute, VIPMark} {
		for _, connections := range []uint32{0, 1} {
			t.Run(fmt.Sprintf("%s, %d connections", mode, connections), func(t *testing.T) {
				b := newBench(t, func(o *FamilyOptions) { o.VIPs = mode })
				b.put(service{name: "stays", vip: "10.96.0.20"})
				b.apply()
				kernel := func() string { return b.links.Dump() + b.sets.Dump() + b.servers.Dump() }
				without := kernel()
				b.put(web)
				b.put(dns)
				b.apply()
				if n := objects(b); n != 0 {
					t.Fatalf("%d objects go from a kernel that has what is wanted", n)
				}
				b.servers.SetConnections(webV, one, connections, 0)

				// The number is not 0 during each change of the kernel.
				changes := 0
				look := func(change any) error {
					if changes++; objects(b) == 0 {
						t.Errorf("nothing is said to go before %v", change)
					}
					return nil
				}
				b.servers.Fail = func(op hostipvs.Op) error { return look(op) }
				b.links.FailChange = func(c link.Change) error { return look(c) }
				b.sets.FailChange = func(c ipset.Change) error { return look(c) }
				b.remove(web)
				b.remove(dns)
				b.apply()
				if n := objects(b); (n != 0) != (kernel() != without) {
					t.Errorf("%d objects are said to go while the kernel has\n%s", n, kernel())
				}
				if connections > 0 {
					b.restart() // a new process knows it, too
					b.apply()
					if objects(b) == 0 {
						t.Error("a new process does not know what goes")
					}
					b.servers.SetConnections(webV, one, 0, 0)
				}
				b.now = b.now.Add(time.Minute)
				b.tend()
				if n, now := objects(b), kernel(); n != 0 || now != without {
					t.Errorf("in the end %d objects, and the kernel has\n%s", n, now)
				}
				if changes == 0 {
					t.Error("nothing was taken out")
				}
			})
		}
	}
}

// An object that cannot be removed counts until it is removed, no matter by whom.
func TestDrainingObjectsThatCannotBeDeleted(t *testing.T) {
	vip := link.Addr{Dev: Device, Prefix: netip.MustParsePrefix(web.vip + "/32")}
	for _, by := range []string{"us", "somebody else"} {
		t.Run("deleted by "+by, func(t *testing.T) {
			b := newBench(t)
			b.put(web)
			b.apply()
			b.links.FailChange = func(c link.Change) error {
				if c.Del {
					return unix.EBUSY
				}
				return nil
			}
			b.remove(web)
			if _, err := b.backend.Apply(t.Context()); !errors.Is(err, unix.EBUSY) {
				t.Fatalf("got %v", err)
			}
			if n := b.backend.Draining()[0].Objects; n != 1 || !strings.Contains(b.links.Dump(), web.vip) {
				t.Errorf("%d objects go while the device has\n%s", n, b.links.Dump())
			}
			b.links.FailChange = nil
			if by != "us" {
				if _, err := b.links.Apply(t.Context(), []link.Change{{Object: vip, Del: true}}); err != nil {
					t.Fatal(err)
				}
			}
			b.apply()
			if d := b.backend.Draining()[0]; d != (Draining{}) || strings.Contains(b.links.Dump(), web.vip) {
				t.Errorf("in the end %+v, and the device has\n%s", d, b.links.Dump())
			}
		})
	}
}

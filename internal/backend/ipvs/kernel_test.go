package ipvs

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/internal/fwd"
	"github.com/fairlead/fairlead/internal/host/hosttest"
	"github.com/fairlead/fairlead/internal/host/ipset"
	hostipvs "github.com/fairlead/fairlead/internal/host/ipvs"
	"github.com/fairlead/fairlead/internal/host/link"
	"github.com/fairlead/fairlead/internal/host/sysctl"
	"github.com/fairlead/fairlead/internal/host/xtables"
)

// node is a network namespace with IPVS, in which the calling goroutine is.
type node struct {
	t       testing.TB
	servers *hostipvs.Kernel
	sets    *ipset.Kernel
	links   *link.Kernel
	opts    map[fwd.Family]FamilyOptions
	table   fwd.Table
	backend *Backend
}

func newNode(t testing.TB, vips VIPMode) *node {
	t.Helper()
	hosttest.Need(t, hosttest.IPVS, hosttest.Dummy)
	hosttest.Netns(t, "iptables-legacy", "ip")
	n := &node{t: t, opts: make(map[fwd.Family]FamilyOptions)}
	var err error
	if n.servers, err = hostipvs.Open(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n.sets, err = ipset.Open(); err != nil {
		t.Fatal(err)
	}
	if n.links, err = link.Open(0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, c := range []func() error{n.servers.Close, n.sets.Close, n.links.Close} {
			if err := c(); err != nil {
				t.Error(err)
			}
		}
	})
	if err := ensureKnobs(FamilyOptions{}.withDefaults().Logger, sysctl.FS{}, knobs(false, false)); err != nil {
		t.Fatal(err)
	}
	for _, f := range fwd.Families {
		tables, err := xtables.New(xtables.Legacy, f == fwd.IPv6)
		if err != nil {
			t.Fatal(err)
		}
		bpf, err := probe(t.Context(), f, tables, n.sets)
		if err != nil {
			t.Fatal(err)
		}
		n.opts[f] = FamilyOptions{
			RenderOptions: RenderOptions{VIPs: vips, HairpinBPF: bpf, RandomFully: tables.RandomFully()},
			Servers:       n.servers, Sets: n.sets, Links: n.links, Tables: tables,
		}
	}
	h := fwd.Header{MasqueradeBit: 14}
	h.NodePorts[0].All, h.NodePorts[1].All = true, true
	n.table.SetHeader(h)
	n.restart()
	return n
}

// restart makes a Backend as a new process would, which knows the table.
func (n *node) restart() {
	n.t.Helper()
	n.backend = New(n.opts)
	if _, err := n.backend.Observe(n.t.Context()); err != nil {
		n.t.Fatal(err)
	}
	h := n.table.Header()
	ch := fwd.Changes{Header: &h}
	for f := range n.table.Services() {
		ch.Services = append(ch.Services, fwd.ServiceChange{Owner: f.Owner, New: f})
	}
	for _, v := range n.table.VIPs() {
		ch.VIPs = append(ch.VIPs, fwd.VIPChange{VIP: v})
	}
	n.backend.Update(ch)
}

func (n *node) put(f *fwd.Fragment) { n.backend.Update(n.table.Put(f)) }

func (n *node) apply() {
	n.t.Helper()
	if _, err := n.backend.Apply(n.t.Context()); err != nil {
		n.t.Fatal(err)
	}
}

// idle checks that what was written is what is read, and that nothing is left to write.
func (n *node) idle() {
	n.t.Helper()
	if drifted, err := n.backend.Observe(n.t.Context()); drifted != 0 || err != nil {
		for _, f := range n.backend.families {
			found, _ := f.target.Read(n.t.Context())
			for k, v := range found {
				n.t.Logf("%v: %+v %+v", k, v, v.Server)
			}
		}
		n.t.Fatalf("read back: %d objects differ, %v", drifted, err)
	}
	if res, err := n.backend.Apply(n.t.Context()); res.Written+res.Deleted != 0 || err != nil {
		n.t.Fatalf("wrote again: %+v, %v", res, err)
	}
}

// dualFragment is a Service with frontends of all kinds in both families.
func dualFragment(i int, proto fwd.Proto, endpoints int) *fwd.Fragment {
	f := &fwd.Fragment{Owner: fwd.Service{Namespace: "ns", Name: fmt.Sprintf("s%05d", i)}}
	port := fwd.ServicePort{Service: f.Owner, Proto: proto}
	route := fwd.Route{Action: fwd.Reject, Reason: fwd.ReasonNoEndpoints}
	if endpoints > 0 {
		route = fwd.Route{Action: fwd.Forward, Reason: fwd.ReasonCluster, Masquerade: i%2 == 0}
	}
	routes := [fwd.NumClasses]fwd.Route{route, route, route}
	var nodePorts, others []fwd.Frontend
	for _, fam := range fwd.Families {
		vip := func(net byte) netip.Addr {
			if fam == fwd.IPv4 {
				return netip.AddrFrom4([4]byte{10, net, byte(i >> 8), byte(i)})
			}
			return netip.AddrFrom16([16]byte{0: 0xfd, 13: net, 14: byte(i >> 8), 15: byte(i)})
		}
		if endpoints > 0 {
			p := fwd.Pool{Key: fwd.PoolKey{Port: port, Family: fam}}
			for e := range endpoints {
				a := netip.AddrPortFrom(vip(200).Next(), uint16(8000+e))
				p.Endpoints = append(p.Endpoints, fwd.Endpoint{Addr: a, Weight: 1})
			}
			if i%3 == 0 {
				p.AffinitySec = 300
			}
			f.Pools = append(f.Pools, p)
		}
		nodePorts = append(nodePorts, fwd.Frontend{Key: fwd.Key{Family: fam, Proto: proto, Port: uint16(30000 + i)}, Kind: fwd.NodePort, Owner: port, Routes: routes})
		lb := fwd.Frontend{Key: fwd.Key{Family: fam, Addr: vip(97), Proto: proto, Port: 80}, Kind: fwd.LoadBalancer, Owner: port, Routes: routes,
			Sources: []netip.Prefix{netip.PrefixFrom(vip(7), fam.Bits())}}
		others = append(others, fwd.Frontend{Key: fwd.Key{Family: fam, Addr: vip(96), Proto: proto, Port: 80}, Kind: fwd.ClusterIP, Owner: port, Routes: routes}, lb)
		if fam == fwd.IPv4 {
			f.Frontends = append(append(f.Frontends, nodePorts...), others...)
			nodePorts, others = nil, nil
		}
	}
	f.Frontends = append(append(f.Frontends, nodePorts...), others...)
	return f
}

// What was written is what is read, in all ways to bind VIPs and both families, so that a restart
// writes nothing; and clean-up leaves a kernel as it was, with the virtual servers of others.
func TestKernelRoundTrip(t *testing.T) {
	for _, mode := range []VIPMode{VIPAddress, VIPRoute, VIPMark} {
		t.Run(mode.String(), func(t *testing.T) {
			n := newNode(t, mode)
			hosttest.Run(t, "ip", "link", "add", "eth0", "type", "dummy")
			hosttest.Run(t, "ip", "link", "set", "eth0", "up")
			hosttest.Run(t, "ip", "addr", "add", "192.0.2.10/24", "dev", "eth0")
			hosttest.Run(t, "ip", "addr", "add", "2001:db8::10/64", "dev", "eth0", "nodad")
			foreign := vs(fwd.TCP, "192.0.2.77:80")
			for _, op := range []hostipvs.Op{
				{Verb: hostipvs.AddServer, Server: foreign, Settings: hostipvs.Settings{Scheduler: "rr"}},
				{Verb: hostipvs.AddReal, Server: foreign, Real: hostipvs.RealServer{Addr: one, Weight: 1}},
			} {
				if errs := n.servers.Apply(t.Context(), []hostipvs.Op{op}); errs != nil {
					t.Fatal(errs)
				}
			}
			h := n.table.Header()
			h.LocalAddrs = []netip.Addr{netip.MustParseAddr("192.0.2.10"), netip.MustParseAddr("2001:db8::10")}
			n.backend.Update(n.table.SetHeader(h))
			for i, proto := range []fwd.Proto{fwd.TCP, fwd.UDP, fwd.SCTP, fwd.TCP} {
				n.put(dualFragment(i, proto, 3*i%5))
			}
			n.apply()
			n.idle()
			n.restart()
			n.idle()
			if mode == VIPAddress && !strings.Contains(hosttest.Run(t, "ip", "addr", "show", Device), "inet 10.96.0.1/32 scope link") {
				t.Error("the VIP has not scope link")
			}

			// The others' half of the clean-up.
			for _, prog := range []string{"iptables-legacy", "ip6tables-legacy"} {
				for _, table := range []string{tableNAT, tableFilter} {
					hosttest.Run(t, prog, "-t", table, "-F")
					hosttest.Run(t, prog, "-t", table, "-X")
				}
			}
			for _, again := range []bool{false, true} {
				found := 0
				left, closeAll, err := Leftovers(t.Context(), nil)
				if err != nil {
					t.Fatal(err)
				}
				for _, l := range left {
					found++
					if err := l.Remove(t.Context()); err != nil {
						t.Fatal(err)
					}
				}
				closeAll()
				if (found == 0) != again {
					t.Errorf("second time %v: found %d", again, found)
				}
			}
			c, err := n.servers.Read(t.Context())
			if err != nil || len(c.Servers) != 1 || c.Servers[0].VirtualServer != foreign || len(c.Servers[0].Reals) != 1 {
				t.Errorf("left %+v, %v", c, err)
			}
			for _, prog := range []string{"iptables-legacy-save", "ip6tables-legacy-save"} {
				if out := hosttest.Run(t, prog); strings.Contains(out, "FAIRLEAD") {
					t.Errorf("%s:\n%s", prog, out)
				}
			}
			if out := hosttest.Run(t, "ip", "rule") + hosttest.Run(t, "ip", "-6", "rule") + hosttest.Run(t, "ip", "route", "show", "table", "all") + hosttest.Run(t, "ip", "link"); strings.Contains(out, "9650") ||
				strings.Contains(out, Device) || strings.Contains(out, "proto 102") {
				t.Errorf("left:\n%s", out)
			}
			if sets, err := n.sets.List(t.Context(), "FAIRLEAD"); len(sets) > 0 || err != nil {
				t.Errorf("left %v, %v", sets, err)
			}
		})
	}
}

// pod makes a network namespace behind the node, with an address and a default route to the node.
func (n *node) pod(name, addr string) (ns string) {
	n.t.Helper()
	ns = fmt.Sprintf("fl-%d-%s", os.Getpid(), name)
	hosttest.Run(n.t, "ip", "netns", "add", ns)
	n.t.Cleanup(func() { hosttest.Run(n.t, "ip", "netns", "del", ns) })
	in := func(args ...string) { hosttest.Run(n.t, "ip", append([]string{"-n", ns}, args...)...) }
	hosttest.Run(n.t, "ip", "link", "add", "v"+name, "type", "veth", "peer", "name", "eth0", "netns", ns)
	hosttest.Run(n.t, "ip", "link", "set", "v"+name, "up")
	hosttest.Run(n.t, "ip", "addr", "add", "10.0.0.1/32", "dev", "v"+name)
	hosttest.Run(n.t, "ip", "route", "add", addr, "dev", "v"+name)
	in("addr", "add", addr+"/32", "dev", "eth0")
	in("link", "set", "eth0", "up")
	in("link", "set", "lo", "up")
	in("route", "add", "10.0.0.1", "dev", "eth0")
	in("route", "add", "default", "via", "10.0.0.1")
	return ns
}

// within runs a function in a namespace. What it opens stays there.
func within(t testing.TB, ns string, f func()) {
	t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never again: the thread ends with the goroutine
		file, err := os.Open("/run/netns/" + ns)
		if err == nil {
			err = unix.Setns(int(file.Fd()), unix.CLONE_NEWNET)
			file.Close()
		}
		if err == nil {
			f()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// serve answers each line with the server's name.
func serve(t testing.TB, ns, name, addr string) {
	t.Helper()
	var l net.Listener
	var err error
	within(t, ns, func() { l, err = net.Listen("tcp4", addr) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				for s := bufio.NewScanner(c); s.Scan(); {
					fmt.Fprintln(c, name)
				}
			}()
		}
	}()
}

// dial connects from a namespace.
func dial(t testing.TB, ns, addr string) (c net.Conn, err error) {
	t.Helper()
	within(t, ns, func() { c, err = net.DialTimeout("tcp4", addr, 5*time.Second) })
	if err == nil {
		t.Cleanup(func() { c.Close() })
	}
	return c, err
}

// ask returns the name of the server, or what went wrong.
func ask(c net.Conn) string {
	if err := c.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return err.Error()
	}
	if _, err := fmt.Fprintln(c, "?"); err != nil {
		return err.Error()
	}
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(line)
}

// The address of a Service that is gone stays as --ipvs-vip=address made it, until its connection
// has ended after the change to another way. When it goes, the last one of its device, the other
// Services are still reached in the new way.
func TestKernelChangeOfVIPMode(t *testing.T) {
	for _, mode := range []VIPMode{VIPRoute, VIPMark} {
		t.Run(mode.String(), func(t *testing.T) {
			n := newNode(t, VIPAddress)
			now := time.Now()
			client := n.pod("c", "10.0.0.9")
			serve(t, n.pod("a", "10.0.0.2"), "a", "10.0.0.2:8080")
			n.put(web.with(ep("10.0.0.2:8080", 0)).fragment())
			gone := service{name: "gone", vip: "10.96.0.11", endpoints: []fwd.Endpoint{ep("10.0.0.2:8080", 0)}}
			n.put(gone.fragment())
			n.apply()
			connect := func(vip string) net.Conn {
				t.Helper()
				c, err := dial(t, client, vip)
				if err != nil {
					t.Fatal(err)
				}
				return c
			}
			old := connect("10.96.0.11:80")
			n.backend.Update(n.table.Remove(gone.owner()))
			n.apply()

			for f, o := range n.opts {
				o.VIPs, o.Now = mode, func() time.Time { return now }
				n.opts[f] = o
			}
			n.restart()
			n.apply()
			n.backend.Tend(t.Context(), now)
			n.idle()
			if got := ask(old); got != "a" {
				t.Errorf("the open connection: %q", got)
			}
			if out := hosttest.Run(t, "ip", "addr", "show", Device); !strings.Contains(out, "10.96.0.11/32") || strings.Contains(out, "10.96.0.10/32") {
				t.Errorf("want the address of the Service that is gone and no other: %s", out)
			}
			connect("10.96.0.10:80").Close()

			now = now.Add(15 * time.Minute) // as if its time were up
			n.backend.Tend(t.Context(), now)
			if out := hosttest.Run(t, "ip", "addr", "show", Device); strings.Contains(out, "inet ") {
				t.Errorf("an address is left: %s", out)
			}
			if got := ask(connect("10.96.0.10:80")); got != "a" {
				t.Errorf("afterwards: %q", got)
			}
			n.idle()
		})
	}
}

// Connections outlive their endpoint's place in the pool and their Service; new ones go elsewhere;
// a weight that changes and an endpoint that comes back do them no harm; in the end they are cut.
func TestKernelDrain(t *testing.T) {
	for _, mode := range []VIPMode{VIPAddress, VIPRoute, VIPMark} {
		t.Run(mode.String(), func(t *testing.T) {
			n := newNode(t, mode)
			now := time.Now()
			o := n.opts[fwd.IPv4]
			o.Now = func() time.Time { return now }
			n.opts[fwd.IPv4] = o
			n.restart()
			client := n.pod("c", "10.0.0.9")
			serve(t, n.pod("a", "10.0.0.2"), "a", "10.0.0.2:8080")
			serve(t, n.pod("b", "10.0.0.3"), "b", "10.0.0.3:8080")
			a, b := ep("10.0.0.2:8080", 1), ep("10.0.0.3:8080", 2)
			put := func(eps ...fwd.Endpoint) { n.put(web.with(eps...).fragment()); n.apply() }
			const vip = "10.96.0.10:80"
			connect := func(want string) net.Conn {
				t.Helper()
				c, err := dial(t, client, vip)
				if err != nil {
					t.Fatal(err)
				}
				if got := ask(c); got != want {
					t.Fatalf("connected to %q, want %q", got, want)
				}
				return c
			}
			still := func(c net.Conn, want string) {
				t.Helper()
				if got := ask(c); got != want {
					t.Fatalf("the connection to %s: %q", want, got)
				}
			}

			put(a)
			toA := connect("a")
			put(b)
			still(toA, "a")
			toB := connect("b")
			n.idle()

			put(a, b) // a comes back
			still(toA, "a")
			heavy := a
			heavy.Weight = 7
			put(heavy, b)
			still(toA, "a")
			still(toB, "b")
			put(b)
			n.idle()
			if d := n.backend.Draining()[0]; d.Count[DrainRemoved] != 1 || d.Connections != 1 {
				t.Errorf("%+v", d)
			}
			if got, err := DrainingAt(t.Context(), fwd.TCP, webV.Addr); err != nil || len(got) != 1 || got[0].Addr != one || got[0].Active != 1 {
				t.Errorf("seen from outside: %+v, %v", got, err)
			}

			n.backend.Update(n.table.Remove(web.owner()))
			n.apply()
			still(toA, "a")
			still(toB, "b")
			if c, err := dial(t, client, vip); err == nil {
				t.Errorf("a new connection to a Service that is gone: %q", ask(c))
			}
			n.idle()
			n.restart() // a new process goes on with it
			n.apply()
			still(toB, "b")
			n.idle()

			put(b) // the Service comes back
			still(toA, "a")
			still(toB, "b")
			connect("b").Close()

			now = now.Add(15 * time.Minute)
			n.backend.Tend(t.Context(), now)
			still(toB, "b")
			if got := ask(toA); got == "a" {
				t.Error("a connection outlives the bound")
			}
			if d := n.backend.Draining()[0]; d != (Draining{}) {
				t.Errorf("still drains: %+v", d)
			}
			n.idle()
		})
	}
}

func TestKernelManyServices(t *testing.T) {
	n := newNode(t, VIPAddress)
	const services = 5000
	for i := range services {
		f := dualFragment(i, fwd.TCP, 2)
		f.Frontends = f.Frontends[:2] // node port and cluster IP
		f.Pools = f.Pools[:1]
		n.put(f)
	}
	n.apply()
	n.idle()
	c, err := n.servers.List(t.Context())
	if err != nil || len(c.Servers) != services {
		t.Errorf("%d virtual servers, %v", len(c.Servers), err)
	}
	n.restart()
	n.idle()
	if err := n.backend.Cleanup(t.Context()); err != nil {
		t.Fatal(err)
	}
	if c, err := n.servers.List(t.Context()); err != nil || len(c.Servers) != 0 {
		t.Errorf("%d virtual servers left, %v", len(c.Servers), err)
	}
}

// Open makes a kernel ready that has nothing of it yet, says what is missing, and hears of losses.
func TestKernelOpen(t *testing.T) {
	n := newNode(t, VIPAddress)
	hosttest.Run(t, "ip", "link", "add", "eth0", "type", "dummy")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	log := FamilyOptions{}.withDefaults().Logger
	if _, err := Open(ctx, log, Options{Scheduler: "nosuch"}); err == nil || !strings.Contains(err.Error(), "ip_vs_nosuch") || !strings.Contains(err.Error(), "--ipvs-scheduler") {
		t.Errorf("got %v", err)
	}
	p, err := Open(ctx, log, Options{NodeName: "n", Scheduler: "wrr", Timeouts: hostipvs.Timeouts{TCP: time.Hour}})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := n.servers.Timeouts(ctx); got.TCP != time.Hour || err != nil {
		t.Errorf("timeouts %v, %v", got, err)
	}
	h := fwd.Header{MasqueradeBit: 14}
	p.Update(n.table.SetHeader(h))
	p.Update(n.table.Put(web.fragment()))
	if _, err := p.Observe(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Apply(ctx); err != nil {
		t.Fatal(err)
	}
	select {
	case <-p.Drift: // of the probes
	default:
	}
	hosttest.Run(t, "ip", "addr", "del", "10.96.0.10/32", "dev", Device)
	select {
	case <-p.Drift:
	case <-time.After(hosttest.Patience):
		t.Fatal("no hint for a removed address")
	}
	if n, err := p.Observe(ctx); n != 1 || err != nil {
		t.Errorf("%d objects differ, %v", n, err)
	}
	if _, err := p.Apply(ctx); err != nil {
		t.Fatal(err)
	}
	if out, _ := exec.Command("ip", "addr", "show", Device).CombinedOutput(); !strings.Contains(string(out), "10.96.0.10/32") {
		t.Errorf("not repaired:\n%s", out)
	}
	out := hosttest.Run(t, "iptables-legacy-save") + fmt.Sprint(n.sets.List(ctx, probeName))
	if strings.Contains(out, probeName) {
		t.Errorf("probes are left:\n%s", out)
	}
}

// BenchmarkKernel writes to a real kernel: everything, and one changed endpoint among few and many
// Services.
func BenchmarkKernel(b *testing.B) {
	load := func(b *testing.B, services, endpoints int) *node {
		n := newNode(b, VIPAddress)
		for i := range services {
			f := dualFragment(i, fwd.TCP, endpoints)
			f.Frontends, f.Pools = f.Frontends[1:2], f.Pools[:1]
			n.put(f)
		}
		return n
	}
	b.Run("cold/services=1000/endpoints=10", func(b *testing.B) {
		for range b.N {
			b.StopTimer()
			n := load(b, 1000, 10)
			b.StartTimer()
			n.apply()
			b.StopTimer()
			if err := n.backend.Cleanup(b.Context()); err != nil {
				b.Fatal(err)
			}
		}
	})
	for _, services := range []int{100, 5000} {
		b.Run(fmt.Sprintf("one endpoint/services=%d", services), func(b *testing.B) {
			n := load(b, services, 10)
			n.apply()
			for i := 0; b.Loop(); i++ {
				f := dualFragment(0, fwd.TCP, 9+i%2)
				f.Frontends, f.Pools = f.Frontends[1:2], f.Pools[:1]
				n.put(f)
				n.apply()
			}
			b.StopTimer()
			if err := n.backend.Cleanup(b.Context()); err != nil {
				b.Fatal(err)
			}
		})
	}
}

package ipvs_test

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/moby/ipvs"
	library "github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/internal/host/hosttest"
	. "github.com/fairlead/fairlead/internal/host/ipvs"
	"github.com/fairlead/fairlead/internal/host/ipvs/ipvsfake"
)

// openKernel gives a test a network namespace and its IPVS.
func openKernel(tb testing.TB) *Kernel {
	tb.Helper()
	hosttest.Need(tb, hosttest.IPVS)
	hosttest.Netns(tb)
	k, err := Open(tb.Context())
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := k.Close(); err != nil {
			tb.Error(err)
		}
	})
	return k
}

func apply(tb testing.TB, x Interface, ops ...Op) {
	tb.Helper()
	for _, err := range x.Apply(tb.Context(), ops) {
		if err != nil {
			tb.Fatal(err)
		}
	}
}

func read(tb testing.TB, x Interface) Content {
	tb.Helper()
	c, err := x.Read(tb.Context())
	if err != nil {
		tb.Fatal(err)
	}
	return c
}

// same compares two Contents.
func same(tb testing.TB, got, want Content) {
	tb.Helper()
	diff := cmp.Diff(want, got, cmpopts.EquateEmpty(), cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b }))
	if diff != "" {
		tb.Fatalf("(-want +got):\n%s", diff)
	}
}

func TestKernelOpen(t *testing.T) {
	hosttest.Netns(t)
	k, err := Open(t.Context())
	switch {
	case err == nil:
		if err := k.Close(); err != nil {
			t.Error(err)
		}
	case !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "modprobe ip_vs"):
		t.Errorf("got %v", err)
	}
}

func TestKernelRoundTrip(t *testing.T) {
	k, f := openKernel(t), &ipvsfake.Table{}
	ops := Everything()
	apply(t, f, ops...)
	apply(t, k, ops...)
	got := read(t, k)
	same(t, got, read(t, f))
	if text := ipvsfake.Format(got); text != f.Dump() {
		t.Errorf("got\n%s", text)
	}
	list, err := k.List(t.Context())
	if err != nil || len(list.Servers) != len(got.Servers) {
		t.Fatalf("%d virtual servers, %v", len(list.Servers), err)
	}
	for i, s := range got.Servers {
		reals, err := k.RealServers(t.Context(), s.VirtualServer)
		if err != nil || !slices.Equal(reals, s.Reals) {
			t.Errorf("%v: the table says %v, the kernel %v, %v", s.VirtualServer, s.Reals, reals, err)
		}
		if l := list.Servers[i]; l.VirtualServer != s.VirtualServer || l.Settings != s.Settings || l.Reals != nil {
			t.Errorf("listed %v, read %v", l, s)
		}
	}
	if _, err := k.RealServers(t.Context(), VirtualServer{Protocol: unix.IPPROTO_TCP, Addr: AP("10.99.0.1:1")}); !errors.Is(err, unix.ESRCH) {
		t.Errorf("real servers of nothing: %v", err)
	}
}

func TestKernelErrorsInTheMiddle(t *testing.T) {
	k := openKernel(t)
	v, w := VirtualServer{Protocol: unix.IPPROTO_TCP, Addr: AP("10.96.0.1:443")}, VirtualServer{Protocol: unix.IPPROTO_TCP, Addr: AP("10.96.0.2:443")}
	r := RealServer{Addr: AP("10.0.0.1:8443"), Weight: 1}
	errs := k.Apply(t.Context(), []Op{
		{Verb: AddServer, Server: v, Settings: Settings{Scheduler: "rr"}},
		{Verb: AddServer, Server: v, Settings: Settings{Scheduler: "rr"}},
		{Verb: AddServer, Server: w, Settings: Settings{Scheduler: "nope"}},
		{Verb: AddReal, Server: v, Real: r},
		{Verb: AddReal, Server: v, Real: r},
		{Verb: SetReal, Server: v, Real: RealServer{Addr: AP("10.0.0.9:1")}},
		{Verb: SetReal, Server: v},
		{Verb: DelReal, Server: w, Real: r},
		{Verb: SetReal, Server: v, Real: RealServer{Addr: r.Addr, Weight: 70000}},
	})
	want := []error{nil, unix.EEXIST, unix.ENOENT, nil, unix.EEXIST, unix.ENOENT, unix.EINVAL, unix.ESRCH, nil}
	if len(errs) != len(want) {
		t.Fatalf("got %v", errs)
	}
	for i := range want {
		if !errors.Is(errs[i], want[i]) {
			t.Errorf("operation %d: got %v, want %v", i, errs[i], want[i])
		}
	}
	if text := fmt.Sprint(errs[2]); text != "new virtual server tcp 10.96.0.2:443 with scheduler nope: no such file or directory" {
		t.Errorf("got %s", text)
	}
	if text := ipvsfake.Format(read(t, k)); text != "-A -t 10.96.0.1:443 -s rr\n-a -t 10.96.0.1:443 -r 10.0.0.1:8443 -m -w 70000\n" {
		t.Errorf("got %s", text)
	}
}

// TestKernelAsFake carries out random operations on both, which must agree about each.
func TestKernelAsFake(t *testing.T) {
	k, f := openKernel(t), &ipvsfake.Table{}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	pick := func(s ...string) netip.AddrPort { return AP(s[rnd.IntN(len(s))]) }
	for round := range 40 {
		ops := make([]Op, 50)
		for i := range ops {
			ops[i] = Op{
				Verb: Verb(rnd.IntN(int(DelReal) + 2)),
				Server: VirtualServer{
					Protocol: []uint8{unix.IPPROTO_TCP, unix.IPPROTO_UDP, unix.IPPROTO_SCTP, unix.IPPROTO_ICMP}[min(rnd.IntN(10), 3)%4],
					Addr:     pick("10.96.0.1:80", "10.96.0.2:0", "[fd00::1]:80", "[fd00::1]:0"),
				},
				Settings: Settings{
					Scheduler:  []string{"rr", "sh", "mh", "wlc", "nope", ""}[rnd.IntN(6)],
					Flags:      Flags(rnd.IntN(64)) &^ (Hashed * Flags(min(1, rnd.IntN(10)))),
					TimeoutSec: uint32(rnd.IntN(3)),
					Prefix:     int8(rnd.IntN(130) - 1),
				},
				Real: RealServer{
					Addr: pick("10.0.0.1:80", "10.0.0.2:80", "10.0.0.2:0", "[fd01::1]:80", "[::ffff:10.0.0.1]:80", "0.0.0.0:1", "224.0.0.1:1",
						"255.255.255.255:1", "[::]:1", "[ff02::1]:1", "[fe80::1]:1"),
					Method: Method(rnd.IntN(5)),
					Weight: []uint32{0, 1, 70000, MaxWeight, MaxWeight + 1, ^uint32(0)}[rnd.IntN(6)],
				},
			}
			if rnd.IntN(2) == 0 {
				ops[i].Settings.Prefix = 0
			}
		}
		want, got := f.Apply(t.Context(), ops), k.Apply(t.Context(), ops)
		for i, op := range ops {
			var w, g unix.Errno
			if want != nil {
				errors.As(want[i], &w)
			}
			if got != nil {
				errors.As(got[i], &g)
			}
			if w != g {
				t.Errorf("round %d: %v %+v: the fake says %v, the kernel %v", round, op, op, w, g)
			}
		}
		same(t, read(t, k), read(t, f))
	}
}

func TestKernelLarge(t *testing.T) {
	k, f := openKernel(t), &ipvsfake.Table{}
	ops := Large(5000)
	apply(t, f, ops...)
	apply(t, k, ops...)
	same(t, read(t, k), read(t, f))

	// All of it once more: an error for each, of which none gets lost.
	errs := k.Apply(t.Context(), ops)
	if len(errs) != len(ops) {
		t.Fatalf("%d errors", len(errs))
	}
	for i, err := range errs {
		if e := (*Error)(nil); !errors.As(err, &e) || e.Op != ops[i] || !errors.Is(err, unix.EEXIST) {
			t.Fatalf("operation %d: %v", i, err)
		}
	}
	var away []Op
	for _, op := range ops {
		if op.Verb == AddServer {
			away = append(away, Op{Verb: DelServer, Server: op.Server})
		}
	}
	apply(t, k, away...)
	same(t, read(t, k), Content{})
}

// TestKernelOtherNamespace reads while another network namespace has virtual servers in the
// kernel's one table.
func TestKernelOtherNamespace(t *testing.T) {
	ops := Large(1000)
	k, f := openKernel(t), &ipvsfake.Table{}
	apply(t, f, ops...)
	apply(t, k, ops...)
	t.Run("of two", func(t *testing.T) {
		other := openKernel(t)
		apply(t, other, ops...)
		same(t, read(t, other), read(t, f))
		same(t, read(t, k), read(t, f))
	})
}

// TestKernelForeign reads what other programs write and we do not.
func TestKernelForeign(t *testing.T) {
	k := openKernel(t)
	l, err := ipvs.New("")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	mark := func(family uint16, mark uint32, real string) {
		s := &ipvs.Service{FWMark: mark, AddressFamily: family, SchedName: "rr", Netmask: ^uint32(0)}
		if family == unix.AF_INET6 {
			s.Netmask = 128
		}
		d := &ipvs.Destination{Address: net.ParseIP(real), Port: 80, Weight: 1, AddressFamily: family}
		if err := errors.Join(l.NewService(s), l.NewDestination(s, d)); err != nil {
			t.Fatal(err)
		}
	}
	mark(unix.AF_INET6, 7, "fd01::1")
	mark(unix.AF_INET, 0xffffffff, "10.0.0.1")
	mark(unix.AF_INET, 7, "10.0.0.1")
	odd := &ipvs.Service{
		Address: net.ParseIP("10.96.0.1"), Port: 80, Protocol: unix.IPPROTO_TCP, AddressFamily: unix.AF_INET,
		SchedName: "rr", Flags: uint32(Persistent), Timeout: 5,
	}
	other := *odd
	other.Protocol, other.Netmask, other.Flags = 99, ^uint32(0), uint32(OnePacket)
	if err := errors.Join(l.NewService(odd), l.NewService(&other)); err != nil {
		t.Fatal(err)
	}
	want := Content{
		Servers: []Server{
			{VirtualServer: VirtualServer{Protocol: unix.IPPROTO_TCP, Addr: AP("10.96.0.1:80")},
				Settings: Settings{Scheduler: "rr", Flags: Persistent, TimeoutSec: 5, Prefix: OddPrefix}},
			{VirtualServer: VirtualServer{Protocol: 99, Addr: AP("10.96.0.1:80")}, Settings: Settings{Scheduler: "rr", Flags: OnePacket, TimeoutSec: 5}},
		},
	}
	same(t, read(t, k), want)
}

func TestKernelTimeouts(t *testing.T) {
	k, f := openKernel(t), &ipvsfake.Table{}
	for _, set := range []Timeouts{{}, {TCP: time.Hour}, {UDP: 7 * time.Second, TCPFin: 3 * time.Minute}, {TCP: MaxTimeout}, {TCP: -1}, {UDP: time.Millisecond}, {UDP: MaxTimeout + time.Second}} {
		errK, errF := k.SetTimeouts(t.Context(), set), f.SetTimeouts(t.Context(), set)
		if (errK == nil) != (errF == nil) {
			t.Errorf("%v: kernel %v, fake %v", set, errK, errF)
		}
		got, err := k.Timeouts(t.Context())
		want, _ := f.Timeouts(t.Context())
		if err != nil || got != want {
			t.Errorf("after %v: got %v, %v; want %v", set, got, err, want)
		}
	}
}

func TestKernelProbe(t *testing.T) {
	k := openKernel(t)
	v := VirtualServer{Protocol: unix.IPPROTO_TCP, Addr: AP("198.51.100.0:20000")}
	apply(t, k, Op{Verb: AddServer, Server: v, Settings: Settings{Scheduler: "rr"}})
	for _, name := range ipvsfake.Schedulers {
		if err := k.ProbeScheduler(t.Context(), name); err != nil {
			t.Error(err)
		}
	}
	if err := k.ProbeScheduler(t.Context(), "nope"); !errors.Is(err, unix.ENOENT) {
		t.Errorf("got %v", err)
	}
	if text := ipvsfake.Format(read(t, k)); text != "-A -t 198.51.100.0:20000 -s rr\n" {
		t.Errorf("left:\n%s", text)
	}
	if n, err := k.ConnTableSize(t.Context()); err != nil || n < 256 || n&(n-1) != 0 {
		t.Errorf("%d buckets, %v", n, err)
	}
}

// TestKernelConcurrent reads while another goroutine writes.
func TestKernelConcurrent(t *testing.T) {
	k := openKernel(t)
	ops := Large(100)
	apply(t, k, ops...)
	done := make(chan struct{})
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				c, err := k.Read(t.Context())
				if err != nil || len(c.Servers) < 100 {
					t.Errorf("%d virtual servers, %v", len(c.Servers), err)
				}
				if r, err := k.RealServers(t.Context(), ops[0].Server); err != nil || len(r) < 4 {
					t.Errorf("%v, %v", r, err)
				}
				if _, err := k.Timeouts(t.Context()); err != nil {
					t.Error(err)
				}
			}
		})
	}
	last := ops[1]
	for range 200 {
		for _, verb := range []Verb{DelReal, AddReal} {
			last.Verb = verb
			if errs := k.Apply(t.Context(), []Op{last}); errs != nil {
				t.Error(errs)
			}
		}
	}
	close(done)
	wg.Wait()
}

// TestKernelTraffic counts connections to a server in another network namespace.
func TestKernelTraffic(t *testing.T) {
	k := openKernel(t)
	server := otherNetns(t)
	v := VirtualServer{Protocol: unix.IPPROTO_TCP, Addr: AP("10.96.0.1:80")}
	r := RealServer{Addr: AP("10.0.0.2:8080"), Weight: 70000}
	apply(t, k, Op{Verb: AddServer, Server: v, Settings: Settings{Scheduler: "wrr"}}, Op{Verb: AddReal, Server: v, Real: r})
	dial := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(10, 0, 0, 1)}}
	const conns, size = 3, 1000
	for range conns {
		c, err := dial.DialContext(t.Context(), "tcp", v.Addr.String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		s, err := server.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		if _, err := c.Write(make([]byte, size)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(s, make([]byte, size)); err != nil {
			t.Fatal(err)
		}
	}
	reals, err := k.RealServers(t.Context(), v)
	if err != nil || len(reals) != 1 || reals[0] != (RealState{RealServer: r, Active: conns}) {
		t.Errorf("got %+v, %v", reals, err)
	}
	c := read(t, k)
	if !slices.Equal(c.Servers[0].Reals, reals) {
		t.Errorf("the table says %+v, the kernel %+v", c.Servers[0].Reals, reals)
	}
	// Weight 0 keeps what is there.
	r.Weight = 0
	apply(t, k, Op{Verb: SetReal, Server: v, Real: r})
	if reals, err := k.RealServers(t.Context(), v); err != nil || reals[0] != (RealState{RealServer: r, Active: conns}) {
		t.Errorf("with weight 0: %+v, %v", reals, err)
	}
}

// otherNetns links the namespace of this goroutine, 10.0.0.1, to a new one, 10.0.0.2, in which it
// listens on port 8080. It makes 10.96.0.1 an address of this one.
func otherNetns(t *testing.T) net.Listener {
	t.Helper()
	ns := make(chan int)
	listen := make(chan struct{})
	type result struct {
		l   net.Listener
		err error
	}
	results := make(chan result)
	go func() {
		runtime.LockOSThread() // the thread, and the namespace, ends with the goroutine
		fd := -1
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			fd, err = unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		}
		ns <- fd
		<-listen
		if err == nil {
			err = addAddress("peer", "10.0.0.2/24")
		}
		var l net.Listener
		if err == nil {
			l, err = net.Listen("tcp4", "10.0.0.2:8080")
		}
		results <- result{l, err}
	}()
	fd := <-ns
	link := &library.Veth{LinkAttrs: library.LinkAttrs{Name: "v"}, PeerName: "peer", PeerNamespace: library.NsFd(fd)}
	err := library.LinkAdd(link)
	if err == nil {
		err = errors.Join(addAddress("v", "10.0.0.1/24"), addAddress("lo", "10.96.0.1/32"), unix.Close(fd))
	}
	close(listen)
	r := <-results
	if err := errors.Join(err, r.err); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.l.Close() })
	return r.l
}

func addAddress(link, addr string) error {
	l, err := library.LinkByName(link)
	if err != nil {
		return err
	}
	a, err := library.ParseAddr(addr)
	if err != nil {
		return err
	}
	return errors.Join(library.AddrAdd(l, a), library.LinkSetUp(l))
}

// BenchmarkKernelAddReals adds 5,000 real servers to 1,000 virtual servers, in batches and one by
// one with the library.
func BenchmarkKernelAddReals(b *testing.B) {
	ops := Large(1000)
	servers := slices.DeleteFunc(slices.Clone(ops), func(op Op) bool { return op.Verb != AddServer })
	reals := slices.DeleteFunc(slices.Clone(ops), func(op Op) bool { return op.Verb != AddReal })
	var batch, single time.Duration
	for b.Loop() {
		b.StopTimer()
		// A namespace each: deleted real servers would make it slower to add others.
		k := openKernel(b)
		apply(b, k, servers...)
		b.StartTimer()
		begin := time.Now()
		apply(b, k, reals...)
		batch += time.Since(begin)
		b.StopTimer()
		k = openKernel(b)
		apply(b, k, servers...)
		l, err := ipvs.New("")
		if err != nil {
			b.Fatal(err)
		}
		begin = time.Now()
		for _, op := range reals {
			s := &ipvs.Service{
				Address: op.Server.Addr.Addr().AsSlice(), Port: op.Server.Addr.Port(), Protocol: uint16(op.Server.Protocol), AddressFamily: unix.AF_INET,
				SchedName: "rr", Flags: uint32(Sched3), Netmask: ^uint32(0),
			}
			d := &ipvs.Destination{Address: op.Real.Addr.Addr().AsSlice(), Port: op.Real.Addr.Port(), Weight: int(op.Real.Weight), AddressFamily: unix.AF_INET}
			if err := l.NewDestination(s, d); err != nil {
				b.Fatal(err)
			}
		}
		single += time.Since(begin)
		l.Close()
		b.StartTimer()
	}
	n := float64(b.N * len(reals))
	b.ReportMetric(float64(batch.Microseconds())/n, "µs/real")
	b.ReportMetric(float64(single.Microseconds())/n, "µs/real-library")
	b.ReportMetric(float64(single)/float64(batch), "library/batch")
}

// BenchmarkKernelRead reads 5,000 virtual servers with 25,000 real servers.
func BenchmarkKernelRead(b *testing.B) {
	k := openKernel(b)
	apply(b, k, Large(5000)...)
	for b.Loop() {
		if c, err := k.Read(b.Context()); err != nil || len(c.Servers) != 5000 {
			b.Fatal(len(c.Servers), err)
		}
	}
}

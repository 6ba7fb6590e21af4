package localport

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/fairlead/fairlead/internal/fwd"
	"github.com/fairlead/fairlead/internal/host/hosttest"
)

// journal is a log that can be read while it is written.
type journal struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (j *journal) Write(b []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.text.Write(b)
}

// count says how many lines hold the text.
func (j *journal) count(text string) int {
	j.mu.Lock()
	defer j.mu.Unlock()
	return strings.Count(j.text.String(), text)
}

// node is a Forwarder that runs.
type node struct {
	*Forwarder
	t    *testing.T
	log  *journal
	done chan struct{} // one for each time that Run has taken targets
	stop func()
}

func start(t *testing.T, o Options, tune func(*Forwarder)) *node {
	t.Helper()
	n := &node{t: t, log: &journal{}, done: make(chan struct{}, 1000)}
	o.Logger = slog.New(slog.NewTextHandler(n.log, nil))
	o.Families = [2]bool{true, true}
	n.Forwarder = New(o)
	n.settled = func(taken int) {
		if taken > 0 {
			n.done <- struct{}{}
		}
	}
	if tune != nil {
		tune(n.Forwarder)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { n.Run(ctx); close(ended) }()
	n.stop = func() { cancel(); <-ended }
	t.Cleanup(n.stop)
	return n
}

// put hands over a Service with one node port and waits until its listener is as it should be.
func (n *node) put(port uint16, affinitySec uint32, eps ...netip.AddrPort) {
	n.t.Helper()
	n.Update(fwd.Changes{Services: []fwd.ServiceChange{{New: service(port, affinitySec, eps...)}}})
	n.Sync()
	<-n.done
}

// service makes a fragment with a node port of the family of its endpoints, IPv4 if it has none.
func service(port uint16, affinitySec uint32, eps ...netip.AddrPort) *fwd.Fragment {
	owner := fwd.ServicePort{Service: fwd.Service{Namespace: "d", Name: fmt.Sprint(port)}, Proto: fwd.TCP}
	fam, route := fwd.IPv4, fwd.Route{Action: fwd.Reject}
	f := &fwd.Fragment{Owner: owner.Service}
	if len(eps) > 0 {
		fam, route = fwd.FamilyOf(eps[0].Addr()), fwd.Route{Action: fwd.Forward}
		pool := fwd.Pool{Key: fwd.PoolKey{Port: owner, Family: fam}, AffinitySec: affinitySec}
		for _, a := range slices.SortedFunc(slices.Values(eps), netip.AddrPort.Compare) {
			pool.Endpoints = append(pool.Endpoints, fwd.Endpoint{Addr: a, Weight: 1})
		}
		f.Pools = []fwd.Pool{pool}
	}
	f.Frontends = []fwd.Frontend{{
		Key: fwd.Key{Family: fam, Proto: fwd.TCP, Port: port}, Kind: fwd.NodePort, Owner: owner,
		Routes: [fwd.NumClasses]fwd.Route{route, route, route},
	}}
	return f
}

func addrOf(l *net.TCPListener) netip.AddrPort { return l.Addr().(*net.TCPAddr).AddrPort() }

// freePort returns a port on which only the caller listens.
func freePort(t *testing.T, fam fwd.Family) uint16 {
	t.Helper()
	return hosttest.Port(t, loopback[fam.Index()])
}

// endpoint answers each connection, when the client has ended its direction, with name and what it
// was sent.
func endpoint(t *testing.T, fam fwd.Family, name string) netip.AddrPort {
	t.Helper()
	return endpointFunc(t, fam, func(c *net.TCPConn) {
		got, err := io.ReadAll(c)
		if err == nil {
			fmt.Fprintf(c, "%s:%s", name, got)
		}
	})
}

func endpointFunc(t *testing.T, fam fwd.Family, do func(*net.TCPConn)) netip.AddrPort {
	t.Helper()
	l := hosttest.Listen(t, loopback[fam.Index()])
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.AcceptTCP()
			if err != nil {
				return
			}
			wg.Go(func() { defer c.Close(); do(c) })
		}
	})
	t.Cleanup(func() { l.Close(); wg.Wait() })
	return addrOf(l)
}

// dial connects. Nothing here has a deadline of its own: how long it may take is for who runs the
// tests to say.
func dial(t *testing.T, fam fwd.Family, port uint16) *net.TCPConn {
	t.Helper()
	c, err := net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(netip.AddrPortFrom(loopback[fam.Index()], port)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func send(t *testing.T, c *net.TCPConn, text string) {
	t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
}

// finish ends the client's direction and returns what it is answered.
func finish(t *testing.T, c *net.TCPConn) string {
	t.Helper()
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(c)
	if err != nil {
		t.Fatal(err)
	}
	return string(got)
}

func ask(t *testing.T, fam fwd.Family, port uint16, text string) string {
	t.Helper()
	c := dial(t, fam, port)
	send(t, c, text)
	return finish(t, c)
}

func wantRefused(t *testing.T, fam fwd.Family, port uint16) {
	t.Helper()
	c, err := net.Dial("tcp", netip.AddrPortFrom(loopback[fam.Index()], port).String())
	if err == nil {
		c.Close()
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("port %d: got %v, want a refusal", port, err)
	}
}

func wantReset(t *testing.T, c *net.TCPConn) {
	t.Helper()
	if _, err := io.Copy(io.Discard, c); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("got %v, want a reset", err)
	}
}

// wantNoService connects and wants a reset, which may come before the client has seen that it is
// connected.
func wantNoService(t *testing.T, d net.Dialer, port uint16) {
	t.Helper()
	c, err := d.Dial("tcp", netip.AddrPortFrom(loopback[0], port).String())
	if err == nil {
		defer c.Close()
		_, err = io.Copy(io.Discard, c)
	}
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("got %v, want a reset", err)
	}
}

func TestForward(t *testing.T) {
	for _, fam := range fwd.Families {
		t.Run(fam.String(), func(t *testing.T) {
			n := start(t, Options{}, nil)
			port := freePort(t, fam)
			wantRefused(t, fam, port)
			n.put(port, 0, endpoint(t, fam, "a"))
			if got := ask(t, fam, port, "hello"); got != "a:hello" {
				t.Errorf("got %q", got)
			}
			big := strings.Repeat("0123456789abcdef", 1<<17)
			if got := ask(t, fam, port, big); got != "a:"+big {
				t.Errorf("%d bytes came back of %d", len(got), len(big)+2)
			}
			n.stop()
			var want Stats
			want.Accepted[fam.Index()] = 2
			if diff := cmp.Diff(want, n.Stats()); diff != "" {
				t.Errorf("stats (-want +got):\n%s", diff)
			}
			wantRefused(t, fam, port)
		})
	}
}

// TestServerEndsFirst lets the endpoint end its direction while the client still sends.
func TestServerEndsFirst(t *testing.T) {
	got := make(chan string, 1)
	n := start(t, Options{}, nil)
	port := freePort(t, fwd.IPv4)
	n.put(port, 0, endpointFunc(t, fwd.IPv4, func(c *net.TCPConn) {
		io.WriteString(c, "bye")
		c.CloseWrite()
		text, err := io.ReadAll(c)
		got <- fmt.Sprintf("%s %v", text, err)
	}))
	c := dial(t, fwd.IPv4, port)
	if text, err := io.ReadAll(c); string(text) != "bye" || err != nil {
		t.Errorf("the client got %q, %v", text, err)
	}
	send(t, c, "still here")
	c.Close()
	if text := <-got; text != "still here <nil>" {
		t.Errorf("the endpoint got %s", text)
	}
}

func TestConnectionsOutliveEndpointAndListener(t *testing.T) {
	greeting := func(name string) netip.AddrPort {
		return endpointFunc(t, fwd.IPv4, func(c *net.TCPConn) { io.WriteString(c, name); io.Copy(c, c) })
	}
	n := start(t, Options{}, nil)
	port := freePort(t, fwd.IPv4)
	connect := func(want string) *net.TCPConn {
		c := dial(t, fwd.IPv4, port)
		got := make([]byte, 1)
		if _, err := io.ReadFull(c, got); err != nil || string(got) != want {
			t.Fatalf("got %q, %v, want %q", got, err, want)
		}
		return c
	}
	n.put(port, 0, greeting("a"))
	first := connect("a")
	n.put(port, 0, greeting("b"))
	second := connect("b")
	n.put(port, 0)
	wantRefused(t, fwd.IPv4, port)
	send(t, first, "one")
	send(t, second, "two")
	if got := finish(t, first) + " " + finish(t, second); got != "one two" {
		t.Errorf("got %q", got)
	}
	if got := n.Stats().Listeners; got != [2]int{} {
		t.Errorf("%v listeners", got)
	}
}

func TestAffinityPinsAll(t *testing.T) {
	n := start(t, Options{}, nil)
	port := freePort(t, fwd.IPv4)
	eps := []netip.AddrPort{endpoint(t, fwd.IPv4, "a"), endpoint(t, fwd.IPv4, "b"), endpoint(t, fwd.IPv4, "c")}
	n.put(port, 60, eps...)
	got := make(map[string]bool)
	for range 40 {
		got[ask(t, fwd.IPv4, port, "")] = true
	}
	if len(got) != 1 {
		t.Errorf("with affinity: %v", got)
	}
	n.put(port, 0, eps...)
	for range 40 {
		got[ask(t, fwd.IPv4, port, "")] = true
	}
	// That one of three is not met in 40 has a probability of 3 × (2/3)^40, less than one in a
	// million.
	if len(got) != 3 {
		t.Errorf("without affinity: %v", got)
	}
}

func TestBindConflict(t *testing.T) {
	n := start(t, Options{}, nil)
	taken, free := hosttest.Listen(t, loopback[0]), freePort(t, fwd.IPv4)
	ep := endpoint(t, fwd.IPv4, "a")
	n.put(addrOf(taken).Port(), 0, ep)
	n.put(free, 0, ep)
	if got := ask(t, fwd.IPv4, free, "x"); got != "a:x" {
		t.Errorf("the other port: got %q", got)
	}
	if got := n.Stats(); got.Listeners != [2]int{1, 0} || got.BindFailures != [2]uint64{1, 0} {
		t.Errorf("got %+v", got)
	}
	if n.log.count("cannot serve a node port") != 1 || n.log.count(fmt.Sprintf("service=d/%d", addrOf(taken).Port())) != 1 {
		t.Errorf("log:\n%s", n.log.text.String())
	}
	// It is up to the process that has the port whether it answers.
	c := dial(t, fwd.IPv4, addrOf(taken).Port())
	got, err := taken.AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	got.Close()
	if _, err := io.ReadAll(c); err != nil {
		t.Error(err)
	}
}

// paper is a listener without clients.
type paper struct{ closed chan struct{} }

func (p *paper) AcceptTCP() (*net.TCPConn, error) { <-p.closed; return nil, net.ErrClosed }
func (p *paper) Close() error                     { close(p.closed); return nil }

func TestBindIsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begin := time.Now()
		tries := make(chan time.Duration, 100)
		var busy atomic.Bool
		busy.Store(true)
		n := start(t, Options{}, func(f *Forwarder) {
			f.listen = func(context.Context, netip.AddrPort) (listener, error) {
				tries <- time.Since(begin) / time.Second
				if busy.Load() {
					return nil, syscall.EADDRINUSE
				}
				return &paper{make(chan struct{})}, nil
			}
		})
		n.put(80, 0, endpointAddr(1))
		time.Sleep(time.Second + time.Millisecond)
		n.put(80, 0, endpointAddr(2)) // a change of the endpoints does not hurry it
		time.Sleep(200 * time.Second)
		synctest.Wait()
		want := []time.Duration{0, 1, 3, 7, 15, 31, 63, 123, 183}
		var got []time.Duration
		for len(tries) > 0 {
			got = append(got, <-tries)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("tried at (-want +got):\n%s", diff)
		}
		if got := n.Stats(); got.BindFailures != [2]uint64{9, 0} || got.Listeners != [2]int{} {
			t.Errorf("got %+v", got)
		}
		busy.Store(false)
		time.Sleep(time.Minute)
		synctest.Wait()
		if got := n.Stats(); got.BindFailures != [2]uint64{9, 0} || got.Listeners != [2]int{1, 0} || len(tries) != 1 {
			t.Errorf("after the conflict: %+v, %d tries", got, len(tries))
		}
		if n.log.count("cannot serve a node port") != 1 || n.log.count("after earlier failures") != 1 {
			t.Errorf("log:\n%s", n.log.text.String())
		}
		busy.Store(true)
		n.put(81, 0, endpointAddr(1))
		n.put(81, 0)
		n.put(80, 0)
		time.Sleep(time.Hour)
		synctest.Wait()
		if len(tries) != 2 || n.Stats().Listeners != [2]int{} {
			t.Errorf("a port that is not wanted any more: %d tries, %+v", len(tries), n.Stats())
		}
	})
}

// flaky is a listener that fails now and then.
type flaky struct {
	paper
	at   []time.Time
	fail int
}

func (l *flaky) AcceptTCP() (*net.TCPConn, error) {
	l.at = append(l.at, time.Now())
	if len(l.at) <= l.fail {
		return nil, &net.OpError{Op: "accept", Err: syscall.EMFILE}
	}
	return l.paper.AcceptTCP()
}

func TestAcceptIsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &flaky{paper: paper{make(chan struct{})}, fail: 10}
		n := start(t, Options{}, func(f *Forwarder) {
			f.listen = func(context.Context, netip.AddrPort) (listener, error) { return l, nil }
		})
		n.put(80, 0, endpointAddr(1))
		time.Sleep(time.Hour)
		synctest.Wait()
		if len(l.at) != 11 || l.at[10].Sub(l.at[0]) != 10*acceptRetry {
			t.Errorf("tried at %v", l.at)
		}
		if n.log.count("cannot accept") != 1 {
			t.Errorf("log:\n%s", n.log.text.String())
		}
	})
}

// TestDialFailure wants a reset, and no other endpoint to be tried.
func TestDialFailure(t *testing.T) {
	dead := netip.AddrPortFrom(loopback[0], freePort(t, fwd.IPv4))
	alive := endpoint(t, fwd.IPv4, "a")
	choice := uint64(0)
	if alive.Compare(dead) < 0 {
		choice = 1
	}
	n := start(t, Options{}, func(f *Forwarder) { f.random = func(uint64) uint64 { return choice } })
	port := freePort(t, fwd.IPv4)
	n.put(port, 0, dead, alive)
	wantNoService(t, net.Dialer{}, port)
	n.stop()
	if diff := cmp.Diff(Stats{Accepted: [2]uint64{1, 0}, DialFailures: [2]uint64{1, 0}}, n.Stats()); diff != "" {
		t.Errorf("stats (-want +got):\n%s", diff)
	}
}

// TestDialTimeout uses a listener whose queue is full, so that the kernel answers no more.
func TestDialTimeout(t *testing.T) {
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(fd)
	if err := errors.Join(syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}), syscall.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	name, err := syscall.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	full := uint16(name.(*syscall.SockaddrInet4).Port)
	dial(t, fwd.IPv4, full)

	n := start(t, Options{DialTimeout: 50 * time.Millisecond}, nil)
	port := freePort(t, fwd.IPv4)
	n.put(port, 0, netip.AddrPortFrom(loopback[0], full))
	wantNoService(t, net.Dialer{}, port)
	n.stop()
	if got := n.Stats().DialFailures; got != [2]uint64{1, 0} {
		t.Errorf("dial failures: %v", got)
	}
}

func TestLimit(t *testing.T) {
	n := start(t, Options{MaxConns: 1}, nil)
	port := freePort(t, fwd.IPv4)
	served := make(chan struct{})
	n.put(port, 0, endpointFunc(t, fwd.IPv4, func(c *net.TCPConn) {
		io.Copy(io.Discard, c)
		<-served
	}))
	first := dial(t, fwd.IPv4, port)
	for range 3 {
		wantNoService(t, net.Dialer{}, port)
	}
	if got := n.Stats(); got.Connections != 1 || got.Refused != [2]uint64{3, 0} || got.Accepted != [2]uint64{1, 0} {
		t.Errorf("got %+v", got)
	}
	if n.log.count("too many connections") != 1 || n.log.count("accepting new connections") != 0 {
		t.Errorf("log:\n%s", n.log.text.String())
	}
	close(served)
	finish(t, first)
	n.stop()
	if n.log.count("accepting new connections") != 1 || n.Stats().Connections != 0 {
		t.Errorf("%+v, log:\n%s", n.Stats(), n.log.text.String())
	}
}

// TestResetsArePassedOn checks that a client cannot mistake part of a response for all of it.
func TestResetsArePassedOn(t *testing.T) {
	seen := make(chan error, 1)
	tests := []struct {
		name string
		end  func(n *node, client, server *net.TCPConn)
	}{
		{"by the endpoint", func(_ *node, _, server *net.TCPConn) { reset(server) }},
		{"by the client", func(_ *node, client, _ *net.TCPConn) { reset(client) }},
		{"by the end of the process", func(n *node, _, _ *net.TCPConn) { n.stop() }},
	}
	for i, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			n := start(t, Options{}, nil)
			port := freePort(t, fwd.IPv4)
			servers := make(chan *net.TCPConn, 1)
			n.put(port, 0, endpointFunc(t, fwd.IPv4, func(c *net.TCPConn) {
				io.WriteString(c, "a part")
				servers <- c
				_, err := io.Copy(io.Discard, c)
				seen <- err
			}))
			client := dial(t, fwd.IPv4, port)
			if _, err := io.ReadFull(client, make([]byte, len("a part"))); err != nil {
				t.Fatal(err)
			}
			tt.end(n, client, <-servers)
			if i != 1 {
				wantReset(t, client)
			}
			if err := <-seen; i != 0 && !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("the endpoint got %v, want a reset", err)
			}
		})
	}
}

// TestOnlyLoopbackClients connects to 127.0.0.1 from another address of this machine.
func TestOnlyLoopbackClients(t *testing.T) {
	n := start(t, Options{}, nil)
	port := freePort(t, fwd.IPv4)
	n.put(port, 0, endpoint(t, fwd.IPv4, "a"))
	wantNoService(t, net.Dialer{LocalAddr: &net.TCPAddr{IP: ownAddr(t)}}, port)
	if got := n.Stats(); got.Refused != [2]uint64{1, 0} || got.Accepted != [2]uint64{} {
		t.Errorf("got %+v", got)
	}
}

func ownAddr(t *testing.T) net.IP {
	t.Helper()
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addrs {
		if ip := a.(*net.IPNet).IP.To4(); ip != nil && !ip.IsLoopback() {
			return ip
		}
	}
	t.Skip("this machine has no IPv4 address but loopback")
	return nil
}

// TestKeepAlive asks the kernel about the sockets of both sides.
func TestKeepAlive(t *testing.T) {
	f := New(Options{})
	l, err := f.listen(t.Context(), netip.AddrPortFrom(loopback[0], freePort(t, fwd.IPv4)))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	server, err := f.dialer.DialContext(t.Context(), "tcp", l.(net.Listener).Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	client, err := l.AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	for side, c := range map[string]net.Conn{"client": client, "server": server} {
		raw, err := c.(*net.TCPConn).SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		var got [4]int
		err = raw.Control(func(fd uintptr) {
			for i, o := range [4][2]int{
				{syscall.SOL_SOCKET, syscall.SO_KEEPALIVE}, {syscall.IPPROTO_TCP, syscall.TCP_KEEPIDLE},
				{syscall.IPPROTO_TCP, syscall.TCP_KEEPINTVL}, {syscall.IPPROTO_TCP, syscall.TCP_KEEPCNT},
			} {
				if got[i], err = syscall.GetsockoptInt(int(fd), o[0], o[1]); err != nil {
					t.Error(err)
				}
			}
		})
		if want := [4]int{1, 60, 60, 5}; err != nil || got != want {
			t.Errorf("%s: got %v, %v, want %v", side, got, err, want)
		}
	}
}

// TestChurn changes targets under the hands of clients: each is answered by an endpoint, or
// refused, or reset because the listener went while it was in its queue.
func TestChurn(t *testing.T) {
	n := start(t, Options{}, nil)
	ports := []uint16{freePort(t, fwd.IPv4), freePort(t, fwd.IPv4), freePort(t, fwd.IPv4)}
	eps := []netip.AddrPort{endpoint(t, fwd.IPv4, "a"), endpoint(t, fwd.IPv4, "b")}
	var clients sync.WaitGroup
	for i := range 4 {
		clients.Go(func() {
			for j := range 100 {
				c, err := net.Dial("tcp", netip.AddrPortFrom(loopback[0], ports[(i+j)%3]).String())
				if errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.ECONNRESET) {
					continue
				}
				if err != nil {
					t.Error(err)
					return
				}
				tcp := c.(*net.TCPConn)
				io.WriteString(tcp, "x")
				tcp.CloseWrite()
				got, err := io.ReadAll(tcp)
				tcp.Close()
				if err == nil && string(got) != "a:x" && string(got) != "b:x" || err != nil && !errors.Is(err, syscall.ECONNRESET) {
					t.Errorf("got %q, %v", got, err)
				}
			}
		})
	}
	r := rand.New(rand.NewPCG(1, 1))
	for range 300 {
		n.Update(fwd.Changes{Services: []fwd.ServiceChange{{New: service(ports[r.IntN(3)], uint32(r.IntN(2)), eps[r.IntN(3):]...)}}})
		if r.IntN(3) == 0 {
			n.Sync()
		}
		n.Stats()
	}
	clients.Wait()
	n.stop()
	if got := n.Stats(); got.Listeners != [2]int{} || got.Connections != 0 {
		t.Errorf("left: %+v", got)
	}
}

package health

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/fairlead/fairlead/internal/fwd"
)

func svc(name string) fwd.Service { return fwd.Service{Namespace: "ns", Name: name} }

// change is a change to a Service with a health-check node port; port 0 means none, and
// created 0 for no Service.
func change(old *fwd.Fragment, name string, created int64, port uint16, local int) (fwd.ServiceChange, *fwd.Fragment) {
	ch := fwd.ServiceChange{Owner: svc(name), Old: old}
	if created != 0 {
		ch.New = &fwd.Fragment{Owner: svc(name), CreatedUnix: created, HealthCheck: fwd.HealthCheck{Port: port, LocalEndpoints: local}}
	}
	return ch, ch.New
}

// everywhere are all addresses of both families.
var everywhere = fwd.Header{NodePorts: [2]fwd.NodePortAddrs{{All: true}, {All: true}}}

// rig runs Checks on a fake network: what they listen on is mapped to ports of loopback that are
// free.
type rig struct {
	*Checks
	t      *testing.T
	before map[string]*fwd.Fragment
	cancel context.CancelFunc
	round  chan int
	done   chan struct{}

	mu      sync.Mutex // guards all that follows
	healthy bool
	open    map[string]string // what was asked for → where it is
	refused map[string]bool
	events  []string
}

type trackedListener struct {
	net.Listener
	closed func()
}

func (l trackedListener) Close() error {
	l.closed()
	return l.Listener.Close()
}

func newRig(t *testing.T) *rig {
	r := &rig{t: t, before: make(map[string]*fwd.Fragment), healthy: true, open: make(map[string]string), refused: make(map[string]bool),
		round: make(chan int), done: make(chan struct{})}
	r.Checks = NewChecks(ChecksOptions{
		Node: "n1", Log: quiet(),
		Healthy: func() bool { r.mu.Lock(); defer r.mu.Unlock(); return r.healthy },
		Warn: func(s fwd.Service, reason, message string) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.events = append(r.events, s.String()+" "+reason+": "+message)
		},
	})
	r.Checks.listen = r.listen
	ctx, cancel := context.WithCancel(t.Context())
	r.cancel = cancel
	r.settled = func(programmed int) {
		select {
		case r.round <- programmed:
		case <-ctx.Done():
		}
	}
	r.retry = time.Millisecond
	go func() {
		defer close(r.done)
		r.Run(ctx)
	}()
	<-r.round
	t.Cleanup(r.end)
	return r
}

func (r *rig) listen(ctx context.Context, network, at string) (net.Listener, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	key := network + " " + at
	if r.refused[key] {
		return nil, errors.New("address already in use")
	}
	if r.open[key] != "" {
		r.t.Errorf("%s is listened on twice", key)
	}
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	r.open[key] = l.Addr().String()
	return trackedListener{l, func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.open, key)
	}}, nil
}

func (r *rig) end() {
	r.cancel()
	<-r.done
	if got := r.listening(); len(got) > 0 {
		r.t.Errorf("at the end there are listeners on %q", got)
	}
}

// put changes a Service, see change.
func (r *rig) put(name string, created int64, port uint16, local int) {
	ch, now := change(r.before[name], name, created, port, local)
	r.before[name] = now
	r.Update(fwd.Changes{Services: []fwd.ServiceChange{ch}})
}

// programmed says that the kernel has it all, and waits until listeners follow.
func (r *rig) programmed() {
	r.Programmed(fwd.IPv4)
	r.Programmed(fwd.IPv6)
	for <-r.round != r.Checks.programmed { // only this goroutine changes it
	}
}

func (r *rig) listening() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := []string{}
	for key := range r.open {
		out = append(out, key)
	}
	slices.Sort(out)
	return out
}

func (r *rig) set(fn func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	fn()
}

// ask returns code, weight and body of an answer.
func (r *rig) ask(method, key, path string) (int, string, string) {
	r.t.Helper()
	r.mu.Lock()
	at := r.open[key]
	r.mu.Unlock()
	if at == "" {
		r.t.Fatalf("no listener on %s, only on %q", key, r.listening())
	}
	req, err := http.NewRequestWithContext(r.t.Context(), method, "http://"+at+path, nil)
	if err != nil {
		r.t.Fatal(err)
	}
	tr := &http.Transport{DisableKeepAlives: true}
	resp, err := tr.RoundTrip(req)
	if err != nil {
		r.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		r.t.Fatal(err)
	}
	if ct, ns := resp.Header.Get("Content-Type"), resp.Header.Get("X-Content-Type-Options"); ct != "application/json" || ns != "nosniff" {
		r.t.Errorf("Content-Type %q, X-Content-Type-Options %q", ct, ns)
	}
	return resp.StatusCode, resp.Header.Get("X-Load-Balancing-Endpoint-Weight"), string(body)
}

func (r *rig) wantAnswer(key string, code int, name string, local int, healthy bool) {
	r.t.Helper()
	// As kube-proxy 1.36.3 answers.
	body := fmt.Sprintf("{\n\t\"service\": {\n\t\t\"namespace\": \"ns\",\n\t\t\"name\": \"%s\"\n\t},\n\t\"localEndpoints\": %d,\n\t\"serviceProxyHealthy\": %v\n}", name, local, healthy)
	gotCode, weight, gotBody := r.ask("GET", key, "/healthz")
	if gotCode != code || weight != fmt.Sprint(local) || gotBody != body {
		r.t.Errorf("%s answers %d, weight %s, %q, want %d, %q", key, gotCode, weight, gotBody, code, body)
	}
}

// TestChecksFollowTheFamilyThatWorks: while IPv6 cannot be written, ports of Services that have
// IPv4 open, count and close; one that has IPv6 alone stays as it is in the kernel.
func TestChecksFollowTheFamilyThatWorks(t *testing.T) {
	r := newRig(t)
	r.Update(fwd.Changes{Header: &everywhere})
	var before [2]*fwd.Fragment
	put := func(i int, port uint16, local int, families ...fwd.Family) {
		ch, now := change(before[i], "s"+fmt.Sprint(i), 1, port, local)
		for _, f := range families {
			now.Frontends = append(now.Frontends, fwd.Frontend{Key: fwd.Key{Family: f}})
		}
		before[i] = now
		r.Update(fwd.Changes{Services: []fwd.ServiceChange{ch}})
	}
	ipv4 := func() {
		r.Programmed(fwd.IPv4)
		for <-r.round != r.Checks.programmed {
		}
	}
	put(0, 30000, 2, fwd.IPv4, fwd.IPv6)
	put(1, 30001, 1, fwd.IPv6)
	ipv4()
	if got := r.listening(); !slices.Equal(got, []string{"tcp :30000"}) {
		t.Fatalf("listening on %q while IPv6 is not written", got)
	}
	put(0, 30000, 0, fwd.IPv4, fwd.IPv6)
	ipv4()
	r.wantAnswer("tcp :30000", 503, "s0", 0, true)
	put(0, 30000, 3, fwd.IPv4)
	put(0, 30000, 4, fwd.IPv4)
	ipv4()
	r.wantAnswer("tcp :30000", 200, "s0", 4, true)
	r.Programmed(fwd.IPv6)
	for <-r.round != r.Checks.programmed {
	}
	r.wantAnswer("tcp :30000", 200, "s0", 4, true)
	r.wantAnswer("tcp :30001", 200, "s1", 1, true)
}

func TestChecksAnswerForWhatIsProgrammed(t *testing.T) {
	r := newRig(t)
	r.Update(fwd.Changes{Header: &everywhere})
	r.put("a", 1, 30000, 2)
	if got := r.listening(); len(got) > 0 {
		t.Fatalf("before the rules are in the kernel: %q", got)
	}
	r.programmed()
	if got := r.listening(); !slices.Equal(got, []string{"tcp :30000"}) {
		t.Fatalf("listening on %q", got)
	}
	r.wantAnswer("tcp :30000", 200, "a", 2, true)
	for _, method := range []string{"GET", "POST", "OPTIONS", "DELETE"} {
		if code, _, _ := r.ask(method, "tcp :30000", "/any/path?x=y"); code != 200 {
			t.Errorf("%s: %d", method, code)
		}
	}
	r.put("a", 1, 30000, 0)
	r.wantAnswer("tcp :30000", 200, "a", 2, true)
	r.programmed()
	r.wantAnswer("tcp :30000", 503, "a", 0, true)
	r.put("a", 1, 30000, 1)
	r.programmed()
	r.set(func() { r.healthy = false })
	r.wantAnswer("tcp :30000", 503, "a", 1, false)
	r.put("a", 0, 0, 0) // deleted
	r.programmed()
	if got := r.listening(); len(got) > 0 {
		t.Errorf("after the Service is gone: %q", got)
	}
}

func TestChecksFollowPorts(t *testing.T) {
	r := newRig(t)
	r.Update(fwd.Changes{Header: &everywhere})
	r.put("a", 1, 30000, 1)
	r.put("b", 2, 30001, 2)
	r.put("c", 3, 0, 3) // without a health check
	r.programmed()
	r.put("a", 1, 30001, 1) // a and b change places
	r.put("b", 2, 30000, 2)
	r.programmed()
	r.wantAnswer("tcp :30000", 200, "b", 2, true)
	r.wantAnswer("tcp :30001", 200, "a", 1, true)
	r.put("a", 1, 30002, 1)
	r.programmed()
	if got := r.listening(); !slices.Equal(got, []string{"tcp :30000", "tcp :30002"}) {
		t.Errorf("after a moved: %q", got)
	}
	r.put("a", 1, 0, 1) // traffic policy Cluster
	r.programmed()
	if got := r.listening(); !slices.Equal(got, []string{"tcp :30000"}) {
		t.Errorf("after a lost its check: %q", got)
	}
	if len(r.events) > 0 {
		t.Errorf("events: %q", r.events)
	}
}

func TestChecksOneOfTwoServicesHasAPort(t *testing.T) {
	r := newRig(t)
	r.Update(fwd.Changes{Header: &everywhere})
	r.put("young", 20, 30000, 1)
	r.programmed()
	r.wantAnswer("tcp :30000", 200, "young", 1, true)
	r.put("old", 10, 30000, 2)
	r.programmed()
	r.wantAnswer("tcp :30000", 200, "old", 2, true)
	r.put("old", 10, 30000, 3)
	r.programmed()
	want := []string{`ns/young FailedToStartServiceHealthcheck: node n1 failed to start healthcheck "ns/young" on port 30000: the port belongs to Service ns/old`}
	r.set(func() {
		if d := cmp.Diff(want, r.events); d != "" {
			t.Errorf("events (-want +got):\n%s", d)
		}
	})
	r.put("old", 0, 0, 0)
	r.programmed()
	r.wantAnswer("tcp :30000", 200, "young", 1, true)
}

func TestChecksTryAgain(t *testing.T) {
	r := newRig(t)
	r.refused["tcp :30000"] = true
	r.Update(fwd.Changes{Header: &everywhere})
	r.put("a", 1, 30000, 1)
	r.put("b", 1, 30001, 1)
	r.programmed()
	r.wantAnswer("tcp :30001", 200, "b", 1, true)
	<-r.round
	r.set(func() {
		want := []string{`ns/a FailedToStartServiceHealthcheck: node n1 failed to start healthcheck "ns/a" on port 30000: address already in use`}
		if d := cmp.Diff(want, r.events); d != "" {
			t.Errorf("events after some attempts (-want +got):\n%s", d)
		}
		delete(r.refused, "tcp :30000")
	})
	for len(r.listening()) < 2 { // as long as one fails there is another attempt
		<-r.round
	}
	r.wantAnswer("tcp :30000", 200, "a", 1, true)
}

func TestChecksOnSomeAddresses(t *testing.T) {
	r := newRig(t)
	prefix, addr := netip.MustParsePrefix, netip.MustParseAddr
	h := fwd.Header{
		NodePorts:  [2]fwd.NodePortAddrs{{Prefixes: []netip.Prefix{prefix("192.0.2.0/24")}, Loopback: true}, {Prefixes: []netip.Prefix{prefix("2001:db8::/64"), prefix("fe80::/64")}}},
		LocalAddrs: []netip.Addr{addr("192.0.2.1"), addr("198.51.100.1"), addr("2001:db8::1"), addr("fe80::1")},
	}
	r.Update(fwd.Changes{Header: &h})
	r.put("a", 1, 30000, 1)
	r.programmed()
	if d := cmp.Diff([]string{"tcp4 127.0.0.1:30000", "tcp4 192.0.2.1:30000", "tcp6 [2001:db8::1]:30000"}, r.listening()); d != "" {
		t.Fatalf("listeners (-want +got):\n%s", d)
	}
	r.wantAnswer("tcp6 [2001:db8::1]:30000", 200, "a", 1, true)
	kept := r.open["tcp4 192.0.2.1:30000"]
	h.LocalAddrs = []netip.Addr{addr("192.0.2.1"), addr("192.0.2.9")}
	h.NodePorts[0].Loopback = false
	r.refused["tcp4 192.0.2.9:30000"] = true // one address that fails does not take the others away
	r.Update(fwd.Changes{Header: &h})
	r.programmed()
	if d := cmp.Diff([]string{"tcp4 192.0.2.1:30000"}, r.listening()); d != "" {
		t.Fatalf("after addresses changed (-want +got):\n%s", d)
	}
	if r.open["tcp4 192.0.2.1:30000"] != kept {
		t.Error("the listener of an address that stays was closed")
	}
	h = fwd.Header{NodePorts: [2]fwd.NodePortAddrs{{All: true}, {}}, LocalAddrs: h.LocalAddrs}
	r.Update(fwd.Changes{Header: &h})
	r.programmed()
	if d := cmp.Diff([]string{"tcp4 :30000"}, r.listening()); d != "" {
		t.Errorf("IPv4 everywhere, IPv6 nowhere (-want +got):\n%s", d)
	}
}

func TestAddressesWithoutIPv6(t *testing.T) {
	h := fwd.Header{NodePorts: [2]fwd.NodePortAddrs{{}, {All: true}}, LocalAddrs: []netip.Addr{netip.MustParseAddr("192.0.2.1")}}
	if got := addressesOf(&h); len(got) > 0 {
		t.Errorf("on a host without an IPv6 address: %v", got)
	}
	h.LocalAddrs = []netip.Addr{netip.MustParseAddr("2001:db8::1")}
	if got := addressesOf(&h); len(got) != 1 || got[0].network != "tcp6" {
		t.Errorf("on a host with one: %v", got)
	}
}

// On the real network one socket answers both families, and a port that another process has is
// served when it is free.
func TestChecksDualStack(t *testing.T) {
	l, addr := taken(t)
	settled := make(chan int)
	events := 0
	c := NewChecks(ChecksOptions{Node: "n1", Log: quiet(), Healthy: func() bool { return true }, Warn: func(fwd.Service, string, string) { events++ }})
	ctx, cancel := context.WithCancel(t.Context())
	c.retry, c.settled = time.Millisecond, func(programmed int) {
		select {
		case settled <- programmed:
		case <-ctx.Done():
		}
	}
	ch, _ := change(nil, "a", 1, addr.Port(), 1)
	c.Update(fwd.Changes{Header: &everywhere, Services: []fwd.ServiceChange{ch}})
	c.Programmed(fwd.IPv4)
	done := make(chan struct{})
	go func() { c.Run(ctx); close(done) }()
	<-settled
	<-settled
	if events != 1 {
		t.Errorf("%d events while the port is taken, want 1", events)
	}
	l.Close()
	for free := true; free; { // as long as it fails there is another attempt
		conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", addr.String())
		if free = err != nil; free {
			<-settled
		} else {
			conn.Close()
		}
	}
	hosts := []string{"127.0.0.1", "[::1]"}
	if _, err := net.ListenPacket("udp6", "[::1]:0"); err != nil {
		t.Log("no IPv6 here, asking over IPv4 alone")
		hosts = hosts[:1]
	}
	for _, host := range hosts {
		resp, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(newRequest(t, fmt.Sprintf("http://%s:%d/", host, addr.Port())))
		if err != nil {
			t.Errorf("%s: %v", host, err)
			continue
		}
		resp.Body.Close()
		if resp.StatusCode != 200 {
			t.Errorf("%s: %s", host, resp.Status)
		}
	}
	// "OPTIONS *", which net/http would answer by itself.
	conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprint(conn, "OPTIONS * HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
	text, _ := io.ReadAll(conn)
	if !strings.Contains(string(text), `"localEndpoints": 1`) {
		t.Errorf("OPTIONS *: %s", text)
	}
	cancel()
	<-done
	if _, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", addr.String()); err == nil {
		t.Error("listening after the end")
	}
}

func newRequest(t *testing.T, url string) *http.Request {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), "GET", url, nil)
	if err != nil {
		t.Fatal(err)
	}
	return req
}

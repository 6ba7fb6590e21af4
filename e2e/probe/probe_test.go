package probe

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/fairlead/fairlead/internal/host/hosttest"
)

// here is the namespace that the test runs in.
type here struct{}

func (here) Do(f func() error) error { return f() }

var loopback = []netip.Addr{netip.MustParseAddr("127.0.0.1")}

// serve answers on a port of loopback, for one protocol.
func serve(t *testing.T, proto string) (*Server, netip.AddrPort) {
	t.Helper()
	s, err := Serve(here{}, "pod1", loopback, []string{proto}, []uint16{0})
	if err != nil {
		t.Fatal(err)
	}
	return s, s.Addrs()[0]
}

// closed returns an address that refuses, and holds it until the test ends.
func closed(t *testing.T, proto string) netip.AddrPort {
	t.Helper()
	if proto == "tcp" {
		return netip.AddrPortFrom(loopback[0], hosttest.Port(t, loopback[0]))
	}
	// Whoever is not the peer of a connected socket does not find it.
	c, err := net.DialUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(loopback[0], 0)), net.UDPAddrFromAddrPort(netip.MustParseAddrPort("127.0.0.8:9")))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return addrPort(c.LocalAddr())
}

func TestDial(t *testing.T) {
	from := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.9"), 0)
	for _, proto := range []string{"tcp", "udp"} {
		t.Run(proto, func(t *testing.T) {
			s, at := serve(t, proto)
			defer s.Close()
			d := NewDialer(here{})
			r := d.Dial(t.Context(), Target{Proto: proto, Src: from, Dst: at})
			if r.Verdict != Answered || r.Server != "pod1" || r.At != at || r.Saw.Addr() != from.Addr() {
				t.Errorf("to an open port: %s", r)
			}
			r = d.Dial(t.Context(), Target{Proto: proto, Dst: closed(t, proto)})
			if r.Verdict != Refused {
				t.Errorf("to a closed port: %s", r)
			}
		})
	}
}

func TestConnSurvivesSeveralQuestions(t *testing.T) {
	d := NewDialer(here{})
	for _, proto := range []string{"tcp", "udp"} {
		s, at := serve(t, proto)
		c, err := d.Open(t.Context(), Target{Proto: proto, Dst: at})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		for range 3 {
			if r := c.Ask(t.Context()); r.Verdict != Answered || r.Saw != c.Local() {
				t.Errorf("%s from %s: %s", proto, c.Local(), r)
			}
		}
		if err := s.Close(); err != nil {
			t.Errorf("close with an open connection: %v", err)
		}
	}
}

func TestParseIgnoresAnswersToOtherQuestions(t *testing.T) {
	line := answer("7", "pod1", netip.MustParseAddrPort("10.0.0.1:80"), netip.MustParseAddrPort("[fd00::1]:9"))
	if _, ok := parse(line, "8"); ok {
		t.Error("an answer to 7 was taken for one to 8")
	}
	got, ok := parse(line, "7")
	want := Result{Verdict: Answered, Server: "pod1", At: netip.MustParseAddrPort("10.0.0.1:80"), Saw: netip.MustParseAddrPort("[fd00::1]:9")}
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); !ok || diff != "" {
		t.Errorf("ok %v, (-want +got):\n%s", ok, diff)
	}
}

func TestSCTPPacket(t *testing.T) {
	for _, cookie := range []string{"", "x", "1234", "7 pod1 10.0.0.1:80 10.0.0.2:99\n"} {
		want := sctpPacket{src: 1, dst: 65535, vtag: 0xfffffffe, chunk: chunkInitAck, initTag: 5, cookie: cookie}
		b := want.marshal()
		if len(b)%4 != 0 {
			t.Errorf("cookie %q: %d bytes, not a multiple of 4", cookie, len(b))
		}
		got, err := parseSCTP(b)
		if err != nil || got != want {
			t.Errorf("cookie %q: got %+v, %v; want %+v", cookie, got, err, want)
		}
		b[0] ^= 1
		if _, err := parseSCTP(b); err == nil {
			t.Errorf("cookie %q: a damaged packet was accepted", cookie)
		}
	}
}

func TestTimeouts(t *testing.T) {
	v4, v6 := netip.MustParseAddrPort("10.0.0.1:80"), netip.MustParseAddrPort("[fd00::1]:80")
	tests := []struct {
		target Target
		want   time.Duration
	}{
		{Target{Proto: "tcp", Dst: v4}, DefaultTimeout},
		{Target{Proto: "tcp", Dst: v6, Timeout: time.Second}, time.Second},
		{Target{Proto: "tcp", Dst: v4}.Briefly(), 500 * time.Millisecond},
		{Target{Proto: "udp", Dst: v6}.Briefly(), 500 * time.Millisecond},
		{Target{Proto: "tcp", Dst: v6}.Briefly(), 1600 * time.Millisecond},
	}
	for _, tt := range tests {
		if got := tt.target.timeout(); got != tt.want {
			t.Errorf("%s: %v, want %v", tt.target, got, tt.want)
		}
	}
}

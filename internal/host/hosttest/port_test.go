package hosttest

import (
	"errors"
	"net"
	"net/netip"
	"syscall"
	"testing"
)

// TestPort: connections to the port are refused while nobody listens, it can be listened on
// repeatedly, and nobody else gets it.
func TestPort(t *testing.T) {
	for _, addr := range []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback()} {
		t.Run(addr.String(), func(t *testing.T) {
			if l, err := net.Listen("tcp", netip.AddrPortFrom(addr, 0).String()); err != nil {
				t.Skip("no such address here")
			} else {
				l.Close()
			}
			at := netip.AddrPortFrom(addr, Port(t, addr)).String()
			refused := func() {
				t.Helper()
				if c, err := net.Dial("tcp", at); err == nil {
					c.Close()
					t.Errorf("%s answers", at)
				} else if !errors.Is(err, syscall.ECONNREFUSED) {
					t.Error(err)
				}
			}
			refused()
			for range 2 {
				l, err := net.Listen("tcp", at)
				if err != nil {
					t.Fatal(err)
				}
				c, err := net.Dial("tcp", at)
				if err != nil {
					t.Fatal(err)
				}
				c.Close()
				l.Close()
				refused()
			}
		})
	}
	addr := netip.MustParseAddr("127.0.0.1")
	seen := make(map[uint16]bool)
	for range 200 {
		port := Port(t, addr)
		if seen[port] {
			t.Fatalf("port %d came twice", port)
		}
		seen[port] = true
	}
	for range 200 {
		if l := Listen(t, addr); seen[uint16(l.Addr().(*net.TCPAddr).Port)] {
			t.Fatalf("%s is held", l.Addr())
		}
	}
}

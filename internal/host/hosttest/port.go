package hosttest

import (
	"net"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
)

// Port returns a TCP port of an address on which nobody listens, and holds it until the test ends: no other process is given
// it, and a connection to it is refused, but who asks for it by number, as net.Listen does with SO_REUSEADDR, may listen on it.
// A port that was found free and released could be somebody else's a moment later.
func Port(t testing.TB, addr netip.Addr) uint16 {
	t.Helper()
	domain, at := unix.AF_INET6, unix.Sockaddr(&unix.SockaddrInet6{Addr: addr.As16()})
	if addr.Is4() {
		domain, at = unix.AF_INET, &unix.SockaddrInet4{Addr: addr.As4()}
	}
	fd, err := unix.Socket(domain, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatalf("make a socket: %v", err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		t.Fatalf("set SO_REUSEADDR: %v", err)
	}
	if err := unix.Bind(fd, at); err != nil {
		t.Fatalf("bind a port of %s: %v", addr, err)
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatalf("ask for a port of %s: %v", addr, err)
	}
	if v6, ok := name.(*unix.SockaddrInet6); ok {
		return uint16(v6.Port)
	}
	return uint16(name.(*unix.SockaddrInet4).Port)
}

// Listen listens on a Port, which others do not get after the listener is closed, as long as the test runs.
func Listen(t testing.TB, addr netip.Addr) *net.TCPListener {
	t.Helper()
	l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(addr, Port(t, addr))))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

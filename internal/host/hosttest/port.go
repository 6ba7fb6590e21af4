package hosttest

import (
	"net"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
)

// Port returns a TCP port on which nobody listens, and reserves it until the test ends: connections
// to it are refused, and the kernel does not assign it to others, but a listener that names the
// port, with SO_REUSEADDR like net.Listen, gets it. A free port that is not reserved could be taken
// by somebody else a moment later.
func Port(t testing.TB, addr netip.Addr) uint16 {
	t.Helper()
	domain, at := unix.AF_INET6, unix.Sockaddr(&unix.SockaddrInet6{Addr: addr.As16()})
	if addr.Is4() {
		domain, at = unix.AF_INET, &unix.SockaddrInet4{Addr: addr.As4()}
	}
	fd, err := unix.Socket(domain, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatalf("open a socket: %v", err)
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
		t.Fatalf("get the port of a socket on %s: %v", addr, err)
	}
	if v6, ok := name.(*unix.SockaddrInet6); ok {
		return uint16(v6.Port)
	}
	return uint16(name.(*unix.SockaddrInet4).Port)
}

// Listen listens on a Port, which stays reserved until the test ends, even if the listener is
// closed.
func Listen(t testing.TB, addr netip.Addr) *net.TCPListener {
	t.Helper()
	l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(addr, Port(t, addr))))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

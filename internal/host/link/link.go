package link

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	library "github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// dumpTries is how often a list is read that changes while it is read.
const dumpTries = 5

// LocalAddrs returns the addresses of all interfaces, loopback and link-local ones included, of both families, sorted and
// without duplicates. Interfaces that are named in except are left out: kube-ipvs0 has addresses that are Services'.
func LocalAddrs(except ...string) ([]netip.Addr, error) {
	skip := make(map[int]bool)
	for _, name := range except {
		switch l, err := library.LinkByName(name); {
		case err == nil:
			skip[l.Attrs().Index] = true
		case !errors.As(err, &library.LinkNotFoundError{}):
			return nil, fmt.Errorf("find interface %s: %w", name, err)
		}
	}
	list, err := library.AddrList(nil, library.FAMILY_ALL)
	for i := 1; errors.Is(err, library.ErrDumpInterrupted) && i < dumpTries; i++ {
		list, err = library.AddrList(nil, library.FAMILY_ALL)
	}
	if err != nil {
		return nil, fmt.Errorf("list the addresses of the node: %w", err)
	}
	var out []netip.Addr
	for _, a := range list {
		if a.IPNet == nil || skip[a.LinkIndex] {
			continue
		}
		if ip, ok := netip.AddrFromSlice(a.IP); ok {
			out = append(out, ip.Unmap())
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return slices.Compact(out), nil
}

// HasIPv6 says whether the kernel speaks IPv6 at all; it does not where it was started with ipv6.disable=1.
func HasIPv6() bool {
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return false
	}
	_ = unix.Close(fd)
	return true
}

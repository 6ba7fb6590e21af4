package link

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	library "github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// dumpTries is how often a dump is tried that changes interrupt.
const dumpTries = 5

// LocalAddrs returns the addresses of all interfaces in both families, including loopback and
// link-local ones, sorted and without duplicates. It skips interfaces for whose name except returns
// true: kube-ipvs0 has the addresses of Services.
func LocalAddrs(except func(name string) bool) ([]netip.Addr, error) {
	list, err := library.AddrList(nil, library.FAMILY_ALL)
	for i := 1; errors.Is(err, library.ErrDumpInterrupted) && i < dumpTries; i++ {
		list, err = library.AddrList(nil, library.FAMILY_ALL)
	}
	if err != nil {
		return nil, fmt.Errorf("list the addresses of the node: %w", err)
	}
	var out []netip.Addr
	skip := make(map[int]bool)
	for _, a := range list {
		ip, ok := netip.AddrFromSlice(a.IP)
		if !ok || a.IPNet == nil {
			continue
		}
		if ip = ip.Unmap(); ip.Is6() && ip.IsLinkLocalUnicast() {
			// The kernel adds one to each pod's interface. Looking up the names of all of these
			// would cost too much.
			out = append(out, ip)
			continue
		}
		if _, known := skip[a.LinkIndex]; !known {
			switch l, err := library.LinkByIndex(a.LinkIndex); {
			case err == nil:
				skip[a.LinkIndex] = except(l.Attrs().Name)
			case errors.As(err, &library.LinkNotFoundError{}): // removed together with the address
				skip[a.LinkIndex] = true
			default:
				return nil, fmt.Errorf("find interface %d: %w", a.LinkIndex, err)
			}
		}
		if !skip[a.LinkIndex] {
			out = append(out, ip)
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return slices.Compact(out), nil
}

// HasIPv6 reports whether the kernel supports IPv6; with ipv6.disable=1 it does not.
func HasIPv6() bool {
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return false
	}
	_ = unix.Close(fd)
	return true
}

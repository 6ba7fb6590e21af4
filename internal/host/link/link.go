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
// without duplicates. Interfaces whose names except chooses are left out: kube-ipvs0 has addresses that are Services'.
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
			// Each pod's interface has one, and the kernel made it: none of these is worth a question.
			out = append(out, ip)
			continue
		}
		if _, asked := skip[a.LinkIndex]; !asked {
			switch l, err := library.LinkByIndex(a.LinkIndex); {
			case err == nil:
				skip[a.LinkIndex] = except(l.Attrs().Name)
			case errors.As(err, &library.LinkNotFoundError{}): // gone, and the address with it
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

// HasIPv6 says whether the kernel speaks IPv6 at all; it does not where it was started with ipv6.disable=1.
func HasIPv6() bool {
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return false
	}
	_ = unix.Close(fd)
	return true
}

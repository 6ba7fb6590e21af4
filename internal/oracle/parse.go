package oracle

import (
	"net/netip"
	"strconv"
	"strings"
)

// parseAddr reads an address as the API accepts it: octets of IPv4 with leading zeros are decimal,
// an IPv4-mapped IPv6 address is the IPv4 address, a zone is refused. ok is false for everything
// else.
func parseAddr(s string) (addr netip.Addr, ok bool) {
	if !strings.Contains(s, ":") {
		parts := strings.Split(s, ".")
		if len(parts) != 4 {
			return netip.Addr{}, false
		}
		var b [4]byte
		for i, part := range parts {
			n, ok := parseNumber(part, 255)
			if !ok {
				return netip.Addr{}, false
			}
			b[i] = byte(n)
		}
		return netip.AddrFrom4(b), true
	}
	a, err := netip.ParseAddr(s)
	if err != nil || a.Zone() != "" {
		return netip.Addr{}, false
	}
	return a.Unmap(), true
}

// parsePrefix reads a CIDR with the same leniency and clears its host bits.
func parsePrefix(s string) (p netip.Prefix, ok bool) {
	head, tail, found := strings.Cut(s, "/")
	if !found {
		return netip.Prefix{}, false
	}
	a, ok := parseAddr(head)
	if !ok {
		return netip.Prefix{}, false
	}
	n, ok := parseNumber(tail, a.BitLen())
	if !ok {
		return netip.Prefix{}, false
	}
	return netip.PrefixFrom(a, n).Masked(), true
}

// parseNumber reads decimal digits, with or without leading zeros, up to a maximum.
func parseNumber(s string, most int) (int, bool) {
	if s == "" || strings.Trim(s, "0123456789") != "" {
		return 0, false
	}
	n, err := strconv.Atoi(s)
	return n, err == nil && n <= most
}

// forwardable says whether the address can be a frontend or an endpoint at all.
func forwardable(a netip.Addr) bool {
	return a.IsValid() && !a.IsUnspecified() && !a.IsLoopback() && !a.IsMulticast()
}

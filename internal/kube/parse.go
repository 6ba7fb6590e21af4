package kube

import (
	"net/netip"
	"strconv"
	"strings"
)

// maxAddrText is more than an address can have, and bounds the work on a field that is huge.
const maxAddrText = 100

// parseAddr reads an address as leniently as the API server once did: octets with leading zeros are decimal. An IPv4
// address in IPv6 clothes (::ffff:1.2.3.4) is the IPv4 address. A zone is an error, and so is an unspecified address
// (0.0.0.0, ::), which names no host.
func parseAddr(s string) (netip.Addr, bool) {
	a, ok := parseText(s)
	a = a.Unmap()
	return a, ok && !a.IsUnspecified()
}

// parseText is parseAddr without the unmapping.
func parseText(s string) (netip.Addr, bool) {
	if len(s) > maxAddrText {
		return netip.Addr{}, false
	}
	a, err := netip.ParseAddr(s)
	if err != nil {
		a, err = netip.ParseAddr(trimZeros(s))
	}
	if err != nil || a.Zone() != "" {
		return netip.Addr{}, false
	}
	return a, true
}

// trimZeros strips leading zeros from the octets of a dotted quad, which may stand at the end of an IPv6 address.
func trimZeros(s string) string {
	at := strings.LastIndexByte(s, ':') + 1
	octets := strings.Split(s[at:], ".")
	if len(octets) != 4 {
		return s
	}
	for i, o := range octets {
		if t := strings.TrimLeft(o, "0"); t != "" {
			octets[i] = t
		} else if o != "" {
			octets[i] = "0"
		}
	}
	return s[:at] + strings.Join(octets, ".")
}

// parsePrefix reads a CIDR with the same leniency, and masks host bits.
func parsePrefix(s string) (netip.Prefix, bool) {
	addr, length, ok := strings.Cut(s, "/")
	if !ok || length == "" || length[0] == '+' {
		return netip.Prefix{}, false
	}
	bits, err := strconv.ParseUint(length, 10, 8)
	if err != nil {
		return netip.Prefix{}, false
	}
	a, ok := parseText(addr)
	if !ok || int(bits) > a.BitLen() {
		return netip.Prefix{}, false
	}
	if a.Is4In6() && bits >= 96 {
		a, bits = a.Unmap(), bits-96
	}
	return netip.PrefixFrom(a, int(bits)).Masked(), true
}

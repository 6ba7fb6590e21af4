package lab

import (
	"fmt"
	"net/netip"
)

// The addresses of every lab. Labs are isolated, so all use the same ones. IPv4 is at index 0 and
// IPv6 at index 1.
var (
	// PodCIDRs contain all pods; node n has 10.244.n.0/24 and fd00:10:244:n::/64 of it.
	PodCIDRs = [2]netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fd00:10:244::/48")}
	// ServiceCIDRs contain cluster IPs.
	ServiceCIDRs = [2]netip.Prefix{netip.MustParsePrefix("10.96.0.0/16"), netip.MustParsePrefix("fd00:10:96::/112")}
	// BalancerCIDRs contain load-balancer and external IPs.
	BalancerCIDRs = [2]netip.Prefix{netip.MustParsePrefix("198.51.100.0/24"), netip.MustParsePrefix("2001:db8:100::/64")}
	// NodeCIDRs contain the nodes and the fabric, which has the first address.
	NodeCIDRs = [2]netip.Prefix{netip.MustParsePrefix("192.168.50.0/24"), netip.MustParsePrefix("fd00:192:168:50::/64")}
	// ClientCIDRs contain the external client, and the fabric, which has the first address.
	ClientCIDRs = [2]netip.Prefix{netip.MustParsePrefix("203.0.113.0/24"), netip.MustParsePrefix("2001:db8:113::/64")}

	everywhere = [2]netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")}
	podGateway = [2]netip.Addr{netip.MustParseAddr("169.254.1.1"), netip.MustParseAddr("fe80::1")}
)

// vips returns the prefixes that only nodes handle.
func vips() []netip.Prefix {
	return append(ServiceCIDRs[:], BalancerCIDRs[:]...)
}

// nth returns address number n of the prefix, n < 256.
func nth(p netip.Prefix, n int) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	b[len(b)-1] += byte(n)
	a, _ := netip.AddrFromSlice(b)
	return a
}

// full returns the prefix with only this address.
func full(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

func podCIDRs(node int) [2]netip.Prefix {
	return [2]netip.Prefix{
		netip.MustParsePrefix(fmt.Sprintf("10.244.%d.0/24", node)),
		netip.MustParsePrefix(fmt.Sprintf("fd00:10:244:%x::/64", node)),
	}
}

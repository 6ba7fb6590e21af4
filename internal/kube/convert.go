package kube

import (
	"net/netip"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	netutils "k8s.io/utils/net"
)

// Labels that take a Service or an EndpointSlice away from this proxy, whatever their values are.
const (
	labelProxyName = "service.kubernetes.io/service-proxy-name"
	labelHeadless  = v1.IsHeadlessService
)

// Converter selects API objects and converts them to values of package cluster. The zero value is
// ready to use.
type Converter struct {
	// AllLBIPsAreVIPs ignores the ipMode of load balancer addresses (feature gate
	// LoadBalancerIPMode off).
	AllLBIPsAreVIPs bool
	// ServiceProxyName selects Services whose label service.kubernetes.io/service-proxy-name has
	// this value; empty selects Services without the label.
	ServiceProxyName string
	// interned, if not nil, shares strings between objects. The Converter then belongs to one
	// goroutine.
	interned *interner
}

// interning returns a copy of the Converter that shares strings between objects.
func (c Converter) interning() Converter {
	c.interned = newInterner()
	return c
}

// serviceSelector returns the label selector of Services.
func (c Converter) serviceSelector() string {
	if c.ServiceProxyName != "" {
		return labelProxyName + "=" + c.ServiceProxyName + ",!" + labelHeadless
	}
	return "!" + labelProxyName + ",!" + labelHeadless
}

// sliceSelector returns the label selector of EndpointSlices. With a ServiceProxyName it selects
// all slices: those that are created by hand may lack the labels of their Service.
func (c Converter) sliceSelector() string {
	if c.ServiceProxyName != "" {
		return "!" + labelHeadless
	}
	return c.serviceSelector()
}

// matches reports whether a label selector selects an object. An invalid selector selects nothing.
func matches(selector string, l map[string]string) bool {
	s, err := labels.Parse(selector)
	return err == nil && s.Matches(labels.Set(l))
}

// maxAddrText is longer than any address; it limits the work on a huge field.
const maxAddrText = 100

// parseAddr parses the address of a host as leniently as the API server once did: octets may have
// leading zeros. An IPv4-mapped IPv6 address (::ffff:1.2.3.4) is the IPv4 address. Zones and
// unspecified addresses (0.0.0.0, ::) are invalid.
func parseAddr(s string) (netip.Addr, bool) {
	if len(s) > maxAddrText {
		return netip.Addr{}, false
	}
	a, err := netip.ParseAddr(s)
	if err != nil {
		a, _ = netip.AddrFromSlice(netutils.ParseIPSloppy(s))
	}
	a = a.Unmap()
	return a, a.IsValid() && a.Zone() == "" && !a.IsUnspecified()
}

// parsePrefix parses a CIDR with the same leniency and clears the host bits.
func parsePrefix(s string) (netip.Prefix, bool) {
	if len(s) > maxAddrText {
		return netip.Prefix{}, false
	}
	_, n, err := netutils.ParseCIDRSloppy(s)
	if err != nil {
		return netip.Prefix{}, false
	}
	a, _ := netip.AddrFromSlice(n.IP)
	bits, _ := n.Mask.Size()
	if a.Is4In6() && bits >= 96 {
		a, bits = a.Unmap(), bits-96
	}
	return netip.PrefixFrom(a, bits), true
}

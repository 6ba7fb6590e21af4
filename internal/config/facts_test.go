package config

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/fairlead/fairlead/internal/fwd"
)

// TestServiceCIDRs proves that service CIDRs are in the header, by family, only if the mode uses
// them.
func TestServiceCIDRs(t *testing.T) {
	four, six := netip.MustParsePrefix("10.96.0.0/16"), netip.MustParsePrefix("fd00::/112")
	for flags, want := range map[string]fwd.Header{
		"--proxy-mode nftables":                          {DropUnallocated: true, ServiceCIDRs: [2][]netip.Prefix{{four}, {six}}},
		"--proxy-mode iptables":                          {},
		"--proxy-mode nftables --service-proxy-name two": {}, // other instances have Services in them
		"--proxy-mode ipvs --service-proxy-name two":     {},
	} {
		c := parse(t, flags)
		var got fwd.Header
		c.SetServiceCIDRs(&got, []netip.Prefix{four, six})
		if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b fwd.Header) bool { return a.Equal(&b) })); diff != "" || c.WatchesServiceCIDRs() != want.DropUnallocated {
			t.Errorf("%s: watches %v (-want +got):\n%s", flags, c.WatchesServiceCIDRs(), diff)
		}
	}
}

// TestServiceCIDRsOfSharedNode proves that packets to addresses without a Service are left alone if
// another instance runs on the node.
func TestServiceCIDRsOfSharedNode(t *testing.T) {
	for _, flags := range []string{"--proxy-mode nftables", "--proxy-mode ipvs", "--proxy-mode iptables"} {
		c := parse(t, flags)
		c.NodeShared = true
		var got fwd.Header
		c.SetServiceCIDRs(&got, []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16")})
		if got.DropUnallocated || len(got.ServiceCIDRs[0]) > 0 {
			t.Errorf("%s: the header is %+v", flags, got)
		}
		if alone := parse(t, flags); c.WatchesServiceCIDRs() != alone.WatchesServiceCIDRs() {
			t.Errorf("%s: whether service CIDRs are watched depends on the other instance", flags)
		}
	}
}

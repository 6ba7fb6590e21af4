package config

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/fairlead/fairlead/internal/fwd"
)

// Service CIDRs are in the header by family, in the mode that drops what is sent to addresses that no Service has.
func TestServiceCIDRs(t *testing.T) {
	four, six := netip.MustParsePrefix("10.96.0.0/16"), netip.MustParsePrefix("fd00::/112")
	for flags, want := range map[string]fwd.Header{
		"--proxy-mode nftables": {DropUnallocated: true, ServiceCIDRs: [2][]netip.Prefix{{four}, {six}}},
		"--proxy-mode iptables": {},
	} {
		c := parse(t, flags)
		var got fwd.Header
		c.SetServiceCIDRs(&got, []netip.Prefix{four, six})
		if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b fwd.Header) bool { return a.Equal(&b) })); diff != "" || c.WatchesServiceCIDRs() != want.DropUnallocated {
			t.Errorf("%s: watches %v (-want +got):\n%s", flags, c.WatchesServiceCIDRs(), diff)
		}
	}
}

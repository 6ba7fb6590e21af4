package config

import (
	"net/netip"

	"github.com/fairlead/fairlead/internal/cluster"
	"github.com/fairlead/fairlead/internal/compile"
	"github.com/fairlead/fairlead/internal/fwd"
)

// Facts is what the compiler needs to know of this node. Facts are comparable: Services are compiled again when they
// differ from those of the last time.
func (c *Config) Facts(node cluster.Node) compile.Facts {
	f := compile.Facts{
		NodeName:          c.NodeName,
		Zone:              node.Zone,
		MasqueradeAll:     c.MasqueradeAll,
		IgnoreExternalIPs: !c.Gates.AllowServiceExternalIPs,
		IgnoreNodeHints:   !c.Gates.PreferSameTrafficDistribution,
	}
	for _, fam := range fwd.Families {
		f.PrimaryIP[fam.Index()] = c.PrimaryIP(node, fam)
		f.DetectsPods[fam.Index()] = c.detector(node, fam).Implemented()
	}
	return f
}

// WatchesServiceCIDRs says whether the mode makes use of service CIDRs. An instance with a name does not: what is in them is
// another's as a rule.
func (c *Config) WatchesServiceCIDRs() bool {
	return (c.Mode == ModeNFTables || c.Mode == ModeIPVS) && c.ServiceProxyName == ""
}

// SetServiceCIDRs puts the service CIDRs of both families into a header, where the mode makes use of them and no other instance's
// cluster IPs can be among them: without, nothing is done to an address that no Service of ours has.
func (c *Config) SetServiceCIDRs(h *fwd.Header, cidrs []netip.Prefix) {
	if !c.WatchesServiceCIDRs() || c.NodeShared {
		return
	}
	h.DropUnallocated = c.Mode == ModeNFTables
	for _, p := range cidrs {
		i := fwd.FamilyOf(p.Addr()).Index()
		h.ServiceCIDRs[i] = append(h.ServiceCIDRs[i], p)
	}
}

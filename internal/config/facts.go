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

// WatchesServiceCIDRs says whether the mode makes use of service CIDRs.
func (c *Config) WatchesServiceCIDRs() bool { return c.Mode == ModeNFTables || c.Mode == ModeIPVS }

// SetServiceCIDRs puts the service CIDRs of both families into a header, where the mode makes use of them.
func (c *Config) SetServiceCIDRs(h *fwd.Header, cidrs []netip.Prefix) {
	h.DropUnallocated = c.Mode == ModeNFTables
	if !c.WatchesServiceCIDRs() {
		return
	}
	for _, p := range cidrs {
		i := fwd.FamilyOf(p.Addr()).Index()
		h.ServiceCIDRs[i] = append(h.ServiceCIDRs[i], p)
	}
}

package config

import (
	"net/netip"

	"github.com/fairlead/fairlead/internal/cluster"
	"github.com/fairlead/fairlead/internal/compile"
	"github.com/fairlead/fairlead/internal/fwd"
)

// Facts returns what the compiler needs to know about this node. Facts are comparable; Services are
// recompiled when they change.
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

// WatchesServiceCIDRs reports whether service CIDRs are needed. A named instance does not need
// them: most addresses in them belong to other instances.
func (c *Config) WatchesServiceCIDRs() bool {
	return (c.Mode == ModeNFTables || c.Mode == ModeIPVS) && c.ServiceProxyName == ""
}

// SetServiceCIDRs sets the service CIDRs of both families in a header, if the mode uses them and no
// other instance can have cluster IPs in them. Without service CIDRs, packets to addresses that no
// Service has are left alone.
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

// Configz returns the Config in the format of kube-proxy 1.36's /configz, for encoding/json: a
// v1alpha1 KubeProxyConfiguration with all defaults, as YAML writes it, under the name of the API
// group.
func (c *Config) Configz() any {
	return map[string]any{"kubeproxy.config.k8s.io": c.object()}
}

package ipvs

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/fairlead/fairlead/internal/fwd"
	"github.com/fairlead/fairlead/internal/instance"
)

// VIPMode says how packets to the addresses of Services come to be delivered to this node, where IPVS waits for them.
type VIPMode uint8

// The modes, see docs/ipvs.md.
const (
	// VIPAddress gives the addresses to the device kube-ipvs0.
	VIPAddress VIPMode = iota
	// VIPRoute makes them local by routes: one for each service CIDR, and one for each address outside of these.
	VIPRoute
	// VIPMark makes no address local: packets to frontends get a mark by which a routing rule delivers them here.
	VIPMark
)

var vipModeNames = []string{VIPAddress: "address", VIPRoute: "route", VIPMark: "mark"}

func (m VIPMode) String() string { return vipModeNames[m] }

// ParseVIPMode reads the name of a mode.
func ParseVIPMode(s string) (VIPMode, error) {
	i := slices.Index(vipModeNames, s)
	if i < 0 {
		return 0, fmt.Errorf("%q: want one of %v", s, vipModeNames)
	}
	return VIPMode(i), nil
}

// RenderOptions is what the wanted objects of one family depend on beside the table. The zero RenderOptions is possible.
type RenderOptions struct {
	// Instance is whose objects these are.
	Instance instance.ID
	// VIPs says how packets come to be delivered to this node.
	VIPs VIPMode
	// Scheduler is for pools that name none; empty means rr.
	Scheduler string
	// HairpinBPF says that the kernel has xt_bpf: hairpin connections are then recognised by one rule that compares source
	// and destination, otherwise by a set of the endpoints on this node.
	HairpinBPF bool
	// RandomFully says that MASQUERADE can choose source ports at random.
	RandomFully bool
	// NodeIP is the source of the node's own packets to Services in mode VIPRoute, as long as it is one of the header's
	// LocalAddrs and of the family. Without it the kernel takes the address of the Service, and such packets are masqueraded.
	NodeIP netip.Addr
	// Exclude are networks whose addresses are other programs' business (--ipvs-exclude-cidrs): nothing is wanted there.
	Exclude []netip.Prefix
}

func (o *RenderOptions) excludes(a netip.Addr) bool {
	return slices.ContainsFunc(o.Exclude, func(p netip.Prefix) bool { return p.Contains(a) })
}

// serviceCIDRs are those service CIDRs that can be treated as a whole, since nothing in them is the node's or excluded.
func (o *RenderOptions) serviceCIDRs(h *fwd.Header, f fwd.Family) []netip.Prefix {
	return slices.DeleteFunc(slices.Clone(h.ServiceCIDRs[f.Index()]), func(c netip.Prefix) bool {
		return slices.ContainsFunc(o.Exclude, c.Overlaps) || slices.ContainsFunc(h.LocalAddrs, c.Contains)
	})
}

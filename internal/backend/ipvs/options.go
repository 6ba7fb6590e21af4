package ipvs

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/fairlead/fairlead/internal/fwd"
	"github.com/fairlead/fairlead/internal/instance"
)

// VIPMode is how packets for the addresses of Services are delivered to this node, and so to IPVS.
type VIPMode uint8

// The modes, see docs/ipvs.md.
const (
	// VIPAddress adds the addresses to the device kube-ipvs0.
	VIPAddress VIPMode = iota
	// VIPRoute adds local routes: one for each service CIDR, and one for each address outside of
	// these.
	VIPRoute
	// VIPMark makes no address local: packets to frontends get a mark, and a routing rule delivers
	// marked packets here.
	VIPMark
)

var vipModeNames = []string{VIPAddress: "address", VIPRoute: "route", VIPMark: "mark"}

func (m VIPMode) String() string { return vipModeNames[m] }

// ParseVIPMode parses the name of a mode.
func ParseVIPMode(s string) (VIPMode, error) {
	i := slices.Index(vipModeNames, s)
	if i < 0 {
		return 0, fmt.Errorf("%q: want one of %v", s, vipModeNames)
	}
	return VIPMode(i), nil
}

// RenderOptions determine, with the table, the wanted objects of one family. The zero RenderOptions
// are valid.
type RenderOptions struct {
	Instance instance.ID
	VIPs     VIPMode
	// Scheduler is the scheduler of pools that name none; empty means rr.
	Scheduler string
	// HairpinBPF means that the kernel has xt_bpf: one rule that compares source and destination
	// recognises hairpin connections. Otherwise a set of the endpoints on this node does.
	HairpinBPF bool
	// RandomFully means that MASQUERADE supports --random-fully.
	RandomFully bool
	// NodeIP is the source of the node's own packets to Services in mode VIPRoute, if it is of the
	// family and one of the header's LocalAddrs. Otherwise the kernel uses the address of the
	// Service as source, and such packets are masqueraded.
	NodeIP netip.Addr
	// Exclude are networks whose addresses belong to other programs (--ipvs-exclude-cidrs): nothing
	// is programmed there.
	Exclude []netip.Prefix
}

func (o *RenderOptions) excludes(a netip.Addr) bool {
	return slices.ContainsFunc(o.Exclude, func(p netip.Prefix) bool { return p.Contains(a) })
}

// serviceCIDRs returns the service CIDRs that contain no address of the node and no excluded one.
func (o *RenderOptions) serviceCIDRs(h *fwd.Header, f fwd.Family) []netip.Prefix {
	return slices.DeleteFunc(slices.Clone(h.ServiceCIDRs[f.Index()]), func(c netip.Prefix) bool {
		return slices.ContainsFunc(o.Exclude, c.Overlaps) || slices.ContainsFunc(h.LocalAddrs, c.Contains)
	})
}

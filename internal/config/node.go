package config

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/fairlead/fairlead/internal/cluster"
	"github.com/fairlead/fairlead/internal/fwd"
)

// Header is the header of the forwarding table on that node. local are the addresses of the node's interfaces, in any
// order.
func (c *Config) Header(node cluster.Node, local []netip.Addr) fwd.Header {
	h := fwd.Header{MasqueradeBit: c.MasqueradeBit, RejectOtherPorts: c.Mode != ModeIPTables}
	for _, f := range fwd.Families {
		h.Detector[f.Index()] = c.detector(node, f)
		h.NodePorts[f.Index()], _ = c.nodePorts(node, f)
	}
	for _, a := range local {
		if a = a.Unmap().WithZone(""); a.IsValid() && !a.IsLoopback() {
			h.LocalAddrs = append(h.LocalAddrs, a)
		}
	}
	slices.SortFunc(h.LocalAddrs, netip.Addr.Compare)
	h.LocalAddrs = slices.Compact(h.LocalAddrs)
	if c.MasqueradeSource == SourceNode {
		for _, f := range fwd.Families {
			// Replies to an address that the node does not have would never come back.
			if a := c.primary(node, f); a.IsValid() && !a.IsLoopback() && h.IsLocal(a) {
				h.MasqueradeSource[f.Index()] = a
			}
		}
	}
	return h
}

// Warnings lists what the operator probably did not mean, one sentence each. It says nothing about defaults, nor about a
// family that the cluster does not use. local are the addresses of the node's interfaces.
func (c *Config) Warnings(node cluster.Node, local []netip.Addr) []string {
	var out []string
	h := c.Header(node, local)
	if len(c.UnknownGates) > 0 {
		out = append(out, "feature gates without a meaning here are ignored: "+strings.Join(slices.Sorted(maps.Keys(c.UnknownGates)), ", "))
	}
	for _, f := range fwd.Families {
		if !c.detector(node, f).Implemented() && c.hasPods(node, f) {
			out = append(out, c.noDetector(f))
		}
		if a := h.MasqueradeSource[f.Index()]; c.MasqueradeSource == SourceNode && !a.IsValid() && c.uses(node, f) {
			out = append(out, c.noSource(node, f))
		}
		_, w := c.nodePorts(node, f)
		out = append(out, w...)
	}
	return out
}

// hasPods says whether the cluster has pods of the family, as far as their networks tell; where there is no word about any,
// it has those of IPv4.
func (c *Config) hasPods(node cluster.Node, f fwd.Family) bool {
	networks := slices.Concat(c.ClusterCIDRs, node.PodCIDRs)
	if len(networks) == 0 {
		return f == fwd.IPv4
	}
	return firstOf(networks, f).IsValid()
}

// uses says whether Services of the family may have traffic on the node: the cluster has pods of it, or the node an address.
func (c *Config) uses(node cluster.Node, f fwd.Family) bool {
	return c.hasPods(node, f) || c.primary(node, f).IsValid()
}

// primary is the node's address of the family: the bind address if it is a specific one, else the first of the Node
// object, else the zero Addr.
func (c *Config) primary(node cluster.Node, f fwd.Family) netip.Addr {
	if b := c.BindAddress; b.IsValid() && !b.IsUnspecified() && fwd.FamilyOf(b) == f {
		return b
	}
	for _, a := range node.Addrs {
		if fwd.FamilyOf(a) == f {
			return a
		}
	}
	return netip.Addr{}
}

// PrimaryIP is the node's address of the family where a rule asks for one address: loopback if there is no other.
func (c *Config) PrimaryIP(node cluster.Node, f fwd.Family) netip.Addr {
	if a := c.primary(node, f); a.IsValid() {
		return a
	}
	if f == fwd.IPv6 {
		return netip.IPv6Loopback()
	}
	return netip.AddrFrom4([4]byte{127, 0, 0, 1})
}

// PodCIDR is the node's first pod network of the family, the zero Prefix if there is none.
func PodCIDR(node cluster.Node, f fwd.Family) netip.Prefix { return firstOf(node.PodCIDRs, f) }

// firstOf returns the first prefix of a family, since only that one counts.
func firstOf(ps []netip.Prefix, f fwd.Family) netip.Prefix {
	for _, p := range ps {
		if fwd.FamilyOf(p.Addr()) == f {
			return p
		}
	}
	return netip.Prefix{}
}

func (c *Config) detector(node cluster.Node, f fwd.Family) fwd.Detector {
	switch c.DetectMode {
	case DetectNodeCIDR:
		return fwd.Detector{Prefix: PodCIDR(node, f)}
	case DetectBridgeInterface:
		return fwd.Detector{Bridge: c.PodBridge}
	case DetectInterfacePrefix:
		return fwd.Detector{InterfacePrefix: c.PodInterfacePrefix}
	}
	return fwd.Detector{Prefix: firstOf(c.ClusterCIDRs, f)}
}

func (c *Config) noDetector(f fwd.Family) string {
	why := fmt.Sprintf("%s has no %s CIDR", c.nameOf("cluster-cidr"), f)
	if c.DetectMode == DetectNodeCIDR {
		why = fmt.Sprintf("the Node has no %s podCIDR", f)
	}
	return fmt.Sprintf("%s: %s pods are not told from other sources, so nothing is masqueraded for coming from outside of the cluster", why, f)
}

// noSource says why there is no address of the family to rewrite sources to.
func (c *Config) noSource(node cluster.Node, f fwd.Family) string {
	why := fmt.Sprintf("no %s address of the node is known", f)
	if a := c.primary(node, f); a.IsValid() {
		why = fmt.Sprintf("the node's address %s is on none of its interfaces", a)
	}
	return fmt.Sprintf("%s is %s, but %s: the kernel chooses the source of masqueraded %s connections", c.nameOf("masquerade-source"), c.MasqueradeSource, why, f)
}

// nodePorts works out where node ports of a family are served, and what to warn of.
func (c *Config) nodePorts(node cluster.Node, f fwd.Family) (fwd.NodePortAddrs, []string) {
	loopback := loopbackOf(f)
	wanted, warnings := c.nodePortPrefixes(node, f)
	var out fwd.NodePortAddrs
	if len(wanted) == 0 {
		if c.nodePortAddresses().Primary {
			return out, warnings
		}
		if !c.nodePortAddresses().Unset() && c.uses(node, f) {
			warnings = append(warnings, fmt.Sprintf("%s names no %s address: %s node ports are served on all addresses of the node", c.nameOf("nodeport-addresses"), f, f))
		}
		out.All = true
	}
	loops := out.All
	explicit := false
	for _, p := range wanted {
		switch {
		case p.Bits() == 0:
			out.All, loops = true, true
			continue
		case p.Contains(loopback):
			loops, explicit = true, true
		}
		if !p.Addr().IsLoopback() {
			out.Prefixes = append(out.Prefixes, p)
		}
	}
	if out.All {
		out.Prefixes = nil
	}
	slices.SortFunc(out.Prefixes, netip.Prefix.Compare)
	out.Prefixes = slices.Compact(out.Prefixes)
	if c.Mode != ModeIPTables {
		return out, warnings // see LocalPorts
	}
	out.Loopback = loops && c.LocalhostNodePorts && f == fwd.IPv4
	if explicit && !out.Loopback && c.uses(node, f) {
		warnings = append(warnings, c.noLoopback(f, loopback))
	}
	return out, warnings
}

// LocalPorts says by fwd.Family.Index whether node ports are served on loopback addresses by a forwarder in user space.
// So it is in modes nftables and ipvs, where --nodeport-addresses names such an address (KEP-6032); a list that means all addresses
// does not name it.
func (c *Config) LocalPorts() [2]bool {
	n := c.NodePortAddresses
	out := [2]bool{n.Localhost, n.Localhost}
	for _, p := range n.Prefixes {
		if f := fwd.FamilyOf(p.Addr()); p.Bits() > 0 && p.Contains(loopbackOf(f)) {
			out[f.Index()] = true
		}
	}
	if c.Mode == ModeIPTables {
		return [2]bool{}
	}
	return out
}

// nodePortAddresses is --nodeport-addresses with what its absence means in the mode.
func (c *Config) nodePortAddresses() NodePortAddresses {
	if c.Mode == ModeNFTables && c.NodePortAddresses.Unset() {
		return NodePortAddresses{Primary: true}
	}
	return c.NodePortAddresses
}

// loopbackOf is the address of the loopback interface.
func loopbackOf(f fwd.Family) netip.Addr {
	if f == fwd.IPv6 {
		return netip.IPv6Loopback()
	}
	return netip.AddrFrom4([4]byte{127, 0, 0, 1})
}

// nodePortPrefixes expands the words of --nodeport-addresses for one family.
func (c *Config) nodePortPrefixes(node cluster.Node, f fwd.Family) ([]netip.Prefix, []string) {
	n := c.nodePortAddresses()
	var out []netip.Prefix
	var warnings []string
	for _, p := range n.Prefixes {
		if fwd.FamilyOf(p.Addr()) == f {
			out = append(out, p)
		}
	}
	if n.All {
		out = append(out, zeroPrefix(f))
	}
	if n.Localhost && f == fwd.IPv4 {
		out = append(out, netip.PrefixFrom(netip.AddrFrom4([4]byte{127}), 8))
	}
	if n.Localhost && f == fwd.IPv6 {
		out = append(out, netip.PrefixFrom(netip.IPv6Loopback(), 128))
	}
	if n.Primary {
		if a := c.primary(node, f); a.IsValid() && !a.IsLoopback() {
			out = append(out, netip.PrefixFrom(a, a.BitLen()))
		} else if c.hasPods(node, f) {
			warnings = append(warnings, fmt.Sprintf("%s has primary, but the node has no %s address: it adds no %s node ports", c.nameOf("nodeport-addresses"), f, f))
		}
	}
	return out, warnings
}

func zeroPrefix(f fwd.Family) netip.Prefix {
	if f == fwd.IPv6 {
		return netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	}
	return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
}

func (c *Config) noLoopback(f fwd.Family, loopback netip.Addr) string {
	if f == fwd.IPv6 {
		return fmt.Sprintf("%s has %s: node ports cannot be served on it, so it is left out", c.nameOf("nodeport-addresses"), loopback)
	}
	return fmt.Sprintf("%s has %s, but %s is false: it is left out", c.nameOf("nodeport-addresses"), loopback, c.nameOf("iptables-localhost-nodeports"))
}

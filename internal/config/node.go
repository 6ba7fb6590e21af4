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

// Header returns the header of the forwarding table on a node. local are the addresses of the
// node's interfaces, in any order.
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
			// The node would never receive replies to an address that is not local.
			if a := c.primary(node, f); a.IsValid() && !a.IsLoopback() && h.IsLocal(a) {
				h.MasqueradeSource[f.Index()] = a
			}
		}
	}
	return h
}

// Warnings returns likely mistakes of the operator, one sentence each. It does not warn about
// defaults or about a family that the cluster does not use. local are the addresses of the node's
// interfaces.
func (c *Config) Warnings(node cluster.Node, local []netip.Addr) []string {
	var out []string
	h := c.Header(node, local)
	if len(c.UnknownGates) > 0 {
		gates := strings.Join(slices.Sorted(maps.Keys(c.UnknownGates)), ", ")
		out = append(out, "ignoring unknown feature gates: "+gates)
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

// hasPods reports whether the cluster has pods of the family, judging by its pod networks. If no
// pod networks are known, it has IPv4 pods.
func (c *Config) hasPods(node cluster.Node, f fwd.Family) bool {
	networks := slices.Concat(c.ClusterCIDRs, node.PodCIDRs)
	if len(networks) == 0 {
		return f == fwd.IPv4
	}
	return firstOf(networks, f).IsValid()
}

// uses reports whether the node may have Service traffic of the family: the cluster has pods of the
// family, or the node has an address.
func (c *Config) uses(node cluster.Node, f fwd.Family) bool {
	return c.hasPods(node, f) || c.primary(node, f).IsValid()
}

// primary returns the node's address of the family: the bind address if it is specified, else the
// first address of the Node object, else the zero Addr.
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

// PrimaryIP returns the node's address of the family for rules that need one: the loopback address
// if there is no other.
func (c *Config) PrimaryIP(node cluster.Node, f fwd.Family) netip.Addr {
	if a := c.primary(node, f); a.IsValid() {
		return a
	}
	return loopbackOf(f)
}

// loopbackOf returns the loopback address of the family.
func loopbackOf(f fwd.Family) netip.Addr {
	if f == fwd.IPv6 {
		return netip.IPv6Loopback()
	}
	return netip.AddrFrom4([4]byte{127, 0, 0, 1})
}

// PodCIDR returns the node's first pod network of the family, or the zero Prefix.
func PodCIDR(node cluster.Node, f fwd.Family) netip.Prefix { return firstOf(node.PodCIDRs, f) }

// firstOf returns the first prefix of a family; the others are not used.
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
	return fmt.Sprintf("%s: cannot detect local %s pods, so traffic from outside the cluster is not masqueraded", why, f)
}

// noSource warns that there is no node address of the family to masquerade with.
func (c *Config) noSource(node cluster.Node, f fwd.Family) string {
	why := fmt.Sprintf("no %s address of the node is known", f)
	if a := c.primary(node, f); a.IsValid() {
		why = fmt.Sprintf("the node's address %s is on none of its interfaces", a)
	}
	return fmt.Sprintf("%s is %s, but %s: the kernel chooses the source address of masqueraded %s connections",
		c.nameOf("masquerade-source"), c.MasqueradeSource, why, f)
}

// nodePorts returns the addresses on which node ports of a family are served, and warnings.
func (c *Config) nodePorts(node cluster.Node, f fwd.Family) (out fwd.NodePortAddrs, warnings []string) {
	wanted, warnings := c.nodePortPrefixes(node, f)
	loopback := loopbackOf(f)
	out.All = slices.ContainsFunc(wanted, func(p netip.Prefix) bool { return p.Bits() == 0 })
	named := slices.ContainsFunc(wanted, func(p netip.Prefix) bool { return p.Bits() > 0 && p.Contains(loopback) })
	if !out.All {
		for _, p := range wanted {
			if !p.Addr().IsLoopback() {
				out.Prefixes = append(out.Prefixes, p)
			}
		}
		slices.SortFunc(out.Prefixes, netip.Prefix.Compare)
		out.Prefixes = slices.Compact(out.Prefixes)
	}
	if c.Mode != ModeIPTables {
		return out, warnings // see LocalPorts
	}
	out.Loopback = (out.All || named) && c.LocalhostNodePorts && f == fwd.IPv4
	if named && !out.Loopback && c.uses(node, f) {
		why := "node ports cannot be served on it"
		if f == fwd.IPv4 {
			why = c.nameOf("iptables-localhost-nodeports") + " is false"
		}
		warnings = append(warnings, fmt.Sprintf("%s contains %s, which is ignored: %s", c.nameOf("nodeport-addresses"), loopback, why))
	}
	return out, warnings
}

// LocalPorts reports, by fwd.Family.Index, whether a forwarder in user space serves node ports on
// loopback addresses. It does in modes nftables and ipvs if --nodeport-addresses names such an
// address (KEP-6032). A list that means all addresses does not name it.
func (c *Config) LocalPorts() [2]bool {
	if c.Mode == ModeIPTables {
		return [2]bool{}
	}
	n := c.NodePortAddresses
	out := [2]bool{n.Localhost, n.Localhost}
	for _, p := range n.Prefixes {
		if f := fwd.FamilyOf(p.Addr()); p.Bits() > 0 && p.Contains(loopbackOf(f)) {
			out[f.Index()] = true
		}
	}
	return out
}

// nodePortAddresses returns --nodeport-addresses or the default of the mode.
func (c *Config) nodePortAddresses() NodePortAddresses {
	if c.Mode == ModeNFTables && c.NodePortAddresses.Unset() {
		return NodePortAddresses{Primary: true}
	}
	return c.NodePortAddresses
}

// nodePortPrefixes expands --nodeport-addresses for one family. Without an address of the family it
// means all addresses, unless it contains primary.
func (c *Config) nodePortPrefixes(node cluster.Node, f fwd.Family) (out []netip.Prefix, warnings []string) {
	name, n := c.nameOf("nodeport-addresses"), c.nodePortAddresses()
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
			warnings = append(warnings, fmt.Sprintf("%s contains primary, but the node has no %s address: no %s node ports are served on it", name, f, f))
		}
	} else if len(out) == 0 {
		if !n.Unset() && c.uses(node, f) {
			warnings = append(warnings, fmt.Sprintf("%s has no %s address: %s node ports are served on all addresses of the node", name, f, f))
		}
		out = append(out, zeroPrefix(f))
	}
	return out, warnings
}

func zeroPrefix(f fwd.Family) netip.Prefix {
	if f == fwd.IPv6 {
		return netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	}
	return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
}

package oracle

import (
	"net/netip"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"

	"github.com/fairlead/fairlead/internal/fwd"
)

// host is what one family's packets meet on the node.
type host struct {
	v4   bool
	name string
	zone string
	// addrs are the node's own addresses of the family, the primary one first; loopback ones are
	// not named.
	addrs []netip.Addr
	// primary is the address that stands for the node; not valid if none is known.
	primary netip.Addr
	// podPrefix, podBridge and podInterface recognise pods; all are empty where no detector works.
	podPrefix    netip.Prefix
	podBridge    string
	podInterface string
	// allNodePorts serves node ports on every local address, otherwise nodePortPrefixes says on
	// which.
	allNodePorts     bool
	nodePortPrefixes []netip.Prefix
	// loopbackNodePorts serves them on 127.0.0.0/8 as well.
	loopbackNodePorts bool
}

func newHost(c *Cluster, cfg *Config, v4 bool) *host {
	h := &host{v4: v4, name: cfg.NodeName}
	var podCIDRs []string
	for _, n := range c.Nodes {
		if n.Name == cfg.NodeName {
			h.zone = n.Labels[v1.LabelTopologyZone]
			h.readAddresses(n)
			podCIDRs = n.Spec.PodCIDRs
			if len(podCIDRs) == 0 && n.Spec.PodCIDR != "" {
				podCIDRs = []string{n.Spec.PodCIDR}
			}
		}
	}
	if len(h.addrs) > 0 {
		h.primary = h.addrs[0]
	}
	for _, text := range cfg.LocalAddresses {
		if a, ok := parseAddr(text); ok && a.Is4() == v4 {
			h.addrs = append(h.addrs, a)
		}
	}
	if a, ok := parseAddr(cfg.BindAddress); ok && a.Is4() == v4 && !a.IsUnspecified() {
		h.primary = a
	}
	h.readDetector(cfg, podCIDRs)
	h.readNodePortAddresses(cfg)
	return h
}

// readAddresses takes the Node's internal addresses, then its external ones.
func (h *host) readAddresses(n *v1.Node) {
	for _, kind := range []v1.NodeAddressType{v1.NodeInternalIP, v1.NodeExternalIP} {
		for _, na := range n.Status.Addresses {
			if a, ok := parseAddr(na.Address); ok && na.Type == kind && a.Is4() == h.v4 {
				h.addrs = append(h.addrs, a)
			}
		}
	}
}

// readDetector works out how pods are recognised. Of several CIDRs the first of the family counts.
func (h *host) readDetector(cfg *Config, podCIDRs []string) {
	first := func(cidrs []string) netip.Prefix {
		for _, text := range cidrs {
			if p, ok := parsePrefix(text); ok && p.Addr().Is4() == h.v4 {
				return p
			}
		}
		return netip.Prefix{}
	}
	switch cfg.DetectLocalMode {
	case "", "ClusterCIDR":
		h.podPrefix = first(cfg.ClusterCIDRs)
	case "NodeCIDR":
		h.podPrefix = first(podCIDRs)
	case "BridgeInterface":
		h.podBridge = cfg.BridgeInterface
	case "InterfaceNamePrefix":
		h.podInterface = cfg.InterfacePrefix
	}
}

// hasDetector says whether pods can be recognised at all.
func (h *host) hasDetector() bool {
	return h.podPrefix.IsValid() || h.podBridge != "" || h.podInterface != ""
}

// readNodePortAddresses keeps the prefixes of the family.
func (h *host) readNodePortAddresses(cfg *Config) {
	entries := cfg.NodePortAddresses
	if cfg.NFTables && len(entries) == 0 {
		entries = []string{"primary"}
	}
	named := false // an entry concerns this family
	for _, entry := range entries {
		p, concerns := h.nodePortPrefix(entry)
		named = named || concerns
		if p.IsValid() {
			h.nodePortPrefixes = append(h.nodePortPrefixes, p)
		}
	}
	h.allNodePorts = !named || slices.ContainsFunc(h.nodePortPrefixes, func(p netip.Prefix) bool { return p.Bits() == 0 })
	// The loopback interface has this one address, so a prefix that lies elsewhere in 127.0.0.0/8
	// names nothing.
	loopback := netip.MustParseAddr("127.0.0.1")
	listed := slices.ContainsFunc(h.nodePortPrefixes, func(p netip.Prefix) bool { return p.Contains(loopback) })
	// In mode nftables no packet to a loopback address is changed: the daemon listens there.
	h.loopbackNodePorts = h.v4 && cfg.LocalhostNodePorts && (h.allNodePorts || listed) && !cfg.NFTables
}

// nodePortPrefix reads an entry, which may be a keyword. The prefix is not valid if the entry
// concerns another family, or if the node has no such address.
func (h *host) nodePortPrefix(entry string) (p netip.Prefix, concerns bool) {
	family := 1
	if h.v4 {
		family = 0
	}
	switch entry {
	case "primary":
		if h.primary.IsValid() && !h.primary.IsLoopback() {
			p = netip.PrefixFrom(h.primary, h.primary.BitLen())
		}
		return p, true
	case "localhost":
		entry = [2]string{"127.0.0.0/8", "::1/128"}[family]
	case "all":
		entry = [2]string{"0.0.0.0/0", "::/0"}[family]
	}
	p, ok := parsePrefix(entry)
	if !ok || p.Addr().Is4() != h.v4 {
		return netip.Prefix{}, false
	}
	return p, true
}

// isLocal says whether an address of the family is one of the node's own.
func (h *host) isLocal(a netip.Addr) bool { return a.IsLoopback() || slices.Contains(h.addrs, a) }

// class returns the class of a packet's source.
func (h *host) class(p fwd.Packet) fwd.Class {
	fromPod := h.podPrefix.IsValid() && h.podPrefix.Contains(p.Src) ||
		h.podBridge != "" && p.InInterface == h.podBridge ||
		h.podInterface != "" && strings.HasPrefix(p.InInterface, h.podInterface)
	switch {
	case fromPod:
		return fwd.Pod
	case h.isLocal(p.Src):
		return fwd.Host
	}
	return fwd.Outside
}

// servesNodePorts says whether a node port would be served to that source on that destination.
func (h *host) servesNodePorts(src, dst netip.Addr) bool {
	switch {
	case !h.isLocal(dst):
		return false
	case dst.IsLoopback():
		return h.loopbackNodePorts && h.isLocal(src)
	case h.allNodePorts:
		return true
	}
	return slices.ContainsFunc(h.nodePortPrefixes, func(p netip.Prefix) bool { return p.Contains(dst) })
}

// sourceAddress is the address that stands for the node where the node itself is asked for as a
// client.
func (h *host) sourceAddress() netip.Addr {
	switch {
	case h.primary.IsValid():
		return h.primary
	case h.v4:
		return netip.MustParseAddr("127.0.0.1")
	}
	return netip.IPv6Loopback()
}

package fwd

import (
	"net/netip"
	"slices"
	"strings"
)

// Detector says how a packet from a pod is recognised, for one family. The zero Detector recognises
// none. The first field that is set decides.
type Detector struct {
	// Prefix recognises sources inside a CIDR (modes ClusterCIDR and NodeCIDR).
	Prefix netip.Prefix
	// Bridge recognises packets that arrive on the interface of exactly this name.
	Bridge string
	// InterfacePrefix recognises packets that arrive on an interface whose name begins so.
	InterfacePrefix string
}

// MaxInterfaceName is the length of the longest interface name in bytes: linux/if.h, IFNAMSIZ less
// the final zero.
const MaxInterfaceName = 15

// Interface returns the interface that the detector recognises pods by, and whether that is a whole
// name or the beginning of one. It is empty for a detector that does not use the interface. A
// prefix of the maximum length is a whole name.
func (d Detector) Interface() (name string, whole bool) {
	switch {
	case d.Prefix.IsValid():
		return "", false
	case d.Bridge != "":
		return d.Bridge, true
	}
	return d.InterfacePrefix, len(d.InterfacePrefix) >= MaxInterfaceName
}

// Implemented says whether pods can be recognised at all.
func (d Detector) Implemented() bool { return d != Detector{} }

// Matches says whether the packet comes from a pod. iface is the name of the interface on which it
// arrived, empty for a packet made by this host: such a packet is never recognised by interface.
func (d Detector) Matches(src netip.Addr, iface string) bool {
	switch {
	case d.Prefix.IsValid():
		return d.Prefix.Contains(src)
	case d.Bridge != "":
		return iface == d.Bridge
	case d.InterfacePrefix != "":
		return strings.HasPrefix(iface, d.InterfacePrefix)
	}
	return false
}

// NodePortAddrs says on which of the node's addresses node ports are served, for one family.
type NodePortAddrs struct {
	// All means every local address, except what Loopback says of loopback ones. Prefixes is empty
	// then.
	All bool
	// Prefixes serves local addresses inside any of them: masked and sorted. Empty and not All
	// means none.
	Prefixes []netip.Prefix
	// Loopback serves 127.0.0.0/8 to this host itself. It is never set for IPv6.
	Loopback bool
}

// Equal compares all fields.
func (a NodePortAddrs) Equal(o NodePortAddrs) bool {
	return a.All == o.All && a.Loopback == o.Loopback && slices.Equal(a.Prefixes, o.Prefixes)
}

// Serves says whether a node port is served on the local address, for a source that is this host or
// not.
func (a NodePortAddrs) Serves(dst netip.Addr, fromHost bool) bool {
	if dst.IsLoopback() {
		return a.Loopback && fromHost
	}
	return a.All || slices.ContainsFunc(a.Prefixes, func(p netip.Prefix) bool { return p.Contains(dst) })
}

// Header holds the settings that apply to the whole node.
type Header struct {
	// Detector by Family.Index.
	Detector [2]Detector
	// NodePorts by Family.Index.
	NodePorts [2]NodePortAddrs
	// MasqueradeBit is the bit of the packet mark that asks for masquerade, from 0 to 31.
	MasqueradeBit uint8
	// MasqueradeSource is what the source of masqueraded connections is rewritten to, by
	// Family.Index; with the zero Addr the kernel chooses an address of the interface by which they
	// leave.
	MasqueradeSource [2]netip.Addr
	// RejectOtherPorts rejects what is sent to a cluster IP but to none of its ports (modes
	// nftables and ipvs). Otherwise it passes.
	RejectOtherPorts bool
	// ServiceCIDRs are the networks that cluster IPs are taken from, by Family.Index, as far as
	// they are known: masked, sorted, none inside another.
	ServiceCIDRs [2][]netip.Prefix
	// DropUnallocated drops what is sent to an address in ServiceCIDRs that is no cluster IP (mode
	// nftables). Otherwise it passes.
	DropUnallocated bool
	// LocalAddrs are the addresses of the node, sorted; loopback ones need not be named. Only
	// Lookup reads them: the kernel knows its own.
	LocalAddrs []netip.Addr
}

// IsLocal says whether the address belongs to the node.
func (h *Header) IsLocal(a netip.Addr) bool {
	if a.IsLoopback() {
		return true
	}
	_, ok := slices.BinarySearchFunc(h.LocalAddrs, a, netip.Addr.Compare)
	return ok
}

// inServiceCIDR says whether the address is in one of ServiceCIDRs.
func (h *Header) inServiceCIDR(a netip.Addr) bool {
	return slices.ContainsFunc(h.ServiceCIDRs[FamilyOf(a).Index()], func(p netip.Prefix) bool { return p.Contains(a) })
}

// Equal compares all fields.
func (h *Header) Equal(o *Header) bool {
	return h.Detector == o.Detector && h.MasqueradeBit == o.MasqueradeBit && h.MasqueradeSource == o.MasqueradeSource && h.RejectOtherPorts == o.RejectOtherPorts &&
		h.DropUnallocated == o.DropUnallocated && slices.Equal(h.ServiceCIDRs[0], o.ServiceCIDRs[0]) && slices.Equal(h.ServiceCIDRs[1], o.ServiceCIDRs[1]) &&
		h.NodePorts[0].Equal(o.NodePorts[0]) && h.NodePorts[1].Equal(o.NodePorts[1]) && slices.Equal(h.LocalAddrs, o.LocalAddrs)
}

// Mark is the packet mark that asks for masquerade, as value and as mask.
func (h *Header) Mark() uint32 { return 1 << h.MasqueradeBit }

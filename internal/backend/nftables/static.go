package nftables

import (
	"fmt"
	"hash"
	"hash/fnv"
	"net/netip"

	"github.com/fairlead/fairlead/internal/fwd"
	"github.com/fairlead/fairlead/internal/host/nft"
)

// The sets and maps of every table.
const (
	setVIPs              = "vips"               // (virtual IP, protocol, port) → verdict
	setNodePorts         = "nodeports"          // (protocol, port) → verdict
	setEndpoints         = "endpoints"          // (virtual IP, protocol, port, index) → endpoint
	setNodePortEndpoints = "nodeport-endpoints" // (protocol, port, index) → endpoint
	setAffinity          = "affinity"           // remembered clients: (client, two words that identify port and endpoint)
	setEqualBytes        = "equal-bytes"        // (byte, byte) for each byte
	setClusterIPs        = "cluster-ips"
	setUnmoved           = "unmoved" // (virtual IP, protocol, port) that are endpoints too: DNAT does not change the destination

	setServiceCIDRs = "service-cidrs-" // and a hash of them
)

// affinitySize limits the remembered clients of all Services together: anybody's packets add them,
// and each takes some 100 bytes of kernel memory. A client that does not fit is served, but not
// remembered.
const affinitySize = 1 << 20

// staticSets are the sets of every table in the order in which they are printed. Those with
// Services have no size, which a cluster could reach. (With a size the kernel uses a hash table
// that does not grow. Its walk over all verdicts for each new one, see doc.go, is then faster for
// 50,000 Services, 7 ms instead of 13, but slower for 10,000, 3.4 ms instead of 1.3, and for 1,000,
// 2.2 ms instead of 0.2, since it also walks empty buckets.)
var staticSets = []nft.Set{
	{Name: setVIPs, Key: []nft.Field{nft.DestAddr, nft.Protocol, nft.DestPort}, Verdicts: true},
	{Name: setNodePorts, Key: []nft.Field{nft.Protocol, nft.DestPort}, Verdicts: true},
	{Name: setEndpoints, Key: []nft.Field{nft.DestAddr, nft.Protocol, nft.DestPort, nft.Number}, Value: endpointFields},
	{Name: setNodePortEndpoints, Key: []nft.Field{nft.Protocol, nft.DestPort, nft.Number}, Value: endpointFields},
	{Name: setAffinity, Key: []nft.Field{nft.SourceAddr, nft.Number, nft.Number}, Dynamic: true, Size: affinitySize},
	{Name: setEqualBytes, Key: []nft.Field{nft.SourceLast, nft.DestLast}},
	{Name: setClusterIPs, Key: []nft.Field{nft.DestAddr}},
	{Name: setUnmoved, Key: []nft.Field{nft.DestAddr, nft.Protocol, nft.DestPort}},
}

// endpointsOf returns the map of endpoints that belongs to a map to verdicts.
func endpointsOf(frontends string) string {
	if frontends == setNodePorts {
		return setNodePortEndpoints
	}
	return setEndpoints
}

// staticSet returns the definition of a static set.
func staticSet(name string) (nft.Set, bool) {
	for _, s := range staticSets {
		if s.Name == name {
			return s, true
		}
	}
	return nft.Set{}, false
}

// The static chains. The last three exist only if node ports are served on loopback addresses.
const (
	chainPrerouting  = "nat-prerouting"
	chainOutput      = "nat-output"
	chainPostrouting = "nat-postrouting"
	chainServices    = "services"
	chainNodePorts   = "nodeports-chain"
	chainRefuse      = "refuse"

	chainFilterInput  = "filter-input"
	chainFilterOutput = "filter-output"
	chainLoopback     = "loopback"
)

// isStatic reports whether a chain is static.
func isStatic(name string) bool {
	switch name {
	case chainPrerouting, chainOutput, chainPostrouting, chainServices, chainNodePorts, chainRefuse, chainFilterInput, chainFilterOutput, chainLoopback:
		return true
	}
	return false
}

// Priorities of the base chains: those of nft's names dstnat, srcnat and filter.
const (
	priorityDNAT   = -100
	prioritySNAT   = 100
	priorityFilter = 0
)

// staticChains renders the chains that depend only on the header.
func staticChains(fam fwd.Family, h *fwd.Header) map[string]*chain {
	l := lang{fam}
	np := h.NodePorts[fam.Index()]
	mark, masquerade := h.Mark(), l.masquerade(h.MasqueradeSource[fam.Index()])
	out := make(map[string]*chain)
	set := func(name string, rules ...rule) { out[name] = &chain{rules: rules} }
	base := func(name, typ string, hook nft.Hook, priority int32, rules ...rule) {
		out[name] = &chain{base: nft.Base{Type: typ, Hook: hook, Priority: priority}, rules: rules}
	}

	base(chainPrerouting, "nat", nft.Prerouting, priorityDNAT, all(verdict("jump "+chainServices)))
	base(chainOutput, "nat", nft.Output, priorityDNAT, all(verdict("jump "+chainServices)))
	services := []rule{all(verdictOf(setVIPs, l.dest(), protocol(), destPort()))}
	services = append(services, l.nodePorts(np)...)
	if h.RejectOtherPorts {
		// If somebody assigned the address to an interface of this host, the other ports are the
		// host's.
		services = append(services, all(in(setClusterIPs, l.dest()), isLocal(nft.DestAddr, true), goTo(chainRefuse)))
	}
	if s := serviceCIDRs(fam, h); s != nil {
		if !h.RejectOtherPorts {
			services = append(services, all(in(setClusterIPs, l.dest()), verdict("return")))
		}
		services = append(services, all(in(s.Name, l.dest()), isLocal(nft.DestAddr, true), verdict("drop")))
	}
	set(chainServices, services...)
	set(chainNodePorts, all(verdictOf(setNodePorts, protocol(), destPort())))
	set(chainRefuse, all(isProto(fwd.TCP), reset()), all(l.reject()))
	base(chainPostrouting, "nat", nft.Postrouting, prioritySNAT,
		// Others use the bit too, so only translated packets are masqueraded. Connection tracking
		// does not report a translation if the endpoint has the frontend's address. The bit is
		// cleared so that a packet that passes again is not masqueraded twice.
		all(hasMark(mark), ctIsDNAT(), clearMark(mark), masquerade),
		all(hasMark(mark), in(setUnmoved, l.dest(), protocol(), destPort()), clearMark(mark), masquerade),
		// Connections of the host that are redirected to its loopback address were redirected by
		// somebody else.
		all(ctIsDNAT(), l.hairpin(), l.prefix(nft.SourceAddr, l.loopback(), true), masquerade))

	if np.Loopback {
		// route_localnet lets neighbors send to loopback addresses. Only packets of this host, or
		// after our DNAT, may pass.
		martian := all(l.prefix(nft.DestAddr, l.loopback(), false), l.prefix(nft.SourceAddr, l.loopback(), true), goTo(chainLoopback))
		base(chainFilterInput, "filter", nft.Input, priorityFilter, martian)
		base(chainFilterOutput, "filter", nft.Output, priorityFilter, martian)
		set(chainLoopback, all(ctKnown(), verdict("return")), all(ctIsDNAT(), verdict("return")), all(verdict("drop")))
	}
	return out
}

// serviceCIDRs returns the set of the header's service CIDRs, nil if there are none or nothing is
// dropped. When they change it has another name: the new set is added before a rule uses it, and
// the old one is deleted when none does.
func serviceCIDRs(fam fwd.Family, h *fwd.Header) *rangeSet {
	cidrs := h.ServiceCIDRs[fam.Index()]
	if !h.DropUnallocated || len(cidrs) == 0 {
		return nil
	}
	return &rangeSet{nft.Set{Name: fmt.Sprintf(setServiceCIDRs+"%016x", prefixHash(cidrs).Sum64()), Key: []nft.Field{nft.DestAddr}, Interval: true}, cidrs}
}

// prefixHash returns a hash of prefixes, to which more can be written.
func prefixHash(ps []netip.Prefix) hash.Hash64 {
	h := fnv.New64a()
	for _, p := range ps {
		fmt.Fprintf(h, "%s ", p)
	}
	return h
}

func (l lang) loopback() netip.Prefix {
	if l.family == fwd.IPv6 {
		return netip.PrefixFrom(netip.IPv6Loopback(), 128)
	}
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{127}), 8)
}

// nodePorts renders the rules for node ports. The kernel knows the addresses of the node, so a new
// one is served at once.
func (l lang) nodePorts(np fwd.NodePortAddrs) []rule {
	var rules []rule
	if np.Loopback {
		rules = append(rules, all(l.prefix(nft.DestAddr, l.loopback(), false), isLocal(nft.SourceAddr, false), goTo(chainNodePorts)))
	}
	if !np.All && len(np.Prefixes) == 0 {
		return rules
	}
	rules = append(rules, all(l.prefix(nft.DestAddr, l.loopback(), false), verdict("return")))
	if np.All {
		return append(rules, all(isLocal(nft.DestAddr, false), goTo(chainNodePorts)))
	}
	for _, p := range np.Prefixes {
		rules = append(rules, all(l.prefix(nft.DestAddr, p, false), isLocal(nft.DestAddr, false), goTo(chainNodePorts)))
	}
	return rules
}

// pod matches packets from local pods; ok is false if they cannot be recognized.
func (l lang) pod(d fwd.Detector) (c rule, ok bool) {
	if d.Prefix.IsValid() {
		return l.prefix(nft.SourceAddr, d.Prefix, false), true
	}
	name, whole := d.Interface()
	return arrivedOn(name, !whole), name != ""
}

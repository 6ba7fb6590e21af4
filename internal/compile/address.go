package compile

import (
	"net/netip"
	"slices"

	"github.com/fairlead/fairlead/internal/fwd"
)

// unusable says why an address cannot be a virtual IP or an endpoint; it is empty for a usable
// address. Otherwise a user who may edit a Service could capture other traffic of the node: to its
// loopback daemons, or to its multicast groups. As an endpoint such an address would open the
// node's loopback sockets to the network.
func unusable(a netip.Addr, fam fwd.Family) string {
	switch {
	case !a.IsValid():
		return "it is not an address"
	case a.Is4In6():
		return "an IPv4-mapped IPv6 address is of neither family on the wire"
	case fwd.FamilyOf(a) != fam:
		return "it is not an " + fam.String() + " address"
	case a.Zone() != "":
		return "an address with a zone means something else on every node"
	case a.IsUnspecified():
		return "the unspecified address is no destination"
	case a.IsLoopback():
		return "loopback addresses belong to the node"
	case a.IsMulticast():
		return "a multicast address is no single destination"
	}
	return ""
}

// byFamily returns the usable addresses of a field by family.
func (c *compiler) byFamily(field string, addrs []netip.Addr) (out [2][]netip.Addr) {
	for _, a := range addrs {
		fam := fwd.FamilyOf(a)
		if why := unusable(a, fam); why != "" {
			c.problem(field, "%s is ignored: %s", a, why)
			continue
		}
		out[fam.Index()] = append(out[fam.Index()], a)
	}
	return out
}

// sources returns who may connect to the load-balancer IPs of a family; nil if every source may, as
// when all ranges are of the other family.
//
// A node on which a load-balancer IP is a local address uses it as the source towards itself. The
// node's own connections therefore come from there, and are allowed exactly if the node's address
// is.
func (c *compiler) sources(fam fwd.Family) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range c.svc.SourceRanges {
		if p.IsValid() && fwd.FamilyOf(p.Addr()) == fam {
			out = append(out, p.Masked())
		}
	}
	if len(out) == 0 {
		return nil
	}
	node := c.facts.PrimaryIP[fam.Index()]
	if slices.ContainsFunc(out, func(p netip.Prefix) bool { return p.Contains(node) }) {
		for _, a := range c.lbIPs[fam.Index()] {
			out = append(out, netip.PrefixFrom(a, a.BitLen()))
		}
	}
	out = withoutContained(out)
	if out[0].Bits() == 0 {
		return nil
	}
	return out
}

// withoutContained sorts masked prefixes of one family, of which there is at least one, and removes
// those inside another.
func withoutContained(ps []netip.Prefix) []netip.Prefix {
	slices.SortFunc(ps, netip.Prefix.Compare)
	// A prefix that contains others sorts before them, and nothing outside of it sorts between.
	kept := ps[:1]
	for _, p := range ps[1:] {
		if !kept[len(kept)-1].Contains(p.Addr()) {
			kept = append(kept, p)
		}
	}
	return kept
}

package lab

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// port is one end of a veth pair.
type port struct {
	in   *Netns
	name string
	mac  net.HardwareAddr
}

// wire connects two namespaces with a veth pair that is up at both ends.
func (l *Lab) wire(a *Netns, aName string, b *Netns, bName string) (port, port, error) {
	pa := port{in: a, name: aName, mac: l.nextMAC()}
	pb := port{in: b, name: bName, mac: l.nextMAC()}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.HardwareAddr = aName, pa.mac
	err := a.nl.LinkAdd(&netlink.Veth{
		LinkAttrs: attrs, PeerName: bName, PeerHardwareAddr: pb.mac, PeerNamespace: netlink.NsFd(b.ns),
	})
	if err != nil {
		return pa, pb, fmt.Errorf("add veth pair %s:%s and %s:%s: %w", a.Name, aName, b.Name, bName, err)
	}
	if err := a.up(aName); err != nil {
		return pa, pb, err
	}
	return pa, pb, b.up(bName)
}

func (l *Lab) nextMAC() net.HardwareAddr {
	l.macs++
	return net.HardwareAddr{0x02, 0xf1, 0, 0, byte(l.macs >> 8), byte(l.macs)}
}

func (n *Netns) up(link string) error {
	index, err := n.index(link)
	if err != nil {
		return err
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Index = index
	if err := n.nl.LinkSetUp(&netlink.Device{LinkAttrs: attrs}); err != nil {
		return fmt.Errorf("set %s:%s up: %w", n.Name, link, err)
	}
	return nil
}

func (n *Netns) index(link string) (int, error) {
	l, err := n.nl.LinkByName(link)
	if err != nil {
		return 0, fmt.Errorf("find link %s:%s: %w", n.Name, link, err)
	}
	return l.Attrs().Index, nil
}

// addBridge makes a bridge that does not snoop multicast, and sets it up.
func (n *Netns) addBridge(name string, mac net.HardwareAddr) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.HardwareAddr = name, mac
	off := false
	if err := n.nl.LinkAdd(&netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &off}); err != nil {
		return fmt.Errorf("add bridge %s:%s: %w", n.Name, name, err)
	}
	return n.up(name)
}

// enslave adds a link to a bridge.
func (n *Netns) enslave(link, bridge string) error {
	li, err := n.index(link)
	if err != nil {
		return err
	}
	bi, err := n.index(bridge)
	if err != nil {
		return err
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Index = li
	if err := n.nl.LinkSetMasterByIndex(&netlink.Device{LinkAttrs: attrs}, bi); err != nil {
		return fmt.Errorf("put %s:%s into %s: %w", n.Name, link, bridge, err)
	}
	return nil
}

// addAddr adds an address to a link, usable at once.
func (n *Netns) addAddr(link string, p netip.Prefix) error {
	index, err := n.index(link)
	if err != nil {
		return err
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Index = index
	addr := &netlink.Addr{IPNet: ipNet(p)}
	if p.Addr().Is6() {
		addr.Flags = unix.IFA_F_NODAD
	}
	if err := n.nl.AddrAdd(&netlink.Device{LinkAttrs: attrs}, addr); err != nil {
		return fmt.Errorf("add address %s to %s:%s: %w", p, n.Name, link, err)
	}
	return nil
}

// addNeigh adds a permanent neighbour entry to a link.
func (n *Netns) addNeigh(link string, a netip.Addr, mac net.HardwareAddr) error {
	index, err := n.index(link)
	if err != nil {
		return err
	}
	err = n.nl.NeighSet(&netlink.Neigh{
		LinkIndex: index, Family: family(a), State: netlink.NUD_PERMANENT, IP: a.AsSlice(), HardwareAddr: mac,
	})
	if err != nil {
		return fmt.Errorf("add neighbour %s behind %s:%s: %w", a, n.Name, link, err)
	}
	return nil
}

// route is the argument of setRoute. Via, Src and Table may be zero; without a Link the route is a
// blackhole.
type route struct {
	dst   netip.Prefix
	link  string
	via   netip.Addr
	src   netip.Addr
	table int
}

// setRoute adds a route or replaces the one to the same destination.
func (n *Netns) setRoute(r route) error {
	nr := &netlink.Route{Family: family(r.dst.Addr()), Dst: ipNet(r.dst), Table: r.table}
	if r.link == "" {
		nr.Type = unix.RTN_BLACKHOLE
	} else {
		index, err := n.index(r.link)
		if err != nil {
			return err
		}
		nr.LinkIndex, nr.Scope = index, netlink.SCOPE_LINK
	}
	if r.via.IsValid() {
		nr.Gw, nr.Scope = r.via.AsSlice(), netlink.SCOPE_UNIVERSE
		nr.SetFlag(netlink.FLAG_ONLINK)
	}
	if r.src.IsValid() {
		nr.Src = r.src.AsSlice()
	}
	if err := n.nl.RouteReplace(nr); err != nil {
		return fmt.Errorf("set route %+v in %s: %w", r, n.Name, err)
	}
	return nil
}

// addRule adds a rule for packets from a link: look up a table before the main one.
func (n *Netns) addRule(link string, table int, v6 bool) error {
	r := netlink.NewRule()
	r.IifName, r.Table, r.Priority, r.Family = link, table, 100, unix.AF_INET
	if v6 {
		r.Family = unix.AF_INET6
	}
	if err := n.nl.RuleAdd(r); err != nil {
		return fmt.Errorf("add rule for %s:%s: %w", n.Name, link, err)
	}
	return nil
}

func family(a netip.Addr) int {
	if a.Is6() {
		return unix.AF_INET6
	}
	return unix.AF_INET
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

package lab

import (
	"fmt"
	"net/netip"
)

// vipTable is the fabric's routing table for packets from nodes.
const vipTable = 100

func (l *Lab) build(nodes, podsPerNode int) error {
	for _, step := range []func() error{l.addFabric, l.addClient} {
		if err := step(); err != nil {
			return err
		}
	}
	for n := 1; n <= nodes; n++ {
		if err := l.addNode(n); err != nil {
			return err
		}
		for p := 1; p <= podsPerNode; p++ {
			if err := l.addPod(l.Nodes[n-1], p); err != nil {
				return err
			}
		}
	}
	if err := l.joinNodes(); err != nil {
		return err
	}
	return l.RouteVIPs(l.Nodes[0])
}

// addFabric makes the router with the bridge of all nodes. It drops packets from nodes to service
// addresses.
func (l *Lab) addFabric() error {
	var err error
	l.Fabric, err = l.newHost("fabric", [2]netip.Addr{nth(NodeCIDRs[0], 1), nth(NodeCIDRs[1], 1)}, true)
	if err != nil {
		return err
	}
	if err := l.Fabric.addBridge("br0", l.nextMAC()); err != nil {
		return err
	}
	for f, a := range l.Fabric.Addrs {
		if err := l.Fabric.addAddr("br0", netip.PrefixFrom(a, NodeCIDRs[f].Bits())); err != nil {
			return err
		}
		if err := l.Fabric.addRule("br0", vipTable, f == 1); err != nil {
			return err
		}
	}
	for _, p := range vips() {
		if err := l.Fabric.setRoute(route{dst: p, table: vipTable}); err != nil {
			return err
		}
	}
	return nil
}

func (l *Lab) addClient() error {
	var err error
	l.Client, err = l.newHost("client", [2]netip.Addr{nth(ClientCIDRs[0], 10), nth(ClientCIDRs[1], 10)}, false)
	if err != nil {
		return err
	}
	l.Client.More = []netip.Addr{nth(ClientCIDRs[0], 130), nth(ClientCIDRs[1], 130)}
	outer, inner, err := l.wire(l.Fabric.Netns, "client", l.Client.Netns, "eth0")
	if err != nil {
		return err
	}
	for f, first := range l.Client.Addrs {
		gw, bits := nth(ClientCIDRs[f], 1), ClientCIDRs[f].Bits()
		if err := l.Fabric.addAddr(outer.name, netip.PrefixFrom(gw, bits)); err != nil {
			return err
		}
		for _, a := range []netip.Addr{first, l.Client.More[f]} {
			if err := l.Client.addAddr(inner.name, netip.PrefixFrom(a, bits)); err != nil {
				return err
			}
			if err := l.Fabric.addNeigh(outer.name, a, inner.mac); err != nil {
				return err
			}
		}
		if err := l.Client.addNeigh(inner.name, gw, outer.mac); err != nil {
			return err
		}
		if err := l.Client.setRoute(route{dst: everywhere[f], link: inner.name, via: gw, src: first}); err != nil {
			return err
		}
	}
	return nil
}

// addNode makes a node and connects it to the fabric, which is its default route.
func (l *Lab) addNode(number int) error {
	n := &Node{PodCIDRs: podCIDRs(number)}
	var err error
	addrs := [2]netip.Addr{nth(NodeCIDRs[0], 10+number), nth(NodeCIDRs[1], 10+number)}
	if n.Host, err = l.newHost(fmt.Sprintf("node%d", number), addrs, true); err != nil {
		return err
	}
	l.Nodes = append(l.Nodes, n)
	outer, inner, err := l.wire(l.Fabric.Netns, n.Label, n.Netns, "eth0")
	if err != nil {
		return err
	}
	if err := l.Fabric.enslave(outer.name, "br0"); err != nil {
		return err
	}
	bridge, err := l.Fabric.nl.LinkByName("br0")
	if err != nil {
		return fmt.Errorf("find the fabric's bridge: %w", err)
	}
	for f, a := range n.Addrs {
		gw := l.Fabric.Addrs[f]
		if err := n.addAddr("eth0", netip.PrefixFrom(a, NodeCIDRs[f].Bits())); err != nil {
			return err
		}
		if err := n.addNeigh("eth0", gw, bridge.Attrs().HardwareAddr); err != nil {
			return err
		}
		if err := l.Fabric.addNeigh("br0", a, inner.mac); err != nil {
			return err
		}
		if err := n.setRoute(route{dst: everywhere[f], link: "eth0", via: gw, src: a}); err != nil {
			return err
		}
		if err := l.Fabric.setRoute(route{dst: n.PodCIDRs[f], link: "br0", via: a}); err != nil {
			return err
		}
	}
	return nil
}

// joinNodes gives every node neighbour entries of the other nodes and routes to their pods.
func (l *Lab) joinNodes() error {
	for _, n := range l.Nodes {
		for _, o := range l.Nodes {
			if n == o {
				continue
			}
			link, err := o.nl.LinkByName("eth0")
			if err != nil {
				return fmt.Errorf("find the link of %s: %w", o.Label, err)
			}
			for f, a := range o.Addrs {
				if err := n.addNeigh("eth0", a, link.Attrs().HardwareAddr); err != nil {
					return err
				}
				if err := n.setRoute(route{dst: o.PodCIDRs[f], link: "eth0", via: a, src: n.Addrs[f]}); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// addPod makes a pod with a link to its node.
func (l *Lab) addPod(n *Node, number int) error {
	p := &Pod{Link: fmt.Sprintf("veth-p%d", number)}
	var err error
	addrs := [2]netip.Addr{nth(n.PodCIDRs[0], 10+number), nth(n.PodCIDRs[1], 10+number)}
	if p.Host, err = l.newHost(fmt.Sprintf("%s-p%d", n.Label, number), addrs, false); err != nil {
		return err
	}
	n.Pods = append(n.Pods, p)
	outer, inner, err := l.wire(n.Netns, p.Link, p.Netns, "eth0")
	if err != nil {
		return err
	}
	for f, a := range p.Addrs {
		if err := p.addAddr("eth0", full(a)); err != nil {
			return err
		}
		if err := p.addNeigh("eth0", podGateway[f], outer.mac); err != nil {
			return err
		}
		if err := p.setRoute(route{dst: everywhere[f], link: "eth0", via: podGateway[f], src: a}); err != nil {
			return err
		}
		if err := n.addNeigh(p.Link, a, inner.mac); err != nil {
			return err
		}
		if err := n.setRoute(route{dst: full(a), link: p.Link, src: n.Addrs[f]}); err != nil {
			return err
		}
	}
	return nil
}

// RouteVIPs makes the fabric route packets from the client to service addresses to this node, as a
// load balancer or router that selected it. The default is the first node.
func (l *Lab) RouteVIPs(to *Node) error {
	for _, p := range vips() {
		f := 0
		if p.Addr().Is6() {
			f = 1
		}
		if err := l.Fabric.setRoute(route{dst: p, link: "br0", via: to.Addrs[f]}); err != nil {
			return err
		}
	}
	return nil
}

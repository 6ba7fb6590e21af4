package oracle

import (
	"net/netip"

	v1 "k8s.io/api/core/v1"

	"github.com/fairlead/fairlead/internal/fwd"
)

// packet makes a packet that is likely to be sent to a frontend of the cluster.
func (d dice) packet(c *Cluster, cfg *Config) fwd.Packet {
	f := d.fam()
	p := fwd.Packet{Proto: pick(d, fwd.TCP, fwd.TCP, fwd.UDP, fwd.SCTP)}
	dst, port := d.destination(c, cfg, f, &p.Proto)
	if d.opt.ForKernel && p.Proto == fwd.SCTP {
		p.Proto = pick(d, fwd.TCP, fwd.UDP)
	}
	p.Dst = netip.AddrPortFrom(dst, uint16(port))
	from := familyOf(dst)
	if !d.opt.ForKernel && d.one(50) {
		from = 1 - from
	}
	p.Src, p.InInterface = d.source(cfg, from, dst)
	return p
}

func familyOf(a netip.Addr) int {
	if a.Is4() {
		return 0
	}
	return 1
}

// destination picks where a packet is sent to: an address of a Service with one of its ports, a
// node port on an address of the node, or anything. proto becomes the port's.
func (d dice) destination(c *Cluster, cfg *Config, f int, proto *fwd.Proto) (netip.Addr, int32) {
	if len(c.Services) == 0 || d.one(12) {
		return d.anywhere(cfg, f), pick(d, append(servicePorts, 9)...)
	}
	s := pick(d, c.Services...)
	port := v1.ServicePort{Port: 80}
	if len(s.Spec.Ports) > 0 {
		port = pick(d, s.Spec.Ports...)
		*proto = protocol(port.Protocol)
	}
	if port.NodePort != 0 && d.one(2) {
		return d.nodeAddress(cfg, f), port.NodePort
	}
	texts := []string{s.Spec.ClusterIP}
	texts = append(texts, s.Spec.ClusterIPs...)
	texts = append(texts, s.Spec.ExternalIPs...)
	for _, in := range s.Status.LoadBalancer.Ingress {
		texts = append(texts, in.IP, in.IP)
	}
	if a, ok := parseAddr(pick(d, texts...)); ok && (!d.opt.ForKernel || forwardable(a)) {
		return a, port.Port
	}
	return d.anywhere(cfg, f), port.Port
}

// nodeAddress picks an address of the node, mostly.
func (d dice) nodeAddress(cfg *Config, f int) netip.Addr {
	own := []string{nodeIPs[f][0], nodeIPs[f][0], secondIPs[f], "127.0.0.1", "::1"}
	own = append(own, cfg.LocalAddresses...)
	if !d.opt.ForKernel {
		own = append(own, "127.0.0.2", nodeIPs[f][1], virtualIPs[f][0])
	}
	return netip.MustParseAddr(pick(d, own...))
}

func (d dice) anywhere(cfg *Config, f int) netip.Addr {
	if d.one(2) {
		return d.nodeAddress(cfg, f)
	}
	return netip.MustParseAddr(pick(d, pick(d, clusterIPs[f]...), pick(d, virtualIPs[f]...), pick(d, podIPs[f]...)))
}

// source picks who sends the packet, and the interface on which it arrives. A packet to a loopback
// address is the node's own in a lab, since nobody else's gets that far without being forged.
func (d dice) source(cfg *Config, f int, dst netip.Addr) (netip.Addr, string) {
	loopback := []string{"127.0.0.1", "::1"}[f]
	var src, iface string
	switch choice := d.Intn(10); {
	case d.opt.ForKernel && dst.IsLoopback():
		src = loopback
	case choice < 3:
		src, iface = pick(d, podIPs[f][:3]...), podInterface
	case choice == 3:
		src, iface = pick(d, podIPs[f][3:]...), outsideInterface
	case choice < 6:
		src = nodeIPs[f][0]
	case choice == 6:
		src = secondIPs[f]
	case choice < 9 || d.opt.ForKernel:
		src, iface = pick(d, outsideIPs[f]...), outsideInterface
	default:
		src = pick(d, loopback, pick(d, virtualIPs[f]...), pick(d, cfg.LocalAddresses...), nodeIPs[f][1])
	}
	if !d.opt.ForKernel && d.one(10) {
		iface = pick(d, "", podInterface, "veth7", outsideInterface)
	}
	return netip.MustParseAddr(src), iface
}

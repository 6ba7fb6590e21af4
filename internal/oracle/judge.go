package oracle

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/fairlead/fairlead/internal/fwd"
)

// Cluster is what the API server holds, including objects that proxies do not see.
type Cluster struct {
	Services []*v1.Service
	Slices   []*discoveryv1.EndpointSlice
	Nodes    []*v1.Node
	// ServiceCIDRs are only asked for in mode nftables.
	ServiceCIDRs []*networkingv1.ServiceCIDR
}

// Config holds the settings of the node's daemon.
type Config struct {
	NodeName string
	// NFTables is mode nftables, otherwise it is mode iptables.
	NFTables bool
	// DetectLocalMode is ClusterCIDR (also if empty), NodeCIDR, BridgeInterface or
	// InterfaceNamePrefix.
	DetectLocalMode string
	ClusterCIDRs    []string
	BridgeInterface string
	InterfacePrefix string

	MasqueradeAll bool
	// NodePortAddresses are CIDRs and the words primary, localhost and all, mixed.
	NodePortAddresses  []string
	LocalhostNodePorts bool
	BindAddress        string
	// Gates are feature gates; one that is absent is on.
	Gates map[string]bool
	// LocalAddresses are addresses of the node's interfaces beyond those that its Node object
	// names.
	LocalAddresses []string
}

func (cfg *Config) gate(name string) bool {
	on, set := cfg.Gates[name]
	return on || !set
}

// Answer is what must happen to a packet.
type Answer struct {
	Verdict fwd.Verdict
	// Endpoints are all that may be chosen; sorted, and only for VerdictForward.
	Endpoints []netip.AddrPort
	// Masquerade says for each endpoint whether the source is rewritten on the way to it.
	Masquerade map[netip.AddrPort]bool
	// Service owns the frontend that matched, as namespace/name:port; empty if none did.
	Service string
}

// String is one line. Two answers are equal if their lines are.
func (a Answer) String() string {
	var b strings.Builder
	b.WriteString(a.Verdict.String())
	for _, e := range a.Endpoints {
		fmt.Fprintf(&b, " %s", e)
		if a.Masquerade[e] {
			b.WriteString("+masq")
		}
	}
	if a.Service != "" {
		fmt.Fprintf(&b, " by %s", a.Service)
	}
	return b.String()
}

// FromOutcome converts the forwarding table's outcome for a packet from src to an Answer, for
// comparison.
func FromOutcome(o fwd.Outcome, src netip.Addr) Answer {
	a := Answer{Verdict: o.Verdict}
	if o.Owner != (fwd.ServicePort{}) {
		a.Service = o.Owner.String()
	}
	for _, e := range o.Endpoints {
		a.add(e.Addr, o.MasqueradeTo(src, e.Addr))
	}
	return a
}

func (a *Answer) add(e netip.AddrPort, masquerade bool) {
	if a.Masquerade == nil {
		a.Masquerade = make(map[netip.AddrPort]bool)
	}
	a.Endpoints = append(a.Endpoints, e)
	a.Masquerade[e] = masquerade
}

// frontend is the field of a Service by which a packet's destination matched.
type frontend int

const (
	byClusterIP frontend = iota
	byExternalIP
	byIngressIP
	byNodePort
)

// Judge says what the node must do with a packet that opens a connection.
func Judge(c *Cluster, cfg *Config, p fwd.Packet) Answer {
	src, dst := p.Src, p.Dst.Addr()
	if !src.IsValid() || !dst.IsValid() || src.Is4() != dst.Is4() {
		return Answer{}
	}
	h := newHost(c, cfg, dst.Is4())
	services := c.handled()
	for _, s := range services {
		for _, by := range []frontend{byClusterIP, byExternalIP, byIngressIP} {
			if port := matchAddress(s, cfg, p, by); port != nil {
				return decide(c, cfg, h, s, port, by, p)
			}
		}
	}
	if h.servesNodePorts(src, dst) {
		for _, s := range services {
			if port := matchNodePort(s, p); port != nil {
				return decide(c, cfg, h, s, port, byNodePort, p)
			}
		}
	}
	if h.loopbackNodePorts && dst.IsLoopback() && !src.IsLoopback() {
		return Answer{Verdict: fwd.VerdictDrop}
	}
	if cfg.NFTables && !h.isLocal(dst) {
		return Answer{Verdict: unserved(c, cfg, services, dst)}
	}
	return Answer{}
}

// unserved is what mode nftables does with a packet to which no frontend answers: a cluster IP that
// serves something, of a Service that is not the loser of a conflict about all its ports, rejects;
// other addresses of service CIDRs drop.
func unserved(c *Cluster, cfg *Config, services []*v1.Service, dst netip.Addr) fwd.Verdict {
	for i, s := range services {
		for _, port := range s.Spec.Ports {
			own := fwd.Packet{Dst: netip.AddrPortFrom(dst, uint16(port.Port)), Proto: protocol(port.Protocol)}
			older := func(o *v1.Service) bool {
				return matchAddress(o, cfg, own, byClusterIP) != nil || matchAddress(o, cfg, own, byExternalIP) != nil || matchAddress(o, cfg, own, byIngressIP) != nil
			}
			if matchAddress(s, cfg, own, byClusterIP) != nil && !slices.ContainsFunc(services[:i], older) {
				return fwd.VerdictReject
			}
		}
	}
	for _, sc := range c.ServiceCIDRs {
		ready := !slices.ContainsFunc(sc.Status.Conditions, func(c metav1.Condition) bool { return c.Type == "Ready" && c.Status == "False" })
		for _, text := range sc.Spec.CIDRs {
			if p, ok := parsePrefix(text); ok && ready && p.Contains(dst) {
				return fwd.VerdictDrop
			}
		}
	}
	return fwd.VerdictPass
}

// matchAddress returns the port of the Service that the packet dials on an address of that field,
// or nil.
func matchAddress(s *v1.Service, cfg *Config, p fwd.Packet, by frontend) *v1.ServicePort {
	dst := p.Dst.Addr()
	ip, ok := clusterIP(s, dst.Is4())
	if !ok {
		return nil
	}
	addrs := []netip.Addr{ip}
	switch by {
	case byExternalIP:
		addrs = externalIPs(s, cfg, dst.Is4())
	case byIngressIP:
		addrs = ingressIPs(s, cfg, dst.Is4())
	}
	if !slices.Contains(addrs, dst) {
		return nil
	}
	for i := range s.Spec.Ports {
		if port := &s.Spec.Ports[i]; port.Port == int32(p.Dst.Port()) && protocol(port.Protocol) == p.Proto {
			return port
		}
	}
	return nil
}

// matchNodePort returns the port of the Service that has the packet's destination port as its node
// port, or nil.
func matchNodePort(s *v1.Service, p fwd.Packet) *v1.ServicePort {
	if _, ok := clusterIP(s, p.Dst.Addr().Is4()); !ok {
		return nil
	}
	for i := range s.Spec.Ports {
		port := &s.Spec.Ports[i]
		if port.NodePort != 0 && port.NodePort == int32(p.Dst.Port()) && protocol(port.Protocol) == p.Proto {
			return port
		}
	}
	return nil
}

// decide applies the traffic policy that counts for the frontend.
func decide(c *Cluster, cfg *Config, h *host, s *v1.Service, port *v1.ServicePort, by frontend, p fwd.Packet) Answer {
	a := Answer{Service: fmt.Sprintf("%s/%s:%s", s.Namespace, s.Name, port.Name)}
	// Source ranges hold for an address that is the load balancer's, whatever else it is.
	if matchAddress(s, cfg, p, byIngressIP) != nil && !admitted(s, cfg, h, p.Src) {
		a.Verdict = fwd.VerdictDrop
		return a
	}

	inCluster, inNode, ok := candidates(c, cfg, h, s, port)
	if !ok {
		a.Verdict = fwd.VerdictReject
		return a
	}
	set, masquerade := inCluster, false
	class := h.class(p)
	switch {
	case by == byClusterIP:
		if internalLocal(s) {
			set = inNode
		}
		masquerade = cfg.MasqueradeAll || h.hasDetector() && class != fwd.Pod
	case !externalLocal(s, cfg):
		masquerade = true
	case class == fwd.Host:
		masquerade = true
	case class == fwd.Outside:
		set = inNode
	}
	if len(set) == 0 {
		a.Verdict = fwd.VerdictDrop
		return a
	}
	a.Verdict = fwd.VerdictForward
	for _, e := range set {
		a.add(e.addr, masquerade || e.addr.Addr() == p.Src)
	}
	slices.SortFunc(a.Endpoints, netip.AddrPort.Compare)
	return a
}

// candidates returns the endpoints of a service port that its policies may choose from, in the
// cluster and on the node. ok is false if there is no usable endpoint.
func candidates(c *Cluster, cfg *Config, h *host, s *v1.Service, port *v1.ServicePort) (inCluster, inNode []endpoint, ok bool) {
	reachable := accessible(s, port, cfg, h.v4)
	usesCluster := !internalLocal(s) || reachable
	usesLocal := internalLocal(s) || externalLocal(s, cfg) && reachable
	all := c.endpointsOf(s, port, h.name, h.v4)
	if usesCluster {
		inCluster = clusterSet(all, h.name, h.zone, cfg)
	}
	if usesLocal {
		inNode = localSet(all)
	}
	usable := where(all, func(e endpoint) bool { return e.ready || e.fallback() })
	return inCluster, inNode, len(inCluster) > 0 || usesLocal && len(usable) > 0
}

// admitted says whether loadBalancerSourceRanges let the source through. The node may use a
// load-balancer address of the Service as its source, where that is an address of its own; then the
// node's address is what must be in a range.
func admitted(s *v1.Service, cfg *Config, h *host, src netip.Addr) bool {
	ranges := sourceRanges(s, h.v4)
	inRange := func(a netip.Addr) bool {
		return slices.ContainsFunc(ranges, func(p netip.Prefix) bool { return p.Contains(a) })
	}
	if len(ranges) == 0 || inRange(src) {
		return true
	}
	return slices.Contains(ingressIPs(s, cfg, h.v4), src) && inRange(h.sourceAddress())
}

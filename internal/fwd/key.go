package fwd

import (
	"cmp"
	"fmt"
	"net/netip"
)

// Family is an IP address family. Its value is the IP version number.
type Family uint8

// The two families.
const (
	IPv4 Family = 4
	IPv6 Family = 6
)

// Families lists both families in the order in which they are worked on.
var Families = [2]Family{IPv4, IPv6}

// FamilyOf returns the family of a valid address; an IPv4-mapped IPv6 address counts as IPv6, since
// it cannot be a Service address of either family.
func FamilyOf(a netip.Addr) Family {
	if a.Is4() {
		return IPv4
	}
	return IPv6
}

// Index is 0 for IPv4 and 1 for IPv6, for arrays by family.
func (f Family) Index() int {
	if f == IPv6 {
		return 1
	}
	return 0
}

// Bits is the length of an address in bits.
func (f Family) Bits() int {
	if f == IPv6 {
		return 128
	}
	return 32
}

func (f Family) String() string {
	switch f {
	case IPv4:
		return "IPv4"
	case IPv6:
		return "IPv6"
	}
	return fmt.Sprintf("Family(%d)", uint8(f))
}

// Proto is a transport protocol by its IANA number.
type Proto uint8

// The protocols that a Service port can have.
const (
	TCP  Proto = 6
	UDP  Proto = 17
	SCTP Proto = 132
)

// String is the lower-case name that iptables and nft use.
func (p Proto) String() string {
	switch p {
	case TCP:
		return "tcp"
	case UDP:
		return "udp"
	case SCTP:
		return "sctp"
	}
	return fmt.Sprintf("proto%d", uint8(p))
}

// ParseProto reads a protocol name in lower or upper case.
func ParseProto(s string) (Proto, error) {
	switch s {
	case "tcp", "TCP":
		return TCP, nil
	case "udp", "UDP":
		return UDP, nil
	case "sctp", "SCTP":
		return SCTP, nil
	}
	return 0, fmt.Errorf("protocol %q: want tcp, udp or sctp", s)
}

// Key is what a client dials: a virtual IP and port, or a node port. It identifies a frontend.
type Key struct {
	Family Family
	// Addr is the virtual IP. The zero Addr makes the key a node port: any address of the node that
	// serves node ports.
	Addr  netip.Addr
	Proto Proto
	Port  uint16
}

// IsNodePort says whether the key is a port on the node's own addresses.
func (k Key) IsNodePort() bool { return !k.Addr.IsValid() }

// Compare orders keys by family, address (node ports first), protocol and port.
func (k Key) Compare(o Key) int {
	return cmp.Or(
		cmp.Compare(k.Family, o.Family),
		k.Addr.Compare(o.Addr),
		cmp.Compare(k.Proto, o.Proto),
		cmp.Compare(k.Port, o.Port),
	)
}

// String is "10.96.0.1:80/tcp" for a virtual IP and "node4:30080/tcp" for a node port.
func (k Key) String() string {
	if k.IsNodePort() {
		return fmt.Sprintf("node%d:%d/%s", k.Family, k.Port, k.Proto)
	}
	return fmt.Sprintf("%s/%s", netip.AddrPortFrom(k.Addr, k.Port), k.Proto)
}

// Service names a Kubernetes Service; it owns one Fragment.
type Service struct {
	Namespace string
	Name      string
}

func (s Service) String() string { return s.Namespace + "/" + s.Name }

// Compare orders by namespace, then name.
func (s Service) Compare(o Service) int {
	return cmp.Or(cmp.Compare(s.Namespace, o.Namespace), cmp.Compare(s.Name, o.Name))
}

// ServicePort names one port of a Service: the unit of endpoints, session affinity and load
// balancing. Port is the name of the port and may be empty; Proto is part of the identity since two
// ports without a name may differ in it alone.
type ServicePort struct {
	Service
	Port  string
	Proto Proto
}

// String is "namespace/name:port", with an empty port name for an unnamed port.
func (p ServicePort) String() string { return p.Service.String() + ":" + p.Port }

// Compare orders by Service, port name and protocol.
func (p ServicePort) Compare(o ServicePort) int {
	return cmp.Or(p.Service.Compare(o.Service), cmp.Compare(p.Port, o.Port), cmp.Compare(p.Proto, o.Proto))
}

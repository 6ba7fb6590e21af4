package ipvs

import (
	"net/netip"
	"slices"

	"github.com/fairlead/fairlead/internal/fwd"
	"github.com/fairlead/fairlead/internal/instance"
)

// Kind tells the kernel objects apart.
type Kind uint8

// The kinds, in the order in which they are made.
const (
	// KindSet is a set of ip_set; Key.Name is its name.
	KindSet Kind = iota
	// KindEntry is an element of the set Key.Name.
	KindEntry
	// KindChain is a chain of iptables: Key.Table and Key.Name. Of a chain of the kernel's only our rules count.
	KindChain
	// KindServer is a virtual server with its real servers: Key.Proto and Key.Addr.
	KindServer
	// KindDivert is a routing rule with its table by which packets with a mark are delivered to this node, whatever their
	// destination. There is at most one; its Key has no other field.
	KindDivert
	// KindVIP is an address, or a prefix, that is made one of the node's: Key.Prefix.
	KindVIP
)

// What a KindDivert consists of: "rule add fwmark M/M lookup divertTable priority divertPriority" and
// "route add local default dev lo table divertTable". The priority is after the table local, before main.
const (
	divertTable    = 9650
	divertPriority = 9650
)

// divertTableOf is divertTable, or the one of an instance with a name.
func divertTableOf(id instance.ID) uint32 {
	if id == 0 {
		return divertTable
	}
	return id.Routing()
}

// Key identifies an object of one family.
type Key struct {
	Kind Kind
	// Table is mangle, nat or filter for a chain.
	Table string
	// Name is that of a set, or of a chain.
	Name string
	// Proto is the protocol of a virtual server or of an element with a port.
	Proto fwd.Proto
	// Addr is the address and port of a virtual server or an element; an element without a port has port 0.
	Addr netip.AddrPort
	// Prefix is the second part of an element (hash:ip,port,net, hash:ip,port,ip), or what a KindVIP makes local.
	Prefix netip.Prefix
}

// Value is what is wanted of an object, or found in the kernel. Only the fields of its kind are set.
type Value struct {
	// Rules are the rules of a chain, one a line, as iptables-save prints them without "-A CHAIN".
	Rules string
	// SetType is the type of a set, such as "hash:ip,port".
	SetType string
	// Server is a virtual server.
	Server *Server
	// Source is the address that the node's own packets to a KindVIP get; the zero Addr leaves that to the kernel.
	Source netip.Addr
	// Global says that the kernel may choose a KindVIP as the source of packets to elsewhere, as kube-proxy's; it is never
	// wanted.
	Global bool
	// Mark is the one bit of the packet mark that a KindDivert looks at.
	Mark uint32
	// Owner is the Service that the object is for; it is not compared.
	Owner fwd.Service
}

// Server is a virtual server with its real servers. It is immutable.
type Server struct {
	// Scheduler is the name of the kernel's scheduler, such as "rr".
	Scheduler string
	// Flags are IP_VS_SVC_F_* without IP_VS_SVC_F_HASHED, which is the kernel's own.
	Flags uint32
	// TimeoutSec is the persistence time-out in seconds; 0 without the flag of persistence.
	TimeoutSec uint32
	// Endpoints are the real servers that get new connections, sorted by address and port. Of an endpoint only address
	// and weight are compared; the slice is shared with the forwarding table.
	Endpoints []fwd.Endpoint
}

// same says whether two objects are alike in the kernel.
func same(a, b Value) bool {
	if a.Rules != b.Rules || a.SetType != b.SetType || a.Source != b.Source || a.Global != b.Global || a.Mark != b.Mark || (a.Server == nil) != (b.Server == nil) {
		return false
	}
	return a.Server == nil || a.Server.equal(b.Server)
}

func (s *Server) equal(o *Server) bool {
	return s == o || s.Scheduler == o.Scheduler && s.Flags == o.Flags && s.TimeoutSec == o.TimeoutSec &&
		slices.EqualFunc(s.Endpoints, o.Endpoints, func(a, b fwd.Endpoint) bool { return a.Addr == b.Addr && a.Weight == b.Weight })
}

package ipvs

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"github.com/fairlead/fairlead/internal/fwd"
	"github.com/fairlead/fairlead/internal/host/ipset"
	hostipvs "github.com/fairlead/fairlead/internal/host/ipvs"
	"github.com/fairlead/fairlead/internal/instance"
)

// Kind is the kind of a kernel object.
type Kind uint8

// The kinds, in the order in which objects are added.
const (
	// KindSet is a set of ip_set: Key.Name.
	KindSet Kind = iota
	// KindEntry is an entry of the set Key.Name.
	KindEntry
	// KindChain is a chain of iptables: Key.Table and Key.Name. Of a built-in chain only our rules
	// count.
	KindChain
	// KindServer is a virtual server with its real servers: Key.Proto and Key.Addr.
	KindServer
	// KindDivert is a routing rule with its table that delivers packets with a mark to this node,
	// whatever their destination. There is at most one; its Key has no other field.
	KindDivert
	// KindVIP is an address or a prefix that is made local: Key.Prefix.
	KindVIP
)

// A KindDivert consists of "rule add fwmark M/M lookup divertTable priority divertPriority" and
// "route add local default dev lo table divertTable". The priority is between those of the tables
// local and main.
const (
	divertTable    = 9650
	divertPriority = 9650
)

// divertTableOf returns divertTable, or the table of a named instance.
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
	// Name is the name of a set or chain.
	Name string
	// Proto is the protocol of a virtual server, or of an entry with a port.
	Proto fwd.Proto
	// Addr is the address and port of a virtual server or an entry; port 0 for an entry without
	// port.
	Addr netip.AddrPort
	// Prefix is the second part of an entry (hash:ip,port,net, hash:ip,port,ip), or what a KindVIP
	// makes local.
	Prefix netip.Prefix
}

// Value is the wanted or actual state of an object. Only the fields of its kind are set.
type Value struct {
	// Rules are the rules of a chain, one per line, as iptables-save prints them without "-A
	// CHAIN".
	Rules string
	// SetType is the type of a set.
	SetType ipset.Type
	// Server is a virtual server.
	Server *Server
	// Source is the source address of the node's own packets to a KindVIP; the zero Addr leaves the
	// choice to the kernel.
	Source netip.Addr
	// Global means that the kernel may use a KindVIP as source of packets to other hosts, as with
	// kube-proxy's addresses. It is never wanted.
	Global bool
	// Mark is the bit of the packet mark that a KindDivert matches.
	Mark uint32
	// Owner is the Service of the object. It is not compared.
	Owner fwd.Service
}

// Server is a virtual server with its real servers. It is immutable.
type Server struct {
	hostipvs.Settings
	// Endpoints are the real servers that get new connections, sorted by address and port. Only
	// address and weight are compared. The slice is shared with the forwarding table.
	Endpoints []fwd.Endpoint
}

// same reports whether two objects are equal in the kernel.
func same(a, b Value) bool {
	s, o := a.Server, b.Server
	a.Server, b.Server, a.Owner, b.Owner = nil, nil, fwd.Service{}, fwd.Service{}
	if a != b || s == nil || o == nil || s == o {
		return a == b && s == o
	}
	return s.Settings == o.Settings &&
		slices.EqualFunc(s.Endpoints, o.Endpoints, func(a, b fwd.Endpoint) bool { return a.Addr == b.Addr && a.Weight == b.Weight })
}

// compare orders keys as they are printed: by kind, names, address, protocol and prefix.
func (k Key) compare(o Key) int {
	return cmp.Or(cmp.Compare(k.Kind, o.Kind), cmp.Compare(k.Table, o.Table), cmp.Compare(k.Name, o.Name),
		k.Addr.Compare(o.Addr), cmp.Compare(k.Proto, o.Proto), k.Prefix.Compare(o.Prefix))
}

// String names the object in errors and logs.
func (k Key) String() string {
	switch k.Kind {
	case KindSet:
		return "set " + k.Name
	case KindEntry:
		return fmt.Sprintf("%v in set %s", entry(k), k.Name)
	case KindChain:
		return fmt.Sprintf("chain %s of table %s", k.Name, k.Table)
	case KindServer:
		return fmt.Sprintf("virtual server %v", virtualServer(k))
	case KindDivert:
		return "routing by mark"
	}
	return fmt.Sprintf("local address %v", k.Prefix)
}

// entry returns the entry of a set for a KindEntry.
func entry(k Key) ipset.Entry {
	return ipset.Entry{Addr: k.Addr.Addr(), Proto: uint8(k.Proto), Port: k.Addr.Port(), Net: k.Prefix}
}

func virtualServer(k Key) hostipvs.VirtualServer {
	return hostipvs.VirtualServer{Protocol: uint8(k.Proto), Addr: k.Addr}
}

func serverKey(v hostipvs.VirtualServer) Key {
	return Key{Kind: KindServer, Proto: fwd.Proto(v.Protocol), Addr: v.Addr}
}

package ipvs

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"net/netip"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Interface is the IPVS of one network namespace. Kernel and Fake implement it; both are safe for concurrent use.
type Interface interface {
	// Read returns all virtual servers with their real servers.
	Read(context.Context) (Content, error)
	// List returns all virtual servers without their real servers; it costs a fraction of Read.
	List(context.Context) (Content, error)
	// RealServers returns the real servers of one virtual server, sorted by address; the error is ESRCH if there is no such
	// virtual server.
	RealServers(context.Context, VirtualServer) ([]RealState, error)
	// Apply carries out operations in their order, many to one system call, and goes on after one that fails. It returns nil
	// if all were carried out; else a slice as long as ops, with nil for each that was carried out and an *Error for each
	// that was not. ENOBUFS means that the kernel's answer was lost: the operation may have been carried out or not.
	Apply(ctx context.Context, ops []Op) []error
	// Timeouts returns after what time connections are forgotten.
	Timeouts(context.Context) (Timeouts, error)
	// SetTimeouts sets those that are not 0 and leaves the others as they are.
	SetTimeouts(context.Context, Timeouts) error
	// ConnTableSize returns the number of buckets of the table of connections.
	ConnTableSize(context.Context) (int, error)
	// ProbeScheduler asks the kernel for a scheduler by adding a virtual server and removing it at once; the error is
	// ENOENT if the kernel neither has nor can load it.
	ProbeScheduler(ctx context.Context, name string) error
}

// VirtualServer is what connections are made to; it identifies a virtual server.
type VirtualServer struct {
	// Protocol is the transport protocol by its IANA number: TCP, UDP or SCTP.
	Protocol uint8
	// Addr is address and port. The address is no IPv4 address in IPv6 form and has no zone. Port 0 stands for all ports and
	// is allowed for persistent virtual servers alone.
	Addr netip.AddrPort
}

// Compare sorts by protocol, address and port.
func (v VirtualServer) Compare(w VirtualServer) int {
	return cmp.Or(cmp.Compare(v.Protocol, w.Protocol), v.Addr.Compare(w.Addr))
}

// String returns for example "tcp 10.96.0.1:443".
func (v VirtualServer) String() string {
	return fmt.Sprintf("%s %v", protocolName(v.Protocol), v.Addr)
}

// Settings are what can be changed of a virtual server without harm to its connections.
type Settings struct {
	// Scheduler is the name of a scheduler, up to 15 bytes.
	Scheduler string
	Flags     Flags
	// TimeoutSec is the time in seconds after which a client may get another real server, with the flag Persistent. Without
	// it the kernel only keeps the value.
	TimeoutSec uint32
	// Prefix is how many bits of the client's address count for persistence. 0 stands for all of them, so 32 and 128 are
	// not used. OddPrefix may be read but not written.
	Prefix int8
}

// OddPrefix is the Prefix of a virtual server whose mask is 0.0.0.0 or none that a prefix makes.
const OddPrefix int8 = -1

// Flags are bits of a virtual server (IP_VS_SVC_F_*).
type Flags uint32

// The flags. What the kernel calls "hashed", 0x2, it sets on every virtual server; it is left out in reading and refused in writing.
const (
	// Persistent sends all connections of a client to one real server.
	Persistent Flags = 0x01
	// OnePacket schedules each datagram by itself. With masquerading, answers then leave with the wrong source.
	OnePacket Flags = 0x04
	// Sched1 to Sched3 mean what the scheduler makes of them.
	Sched1 Flags = 0x08
	Sched2 Flags = 0x10
	// Sched3 is used by no scheduler of the kernel.
	Sched3 Flags = 0x20
	// Free are bits that the kernel keeps with the virtual server and gives no meaning (5.10 to 6.18).
	Free = ^Flags(0x3f)

	// Fallback makes the schedulers sh and mh choose another real server if the one that a client's address leads to has weight 0.
	Fallback = Sched1
	// SourcePort makes the schedulers sh and mh look at the client's port too.
	SourcePort = Sched2

	hashed   Flags = 0x02
	allFlags       = Persistent | OnePacket | Sched1 | Sched2 | Sched3
)

// String returns for example "persistent,flag-3", "" for none.
func (f Flags) String() string {
	var names []string
	for _, n := range []struct {
		flag Flags
		name string
	}{{Persistent, "persistent"}, {hashed, "hashed"}, {OnePacket, "one-packet"}, {Sched1, "flag-1"}, {Sched2, "flag-2"}, {Sched3, "flag-3"}} {
		if f&n.flag != 0 {
			names = append(names, n.name)
		}
	}
	if rest := f &^ (allFlags | hashed); rest != 0 {
		names = append(names, fmt.Sprintf("%#x", uint32(rest)))
	}
	return strings.Join(names, ",")
}

// RealServer is one server behind a virtual server; its address identifies it there.
type RealServer struct {
	Addr netip.AddrPort
	// Method is how packets get there.
	Method Method
	// Weight is the share of new connections, up to MaxWeight; with 0 there are no new ones.
	Weight uint32
}

// MaxWeight is the greatest weight that the kernel takes.
const MaxWeight = math.MaxInt32

// Method is a way to forward packets (IP_VS_CONN_F_*).
type Method uint8

// The methods.
const (
	Masquerade  Method = 0
	LocalNode   Method = 1
	Tunnel      Method = 2
	DirectRoute Method = 3
)

// String returns the word of the kernel's table.
func (m Method) String() string {
	names := [...]string{"Masq", "Local", "Tunnel", "Route"}
	if int(m) < len(names) {
		return names[m]
	}
	return fmt.Sprintf("method%d", uint8(m))
}

// RealState is a real server and its connections.
type RealState struct {
	RealServer
	// Active are established connections, Inactive all others.
	Active, Inactive uint32
	// Persistent are the clients that are bound to it. Read does not know it and leaves it 0.
	Persistent uint32
}

// Stats counts since a virtual server was made. Where the kernel sends no counters of 64 bits (before Linux 4.1),
// connections and packets wrap at 2³².
type Stats struct {
	Connections, PacketsIn, PacketsOut, BytesIn, BytesOut uint64
}

// Server is a virtual server as it is.
type Server struct {
	VirtualServer VirtualServer
	Settings      Settings
	Stats         Stats
	// Reals are sorted by address.
	Reals []RealState
}

// MarkServer is a virtual server for packets with a mark of the firewall. The package only reports it.
type MarkServer struct {
	Mark     uint32
	IPv6     bool
	Settings Settings
}

// Content is what the tables hold.
type Content struct {
	// Servers are sorted by VirtualServer.
	Servers []Server
	// Marks are sorted by mark, IPv4 first.
	Marks []MarkServer
}

// Timeouts are how long a connection without packets is remembered, in whole seconds. TCPFin is for one that is being
// closed.
type Timeouts struct {
	TCP, TCPFin, UDP time.Duration
}

// Verb is what an operation does.
type Verb uint8

// The verbs.
const (
	// AddServer fails with EEXIST if there is such a virtual server, and with ENOENT if there is no such scheduler.
	AddServer Verb = iota + 1
	// SetServer replaces the settings; it fails with ESRCH if there is no such virtual server, and with ENOENT if there is
	// no such scheduler.
	SetServer
	// DelServer removes a virtual server and all of its real servers; it fails with ESRCH if there is none.
	DelServer
	// AddReal fails with ESRCH if there is no such virtual server and with EEXIST if it has such a real server.
	AddReal
	// SetReal replaces weight and method; it fails with ESRCH if there is no such virtual server and with ENOENT if that
	// has no such real server.
	SetReal
	// DelReal cuts the connections to a real server, soon even if it is added again; it fails as SetReal does. Method and
	// Weight do not matter.
	DelReal
)

// Op is an operation on a virtual server or on one of its real servers.
type Op struct {
	Verb   Verb
	Server VirtualServer
	// Settings are of use for AddServer and SetServer.
	Settings Settings
	// Real is of use for AddReal, SetReal and DelReal.
	Real RealServer
}

// String says what is tried on what.
func (o Op) String() string {
	switch o.Verb {
	case AddServer:
		return fmt.Sprintf("new virtual server %v with scheduler %s", o.Server, o.Settings.Scheduler)
	case SetServer:
		return fmt.Sprintf("set virtual server %v to scheduler %s", o.Server, o.Settings.Scheduler)
	case DelServer:
		return fmt.Sprintf("delete virtual server %v", o.Server)
	case AddReal:
		return fmt.Sprintf("new real server %v with weight %d for %v", o.Real.Addr, o.Real.Weight, o.Server)
	case SetReal:
		return fmt.Sprintf("set real server %v to weight %d for %v", o.Real.Addr, o.Real.Weight, o.Server)
	case DelReal:
		return fmt.Sprintf("delete real server %v of %v", o.Real.Addr, o.Server)
	}
	return fmt.Sprintf("verb%d on %v", uint8(o.Verb), o.Server)
}

// Error says why an operation was not carried out.
type Error struct {
	Op Op
	// Err is an error number of the kernel, or wraps one.
	Err error
}

func (e *Error) Error() string { return fmt.Sprintf("%v: %v", e.Op, e.Err) }

// Unwrap makes errors.Is find the error number.
func (e *Error) Unwrap() error { return e.Err }

// maxScheduler is the length of the longest name of a scheduler, in bytes.
const maxScheduler = 15

// check refuses what must not get to the kernel: values that it would misunderstand, or take although no packet is ever
// forwarded by them.
func (o Op) check() error {
	if err := checkAddr(o.Server.Addr); err != nil {
		return err
	}
	switch o.Server.Protocol {
	case unix.IPPROTO_TCP, unix.IPPROTO_UDP, unix.IPPROTO_SCTP:
	default:
		return fmt.Errorf("protocol %d: %w", o.Server.Protocol, unix.EPROTONOSUPPORT)
	}
	switch o.Verb {
	case AddServer, SetServer:
		return o.Settings.check(o.Server.Addr)
	case DelServer:
		return nil
	case AddReal, SetReal, DelReal:
		return o.Real.check(o.Server.Addr)
	}
	return unix.EINVAL
}

func checkAddr(a netip.AddrPort) error {
	if !a.IsValid() || a.Addr().Is4In6() || a.Addr().Zone() != "" {
		return fmt.Errorf("address %v: %w", a, unix.EINVAL)
	}
	return nil
}

func (s Settings) check(server netip.AddrPort) error {
	persistent := s.Flags&Persistent != 0
	switch {
	case s.Scheduler == "" || len(s.Scheduler) > maxScheduler || strings.ContainsAny(s.Scheduler, "\x00 \n"):
		return fmt.Errorf("name of a scheduler %q: %w", s.Scheduler, unix.EINVAL)
	case s.Flags&^(allFlags|Free) != 0:
		return fmt.Errorf("flags %v: %w", s.Flags, unix.EINVAL)
	case s.Prefix < 0 || int(s.Prefix) >= server.Addr().BitLen():
		return fmt.Errorf("prefix of %d bits: %w", s.Prefix, unix.EINVAL)
	case persistent && s.TimeoutSec == 0:
		return fmt.Errorf("persistent for 0 seconds: %w", unix.EINVAL)
	case !persistent && server.Port() == 0:
		return fmt.Errorf("all ports without persistence: %w", unix.EINVAL)
	}
	return nil
}

func (r RealServer) check(server netip.AddrPort) error {
	if err := checkAddr(r.Addr); err != nil {
		return err
	}
	switch {
	case r.Addr.Port() == 0 && server.Port() != 0:
		return fmt.Errorf("port 0: %w", unix.EINVAL)
	case r.Method > DirectRoute:
		return fmt.Errorf("%v: %w", r.Method, unix.EINVAL)
	}
	return nil
}

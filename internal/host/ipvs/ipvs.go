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

// Interface is the IPVS of one network namespace. Kernel implements it. Implementations are safe
// for concurrent use.
type Interface interface {
	// Read returns all virtual servers with their real servers.
	Read(context.Context) (Content, error)
	// List returns all virtual servers without their real servers. It costs a fraction of Read.
	List(context.Context) (Content, error)
	// RealServers returns the real servers of one virtual server, sorted by address. The error is
	// ESRCH if the virtual server does not exist.
	RealServers(context.Context, VirtualServer) ([]RealState, error)
	// Apply executes operations in order, many in one system call, and continues after one that
	// fails. It returns nil if all succeeded, otherwise a slice as long as ops: nil for an
	// operation that succeeded, an *Error for one that failed. ENOBUFS means that the kernel's
	// answer was lost: the operation may or may not have been executed.
	Apply(ctx context.Context, ops []Op) []error
	// Timeouts returns the timeouts of connections.
	Timeouts(context.Context) (Timeouts, error)
	// SetTimeouts sets the timeouts that are not 0.
	SetTimeouts(context.Context, Timeouts) error
	// ConnTableSize returns the number of buckets of the connection table.
	ConnTableSize(context.Context) (int, error)
	// ProbeScheduler tests whether the kernel has a scheduler, by adding a virtual server and
	// removing it at once. The error is ENOENT if the kernel neither has the scheduler nor can load
	// it.
	ProbeScheduler(ctx context.Context, name string) error
}

// VirtualServer identifies a virtual server: the destination of connections.
type VirtualServer struct {
	// Protocol is the transport protocol by its IANA number: TCP, UDP or SCTP.
	Protocol uint8
	// Addr is address and port. The address is not IPv4-mapped and has no zone. Port 0 means all
	// ports, which requires Persistent.
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

// Settings are the properties of a virtual server that can change without breaking its connections.
type Settings struct {
	// Scheduler is the name of a scheduler, up to 15 bytes.
	Scheduler string
	Flags     Flags
	// TimeoutSec is, with the flag Persistent, the number of seconds without connections after
	// which a client may get another real server. Without the flag the kernel stores the value but
	// does not use it.
	TimeoutSec uint32
	// Prefix is the number of bits of the client's address that count for persistence. 0 means all
	// bits; 32 and 128 are not used. OddPrefix can be read but not written.
	Prefix int8
}

// OddPrefix is the Prefix of a virtual server whose mask is 0.0.0.0 or not contiguous.
const OddPrefix int8 = -1

// Flags are bits of a virtual server (IP_VS_SVC_F_*).
type Flags uint32

// The flags. The kernel sets the flag "hashed" (0x2) on every virtual server; it is hidden on
// reading and refused on writing.
const (
	// Persistent sends all connections of a client to one real server.
	Persistent Flags = 0x01
	// OnePacket schedules each datagram separately. With masquerading, replies then have the wrong
	// source address.
	OnePacket Flags = 0x04
	// Sched1 to Sched3 depend on the scheduler.
	Sched1 Flags = 0x08
	Sched2 Flags = 0x10
	// Sched3 is not used by any scheduler of the kernel.
	Sched3 Flags = 0x20
	// Free are bits that the kernel stores but does not use (5.10 to 6.18).
	Free = ^Flags(0x3f)

	// Fallback makes the schedulers sh and mh choose another real server if the one for a client's
	// address has weight 0.
	Fallback = Sched1
	// SourcePort makes the schedulers sh and mh hash the client's port as well.
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
	if other := f &^ (allFlags | hashed); other != 0 {
		names = append(names, fmt.Sprintf("%#x", uint32(other)))
	}
	return strings.Join(names, ",")
}

// RealServer is one server behind a virtual server, identified by its address.
type RealServer struct {
	Addr netip.AddrPort
	// Method is how packets are forwarded.
	Method Method
	// Weight is the share of new connections, up to MaxWeight. 0 means no new connections.
	Weight uint32
}

// MaxWeight is the maximum weight that the kernel accepts.
const MaxWeight = math.MaxInt32

// Method is a forwarding method (IP_VS_CONN_F_*).
type Method uint8

// The methods.
const (
	Masquerade  Method = 0
	LocalNode   Method = 1
	Tunnel      Method = 2
	DirectRoute Method = 3
)

// String returns the name in /proc/net/ip_vs.
func (m Method) String() string {
	names := [...]string{"Masq", "Local", "Tunnel", "Route"}
	if int(m) < len(names) {
		return names[m]
	}
	return fmt.Sprintf("method%d", uint8(m))
}

// RealState is a real server with its number of connections.
type RealState struct {
	RealServer
	// Active counts established connections, Inactive all others.
	Active, Inactive uint32
}

func (r RealState) compare(o RealState) int { return r.Addr.Compare(o.Addr) }

// Server is a virtual server as read from the kernel.
type Server struct {
	VirtualServer VirtualServer
	Settings      Settings
	// Reals are sorted by address.
	Reals []RealState
}

// Content is the table of virtual servers.
type Content struct {
	// Servers are sorted by VirtualServer. Virtual servers for firewall marks are not included.
	Servers []Server
}

// Timeouts are the times after which idle connections are forgotten, in whole seconds. TCPFin
// applies to connections that are being closed.
type Timeouts struct {
	TCP, TCPFin, UDP time.Duration
}

// Verb is the kind of an operation.
type Verb uint8

// The verbs.
const (
	// AddServer fails with EEXIST if the virtual server exists, and with ENOENT if the kernel has
	// no such scheduler.
	AddServer Verb = iota + 1
	// SetServer replaces the settings. It fails with ESRCH if the virtual server does not exist,
	// and with ENOENT if the kernel has no such scheduler.
	SetServer
	// DelServer deletes a virtual server and its real servers. It fails with ESRCH if the virtual
	// server does not exist.
	DelServer
	// AddReal fails with ESRCH if the virtual server does not exist, and with EEXIST if the real
	// server does.
	AddReal
	// SetReal replaces weight and method. It fails with ESRCH if the virtual server does not exist,
	// and with ENOENT if the real server does not.
	SetReal
	// DelReal breaks the connections to a real server, even if it is soon added again. It fails
	// like SetReal. Method and Weight are ignored.
	DelReal
)

// Op is an operation on a virtual server or on one of its real servers.
type Op struct {
	Verb   Verb
	Server VirtualServer
	// Settings are for AddServer and SetServer.
	Settings Settings
	// Real is for AddReal, SetReal and DelReal.
	Real RealServer
}

// String describes the operation, for errors.
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

// Error is the failure of an operation.
type Error struct {
	Op Op
	// Err is or wraps one of the kernel's error numbers.
	Err error
}

func (e *Error) Error() string { return fmt.Sprintf("%v: %v", e.Op, e.Err) }

// Unwrap returns Err.
func (e *Error) Unwrap() error { return e.Err }

// maxScheduler is the maximum length of the name of a scheduler in bytes.
const maxScheduler = 15

// Check refuses operations that must not reach the kernel: values that it would misinterpret, or
// accept although they never forward a packet.
func (o Op) Check() error {
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
		return fmt.Errorf("scheduler name %q: %w", s.Scheduler, unix.EINVAL)
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

// maxTimeout fits into an int of clock ticks on every kernel: up to 1000 ticks a second.
const maxTimeout = (1<<31 - 1) / 1000 * time.Second

// Check refuses timeouts that the kernel cannot keep.
func (t Timeouts) Check() error {
	for _, d := range []time.Duration{t.TCP, t.TCPFin, t.UDP} {
		if d < 0 || d%time.Second != 0 || d > maxTimeout {
			return fmt.Errorf("timeout of %v: %w", d, unix.EINVAL)
		}
	}
	return nil
}

// MaxBatch is the maximum number of operations in one system call. More are not faster.
const MaxBatch = 500

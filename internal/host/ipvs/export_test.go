package ipvs

import (
	"net/netip"

	"golang.org/x/sys/unix"
)

// For tests in package ipvs_test, which can import package ipvsfake.
const (
	Hashed     = hashed
	MaxTimeout = maxTimeout
)

var (
	AP         = ap
	TCP        = tcp
	Everything = everything
	Large      = large
)

func ap(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

func tcp(s string) VirtualServer { return VirtualServer{Protocol: unix.IPPROTO_TCP, Addr: ap(s)} }

// everything is a table with each value that can be written.
func everything() (ops []Op) {
	port := uint16(1000)
	for _, vip := range []string{"10.96.0.1", "fd00:96::1"} {
		addr := netip.MustParseAddr(vip)
		server := func(protocol uint8) VirtualServer {
			port++
			return VirtualServer{Protocol: protocol, Addr: netip.AddrPortFrom(addr, port)}
		}
		add := func(v VirtualServer, s Settings) { ops = append(ops, Op{Verb: AddServer, Server: v, Settings: s}) }
		for _, name := range []string{"rr", "wrr", "lc", "wlc", "lblc", "lblcr", "dh", "sh", "mh", "sed", "nq", "fo", "ovf"} {
			add(server(unix.IPPROTO_TCP), Settings{Scheduler: name, Flags: Sched3})
			add(server(unix.IPPROTO_TCP), Settings{Scheduler: name, Flags: Sched3 | Free})
		}
		for flags := range allFlags + 1 {
			if flags&hashed == 0 {
				add(server(unix.IPPROTO_UDP), Settings{Scheduler: "mh", Flags: flags, TimeoutSec: 27504})
			}
		}
		for bits := range addr.BitLen() {
			add(server(unix.IPPROTO_SCTP), Settings{Scheduler: "wrr", Flags: Persistent, TimeoutSec: 10800, Prefix: int8(bits)})
		}
		add(VirtualServer{Protocol: unix.IPPROTO_TCP, Addr: netip.AddrPortFrom(addr, 0)}, Settings{Scheduler: "rr", Flags: Persistent, TimeoutSec: 1})
		for _, protocol := range []uint8{unix.IPPROTO_TCP, unix.IPPROTO_UDP, unix.IPPROTO_SCTP} {
			v := server(protocol)
			add(v, Settings{Scheduler: "rr"})
			for i, weight := range []uint32{0, 1, 65535, 65536, 70000, MaxWeight} {
				for m := range DirectRoute + 1 {
					for _, real := range []string{"10.0.0.1", "fd01::1"} {
						a := netip.MustParseAddr(real)
						if a.Is6() != addr.Is6() && m != Tunnel {
							continue
						}
						r := RealServer{Addr: netip.AddrPortFrom(a, uint16(1+100*i+int(m))), Method: m, Weight: weight}
						ops = append(ops, Op{Verb: AddReal, Server: v, Real: r})
					}
				}
			}
		}
	}
	return ops
}

// large returns operations that make many virtual servers with five real servers each.
func large(servers int) (ops []Op) {
	for i := range servers {
		v := VirtualServer{Protocol: unix.IPPROTO_TCP, Addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 96, byte(i >> 8), byte(i)}), 443)}
		ops = append(ops, Op{Verb: AddServer, Server: v, Settings: Settings{Scheduler: "rr", Flags: Sched3}})
		for j := range 5 {
			n := 5*i + j
			r := RealServer{Addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(n >> 16), byte(n >> 8), byte(n)}), 8443), Weight: uint32(n)}
			ops = append(ops, Op{Verb: AddReal, Server: v, Real: r})
		}
	}
	return ops
}

package ipvs

import (
	"fmt"
	"net/netip"
	"strings"

	"golang.org/x/sys/unix"
)

// FormatServer returns the options of ipvsadm that create a virtual server, for example
// "-A -t 10.96.0.1:443 -s rr -b flag-3".
func FormatServer(v VirtualServer, s Settings) string {
	var b strings.Builder
	fmt.Fprintf(&b, "-A %s -s %s", serverOption(v), s.Scheduler)
	if s.Flags&Persistent != 0 {
		fmt.Fprintf(&b, " -p %d", s.TimeoutSec)
		if s.Prefix != 0 {
			fmt.Fprintf(&b, " -M %s", maskOption(v.Addr.Addr(), s.Prefix))
		}
	}
	if s.Flags&OnePacket != 0 {
		b.WriteString(" -o")
	}
	if names := schedFlags(s); len(names) > 0 {
		fmt.Fprintf(&b, " -b %s", strings.Join(names, ","))
	}
	return b.String()
}

// FormatReal returns the options of ipvsadm that add a real server, for example
// "-a -t 10.96.0.1:443 -r 10.0.0.1:8443 -m -w 1".
func FormatReal(v VirtualServer, r RealServer) string {
	method := "-g" // also for LocalNode, which the kernel detects
	switch r.Method {
	case Masquerade:
		method = "-m"
	case Tunnel:
		method = "-i"
	}
	return fmt.Sprintf("-a %s -r %v %s -w %d", serverOption(v), r.Addr, method, r.Weight)
}

func serverOption(v VirtualServer) string {
	option := "--" + protocolName(v.Protocol)
	switch v.Protocol {
	case unix.IPPROTO_TCP:
		option = "-t"
	case unix.IPPROTO_UDP:
		option = "-u"
	case unix.IPPROTO_SCTP:
		option = "--sctp-service"
	}
	return option + " " + v.Addr.String()
}

func protocolName(p uint8) string {
	switch p {
	case unix.IPPROTO_TCP:
		return "tcp"
	case unix.IPPROTO_UDP:
		return "udp"
	case unix.IPPROTO_SCTP:
		return "sctp"
	}
	return fmt.Sprintf("protocol%d", p)
}

// maskOption formats a prefix for ipvsadm: as a mask for IPv4, as a length for IPv6.
func maskOption(a netip.Addr, prefix int8) string {
	if prefix == OddPrefix {
		return "odd"
	}
	if a.Is6() {
		return fmt.Sprint(prefix)
	}
	m := ^uint32(0) << (32 - prefix)
	return netip.AddrFrom4([4]byte{byte(m >> 24), byte(m >> 16), byte(m >> 8), byte(m)}).String()
}

// schedFlags returns the names of the flags of a scheduler. sh and mh have names for two of them.
func schedFlags(s Settings) (names []string) {
	for i, f := range []Flags{Sched1, Sched2, Sched3} {
		if s.Flags&f == 0 {
			continue
		}
		name := fmt.Sprintf("flag-%d", i+1)
		if (s.Scheduler == "sh" || s.Scheduler == "mh") && f != Sched3 {
			name = s.Scheduler + map[Flags]string{Fallback: "-fallback", SourcePort: "-port"}[f]
		}
		names = append(names, name)
	}
	return names
}

package ipvs

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// The table starts with these lines. The first continues with version and size.
const (
	procVersion = "IP Virtual Server version "
	procServers = "Prot LocalAddress:Port Scheduler Flags"
	procReals   = "  -> RemoteAddress:Port Forward Weight ActiveConn InActConn"
)

// errLine means that a line has an unknown form.
var errLine = errors.New("unknown form")

// parseTable parses /proc/net/ip_vs into the real servers of each virtual server, sorted. It checks
// virtual servers for marks but does not return them. A virtual server can appear twice while
// others are added or deleted; that is an error.
func parseTable(text string) (map[VirtualServer][]RealState, error) {
	table := make(map[VirtualServer][]RealState)
	// current is the virtual server of the next real server, nil for one for a mark.
	var current *VirtualServer
	first, n := true, 0
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		n++
		var err error
		switch {
		case n <= 3:
			err = checkHead(n, line)
		case strings.HasPrefix(line, "  -> "):
			var r RealState
			if r, err = parseReal(line); err == nil && first {
				err = errors.New("belongs to no virtual server")
			}
			if current != nil {
				table[*current] = append(table[*current], r)
			}
		default:
			first = false
			if current, err = parseServer(line); err == nil && current != nil {
				if _, twice := table[*current]; twice {
					err = fmt.Errorf("%v for the second time", *current)
				} else {
					table[*current] = nil
				}
			}
		}
		if err != nil {
			return nil, fmt.Errorf("line %d of ip_vs: %q: %w", n, line, err)
		}
	}
	if n < 3 {
		return nil, fmt.Errorf("ip_vs ends after %d lines", n)
	}
	for _, reals := range table {
		slices.SortFunc(reals, RealState.compare)
	}
	return table, nil
}

func checkHead(n int, line string) error {
	if n == 1 && strings.HasPrefix(line, procVersion) || n == 2 && line == procServers || n == 3 && line == procReals {
		return nil
	}
	return errLine
}

// parseServer parses the line of a virtual server: "TCP  0A600001:01BB rr ", optionally with "ops"
// and "persistent 1080000 FFFFFFFF". It returns nil for one for a mark.
func parseServer(line string) (*VirtualServer, error) {
	f := strings.Fields(line)
	if len(f) < 3 {
		return nil, errLine
	}
	if err := checkOptions(f[3:]); err != nil {
		return nil, err
	}
	if f[0] == "FWM" {
		_, err := parseHex(f[1], 8)
		return nil, err
	}
	protocol, err := parseProtocol(f[0])
	if err != nil {
		return nil, err
	}
	addr, err := parseAddrPort(f[1])
	if err != nil {
		return nil, err
	}
	return &VirtualServer{Protocol: protocol, Addr: addr}, nil
}

func checkOptions(f []string) error {
	if len(f) > 0 && f[0] == "ops" {
		f = f[1:]
	}
	if len(f) == 0 {
		return nil
	}
	if len(f) != 3 || f[0] != "persistent" {
		return errLine
	}
	if _, err := strconv.ParseInt(f[1], 10, 32); err != nil {
		return err
	}
	_, err := parseHex(f[2], 8)
	return err
}

// parseProtocol parses the kernel's name of a protocol, including those that Check refuses.
func parseProtocol(s string) (uint8, error) {
	switch s {
	case "TCP":
		return unix.IPPROTO_TCP, nil
	case "UDP":
		return unix.IPPROTO_UDP, nil
	case "SCTP":
		return unix.IPPROTO_SCTP, nil
	case "IP":
		return unix.IPPROTO_IP, nil
	case "ICMP":
		return unix.IPPROTO_ICMP, nil
	case "ICMPv6":
		return unix.IPPROTO_ICMPV6, nil
	}
	number, ok := strings.CutPrefix(s, "IP_")
	if !ok {
		return 0, errLine
	}
	n, err := strconv.ParseUint(number, 10, 8)
	return uint8(n), err
}

// parseReal parses the line of a real server: "  -> 0A000001:20FB      Masq    1      0          0
// ".
func parseReal(line string) (RealState, error) {
	f := strings.Fields(line)
	if len(f) != 6 {
		return RealState{}, errLine
	}
	addr, err := parseAddrPort(f[1])
	if err != nil {
		return RealState{}, err
	}
	r := RealState{RealServer: RealServer{Addr: addr}}
	for r.Method = Masquerade; r.Method.String() != f[2]; r.Method++ {
		if r.Method == DirectRoute {
			return RealState{}, errLine
		}
	}
	for i, to := range []*uint32{&r.Weight, &r.Active, &r.Inactive} {
		n, err := strconv.ParseUint(f[3+i], 10, 31)
		if err != nil {
			return RealState{}, err
		}
		*to = uint32(n)
	}
	return r, nil
}

// parseAddrPort parses "0A600001:01BB" or "[fd00:0000:0000:0000:0000:0000:0000:0001]:01BB".
func parseAddrPort(s string) (netip.AddrPort, error) {
	colon := strings.LastIndexByte(s, ':')
	if colon < 0 {
		return netip.AddrPort{}, errLine
	}
	port, err := parseHex(s[colon+1:], 4)
	if err != nil {
		return netip.AddrPort{}, err
	}
	host := s[:colon]
	if n := len(host); n == len("[0000:0000:0000:0000:0000:0000:0000:0000]") && host[0] == '[' && host[n-1] == ']' {
		a, err := netip.ParseAddr(host[1 : n-1])
		if err != nil || a.Zone() != "" {
			return netip.AddrPort{}, errLine
		}
		return netip.AddrPortFrom(a, uint16(port)), nil
	}
	a, err := parseHex(host, 8)
	if err != nil {
		return netip.AddrPort{}, err
	}
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{byte(a >> 24), byte(a >> 16), byte(a >> 8), byte(a)}), uint16(port)), nil
}

// parseHex parses a number with exactly this number of digits.
func parseHex(s string, digits int) (uint32, error) {
	if len(s) != digits {
		return 0, errLine
	}
	n, err := strconv.ParseUint(s, 16, 32)
	return uint32(n), err
}

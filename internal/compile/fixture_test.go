package compile_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/fairlead/fairlead/internal/cluster"
	"github.com/fairlead/fairlead/internal/compile"
	"github.com/fairlead/fairlead/internal/fwd"
)

// The fixture is that of the catalogue in docs/datapath.md: the node n1 in zone a with the
// addresses NODE and ALT, and the detector ClusterCIDR 10.0.0.0/8.
var sources = map[string]netip.Addr{
	"POD":  netip.MustParseAddr("10.0.0.2"),
	"NODE": netip.MustParseAddr("192.168.0.2"),
	"ALT":  netip.MustParseAddr("192.168.1.2"),
	"LO":   netip.MustParseAddr("127.0.0.1"),
	"EXT":  netip.MustParseAddr("203.0.113.2"),
	"BLK":  netip.MustParseAddr("203.0.113.130"),
	"POD6": netip.MustParseAddr("fd00:10::2"),
	"EXT6": netip.MustParseAddr("2001:db8::2"),
}

// addr reads an address, the name of a source, ".7" for 10.0.1.7, or L and R for the endpoints of
// group M.
func addr(s string) netip.Addr {
	switch {
	case s == "L":
		return netip.MustParseAddr("10.180.0.1")
	case s == "R":
		return netip.MustParseAddr("10.180.1.1")
	case strings.HasPrefix(s, "."):
		return netip.MustParseAddr("10.0.1" + s)
	case sources[s].IsValid():
		return sources[s]
	}
	return netip.MustParseAddr(s)
}

func addrs(list string) (out []netip.Addr) {
	for _, s := range strings.Split(list, ",") {
		out = append(out, addr(s))
	}
	return out
}

// short is the reverse of addr, as far as there is one.
func short(a netip.Addr) string {
	for _, s := range []string{"L", "R"} {
		if addr(s) == a {
			return s
		}
	}
	if s := a.String(); !strings.HasPrefix(s, "10.0.1.") {
		return s
	}
	return "." + strconv.Itoa(int(a.As4()[3]))
}

func number(s string) uint16 {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil {
		panic(err)
	}
	return uint16(n)
}

func prefixes(list string) (out []netip.Prefix) {
	for _, s := range strings.Split(list, ",") {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

// service reads a Service: its cluster IPs, and name=value fields. Without ports= it has the
// unnamed port 80/TCP, whose node port is np=; ports= lists name/protocol:port or
// name/protocol:port:nodePort. The type follows from the fields.
func service(text string) *cluster.Service {
	s := &cluster.Service{Name: fwd.Service{Namespace: "ns", Name: "svc"}, CreatedUnix: 1}
	one := cluster.ServicePort{Protocol: fwd.TCP, Port: 80}
	for _, field := range strings.Fields(text) {
		k, v, _ := strings.Cut(field, "=")
		switch k {
		case "np":
			one.NodePort = number(v)
			s.Type = max(s.Type, cluster.TypeNodePort)
		case "ports":
			for _, p := range strings.Split(v, ",") {
				s.Ports = append(s.Ports, servicePort(p))
			}
		case "lb":
			s.LoadBalancerIPs = addrs(v)
			s.Type = cluster.TypeLoadBalancer
		case "ext":
			s.ExternalIPs = addrs(v)
		case "ranges":
			s.SourceRanges = prefixes(v)
		case "etp":
			s.ExternalLocal = v == "local"
		case "itp":
			s.InternalLocal = v == "local"
		case "hc":
			s.HealthCheckNodePort = number(v)
		case "affinity":
			s.AffinitySec = uint32(number(v))
		case "type":
			s.Type = map[string]cluster.ServiceType{"ClusterIP": cluster.TypeClusterIP, "LoadBalancer": cluster.TypeLoadBalancer}[v]
		default:
			a := addr(k)
			s.ClusterIPs[fwd.FamilyOf(a).Index()] = a
		}
	}
	if s.Ports == nil {
		s.Ports = []cluster.ServicePort{one}
	}
	return s
}

func servicePort(text string) cluster.ServicePort {
	p := cluster.ServicePort{}
	part := strings.Split(text, ":")
	p.Name, p.Protocol = portName(part[0])
	p.Port = number(part[1])
	if len(part) > 2 {
		p.NodePort = number(part[2])
	}
	return p
}

func portName(text string) (string, fwd.Proto) {
	name, proto, _ := strings.Cut(text, "/")
	p, err := fwd.ParseProto(proto)
	if err != nil {
		panic(err)
	}
	return name, p
}

// endpointSlices reads slices, separated by "|". Each lists endpoints as ip@node:state, where the
// state is R (ready), ST (serving and terminating), NT (terminating, not serving), NR (not ready),
// or NS (serving, but not ready), and hints may follow as ;z=a+b (zones) and ;n=n1+n2 (nodes).
// [name/protocol:port] before them says which port they serve, by default the unnamed port 80/TCP.
func endpointSlices(text string) (out []*cluster.Slice) {
	for i, part := range strings.Split(text, "|") {
		s := &cluster.Slice{
			Name:    cluster.SliceName{Namespace: "ns", Name: fmt.Sprintf("svc-%d", i)},
			Service: fwd.Service{Namespace: "ns", Name: "svc"},
		}
		for _, field := range strings.Fields(part) {
			if port, ok := strings.CutPrefix(field, "["); ok {
				p := servicePort(strings.TrimSuffix(port, "]"))
				s.Ports = append(s.Ports, cluster.SlicePort{Name: p.Name, Protocol: p.Protocol, Port: p.Port})
				continue
			}
			e := endpoint(field)
			s.Family = fwd.FamilyOf(e.Addr)
			s.Endpoints = append(s.Endpoints, e)
		}
		if s.Ports == nil {
			s.Ports = []cluster.SlicePort{{Protocol: fwd.TCP, Port: 80}}
		}
		if len(s.Endpoints) > 0 {
			out = append(out, s)
		}
	}
	return out
}

func endpoint(text string) (e cluster.Endpoint) {
	part := strings.Split(text, ";")
	a, rest, _ := strings.Cut(part[0], "@")
	e.Addr = addr(a)
	node, state, _ := strings.Cut(rest, ":")
	e.Place = &cluster.Place{Node: node}
	switch state {
	case "R":
		e.Ready, e.Serving = true, true
	case "ST":
		e.Serving, e.Terminating = true, true
	case "NT":
		e.Terminating = true
	case "NS":
		e.Serving = true
	case "NR":
	default:
		panic("state of " + text)
	}
	for _, h := range part[1:] {
		k, v, _ := strings.Cut(h, "=")
		switch k {
		case "z":
			e.Place.ZoneHints = strings.Split(v, "+")
		case "n":
			e.Place.NodeHints = strings.Split(v, "+")
		}
	}
	return e
}

// environment reads what differs from the fixture: noop, podcidr and veth (detectors), masqall,
// zone=, primary=, local= (one more local address), np= (node port addresses instead of all with
// loopback), nohostip, noname, and the two gates.
func environment(text string) (*compile.Facts, fwd.Header) {
	f := &compile.Facts{
		NodeName: "n1", Zone: "a", DetectsPods: [2]bool{true, true},
		PrimaryIP: [2]netip.Addr{addr("NODE"), netip.MustParseAddr("fd00:192::2")},
	}
	h := fwd.Header{
		MasqueradeBit: 14,
		Detector:      [2]fwd.Detector{{Prefix: netip.MustParsePrefix("10.0.0.0/8")}, {Prefix: netip.MustParsePrefix("fd00:10::/32")}},
		NodePorts:     [2]fwd.NodePortAddrs{{All: true, Loopback: true}, {All: true}},
		LocalAddrs:    []netip.Addr{addr("NODE"), addr("ALT"), f.PrimaryIP[1]},
	}
	for _, field := range strings.Fields(text) {
		k, v, _ := strings.Cut(field, "=")
		switch k {
		case "noop":
			h.Detector, f.DetectsPods = [2]fwd.Detector{}, [2]bool{}
		case "podcidr":
			h.Detector[0] = fwd.Detector{Prefix: netip.MustParsePrefix("10.0.0.0/24")}
		case "veth":
			h.Detector[0] = fwd.Detector{InterfacePrefix: "veth"}
		case "masqall":
			f.MasqueradeAll = true
		case "zone":
			f.Zone = v
		case "primary":
			f.PrimaryIP[0] = addr(v)
		case "noname":
			f.NodeName = ""
		case "nohostip":
			f.PrimaryIP = [2]netip.Addr{}
		case "local":
			h.LocalAddrs = append(h.LocalAddrs, addr(v))
			slices.SortFunc(h.LocalAddrs, netip.Addr.Compare)
		case "np":
			h.NodePorts = nodePortAddrs(v)
		case "NoNodeHints":
			f.IgnoreNodeHints = true
		case "NoExternalIPs":
			f.IgnoreExternalIPs = true
		default:
			panic("environment " + field)
		}
	}
	return f, h
}

func nodePortAddrs(list string) (out [2]fwd.NodePortAddrs) {
	for _, p := range prefixes(list) {
		i := fwd.FamilyOf(p.Addr()).Index()
		if p.Addr().IsLoopback() {
			out[i].Loopback = true
			continue
		}
		out[i].Prefixes = append(out[i].Prefixes, p)
	}
	return out
}

// packet reads "source > destination:port", with /udp or /sctp after it, and %interface.
func packet(text string) fwd.Packet {
	text, iface, _ := strings.Cut(text, "%")
	src, dst, _ := strings.Cut(text, " > ")
	dst, proto, ok := strings.Cut(dst, "/")
	if !ok {
		proto = "tcp"
	}
	p, err := fwd.ParseProto(proto)
	if err != nil {
		panic(err)
	}
	at := strings.LastIndex(dst, ":")
	return fwd.Packet{
		Src:         addr(src),
		Dst:         netip.AddrPortFrom(addr(strings.Trim(dst[:at], "[]")), number(dst[at+1:])),
		Proto:       p,
		InInterface: iface,
	}
}

// verdict writes an outcome as the catalogue does: the set of endpoints with m (masqueraded) or u
// after it, behind each endpoint where they differ, or REJECT, DROP or PASS.
func verdict(o fwd.Outcome, src netip.Addr) string {
	if o.Verdict != fwd.VerdictForward {
		return strings.ToUpper(o.Verdict.String())
	}
	var eps, marks []string
	for _, e := range o.Endpoints {
		s := short(e.Addr.Addr())
		if e.Addr.Port() != 80 {
			s = netip.AddrPortFrom(e.Addr.Addr(), e.Addr.Port()).String()
		}
		m := "u"
		if o.MasqueradeTo(src, e.Addr) {
			m = "m"
		}
		eps, marks = append(eps, s), append(marks, m)
	}
	if len(slices.Compact(slices.Clone(marks))) == 1 {
		return "{" + strings.Join(eps, ",") + "} " + marks[0]
	}
	for i := range eps {
		eps[i] += " " + marks[i]
	}
	return "{" + strings.Join(eps, ",") + "}"
}

// row is a row of the catalogue.
type row struct {
	id, env, svc, eps string
	// flows are "packet => verdict".
	flows []string
}

func (r row) run(t *testing.T) {
	facts, header := environment(r.env)
	frag, problems := compile.Compile(service(r.svc), endpointSlices(r.eps), facts)
	if len(problems) > 0 {
		t.Errorf("problems: %v", problems)
	}
	var table fwd.Table
	table.SetHeader(header)
	table.Put(frag)
	for _, flow := range r.flows {
		p, want, _ := strings.Cut(flow, " => ")
		pkt := packet(p)
		if got := verdict(table.Lookup(pkt), pkt.Src); got != want {
			t.Errorf("%s\n got %s\nwant %s", p, got, want)
		}
	}
}

func runRows(t *testing.T, rows []row) {
	for _, r := range rows {
		t.Run(strings.ReplaceAll(r.id, " ", "_"), r.run)
	}
}

package ipvs

import (
	"fmt"
	"strings"

	"github.com/fairlead/fairlead/internal/fwd"
	"github.com/fairlead/fairlead/internal/host/ipset"
	"github.com/fairlead/fairlead/internal/host/xtables"
)

// bySpot are the sets with entries for single virtual servers, in the order of the bits of members.
var bySpot = [numMembers]string{
	setFrontends, setDivert, setEmpty, setRanged,
	setMasq + classNames[0], setMasq + classNames[1], setMasq + classNames[2],
	setDrop + classNames[0], setDrop + classNames[1], setDrop + classNames[2],
	setRedirect + classNames[0], setRedirect + classNames[1], setRedirect + classNames[2],
}

// setsOf returns the types of all sets of a family by name. They do not depend on the Services.
func setsOf(f fwd.Family, o *RenderOptions) map[string]ipset.Type {
	out := map[string]ipset.Type{
		setName(f, setSources): ipset.HashIPPortNet,
		setName(f, setVIPs):    ipset.HashIP,
		setName(f, setHealth):  ipset.HashIPPort,
	}
	for _, what := range bySpot {
		if what != setDivert || o.VIPs == VIPMark {
			out[setName(f, what)] = ipset.HashIPPort
		}
	}
	if !o.HairpinBPF {
		out[setName(f, setHairpin)] = ipset.HashIPPortIP
	}
	return out
}

// divertMark returns the mark of packets that mode VIPMark delivers to this node: a bit that no
// other program is known to use, and that is not the masquerade bit.
func divertMark(h *fwd.Header) uint32 {
	if h.MasqueradeBit == 13 {
		return 1 << 12
	}
	return 1 << 13
}

// statics renders the chains that depend only on header and options, and the jumps to them.
type statics struct {
	family fwd.Family
	opt    *RenderOptions
	header *fwd.Header
	chains map[Key]string
}

func staticsOf(f fwd.Family, o *RenderOptions, h *fwd.Header) map[Key]string {
	s := statics{f, o, h, make(map[Key]string)}
	s.mangle()
	s.nat()
	s.filter()
	return s.chains
}

func (s *statics) chain(table, name string, rules ...string) {
	s.chains[Key{Kind: KindChain, Table: table, Name: name}] = strings.Join(rules, "\n")
}

// in returns the match for a set.
func (s *statics) in(what, dims string) string {
	return "-m set --match-set " + setName(s.family, what) + " " + dims
}

func (s *statics) notIn(what, dims string) string {
	return "-m set ! --match-set " + setName(s.family, what) + " " + dims
}

// classes calls f for each possible class with the match of its sources, in the order in which
// rules test them. The last class has no match.
func (s *statics) classes(f func(c fwd.Class, match string)) {
	if pod := matchPod(s.header.Detector[s.family.Index()]); pod != "" {
		f(fwd.Pod, pod)
	}
	f(fwd.Host, matchHostSource)
	f(fwd.Outside, "")
}

const (
	isNew = "-m conntrack --ctstate NEW"
	isOld = "-m conntrack ! --ctstate NEW"
	// redirected matches packets whose destination connection tracking has rewritten or will
	// rewrite. IPVS does not set this state.
	redirected = "-m conntrack --ctstate DNAT"
	// byIPVS matches packets whose destination IPVS has rewritten.
	byIPVS = "-m ipvs --ipvs"
)

func setMark(value, mask uint32) string {
	return fmt.Sprintf("-j MARK --set-xmark 0x%x/0x%x", value, mask)
}

// mangle drops. It uses the mangle table because there packets of this node still have the address
// of the Service; they reach the filter table after IPVS. Requests that IPVS has rewritten pass
// OUTPUT as well; their destination is an endpoint, even if a frontend has the same address.
func (s *statics) mangle() {
	entrance := isNew + " -j " + chainGuard
	if s.opt.VIPs == VIPMark {
		bit := divertMark(s.header)
		s.chain(tableMangle, chainDivert,
			// With the mark, the rewritten packet would be routed back to this node.
			byIPVS+" -g "+chainUndivert,
			// After the first packet of a redirected connection, connection tracking sends packets
			// directly to the endpoint.
			redirected+" -j RETURN",
			// What IPVS would reject is not diverted: with a local route and a destination that is
			// not an address of the node, the kernel has no source for the ICMP error and sends
			// none, so clients would wait.
			and(isNew, s.in(setFrontends, "dst,dst"), s.notIn(setEmpty, "dst,dst"), setMark(bit, bit)),
			and(isOld, s.in(setDivert, "dst,dst"), setMark(bit, bit)),
			entrance)
		s.chain(tableMangle, chainUndivert, setMark(0, bit))
		s.chain(tableMangle, "INPUT", "-j "+chainUndivert)
		entrance = "-j " + chainDivert
	}
	s.chain(tableMangle, "PREROUTING", entrance)
	s.chain(tableMangle, "OUTPUT", entrance)

	rules := []string{
		and(s.notIn(setFrontends, "dst,dst"), "-j RETURN"),
		and(byIPVS, "-j RETURN"),
		and(s.in(setRanged, "dst,dst"), s.notIn(setSources, "dst,dst,src"), "-j DROP"),
	}
	s.classes(func(c fwd.Class, match string) {
		rules = append(rules, and(match, s.in(setDrop+classNames[c], "dst,dst"), "-j DROP"))
		if match != "" {
			rules = append(rules, and(match, "-j RETURN"))
		}
	})
	s.chain(tableMangle, chainGuard, rules...)
}

// nat marks packets for masquerade and redirects those whose pool another virtual server has. A
// packet to a frontend passes no other rule of the table, so that another program does not handle
// it as a packet to a port of the host.
func (s *statics) nat() {
	mark := s.header.Mark()
	s.chain(tableNAT, "PREROUTING", "-j "+chainServices)
	s.chain(tableNAT, "OUTPUT", "-j "+chainServices)
	s.chain(tableNAT, "POSTROUTING", "-j "+chainPostrouting)

	rules := []string{and(s.notIn(setFrontends, "dst,dst"), "-j RETURN")}
	if s.opt.VIPs != VIPMark {
		// The kernel uses the address of the Service as source of this node's packets, since it is
		// local.
		rules = append(rules, and(s.in(setVIPs, "src"), setMark(mark, mark)))
	}
	from := [fwd.NumClasses]string{fwd.Outside: chainFromOutside, fwd.Pod: chainFromPod, fwd.Host: chainFromHost}
	s.classes(func(c fwd.Class, match string) {
		rules = append(rules, and(match, "-g "+from[c]))
	})
	s.chain(tableNAT, chainServices, rules...)
	for c, name := range from {
		s.chain(tableNAT, name,
			and(s.in(setMasq+classNames[c], "dst,dst"), setMark(mark, mark)),
			and(s.in(setRedirect+classNames[c], "dst,dst"), "-g "+chainRedirect),
			"-j ACCEPT")
	}

	hairpin := and(byIPVS, s.in(setHairpin, "dst,dst,src"), "-g "+chainMasquerade)
	if s.opt.HairpinBPF {
		hairpin = and(byIPVS, xtables.SourceIsDestination(s.family == fwd.IPv6), "-g "+chainMasquerade)
	}
	// Other programs may use the bit too, so only packets from IPVS are masqueraded.
	s.chain(tableNAT, chainPostrouting, and(fmt.Sprintf("-m mark --mark 0x%x/0x%x", mark, mark), byIPVS, "-g "+chainMasquerade), hairpin)
	masquerade := "-j MASQUERADE"
	if a := s.header.MasqueradeSource[s.family.Index()]; a.IsValid() {
		masquerade = "-j SNAT --to-source " + a.String()
	}
	if s.opt.RandomFully {
		masquerade += " --random-fully"
	}
	// The bit is cleared so that a packet that passes again is not masqueraded twice.
	s.chain(tableNAT, chainMasquerade, setMark(0, mark), masquerade)
}

// reset refuses TCP connections. The kernel limits ICMP errors per client, but not resets.
const reset = "-j REJECT --reject-with tcp-reset"

// refuse rejects packets to the destination that match: TCP with a reset, everything else with an
// ICMP error.
func (s *statics) refuse(destination, match string) []string {
	unreachable := "-j REJECT --reject-with icmp-port-unreachable"
	if s.family == fwd.IPv6 {
		unreachable = "-j REJECT --reject-with icmp6-port-unreachable"
	}
	return []string{and(destination, "-p tcp", match, reset), and(destination, match, unreachable)}
}

// filter accepts requests and replies, and rejects everything else to addresses that are local only
// for Services.
func (s *statics) filter() {
	s.chain(tableFilter, "INPUT", "-j "+chainInput)
	s.chain(tableFilter, "FORWARD", "-j "+chainForward)
	s.chain(tableFilter, "OUTPUT", "-j "+chainOutput)

	input := []string{
		// IPVS would answer with an ICMP error, which the kernel limits per client.
		and("-p tcp", s.in(setEmpty, "dst,dst"), isNew, reset),
		and(s.in(setFrontends, "dst,dst"), "-j ACCEPT"),
		// What drains is no longer in FRONTENDS; redirected packets may be to the port of an
		// alternate.
		and(s.in(setVIPs, "dst"), "-m conntrack --ctstate RELATED,ESTABLISHED,DNAT -j ACCEPT"),
		and("-p tcp", s.in(setHealth, "dst,dst"), "-j ACCEPT"),
	}
	forward := []string{
		"-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
		// Packets from IPVS do not pass here, except those after the first of a redirected and
		// masqueraded connection: without a reply they are not ESTABLISHED yet.
		redirected + " -m conntrack --ctstate SNAT -j ACCEPT",
	}
	output := []string{
		"-m ipvs --vdir ORIGINAL --vmethod MASQ -j ACCEPT",
		and("-p tcp -m conntrack --ctstate ESTABLISHED", s.in(setHealth, "src,src"), "-j ACCEPT"),
	}
	if s.opt.VIPs != VIPMark {
		input = append(input, s.refuse("", and(s.in(setVIPs, "dst"), isNew))...)
	} else {
		forward = append(forward, s.refuse("", and(s.in(setEmpty, "dst,dst"), isNew))...)
	}
	for _, p := range s.opt.serviceCIDRs(s.header, s.family) {
		rules := s.refuse("-d "+p.String(), isNew)
		switch s.opt.VIPs {
		case VIPRoute:
			input = append(input, rules...)
		case VIPMark:
			forward, output = append(forward, rules...), append(output, rules...)
		}
	}
	s.chain(tableFilter, chainInput, input...)
	s.chain(tableFilter, chainForward, forward...)
	s.chain(tableFilter, chainOutput, output...)
}

package ipvs

import (
	"fmt"
	"strings"

	"github.com/fairlead/fairlead/internal/fwd"
	"github.com/fairlead/fairlead/internal/host/ipset"
	"github.com/fairlead/fairlead/internal/host/xtables"
)

// bySpot are the sets whose elements say something of one virtual server, in the order of the bits of members.
var bySpot = [numMembers]string{
	setFrontends, setDivert, setEmpty, setRanged,
	setMasq + classNames[0], setMasq + classNames[1], setMasq + classNames[2],
	setDrop + classNames[0], setDrop + classNames[1], setDrop + classNames[2],
	setRedirect + classNames[0], setRedirect + classNames[1], setRedirect + classNames[2],
}

// setsOf returns the types of all sets of a family by name. There are the same sets whatever the number of Services.
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

// divertMark is the mark of packets that mode VIPMark delivers to this node: a bit that nobody else is known to use, and
// never the one that asks for masquerade.
func divertMark(h *fwd.Header) uint32 {
	if h.MasqueradeBit == 13 {
		return 1 << 12
	}
	return 1 << 13
}

// statics writes the chains whose content depends on the header and the options alone, and the jumps to them.
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

// in is the match of an element of a set.
func (s *statics) in(what, dims string) string {
	return "-m set --match-set " + setName(s.family, what) + " " + dims
}

func (s *statics) notIn(what, dims string) string {
	return "-m set ! --match-set " + setName(s.family, what) + " " + dims
}

// classes calls f for each class that can occur, in the order in which they are tested, with the match of its sources;
// the last one is for whatever is left.
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
	// redirected are packets whose destination connection tracking has rewritten, or is about to; that it is IPVS who
	// rewrites is no such state.
	redirected = "-m conntrack --ctstate DNAT"
	// byIPVS are packets whose destination IPVS has rewritten.
	byIPVS = "-m ipvs --ipvs"
)

func setMark(value, mask uint32) string {
	return fmt.Sprintf("-j MARK --set-xmark 0x%x/0x%x", value, mask)
}

// mangle drops. The mangle table does it since packets of this node itself still have the address of the Service there:
// the filter table sees them after IPVS. Requests that IPVS has rewritten come through OUTPUT too; what they are sent to is
// an endpoint, whatever frontend may have the same address.
func (s *statics) mangle() {
	entrance := isNew + " -j " + chainGuard
	if s.opt.VIPs == VIPMark {
		bit := divertMark(s.header)
		s.chain(tableMangle, chainDivert,
			// With the mark, the rewritten packet would be routed back to this node.
			byIPVS+" -g "+chainUndivert,
			// After the first packet of a redirected connection, connection tracking sends the others to the endpoint itself.
			redirected+" -j RETURN",
			// What IPVS would reject is not diverted: where its route is local and its destination no address of the node, the
			// kernel has no source for the ICMP error and sends none, so that clients would wait.
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

// nat asks for masquerade, and sends to another virtual server what this one has not the pool for. A packet to a frontend
// passes no other rule of the table, lest another program takes it for one to a port of the host.
func (s *statics) nat() {
	mark := s.header.Mark()
	s.chain(tableNAT, "PREROUTING", "-j "+chainServices)
	s.chain(tableNAT, "OUTPUT", "-j "+chainServices)
	s.chain(tableNAT, "POSTROUTING", "-j "+chainPostrouting)

	rules := []string{and(s.notIn(setFrontends, "dst,dst"), "-j RETURN")}
	if s.opt.VIPs != VIPMark {
		// The kernel gave a packet of this node the address of the Service as its source, since that is local.
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
	// Others use the bit too: what we masquerade has been sent on by IPVS as well.
	s.chain(tableNAT, chainPostrouting, and(fmt.Sprintf("-m mark --mark 0x%x/0x%x", mark, mark), byIPVS, "-g "+chainMasquerade), hairpin)
	masquerade := "-j MASQUERADE"
	if a := s.header.MasqueradeSource[s.family.Index()]; a.IsValid() {
		masquerade = "-j SNAT --to-source " + a.String()
	}
	if s.opt.RandomFully {
		masquerade += " --random-fully"
	}
	// The bit is cleared, so that a packet which comes by again is not masqueraded twice.
	s.chain(tableNAT, chainMasquerade, setMark(0, mark), masquerade)
}

// reset refuses TCP. The kernel sends as many of these as there are connections, but limits ICMP errors per client.
const reset = "-j REJECT --reject-with tcp-reset"

// refuse rejects packets to the destination that match: TCP with a reset, everything else with an ICMP error.
func (s *statics) refuse(destination, match string) []string {
	unreachable := "-j REJECT --reject-with icmp-port-unreachable"
	if s.family == fwd.IPv6 {
		unreachable = "-j REJECT --reject-with icmp6-port-unreachable"
	}
	return []string{and(destination, "-p tcp", match, reset), and(destination, match, unreachable)}
}

// filter lets requests and replies through, and nothing else to an address that is local only for the sake of Services.
func (s *statics) filter() {
	s.chain(tableFilter, "INPUT", "-j "+chainInput)
	s.chain(tableFilter, "FORWARD", "-j "+chainForward)
	s.chain(tableFilter, "OUTPUT", "-j "+chainOutput)

	input := []string{
		// IPVS would answer with an ICMP error, and the kernel limits these per client.
		and("-p tcp", s.in(setEmpty, "dst,dst"), isNew, reset),
		and(s.in(setFrontends, "dst,dst"), "-j ACCEPT"),
		// What drains is in FRONTENDS no more; what was redirected may be to a port that never is.
		and(s.in(setVIPs, "dst"), "-m conntrack --ctstate RELATED,ESTABLISHED,DNAT -j ACCEPT"),
		and("-p tcp", s.in(setHealth, "dst,dst"), "-j ACCEPT"),
	}
	forward := []string{
		"-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
		// What IPVS sends on does not come by here, except for the packets after the first of a connection that was redirected and
		// masqueraded: until there is a reply they are not ESTABLISHED.
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

package iptables

import (
	"fmt"

	"github.com/fairlead/fairlead/internal/fwd"
	"github.com/fairlead/fairlead/internal/host/xtables"
)

// options is what the node's kernel and tools offer to one family, as far as the rules depend on it.
type options struct {
	// bpf says that the kernel has xt_bpf: hairpin connections are then recognised by one rule that compares source and
	// destination. Otherwise there is a rule for each endpoint address.
	bpf bool
	// randomFully says that MASQUERADE can choose ports at random.
	randomFully bool
	// dropInvalid drops forwarded packets that conntrack cannot place. Otherwise they would reach the peer untranslated
	// and make it reset the connection; with net.netfilter.nf_conntrack_tcp_be_liberal they are not INVALID.
	dropInvalid bool
}

// statics renders the chains whose content depends on the header and the options alone, the jumps from the built-in
// chains, and the last rules of the dispatch roots.
type statics struct {
	chains    map[ChainID]Chain
	natTail   []string // last rules of FAIRLEAD-SERVICES
	filterEnd []string // last rules of FAIRLEAD-FILTER
}

func staticsOf(opt *options, family fwd.Family, h *fwd.Header) statics {
	s := statics{chains: make(map[ChainID]Chain)}
	np := h.NodePorts[family.Index()]
	mark := fmt.Sprintf("-m mark --mark 0x%x/0x%x", h.Mark(), h.Mark())
	setMark := fmt.Sprintf("-j MARK --set-xmark 0x%x/0x%x", h.Mark(), h.Mark())
	masquerade := "-j MASQUERADE"
	if a := h.MasqueradeSource[family.Index()]; a.IsValid() {
		masquerade = "-j SNAT --to-source " + a.String()
	}
	if opt.randomFully {
		masquerade += " --random-fully"
	}
	set := func(t Table, name string, rules ...string) {
		text := ""
		for _, r := range rules {
			if r == "" {
				continue
			}
			if text != "" {
				text += "\n"
			}
			text += r
		}
		s.chains[ChainID{t, name}] = Chain{Rules: text}
	}

	set(NAT, "PREROUTING", "-j "+chainServices)
	set(NAT, "OUTPUT", "-j "+chainServices)
	set(NAT, "POSTROUTING", "-j "+chainPostrouting)
	s.natTail = nodePortMatches(family, np)

	if pod := matchPod(h.Detector[family.Index()]); pod != "" {
		set(NAT, chainAddMarkNonPod, and(pod, "-j RETURN"), setMark)
	} else {
		set(NAT, chainAddMarkNonPod, setMark)
	}
	set(NAT, chainAddMark, setMark)

	dnat := "-m conntrack --ctstate DNAT"
	hairpin := and(dnat, "-j "+chainHairpin)
	if opt.bpf { // the chain is empty then
		hairpin = and(dnat, xtables.SourceIsDestination(family == fwd.IPv6), "-g "+chainMasquerade)
	}
	// Others use the bit too: what we masquerade has been translated as well. Connection tracking does not say so of what was
	// sent to an endpoint with the frontend's own address.
	set(NAT, chainPostrouting, and(mark, dnat, "-g "+chainMasquerade), and(mark, "-j "+chainUnmoved), hairpin)
	// The bit is cleared, so that a packet which comes by again is not masqueraded twice.
	set(NAT, chainMasquerade, fmt.Sprintf("-j MARK --set-xmark 0x0/0x%x", h.Mark()), masquerade)

	set(Filter, "INPUT", "-j "+chainInput)
	set(Filter, "FORWARD", "-j "+chainForward)
	set(Filter, "OUTPUT", "-j "+chainOutput)
	isNew := "-m conntrack --ctstate NEW -j " + chainFilter
	martian, invalid := "", ""
	if np.Loopback {
		// route_localnet lets neighbours send to loopback addresses; only what this host, or our own DNAT, sends may pass.
		martian = "! -s 127.0.0.0/8 -d 127.0.0.0/8 -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP"
	}
	if opt.dropInvalid {
		invalid = "-m conntrack --ctstate INVALID -j DROP"
	}
	set(Filter, chainInput, isNew, martian, "-p tcp -m conntrack --ctstate NEW,ESTABLISHED -j "+chainHealth)
	// The mark is set in the nat table, which sees the first packet of a connection alone; until there is a reply the next ones
	// are not ESTABLISHED either. They are known by the source that POSTROUTING has rewritten, which is after FORWARD: the first
	// packet has been accepted here, so no connection is that somebody's rules have dropped.
	snat := "-m conntrack --ctstate SNAT"
	set(Filter, chainForward, "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT", invalid, isNew,
		and(mark, dnat, "-j ACCEPT"), and(dnat, snat, "-j ACCEPT"), and(mark, "-j "+chainUnmoved), and(snat, "-j "+chainUnmoved))
	set(Filter, chainOutput, isNew, martian, "-p tcp -m conntrack --ctstate ESTABLISHED -j "+chainHealthReplies)
	s.filterEnd = nodePortMatches(family, np)
	return s
}

// forwarded is the first rule of FAIRLEAD-FILTER: a connection that was sent to an endpoint has had its verdict.
const forwarded = "-m conntrack --ctstate DNAT -j RETURN"

// nodePortMatches are the rules that lead to the node ports, the same in both tables. The kernel knows the addresses of
// the node, so one that appears later is served at once.
func nodePortMatches(family fwd.Family, np fwd.NodePortAddrs) []string {
	jump := "-j " + chainNodePorts
	local := "-m addrtype --dst-type LOCAL"
	var rules []string
	loopback := "-d 127.0.0.0/8"
	if family == fwd.IPv6 {
		loopback = "-d ::1/128"
	}
	if np.Loopback {
		rules = append(rules, and(loopback, matchHostSource, jump))
	}
	if !np.All && len(np.Prefixes) == 0 {
		return rules
	}
	rules = append(rules, and(loopback, "-j RETURN"))
	if np.All {
		return append(rules, and(local, jump))
	}
	for _, p := range np.Prefixes {
		rules = append(rules, and("-d "+p.String(), local, jump))
	}
	return rules
}

package iptables

import (
	"fmt"

	"github.com/fairlead/fairlead/internal/fwd"
	"github.com/fairlead/fairlead/internal/host/xtables"
)

// options are the features of the node's kernel and tools on which the rules of one family depend.
type options struct {
	// bpf is whether the kernel has xt_bpf. Then one rule matches hairpin connections, by comparing
	// source and destination. Otherwise there is a rule for each endpoint address.
	bpf bool
	// randomFully is whether MASQUERADE can choose ports at random.
	randomFully bool
	// dropInvalid drops forwarded packets of conntrack state INVALID. Otherwise they would reach
	// the peer untranslated and make it reset the connection. With
	// net.netfilter.nf_conntrack_tcp_be_liberal they are not INVALID.
	dropInvalid bool
}

// statics are the chains that depend only on the header and the options, the jumps from the
// built-in chains, and the last rules of the dispatch roots.
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
	// Other programs use the mark bit too, so only translated connections are masqueraded. To
	// connection tracking, a connection to an endpoint with the frontend's own address is not
	// translated.
	set(NAT, chainPostrouting, and(mark, dnat, "-g "+chainMasquerade), and(mark, "-j "+chainUnmoved), hairpin)
	// Clear the bit, so that a packet that traverses this chain again is not masqueraded twice.
	set(NAT, chainMasquerade, fmt.Sprintf("-j MARK --set-xmark 0x0/0x%x", h.Mark()), masquerade)

	set(Filter, "INPUT", "-j "+chainInput)
	set(Filter, "FORWARD", "-j "+chainForward)
	set(Filter, "OUTPUT", "-j "+chainOutput)
	isNew := "-m conntrack --ctstate NEW -j " + chainFilter
	martian, invalid := "", ""
	if np.Loopback {
		// route_localnet lets neighbours send to loopback addresses. Only accept packets from this
		// host and packets that our DNAT sent there.
		martian = "! -s 127.0.0.0/8 -d 127.0.0.0/8 -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP"
	}
	if opt.dropInvalid {
		invalid = "-m conntrack --ctstate INVALID -j DROP"
	}
	set(Filter, chainInput, isNew, martian, "-p tcp -m conntrack --ctstate NEW,ESTABLISHED -j "+chainHealth)
	// Only the first packet of a connection traverses the nat table, which sets the mark. Until
	// there is a reply, the next packets are not ESTABLISHED either. What identifies them is the
	// rewritten source (SNAT). POSTROUTING rewrites it after FORWARD, so the first packet was
	// accepted here and no other program's rules dropped it.
	snat := "-m conntrack --ctstate SNAT"
	set(Filter, chainForward, "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT", invalid, isNew,
		and(mark, dnat, "-j ACCEPT"), and(dnat, snat, "-j ACCEPT"), and(mark, "-j "+chainUnmoved), and(snat, "-j "+chainUnmoved))
	set(Filter, chainOutput, isNew, martian, "-p tcp -m conntrack --ctstate ESTABLISHED -j "+chainHealthReplies)
	s.filterEnd = nodePortMatches(family, np)
	return s
}

// forwarded is the first rule of FAIRLEAD-FILTER: a connection that was sent to an endpoint needs
// no verdict.
const forwarded = "-m conntrack --ctstate DNAT -j RETURN"

// nodePortMatches are the rules that jump to the node ports, the same in both tables. The kernel
// knows the addresses of the node, so an address that is added later works at once.
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

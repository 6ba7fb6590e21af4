package rulesim

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/fairlead/fairlead/internal/fwd"
)

// Host is the state of the machine on which the rules depend.
type Host struct {
	// Local are the addresses of type LOCAL, without loopback addresses, which are always local.
	Local []netip.Addr
	// LocalPrefixes are networks in which every address is local.
	LocalPrefixes []netip.Prefix
	// DivertMark is a bit of the packet mark for which a routing rule delivers packets to this
	// host, whatever their destination; 0 for none.
	DivertMark uint32
	// Mark is the mark that other programs have set on the packet.
	Mark uint32
	// Recent are the lists of xt_recent.
	Recent RecentState
	// Sets are the sets of ip_set by name.
	Sets map[string]*Set
	// Servers are the virtual servers of IPVS.
	Servers map[ServerKey]Server
}

// RecentState holds, for the name of each list and each address in it, the seconds since it was
// last seen.
type RecentState map[string]map[netip.Addr]uint32

func (h *Host) isLocal(a netip.Addr) bool {
	return a.IsLoopback() || slices.Contains(h.Local, a) ||
		slices.ContainsFunc(h.LocalPrefixes, func(p netip.Prefix) bool { return p.Contains(a) })
}

// Result is one possible outcome for a packet.
type Result struct {
	// Verdict is forward if the destination was rewritten, by a rule or by IPVS, and the packet not
	// dropped or rejected.
	Verdict fwd.Verdict
	// Endpoint is the new destination, for forward alone.
	Endpoint   netip.AddrPort
	Masquerade bool
	// Source is the new source if a rule gives one; zero if the kernel chooses.
	Source netip.Addr
	// Reset is whether a rejected packet is answered with a TCP reset instead of an ICMP error.
	Reset bool
	// Probability is above 0 and at most 1.
	Probability float64
	// Trace are the rules that matched, with table and chain, on the first path with this outcome.
	Trace []string
	// Recent are the names of the xt_recent lists that record the packet's address on any path with
	// this outcome, sorted.
	Recent []string
}

// stage is one base chain on the path of a packet, or IPVS.
type stage struct{ table, chain string }

// The paths of a packet; see the figure of netfilter's hooks. A packet that this host sends to
// itself comes in again on the loopback interface. Its address translation is already decided, so
// it does not traverse the nat table again. IPVS comes after the rules of INPUT, and for packets of
// this host between nat OUTPUT and filter OUTPUT.
var (
	pathIn      = []stage{{"mangle", "PREROUTING"}, {"nat", "PREROUTING"}}
	pathLocal   = []stage{{"mangle", "INPUT"}, {"filter", "INPUT"}, ipvsStage, {"nat", "INPUT"}}
	pathForward = []stage{{"mangle", "FORWARD"}, {"filter", "FORWARD"}, {"mangle", "POSTROUTING"}, {"nat", "POSTROUTING"}}
	pathOut     = []stage{{"mangle", "OUTPUT"}, {"nat", "OUTPUT"}, ipvsStage, {"filter", "OUTPUT"}, {"mangle", "POSTROUTING"}, {"nat", "POSTROUTING"}}
	pathLoop    = []stage{{"mangle", "PREROUTING"}, {"mangle", "INPUT"}, {"filter", "INPUT"}}

	ipvsStage = stage{table: "ipvs"}
)

// elsewhere is the outgoing interface of a packet that leaves this host. Its name is not simulated.
const elsewhere = "?"

// frame is a position in a chain.
type frame struct {
	chain *chain
	at    int
}

// recentEntry is an address in a list of xt_recent.
type recentEntry struct {
	list string
	addr netip.Addr
}

// walk is a packet on its path. Branches share its slices, so slices are clipped before appending.
type walk struct {
	rs   *Ruleset
	host *Host

	src          netip.Addr
	origDst, dst netip.AddrPort
	// natDst is what a rule rewrote the destination to.
	natDst netip.AddrPort
	proto  fwd.Proto
	// in and out are the incoming and outgoing interface in the current hook.
	in, out          string
	arrivedOn        string
	mark             uint32
	dnat, masquerade bool
	// source is what a rule rewrites the source to.
	source netip.Addr
	// reset says that the packet is rejected with a TCP reset.
	reset bool
	// byIPVS says that IPVS rewrote the destination, lost that it then threw the packet away.
	byIPVS, lost bool
	recent       []recentEntry

	// stages are the current stage and the remaining ones. routed is whether the routing decision
	// was made.
	stages []stage
	stack  []frame
	policy string
	routed bool

	prob  float64
	trace []string
}

// Run returns all possible outcomes for the first packet of a connection: one Result per verdict,
// endpoint and masquerading, sorted by these. A packet of the other family, or a rule that needs
// what is not simulated, is an error.
func (rs *Ruleset) Run(h Host, p fwd.Packet) ([]Result, error) {
	type key struct {
		verdict    fwd.Verdict
		endpoint   netip.AddrPort
		masquerade bool
		source     netip.Addr
		reset      bool
	}
	at := make(map[key]int)
	var out []Result
	err := rs.walks(h, p, func(w *walk, v fwd.Verdict) {
		k := key{verdict: v, reset: w.reset}
		if v == fwd.VerdictForward {
			k.endpoint = w.dst
		}
		if v == fwd.VerdictForward || v == fwd.VerdictPass {
			k.masquerade, k.source = w.masquerade, w.source
		}
		i, seen := at[k]
		if !seen {
			i = len(out)
			at[k] = i
			out = append(out, Result{Verdict: v, Endpoint: k.endpoint, Masquerade: k.masquerade, Source: k.source, Reset: k.reset, Trace: w.trace})
		}
		out[i].Probability += w.prob
		for _, e := range w.recent {
			out[i].Recent = append(out[i].Recent, e.list)
		}
	})
	if err != nil {
		return nil, err
	}
	for i := range out {
		slices.Sort(out[i].Recent)
		out[i].Recent = slices.Compact(out[i].Recent)
	}
	slices.SortFunc(out, func(a, b Result) int {
		masq := func(r Result) int {
			if r.Masquerade {
				return 1
			}
			return 0
		}
		return cmp.Or(cmp.Compare(a.Verdict, b.Verdict), a.Endpoint.Compare(b.Endpoint), cmp.Compare(masq(a), masq(b)))
	})
	return out, nil
}

// walks calls end for every path that the packet can take.
func (rs *Ruleset) walks(h Host, p fwd.Packet, end func(*walk, fwd.Verdict)) error {
	if !p.Src.IsValid() || fwd.FamilyOf(p.Src) != rs.family || fwd.FamilyOf(p.Dst.Addr()) != rs.family {
		return fmt.Errorf("packet %v to %v: these are rules of %s", p.Src, p.Dst, rs.family)
	}
	first := &walk{rs: rs, host: &h, src: p.Src, origDst: p.Dst, dst: p.Dst, proto: p.Proto, mark: h.Mark, arrivedOn: p.InInterface, stages: pathIn, prob: 1}
	if p.InInterface == "" {
		first.stages = pathOut
	}
	todo := []*walk{first}
	fork := func(w *walk) { todo = append(todo, w) }
	for len(todo) > 0 {
		w := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		v, err := w.run(fork)
		if err != nil {
			return fmt.Errorf("after %q: %w", w.trace, err)
		}
		end(w, v)
	}
	return nil
}

// run takes the packet to the end of its path. It calls fork with the other branches.
func (w *walk) run(fork func(*walk)) (fwd.Verdict, error) {
	for len(w.stages) > 0 || w.route() {
		if w.stages[0] == ipvsStage {
			if v, over, err := w.atIPVS(fork); over {
				return v, err
			}
			continue
		}
		if w.byIPVS && w.diverted() && w.stages[0] != rewritten[0] && !w.host.isLocal(w.dst.Addr()) {
			w.trace = append(slices.Clip(w.trace), "rewritten by IPVS and still marked: routed to this host again")
			return fwd.VerdictDrop, nil
		}
		f, err := w.hook(fork)
		switch {
		case err != nil:
			return 0, err
		case f == drop:
			return fwd.VerdictDrop, nil
		case f == reject:
			return fwd.VerdictReject, nil
		}
		w.stages, w.stack = w.stages[1:], nil
	}
	switch {
	case w.lost:
		return fwd.VerdictDrop, nil
	case w.dnat || w.byIPVS:
		return fwd.VerdictForward, nil
	}
	return fwd.VerdictPass, nil
}

// diverted returns whether the mark of the packet delivers it to this host.
func (w *walk) diverted() bool { return w.mark&w.host.DivertMark != 0 }

// route chooses the second part of the path by the current destination. It returns false if there
// is none.
func (w *walk) route() bool {
	local := w.host.isLocal(w.dst.Addr()) || w.diverted()
	switch {
	case w.routed || w.arrivedOn == "" && !local:
		return false
	case w.arrivedOn == "":
		w.stages = pathLoop
	case local:
		w.stages = pathLocal
	default:
		w.stages = pathForward
	}
	w.routed = true
	return true
}

// enter prepares the walk for its current base chain.
func (w *walk) enter() {
	s := w.stages[0]
	c := w.rs.tables[s.table].chains[s.chain]
	w.stack, w.policy = []frame{{chain: c}}, c.policy
	w.in, w.out = "", ""
	if s.chain == "PREROUTING" || s.chain == "INPUT" || s.chain == "FORWARD" {
		w.in = cmp.Or(w.arrivedOn, "lo")
	}
	if s.chain == "FORWARD" || s.chain == "OUTPUT" || s.chain == "POSTROUTING" {
		w.out = elsewhere
		if w.host.isLocal(w.dst.Addr()) || w.diverted() {
			w.out = "lo"
		}
	}
}

// hook takes the packet through one base chain, or through the rest of it if the walk was forked
// there.
func (w *walk) hook(fork func(*walk)) (fate, error) {
	if len(w.stack) == 0 {
		w.enter()
	}
	for len(w.stack) > 0 {
		top := &w.stack[len(w.stack)-1]
		if top.at == len(top.chain.rules) {
			w.stack = w.stack[:len(w.stack)-1]
			continue
		}
		c, r := top.chain, top.chain.rules[top.at]
		top.at++
		ok, err := w.eval(r, fork)
		if err != nil {
			return 0, fmt.Errorf("%s %s, rule %q: %w", w.stages[0].table, c.name, r.text, err)
		}
		if !ok {
			continue
		}
		w.trace = append(slices.Clip(w.trace), w.stages[0].table+" -A "+c.name+" "+r.text)
		if f := w.follow(r); f != next {
			return f, nil
		}
	}
	if w.policy == "DROP" {
		w.trace = append(slices.Clip(w.trace), w.stages[0].table+" "+w.stages[0].chain+" policy DROP")
		return drop, nil
	}
	return accept, nil
}

// follow executes a rule that matched.
func (w *walk) follow(r *rule) fate {
	if r.jump != "" {
		to := frame{chain: w.rs.tables[w.stages[0].table].chains[r.jump]}
		if r.isGoto {
			w.stack[len(w.stack)-1] = to
		} else {
			w.stack = append(w.stack, to)
		}
		return next
	}
	if r.target == nil {
		return next
	}
	f := r.target.apply(w)
	if f == leave {
		w.stack = w.stack[:len(w.stack)-1]
		return next
	}
	return f
}

// eval returns whether a rule matches. If that is random, the walk continues as the one in which
// the rule matches, and fork gets the other one.
func (w *walk) eval(r *rule, fork func(*walk)) (bool, error) {
	if !r.src.ok(w.src) || !r.dst.ok(w.dst.Addr()) || !r.in.ok(w.in) || !r.proto.ok(w.proto) {
		return false, nil
	}
	if r.out != nil && w.out == elsewhere && (r.out.wild || r.out.name != "lo") && r.out.String() != "+" {
		return false, errors.New("the outgoing interface is not simulated, except for loopback")
	}
	if !r.out.ok(w.out) {
		return false, nil
	}
	for _, m := range r.matches {
		p, err := m.matches(w)
		if err != nil || p <= 0 {
			return false, err
		}
		if p < 1 {
			other := *w
			other.stack = slices.Clone(w.stack)
			other.prob *= 1 - p
			fork(&other)
			w.prob *= p
		}
	}
	return true, nil
}

// age is the number of seconds since an address was recorded in a list.
func (w *walk) age(list string, a netip.Addr) (seconds uint32, listed bool) {
	if slices.Contains(w.recent, recentEntry{list, a}) {
		return 0, true
	}
	seconds, listed = w.host.Recent[list][a]
	return seconds, listed
}

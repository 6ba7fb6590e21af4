package nftsim

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/internal/fwd"
	"github.com/fairlead/fairlead/internal/host/nft"
)

// Host is the state of the machine that rules depend on.
type Host struct {
	// Local are the addresses of type LOCAL, with or without loopback addresses.
	Local []netip.Addr
	// Mark is the packet's mark before our rules.
	Mark uint32
	// Remembered are the keys in dynamic sets that have not expired, by the name of the set.
	Remembered map[string]map[string]bool
}

// Note is an element that a packet adds to a dynamic set, or whose timeout it resets.
type Note struct {
	Set, Key   string
	TimeoutSec uint32
}

// Outcome is what may become of a packet.
type Outcome struct {
	Verdict    fwd.Verdict
	Endpoint   netip.AddrPort
	Masquerade bool
	// Source is the new source address; the zero Addr if the kernel chooses it.
	Source netip.Addr
	// Reset says that a packet is rejected with a TCP reset instead of an ICMP error.
	Reset bool
}

// Result is an Outcome with its probability.
type Result struct {
	Outcome
	Probability float64
	// Notes of all paths to the outcome, without repetition.
	Notes []Note
}

func (h *Host) isLocal(a netip.Addr) bool { return a.IsLoopback() || slices.Contains(h.Local, a) }

// hook is a hook on the path of a packet, with the types of chains that see the packet.
type hook struct {
	nft.Hook
	nat bool // the first packet of a connection that has no translation yet
}

// The paths of a packet; see the diagram of netfilter's hooks. A packet that this host sends to itself enters again through
// the loopback interface. The address translation of its connection is decided then, so no nat chain sees it a second time.
var (
	pathIn      = []hook{{nft.Prerouting, true}}
	pathLocal   = []hook{{nft.Input, true}}
	pathForward = []hook{{nft.Forward, false}, {nft.Postrouting, true}}
	pathOut     = []hook{{nft.Output, true}, {nft.Postrouting, true}}
	pathLoop    = []hook{{nft.Prerouting, false}, {nft.Input, false}}
)

// frame is a position in a chain: of rules, and of expressions in the rule.
type frame struct {
	chain *chain
	rule  int
}

// words is the number of registers of four bytes.
const words = 16

// walk is the state of a packet on its path.
type walk struct {
	t    *Table
	host *Host
	p    fwd.Packet

	dst              netip.AddrPort
	in               string
	mark             uint32
	dnat, masquerade bool
	source           netip.Addr
	reset            bool // rejected with a TCP reset
	notes            []Note

	hooks  []hook
	bases  []*chain // still to pass at the current hook
	ready  bool     // bases are those of the current hook
	routed bool
	stack  []frame
	expr   int
	regs   [words * 4]byte
	prob   float64
	steps  int
}

// Run returns all outcomes of the first packet of a connection, sorted by verdict, endpoint and masquerading.
func (t *Table) Run(h Host, p fwd.Packet) ([]Result, error) {
	if !p.Src.IsValid() || fwd.FamilyOf(p.Src) != t.family || fwd.FamilyOf(p.Dst.Addr()) != t.family {
		return nil, fmt.Errorf("packet %v to %v: these are rules of %s", p.Src, p.Dst, t.family)
	}
	first := walk{t: t, host: &h, p: p, dst: p.Dst, mark: h.Mark, hooks: pathIn, prob: 1}
	if p.InInterface == "" {
		first.hooks = pathOut
	}
	at := make(map[Outcome]*Result)
	todo := []walk{first}
	for len(todo) > 0 {
		w := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		v, err := w.run(func(x walk) { todo = append(todo, x) })
		if err != nil {
			return nil, err
		}
		o := Outcome{Verdict: v, Reset: w.reset}
		if v == fwd.VerdictForward || v == fwd.VerdictPass {
			o.Masquerade, o.Source = w.masquerade, w.source
		}
		if v == fwd.VerdictForward {
			o.Endpoint = w.dst
		}
		r := at[o]
		if r == nil {
			r = &Result{Outcome: o}
			at[o] = r
		}
		r.Probability += w.prob
		for _, n := range w.notes {
			if !slices.Contains(r.Notes, n) {
				r.Notes = append(r.Notes, n)
			}
		}
	}
	out := make([]Result, 0, len(at))
	for _, r := range at {
		out = append(out, *r)
	}
	slices.SortFunc(out, func(a, b Result) int {
		return cmp.Or(cmp.Compare(a.Verdict, b.Verdict), a.Endpoint.Compare(b.Endpoint), cmp.Compare(number(a.Masquerade), number(b.Masquerade)))
	})
	return out, nil
}

func number(b bool) int {
	if b {
		return 1
	}
	return 0
}

// fate is the decision of a hook or of a rule.
type fate uint8

const (
	next fate = iota
	accept
	drop
	reject
)

// run takes the packet to the end of its path. It passes branches that it does not follow to fork.
func (w *walk) run(fork func(walk)) (fwd.Verdict, error) {
	for len(w.hooks) > 0 || w.route() {
		f, err := w.pass(fork)
		switch {
		case err != nil:
			return 0, err
		case f == drop:
			return fwd.VerdictDrop, nil
		case f == reject:
			return fwd.VerdictReject, nil
		}
		w.hooks, w.ready = w.hooks[1:], false
	}
	if w.dnat {
		return fwd.VerdictForward, nil
	}
	return fwd.VerdictPass, nil
}

// route chooses the second part of the path by the current destination; it returns false if there is none.
func (w *walk) route() bool {
	local := w.host.isLocal(w.dst.Addr())
	switch {
	case w.routed || w.p.InInterface == "" && !local:
		return false
	case w.p.InInterface == "":
		w.hooks = pathLoop
	case local:
		w.hooks = pathLocal
	default:
		w.hooks = pathForward
	}
	w.routed = true
	return true
}

// pass takes the packet through the base chains of one hook, or the remaining ones if the walk was forked there.
func (w *walk) pass(fork func(walk)) (fate, error) {
	h := w.hooks[0]
	if !w.ready {
		w.ready, w.bases, w.in = true, nil, ""
		if h.Hook == nft.Prerouting || h.Hook == nft.Input || h.Hook == nft.Forward {
			w.in = cmp.Or(w.p.InInterface, "lo")
		}
		for _, c := range w.t.bases {
			if c.Base.Hook == h.Hook && (c.Base.Type != "nat" || h.nat) {
				w.bases = append(w.bases, c)
			}
		}
		w.enter()
	}
	for len(w.bases) > 0 {
		f, err := w.base(fork)
		if err != nil {
			return 0, fmt.Errorf("chain %s at %v: %w", w.bases[0].Name, h.Hook, err)
		}
		if f == drop || f == reject {
			return f, nil
		}
		w.bases = w.bases[1:]
		w.enter()
	}
	return accept, nil
}

func (w *walk) enter() {
	w.stack, w.expr = nil, 0
	if len(w.bases) > 0 {
		w.stack = []frame{{chain: w.bases[0]}}
	}
}

// base follows the rules of one base chain.
func (w *walk) base(fork func(walk)) (fate, error) {
	for len(w.stack) > 0 {
		top := &w.stack[len(w.stack)-1]
		if top.rule >= len(top.chain.rules) {
			w.stack = w.stack[:len(w.stack)-1]
			continue
		}
		if w.steps++; w.steps > 10000 {
			return 0, errors.New("the packet loops")
		}
		v, err := w.rule(top.chain.rules[top.rule], fork)
		if err != nil {
			return 0, fmt.Errorf("rule %d of %s: %w", top.rule, top.chain.Name, err)
		}
		top.rule++
		w.expr = 0
		if f, err := w.follow(v); f != next || err != nil {
			return f, err
		}
	}
	if w.bases[0].Base.Drop {
		return drop, nil
	}
	return accept, nil
}

// follow carries out a verdict; an empty one does nothing.
func (w *walk) follow(v string) (fate, error) {
	word, to, _ := strings.Cut(v, " ")
	switch word {
	case "":
		return next, nil
	case "accept":
		return accept, nil
	case "drop":
		return drop, nil
	case "reject":
		return reject, nil
	case "return":
		w.stack = w.stack[:len(w.stack)-1]
		return next, nil
	case "goto":
		w.stack[len(w.stack)-1] = frame{chain: w.t.state.chains[to]}
		return next, nil
	case "jump":
		w.stack = append(w.stack, frame{chain: w.t.state.chains[to]})
		return next, nil
	}
	return next, fmt.Errorf("verdict %q", v)
}

// rule evaluates the expressions of a rule, from w.expr on, and returns its verdict. A rule that does not match has none.
func (w *walk) rule(r []*expression, fork func(walk)) (string, error) {
	for w.expr < len(r) {
		x := r[w.expr]
		w.expr++
		v, ok, err := w.eval(x, r, fork)
		if err != nil {
			return "", fmt.Errorf("expression %s: %w", x.name, err)
		}
		if !ok || v != "" {
			return v, nil
		}
	}
	return "", nil
}

// branch forks the walk with changed registers and a share of its probability.
func (w *walk) branch(fork func(walk), share float64, change func(*walk)) {
	other := *w
	other.stack = slices.Clone(w.stack)
	other.notes = slices.Clip(w.notes)
	other.prob *= share
	change(&other)
	fork(other)
}

// value returns the data in an attribute with a value.
func value(a nft.Attr) string { return attrsOf(a.Data)[unix.NFTA_DATA_VALUE].Data }

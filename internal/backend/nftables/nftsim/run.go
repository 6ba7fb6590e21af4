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

// Addition is an element that a packet adds to a dynamic set, or whose timeout it resets.
type Addition struct {
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
	// Added of all paths to the outcome, without repetition.
	Added []Addition
}

func (h *Host) isLocal(a netip.Addr) bool { return a.IsLoopback() || slices.Contains(h.Local, a) }

// hook is a hook on the path of a packet, with the types of chains that see the packet.
type hook struct {
	nft.Hook
	nat bool // the first packet of a connection that has no translation yet
}

// The paths of a packet; see the diagram of netfilter's hooks. A packet that this host sends to
// itself enters again through the loopback interface. The address translation of its connection is
// decided then, so no nat chain sees it a second time.
var (
	pathIn      = []hook{{nft.Prerouting, true}}
	pathLocal   = []hook{{nft.Input, true}}
	pathForward = []hook{{nft.Forward, false}, {nft.Postrouting, true}}
	pathOut     = []hook{{nft.Output, true}, {nft.Postrouting, true}}
	pathLoop    = []hook{{nft.Prerouting, false}, {nft.Input, false}}
)

// words is the number of registers of four bytes.
const words = 16

// walk is the state of a packet on one path through the rules.
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
	added            []Addition

	regs  [words * 4]byte
	prob  float64
	steps int
	// draws are the random numbers of the path; those that were not drawn yet are to be repeated
	// from an earlier path.
	draws []draw
	drawn int
}

// draw is a random number: which of how many alternatives was taken.
type draw struct{ taken, of int }

// draw takes one of n alternatives: that of the path to be repeated, or else the first.
func (w *walk) draw(n int) int {
	if w.drawn == len(w.draws) {
		w.draws = append(w.draws, draw{0, n})
	}
	w.drawn++
	return w.draws[w.drawn-1].taken
}

// nextPath returns the draws with which the path after this one begins, nil if it was the last one.
func nextPath(draws []draw) []draw {
	for n := len(draws) - 1; n >= 0; n-- {
		if draws[n].taken++; draws[n].taken < draws[n].of {
			return draws[:n+1]
		}
	}
	return nil
}

// Run returns all outcomes of the first packet of a connection, sorted by verdict, endpoint and
// masquerading.
func (t *Table) Run(h Host, p fwd.Packet) ([]Result, error) {
	if !p.Src.IsValid() || fwd.FamilyOf(p.Src) != t.family || fwd.FamilyOf(p.Dst.Addr()) != t.family {
		return nil, fmt.Errorf("packet %v to %v: these are rules of %s", p.Src, p.Dst, t.family)
	}
	at := make(map[Outcome]*Result)
	for draws := []draw{}; draws != nil; {
		w := walk{t: t, host: &h, p: p, dst: p.Dst, mark: h.Mark, prob: 1, draws: draws}
		v, err := w.run()
		if err != nil {
			return nil, err
		}
		draws = nextPath(w.draws)
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
		for _, n := range w.added {
			if !slices.Contains(r.Added, n) {
				r.Added = append(r.Added, n)
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

// fate is the decision of a hook or of a chain.
type fate uint8

const (
	next fate = iota
	accept
	drop
	reject
)

// run takes the packet to the end of its path. The second part depends on where the first one sends
// the packet.
func (w *walk) run() (fwd.Verdict, error) {
	first := pathOut
	if w.p.InInterface != "" {
		first = pathIn
	}
	for _, path := range []func() []hook{func() []hook { return first }, w.routed} {
		for _, h := range path() {
			switch f, err := w.hook(h); {
			case err != nil:
				return 0, err
			case f == drop:
				return fwd.VerdictDrop, nil
			case f == reject:
				return fwd.VerdictReject, nil
			}
		}
	}
	if w.dnat {
		return fwd.VerdictForward, nil
	}
	return fwd.VerdictPass, nil
}

// routed returns the second part of the path.
func (w *walk) routed() []hook {
	local := w.host.isLocal(w.dst.Addr())
	switch {
	case w.p.InInterface == "" && !local:
		return nil
	case w.p.InInterface == "":
		return pathLoop
	case local:
		return pathLocal
	}
	return pathForward
}

// hook takes the packet through the base chains of a hook.
func (w *walk) hook(h hook) (fate, error) {
	w.in = ""
	if h.Hook == nft.Prerouting || h.Hook == nft.Input || h.Hook == nft.Forward {
		w.in = cmp.Or(w.p.InInterface, "lo")
	}
	for _, c := range w.t.bases {
		if c.Base.Hook != h.Hook || c.Base.Type == "nat" && !h.nat {
			continue
		}
		f, err := w.chain(c)
		if err != nil {
			return 0, fmt.Errorf("chain %s at %v: %w", c.Name, h.Hook, err)
		}
		if f == drop || f == reject {
			return f, nil
		}
		if f == next && c.Base.Drop {
			return drop, nil
		}
	}
	return accept, nil
}

// chain follows the rules of a chain. It returns next at the end of the chain.
func (w *walk) chain(c *chain) (fate, error) {
	for i, r := range c.rules {
		if w.steps++; w.steps > 10000 {
			return 0, errors.New("the packet loops")
		}
		v, err := w.rule(r)
		if err != nil {
			return 0, fmt.Errorf("rule %d of %s: %w", i, c.Name, err)
		}
		switch word, to, _ := strings.Cut(v, " "); word {
		case "": // it does not match, or has no verdict
		case "accept":
			return accept, nil
		case "drop":
			return drop, nil
		case "reject":
			return reject, nil
		case "return":
			return next, nil
		case "goto":
			return w.chain(w.t.state.chains[to])
		case "jump":
			if f, err := w.chain(w.t.state.chains[to]); f != next || err != nil {
				return f, err
			}
		default:
			return 0, fmt.Errorf("rule %d of %s: verdict %q is not simulated", i, c.Name, v)
		}
	}
	return next, nil
}

// rule evaluates the expressions of a rule and returns its verdict. A rule that does not match has
// none.
func (w *walk) rule(r []*expression) (string, error) {
	for i, x := range r {
		v, ok, err := w.eval(x, r[i+1:])
		if err != nil {
			return "", fmt.Errorf("expression %s: %w", x.name, err)
		}
		if !ok || v != "" {
			return v, nil
		}
	}
	return "", nil
}

// value returns the data in an attribute with a value.
func value(a nft.Attr) string { return attrsOf(a.Data)[unix.NFTA_DATA_VALUE].Data }

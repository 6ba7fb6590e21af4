package rulesim

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/fairlead/fairlead/internal/fwd"
)

// ServerKey identifies a virtual server of IPVS.
type ServerKey struct {
	Proto fwd.Proto
	Addr  netip.AddrPort
}

// Server is a virtual server with its real servers. All of them use masquerading.
type Server struct {
	Scheduler string
	Reals     []Real
}

// Real is a real server. One with weight 0 gets no new connections.
type Real struct {
	Addr   netip.AddrPort
	Weight uint32
}

// chances are the real servers that may be chosen, with their shares of new connections as weights.
// Schedulers that use the load are simulated as if all connections had the same duration.
func (s *Server) chances() ([]Real, error) {
	var out []Real
	var best uint32
	for _, r := range s.Reals {
		if r.Weight > 0 {
			out = append(out, r)
			best = max(best, r.Weight)
		}
	}
	switch s.Scheduler {
	case "rr", "lc":
		for i := range out {
			out[i].Weight = 1
		}
	case "fo":
		out = slices.DeleteFunc(out, func(r Real) bool { return r.Weight < best })
		out = out[:min(1, len(out))]
	case "wrr", "wlc", "sed", "nq", "sh", "mh":
	default:
		return nil, fmt.Errorf("scheduler %q is not simulated", s.Scheduler)
	}
	return out, nil
}

// rewritten is the path of a packet that IPVS has sent to another host: it traverses OUTPUT, even
// if it was received, but no nat chain that can change its destination.
var rewritten = []stage{{"mangle", "OUTPUT"}, {"filter", "OUTPUT"}, {"mangle", "POSTROUTING"}, {"nat", "POSTROUTING"}}

// atIPVS is the stage at which IPVS handles a packet. If it has a virtual server, the walk
// continues to one of its real servers, and fork gets the others. over is whether the path ends
// here, with a verdict.
func (w *walk) atIPVS(fork func(*walk)) (v fwd.Verdict, over bool, err error) {
	s, there := w.host.Servers[ServerKey{w.proto, w.dst}]
	if !there || w.byIPVS {
		w.stages = w.stages[1:]
		return 0, false, nil
	}
	at := fmt.Sprintf("ipvs %s %s", w.proto, w.dst)
	reals, err := s.chances()
	if err != nil {
		return 0, true, fmt.Errorf("%s: %w", at, err)
	}
	var total float64
	for _, r := range reals {
		total += float64(r.Weight)
	}
	if len(reals) == 0 {
		w.trace = append(slices.Clip(w.trace), at+": no destination available")
		return fwd.VerdictReject, true, nil
	}
	for _, r := range reals[1:] {
		other := *w
		other.prob *= float64(r.Weight) / total
		other.choose(at, r)
		fork(&other)
	}
	w.prob *= float64(reals[0].Weight) / total
	w.choose(at, reals[0])
	return 0, false, nil
}

// choose sends the packet to a real server.
func (w *walk) choose(at string, r Real) {
	w.trace = append(slices.Clip(w.trace), at+" -> "+r.Addr.String())
	w.dst, w.byIPVS = r.Addr, true
	w.stages = w.stages[1:]
	if w.host.isLocal(r.Addr.Addr()) {
		return
	}
	w.stages, w.routed = rewritten, true
	if w.src.IsLoopback() {
		// "Stopping traffic from loopback address to non-local address".
		w.stages, w.lost = nil, true
	}
}

// ipvsMatch is -m ipvs with --ipvs, or --vdir and --vmethod, which only match packets that IPVS has
// rewritten.
type ipvsMatch struct {
	property      bool
	dir, method   string
	neg, negVMeth bool
}

func (m *ipvsMatch) options(fwd.Family) []option {
	oneOf := func(dst *string, known ...string) func(string, bool) error {
		return func(s string, neg bool) error {
			*dst = s
			if !slices.Contains(known, s) {
				return fmt.Errorf("want one of %v", known)
			}
			return nil
		}
	}
	method := oneOf(&m.method, "GATE", "IPIP", "MASQ")
	return []option{
		{name: "--ipvs", invertible: true, set: func(_ string, neg bool) error { m.property, m.neg = true, neg; return nil }},
		{name: "--vdir", words: 1, set: oneOf(&m.dir, "ORIGINAL", "REPLY")},
		{name: "--vmethod", words: 1, invertible: true, set: func(s string, neg bool) error { m.negVMeth = neg; return method(s, neg) }},
	}
}

func (m *ipvsMatch) done(*rule) error {
	if m.property == (m.dir != "" || m.method != "") {
		return errors.New("match ipvs: want --ipvs, or --vdir and --vmethod")
	}
	return nil
}

func (m *ipvsMatch) String() string {
	s := "ipvs"
	if m.property {
		if m.neg {
			s += " !"
		}
		return s + " --ipvs"
	}
	if m.dir != "" {
		s += " --vdir " + m.dir
	}
	if m.method != "" {
		s += invertible("--vmethod", m.method, m.negVMeth)
	}
	return s
}

func (m *ipvsMatch) matches(w *walk) (float64, error) {
	if m.property {
		return certain(w.byIPVS != m.neg)
	}
	return certain(w.byIPVS && m.dir != "REPLY" && (m.method == "" || (m.method == "MASQ") != m.negVMeth))
}

package rulesim

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/fairlead/fairlead/internal/fwd"
)

type prefixMatch struct {
	prefix netip.Prefix
	neg    bool
}

func (m *prefixMatch) ok(a netip.Addr) bool { return m == nil || m.prefix.Contains(a) != m.neg }

type ifaceMatch struct {
	name      string
	wild, neg bool
}

func (m *ifaceMatch) ok(iface string) bool {
	if m == nil {
		return true
	}
	eq := iface == m.name
	if m.wild {
		eq = strings.HasPrefix(iface, m.name)
	}
	return eq != m.neg
}

func (m *ifaceMatch) String() string {
	if m.wild {
		return m.name + "+"
	}
	return m.name
}

type protoMatch struct {
	number uint8
	neg    bool
}

func (m *protoMatch) ok(p fwd.Proto) bool {
	return m == nil || m.number == 0 || (m.number == uint8(p)) != m.neg
}

// newMatch returns an empty match, or nil if there is none of that name.
func newMatch(name string, f fwd.Family) match {
	switch name {
	case "tcp", "udp", "sctp":
		return &portMatch{proto: name}
	case "comment":
		return &commentMatch{}
	case "mark":
		return &markMatch{}
	case "conntrack":
		return &conntrackMatch{}
	case "addrtype":
		return &addrtypeMatch{}
	case "statistic":
		return &statisticMatch{}
	case "recent":
		return &recentMatch{list: "DEFAULT", family: f, bits: f.Bits()}
	case "bpf":
		return &bpfMatch{}
	case "set":
		return &setMatch{}
	case "ipvs":
		return &ipvsMatch{}
	}
	return nil
}

func certain(b bool) (float64, error) {
	if b {
		return 1, nil
	}
	return 0, nil
}

// invertible prints an option with its value.
func invertible(opt, value string, neg bool) string {
	if neg {
		return " ! " + opt + " " + value
	}
	return " " + opt + " " + value
}

// portMatch is -m tcp, -m udp or -m sctp with --sport and --dport.
type portMatch struct {
	proto    string
	src, dst *portRange
}

type portRange struct {
	lo, hi uint16
	neg    bool
}

func (r *portRange) String() string {
	if r.lo == r.hi {
		return strconv.Itoa(int(r.lo))
	}
	return fmt.Sprintf("%d:%d", r.lo, r.hi)
}

func (m *portMatch) options(fwd.Family) []option {
	ports := func(dst **portRange) func(string, bool) error {
		return func(s string, neg bool) error {
			lo, hi, isRange := strings.Cut(s, ":")
			if !isRange {
				hi = lo
			}
			l, errLo := strconv.ParseUint(lo, 10, 16)
			h, errHi := strconv.ParseUint(hi, 10, 16)
			if errLo != nil || errHi != nil || l > h {
				return errors.New("want a port or a range of ports")
			}
			*dst = &portRange{lo: uint16(l), hi: uint16(h), neg: neg}
			return nil
		}
	}
	return []option{
		{name: "--sport", words: 1, invertible: true, set: ports(&m.src)},
		{name: "--dport", words: 1, invertible: true, set: ports(&m.dst)},
	}
}

func (m *portMatch) done(r *rule) error {
	if r.proto == nil || r.proto.neg || protoName(r.proto.number) != m.proto {
		return fmt.Errorf("match %s needs -p %s", m.proto, m.proto)
	}
	return nil
}

func (m *portMatch) String() string {
	s := m.proto
	if m.src != nil {
		s += invertible("--sport", m.src.String(), m.src.neg)
	}
	if m.dst != nil {
		s += invertible("--dport", m.dst.String(), m.dst.neg)
	}
	return s
}

func (m *portMatch) matches(w *walk) (float64, error) {
	if m.src != nil {
		return 0, errors.New("--sport: source ports are not simulated")
	}
	if m.dst == nil {
		return 1, nil
	}
	port := w.dst.Port()
	return certain((port >= m.dst.lo && port <= m.dst.hi) != m.dst.neg)
}

type commentMatch struct {
	plain
	text string
}

func (m *commentMatch) options(fwd.Family) []option {
	return []option{{name: "--comment", words: 1, required: true, set: func(s string, _ bool) error {
		if len(s) > 255 {
			return errors.New("more than 255 bytes")
		}
		m.text = s
		return nil
	}}}
}

func (m *commentMatch) String() string                 { return "comment --comment " + quote(m.text) }
func (m *commentMatch) matches(*walk) (float64, error) { return 1, nil }

type markMatch struct {
	plain
	value, mask uint32
	neg         bool
}

func (m *markMatch) options(fwd.Family) []option {
	return []option{{name: "--mark", words: 1, required: true, invertible: true, set: func(s string, neg bool) (err error) {
		m.neg = neg
		m.value, m.mask, err = valueMask(s)
		return err
	}}}
}

// valueMask parses "value" or "value/mask".
func valueMask(s string) (value, mask uint32, err error) {
	vs, ms, masked := strings.Cut(s, "/")
	v, err := number(vs, 32)
	m := uint64(math.MaxUint32)
	if masked && err == nil {
		m, err = number(ms, 32)
	}
	return uint32(v), uint32(m), err
}

func (m *markMatch) String() string {
	v := fmt.Sprintf("%#x", m.value)
	if m.mask != math.MaxUint32 {
		v += fmt.Sprintf("/%#x", m.mask)
	}
	return "mark" + invertible("--mark", v, m.neg)
}

func (m *markMatch) matches(w *walk) (float64, error) {
	return certain((w.mark&m.mask == m.value) != m.neg)
}

// ctStates are the states of --ctstate in the order of iptables-save.
var ctStates = []string{"INVALID", "NEW", "RELATED", "ESTABLISHED", "UNTRACKED", "SNAT", "DNAT"}

type conntrackMatch struct {
	plain
	states []string
	neg    bool
}

func (m *conntrackMatch) options(fwd.Family) []option {
	return []option{{name: "--ctstate", words: 1, required: true, invertible: true, set: func(s string, neg bool) error {
		m.states, m.neg = strings.Split(strings.ToUpper(s), ","), neg
		for _, st := range m.states {
			if !slices.Contains(ctStates, st) {
				return fmt.Errorf("unknown state %q", st)
			}
		}
		slices.SortFunc(m.states, func(a, b string) int { return slices.Index(ctStates, a) - slices.Index(ctStates, b) })
		m.states = slices.Compact(m.states)
		return nil
	}}}
}

func (m *conntrackMatch) String() string {
	return "conntrack" + invertible("--ctstate", strings.Join(m.states, ","), m.neg)
}

func (m *conntrackMatch) matches(w *walk) (float64, error) {
	in := slices.ContainsFunc(m.states, func(s string) bool {
		return s == "NEW" || s == "DNAT" && w.dnat && w.natDst != w.origDst || s == "SNAT" && w.masquerade
	})
	return certain(in != m.neg)
}

type addrtypeMatch struct{ src, dst *bool }

func (m *addrtypeMatch) options(fwd.Family) []option {
	local := func(dst **bool) func(string, bool) error {
		return func(s string, neg bool) error {
			*dst = &neg
			if s != "LOCAL" {
				return errors.New("only LOCAL is simulated")
			}
			return nil
		}
	}
	return []option{
		{name: "--src-type", words: 1, invertible: true, set: local(&m.src)},
		{name: "--dst-type", words: 1, invertible: true, set: local(&m.dst)},
	}
}

func (m *addrtypeMatch) done(*rule) error {
	if m.src == nil && m.dst == nil {
		return errors.New("match addrtype: --src-type or --dst-type missing")
	}
	return nil
}

func (m *addrtypeMatch) String() string {
	s := "addrtype"
	if m.src != nil {
		s += invertible("--src-type", "LOCAL", *m.src)
	}
	if m.dst != nil {
		s += invertible("--dst-type", "LOCAL", *m.dst)
	}
	return s
}

func (m *addrtypeMatch) matches(w *walk) (float64, error) {
	ok := (m.src == nil || w.host.isLocal(w.src) != *m.src) && (m.dst == nil || w.host.isLocal(w.dst.Addr()) != *m.dst)
	return certain(ok)
}

// statisticMatch is -m statistic --mode random. The kernel compares 31 random bits with a whole
// number.
type statisticMatch struct {
	plain
	// probability is in units of 2^-31.
	probability int64
	neg         bool
}

func (m *statisticMatch) options(fwd.Family) []option {
	return []option{
		{name: "--mode", words: 1, required: true, set: func(s string, _ bool) error {
			if s != "random" {
				return errors.New("only random is simulated")
			}
			return nil
		}},
		{name: "--probability", words: 1, required: true, invertible: true, set: func(s string, neg bool) error {
			p, err := strconv.ParseFloat(s, 64)
			if err != nil || !(p >= 0 && p <= 1) {
				return errors.New("want a number from 0 to 1")
			}
			m.probability, m.neg = int64(math.Round(p*(1<<31))), neg
			return nil
		}},
	}
}

func (m *statisticMatch) share() float64 { return float64(m.probability) / (1 << 31) }

func (m *statisticMatch) String() string {
	return "statistic --mode random" + invertible("--probability", fmt.Sprintf("%.11f", m.share()), m.neg)
}

func (m *statisticMatch) matches(*walk) (float64, error) {
	if m.neg {
		return 1 - m.share(), nil
	}
	return m.share(), nil
}

// recentMatch is -m recent with the source address. check is one of --set, --rcheck and --update.
type recentMatch struct {
	check, list string
	neg         bool
	seconds     uint32
	reap        bool
	// bits is the prefix length that --mask stands for.
	bits   int
	family fwd.Family
}

func (m *recentMatch) options(f fwd.Family) []option {
	check := func(name string) option {
		return option{name: name, invertible: true, set: func(_ string, neg bool) error {
			if m.check != "" {
				return fmt.Errorf("cannot be used with %s", m.check)
			}
			m.check, m.neg = name, neg
			return nil
		}}
	}
	return []option{
		check("--set"), check("--rcheck"), check("--update"),
		{name: "--rsource", set: func(string, bool) error { return nil }}, // the default
		{name: "--reap", set: func(string, bool) error { m.reap = true; return nil }},
		{name: "--seconds", words: 1, set: func(s string, _ bool) error {
			n, err := number(s, 32)
			if err != nil || n == 0 {
				return errors.New("want a number from 1")
			}
			m.seconds = uint32(n)
			return nil
		}},
		{name: "--name", words: 1, set: func(s string, _ bool) error {
			if s == "" || len(s) > 199 || strings.ContainsAny(s, "/ ") || s == "." || s == ".." {
				return errors.New("want a file name of up to 199 bytes")
			}
			m.list = s
			return nil
		}},
		{name: "--mask", words: 1, set: func(s string, _ bool) error {
			mask, err := parseAddr(f, s)
			if err != nil {
				return err
			}
			m.bits, err = parseMask(f, mask.String())
			return err
		}},
	}
}

func (m *recentMatch) done(*rule) error {
	timed := m.check == "--rcheck" || m.check == "--update"
	switch {
	case m.check == "":
		return errors.New("match recent: --set, --rcheck or --update missing")
	case m.seconds > 0 && !timed:
		return fmt.Errorf("match recent: --seconds with %s", m.check)
	case m.reap && m.seconds == 0:
		return errors.New("match recent: --reap without --seconds")
	}
	return nil
}

func (m *recentMatch) String() string {
	s := "recent"
	if m.neg {
		s += " !"
	}
	s += " " + m.check
	if m.seconds > 0 {
		s += fmt.Sprintf(" --seconds %d", m.seconds)
	}
	if m.reap {
		s += " --reap"
	}
	return s + " --name " + m.list + " --mask " + maskAddr(m.family, m.bits).String() + " --rsource"
}

func (m *recentMatch) matches(w *walk) (float64, error) {
	a := netip.PrefixFrom(w.src, m.bits).Masked().Addr()
	age, listed := w.age(m.list, a)
	ok := m.check == "--set" || listed && (m.seconds == 0 || age <= m.seconds)
	ok = ok != m.neg
	if m.check == "--set" || m.check == "--update" && ok && listed {
		w.recent = append(slices.Clip(w.recent), recentEntry{m.list, a})
	}
	return certain(ok)
}

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
func newMatch(name string) match {
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
		return &statisticMatch{probability: -1}
	case "recent":
		return &recentMatch{list: "DEFAULT"}
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

func (m *portMatch) option(a *args, opt string, neg bool) error {
	var dst **portRange
	switch opt {
	case "--sport", "--source-port":
		dst = &m.src
	case "--dport", "--destination-port":
		dst = &m.dst
	default:
		return errUnknown
	}
	s, err := a.next(opt)
	if err != nil {
		return err
	}
	if *dst != nil {
		return fmt.Errorf("%s: given twice", opt)
	}
	lo, hi, isRange := strings.Cut(s, ":")
	if !isRange {
		hi = lo
	}
	l, errLo := strconv.ParseUint(lo, 10, 16)
	h, errHi := strconv.ParseUint(hi, 10, 16)
	if errLo != nil || errHi != nil || l > h {
		return fmt.Errorf("%s: ports %q", opt, s)
	}
	*dst = &portRange{lo: uint16(l), hi: uint16(h), neg: neg}
	return nil
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
	text  string
	given bool
}

func (m *commentMatch) option(a *args, opt string, neg bool) error {
	if opt != "--comment" {
		return errUnknown
	}
	s, err := a.next(opt)
	if err != nil {
		return err
	}
	if neg || m.given || len(s) > 255 {
		return errors.New("--comment: once, without !, up to 255 bytes")
	}
	m.text, m.given = s, true
	return nil
}

func (m *commentMatch) done(*rule) error {
	if !m.given {
		return errors.New("match comment: --comment missing")
	}
	return nil
}
func (m *commentMatch) String() string                 { return "comment --comment " + quote(m.text) }
func (m *commentMatch) matches(*walk) (float64, error) { return 1, nil }

type markMatch struct {
	value, mask uint32
	neg, given  bool
}

func (m *markMatch) option(a *args, opt string, neg bool) error {
	if opt != "--mark" {
		return errUnknown
	}
	if m.given {
		return errors.New("--mark: given twice")
	}
	m.neg, m.given = neg, true
	var err error
	m.value, m.mask, err = valueMask(a, opt)
	return err
}

// valueMask parses "value" or "value/mask".
func valueMask(a *args, opt string) (value, mask uint32, err error) {
	s, err := a.next(opt)
	if err != nil {
		return 0, 0, err
	}
	vs, ms, masked := strings.Cut(s, "/")
	v, err := number(vs, 32)
	if err != nil {
		return 0, 0, fmt.Errorf("%s: %w", opt, err)
	}
	m := uint64(math.MaxUint32)
	if masked {
		if m, err = number(ms, 32); err != nil {
			return 0, 0, fmt.Errorf("%s: %w", opt, err)
		}
	}
	return uint32(v), uint32(m), nil
}

func (m *markMatch) done(*rule) error {
	if !m.given {
		return errors.New("match mark: --mark missing")
	}
	return nil
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
	states []string
	neg    bool
}

func (m *conntrackMatch) option(a *args, opt string, neg bool) error {
	if opt != "--ctstate" {
		return errUnknown
	}
	s, err := a.next(opt)
	if err != nil {
		return err
	}
	if m.states != nil {
		return errors.New("--ctstate: given twice")
	}
	asked := strings.Split(strings.ToUpper(s), ",")
	for _, st := range asked {
		if !slices.Contains(ctStates, st) {
			return fmt.Errorf("--ctstate: unknown state %q", st)
		}
	}
	m.neg = neg
	for _, st := range ctStates {
		if slices.Contains(asked, st) {
			m.states = append(m.states, st)
		}
	}
	return nil
}

func (m *conntrackMatch) done(*rule) error {
	if m.states == nil {
		return errors.New("match conntrack: --ctstate missing")
	}
	return nil
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

func (m *addrtypeMatch) option(a *args, opt string, neg bool) error {
	var dst **bool
	switch opt {
	case "--src-type":
		dst = &m.src
	case "--dst-type":
		dst = &m.dst
	default:
		return errUnknown
	}
	s, err := a.next(opt)
	if err != nil {
		return err
	}
	if *dst != nil || s != "LOCAL" {
		return fmt.Errorf("%s %q: once, and only LOCAL is known", opt, s)
	}
	*dst = &neg
	return nil
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
	random bool
	// probability is in units of 2^-31; negative if not given.
	probability int64
	neg         bool
}

func (m *statisticMatch) option(a *args, opt string, neg bool) error {
	if opt != "--mode" && opt != "--probability" {
		return errUnknown
	}
	s, err := a.next(opt)
	if err != nil {
		return err
	}
	if opt == "--mode" {
		if s != "random" || neg || m.random {
			return fmt.Errorf("--mode %q: once, without !, and only random is known", s)
		}
		m.random = true
		return nil
	}
	p, err := strconv.ParseFloat(s, 64)
	if err != nil || !(p >= 0 && p <= 1) || m.probability >= 0 {
		return fmt.Errorf("--probability %q: once, from 0 to 1", s)
	}
	m.probability, m.neg = int64(math.Round(p*(1<<31))), neg
	return nil
}

func (m *statisticMatch) done(*rule) error {
	if !m.random || m.probability < 0 {
		return errors.New("match statistic: --mode random and --probability missing")
	}
	return nil
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
	named       bool
	// bits is the prefix length that --mask stands for, valid if masked.
	bits   int
	masked bool
	family fwd.Family
}

func (m *recentMatch) option(a *args, opt string, neg bool) error {
	m.family = a.family
	switch opt {
	case "--set", "--rcheck", "--update":
		if m.check != "" {
			return fmt.Errorf("%s: cannot be used with %s", opt, m.check)
		}
		m.check, m.neg = opt, neg
		return nil
	case "--rsource", "--reap", "--seconds", "--name", "--mask":
	default:
		return errUnknown
	}
	if neg {
		return fmt.Errorf("! before %s", opt)
	}
	switch opt {
	case "--rsource": // the default
		return nil
	case "--reap":
		m.reap = true
		return nil
	}
	s, err := a.next(opt)
	if err != nil {
		return err
	}
	return m.value(opt, s)
}

func (m *recentMatch) value(opt, s string) error {
	switch opt {
	case "--seconds":
		n, err := number(s, 32)
		if err != nil || n == 0 || m.seconds != 0 {
			return fmt.Errorf("--seconds %q: once, from 1", s)
		}
		m.seconds = uint32(n)
	case "--name":
		if m.named || s == "" || len(s) > 199 || strings.ContainsAny(s, "/ ") || s == "." || s == ".." {
			return fmt.Errorf("--name %q: once, a file name of up to 199 bytes", s)
		}
		m.named, m.list = true, s
	case "--mask":
		mask, err := parseAddr(m.family, s)
		if err != nil || m.masked {
			return fmt.Errorf("--mask %q: once, a mask of the family", s)
		}
		m.masked = true
		m.bits, err = parseMask(m.family, mask.String())
		return err
	}
	return nil
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
	if !m.masked {
		m.bits = m.family.Bits()
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

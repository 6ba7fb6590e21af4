package rulesim

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/fairlead/fairlead/internal/fwd"
)

// rule is one rule. All conditions must hold, in the order src, dst, in, out, proto, matches.
type rule struct {
	family   fwd.Family
	src, dst *prefixMatch
	in, out  *ifaceMatch
	proto    *protoMatch
	matches  []match
	// target is nil for a rule that jumps or has no target.
	target target
	jump   string
	isGoto bool
	// text is the rule as iptables-save prints it, without "-A CHAIN ".
	text string
}

// extension is a match or a target.
type extension interface {
	// options are the options that the extension has; set stores the value in it.
	options(family fwd.Family) []option
	// done is called after the last option. It refuses an extension that does not fit the rule.
	done(r *rule) error
	// String is the extension as iptables-save prints it, without "-m " or "-j ".
	String() string
}

// option is an option of an extension. It may be given once.
type option struct {
	name string
	// words is the number of words that follow the option.
	words int
	// required options must be given. Only invertible ones may follow "!".
	required, invertible bool
	// set gets the words that follow, joined by a space.
	set func(value string, neg bool) error
}

// plain is an extension without options.
type plain struct{}

func (plain) options(fwd.Family) []option { return nil }
func (plain) done(*rule) error            { return nil }
func (plain) table() string               { return "" }
func (plain) hooks() []string             { return nil }

type match interface {
	extension
	// matches returns the probability that the packet matches. It may change the walk if that is 1.
	matches(w *walk) (float64, error)
}

type target interface {
	extension
	// table is the only table that can have the target, empty for all.
	table() string
	// hooks are the built-in chains from which the target may be reached, nil for all.
	hooks() []string
	apply(w *walk) fate
}

var errUnknown = errors.New("unknown option")

// args are the remaining words of one rule.
type args struct {
	family fwd.Family
	words  []string
}

func (a *args) next(opt string) (string, error) {
	if len(a.words) == 0 || a.words[0] == "!" {
		return "", fmt.Errorf("%s: value missing", opt)
	}
	w := a.words[0]
	a.words = a.words[1:]
	return w, nil
}

// number parses a decimal, octal (0...) or hexadecimal (0x...) number.
func number(s string, bits int) (uint64, error) {
	if strings.ContainsAny(s, "_bBoO") && !strings.HasPrefix(s, "0x") || strings.ContainsAny(s, "_+") {
		return 0, fmt.Errorf("number %q", s)
	}
	n, err := strconv.ParseUint(s, 0, bits)
	if err != nil {
		return 0, fmt.Errorf("number %q: malformed or out of range", s)
	}
	return n, nil
}

// parser parses one rule.
type parser struct {
	args
	haveSet func(string) bool // Ruleset.HaveSet
	t       *table
	chain   string
	r       rule
	last    extension
	tgt     string
	given   map[given]bool
}

// given is an option of an extension of the rule.
type given struct {
	ext  extension
	name string
}

func (rs *Ruleset) parseRule(t *table, chain string, w []string) (*rule, error) {
	p := parser{haveSet: rs.HaveSet, args: args{family: rs.family, words: w}, t: t, chain: chain, r: rule{family: rs.family}, given: make(map[given]bool)}
	for len(p.words) > 0 {
		opt, neg := p.words[0], false
		p.words = p.words[1:]
		if opt == "!" {
			neg = true
			if len(p.words) == 0 {
				return nil, errors.New("nothing follows !")
			}
			opt, p.words = p.words[0], p.words[1:]
		}
		if err := p.option(opt, neg); err != nil {
			return nil, err
		}
	}
	for _, m := range p.r.matches {
		if err := p.done(m); err != nil {
			return nil, err
		}
	}
	if p.r.target != nil {
		if err := p.done(p.r.target); err != nil {
			return nil, err
		}
	}
	p.r.text = p.r.String()
	return &p.r, nil
}

func (p *parser) option(opt string, neg bool) error {
	switch opt {
	case "-s", "--source", "--src":
		return p.prefix(&p.r.src, opt, neg)
	case "-d", "--destination", "--dst":
		return p.prefix(&p.r.dst, opt, neg)
	case "-i", "--in-interface":
		if slices.Contains([]string{"OUTPUT", "POSTROUTING"}, p.chain) {
			return fmt.Errorf("%s: not possible in %s", opt, p.chain)
		}
		return p.iface(&p.r.in, opt, neg)
	case "-o", "--out-interface":
		if slices.Contains([]string{"INPUT", "PREROUTING"}, p.chain) {
			return fmt.Errorf("%s: not possible in %s", opt, p.chain)
		}
		return p.iface(&p.r.out, opt, neg)
	case "-p", "--protocol", "--proto":
		return p.protocol(opt, neg)
	case "-m", "--match":
		return p.match(opt, neg)
	case "-j", "--jump", "-g", "--goto":
		return p.jump(opt, neg)
	}
	return p.extensionOption(opt, neg)
}

// extensionOption passes an option to the last extension. If that does not have it, -p loads the
// match of its protocol.
func (p *parser) extensionOption(opt string, neg bool) error {
	if p.last != nil {
		if err := p.give(p.last, opt, neg); !errors.Is(err, errUnknown) {
			return err
		}
	}
	if p.r.hasPorts() && p.tgt == "" {
		loaded := slices.ContainsFunc(p.r.matches, func(m match) bool { _, ok := m.(*portMatch); return ok })
		m := &portMatch{proto: protoName(p.r.proto.number)}
		if err := p.give(m, opt, neg); !loaded && !errors.Is(err, errUnknown) {
			p.r.matches, p.last = append(p.r.matches, m), m
			return err
		}
	}
	return fmt.Errorf("%w %q", errUnknown, opt)
}

// give sets an option of an extension. The error is errUnknown if the extension does not have it.
func (p *parser) give(e extension, opt string, neg bool) error {
	opt = cmp.Or(aliases[opt], opt)
	options := e.options(p.family)
	i := slices.IndexFunc(options, func(o option) bool { return o.name == opt })
	if i < 0 {
		return errUnknown
	}
	o := options[i]
	if neg && !o.invertible {
		return fmt.Errorf("! before %s", opt)
	}
	if p.given[given{e, opt}] {
		return fmt.Errorf("%s: given twice", opt)
	}
	p.given[given{e, opt}] = true
	words := make([]string, o.words)
	for i := range words {
		var err error
		if words[i], err = p.next(opt); err != nil {
			return err
		}
	}
	value := strings.Join(words, " ")
	if err := o.set(value, neg); err != nil {
		return fmt.Errorf("%s %q: %w", opt, value, err)
	}
	return nil
}

var aliases = map[string]string{"--source-port": "--sport", "--destination-port": "--dport"}

// done completes an extension after the last option.
func (p *parser) done(e extension) error {
	for _, o := range e.options(p.family) {
		if o.required && !p.given[given{e, o.name}] {
			return fmt.Errorf("%s: %s missing", e, o.name)
		}
	}
	return e.done(&p.r)
}

func (p *parser) match(opt string, neg bool) error {
	name, err := p.next(opt)
	if err != nil {
		return err
	}
	if neg {
		return errors.New("! before -m")
	}
	m := newMatch(name, p.family)
	if m == nil {
		return fmt.Errorf("unknown match %q", name)
	}
	if s, ok := m.(*setMatch); ok {
		s.exists = p.haveSet
	}
	p.r.matches, p.last = append(p.r.matches, m), m
	return nil
}

func (p *parser) jump(opt string, neg bool) error {
	name, err := p.next(opt)
	if err != nil {
		return err
	}
	if neg || p.tgt != "" {
		return fmt.Errorf("%s: only once, and not with !", opt)
	}
	p.tgt = name
	isGoto := opt == "-g" || opt == "--goto"
	if tgt := newTarget(name); tgt != nil && !isGoto {
		if only := tgt.table(); only != "" && only != p.t.name {
			return fmt.Errorf("target %s: only in table %s", name, only)
		}
		if name == "DROP" && p.t.name == "nat" {
			return errors.New("target DROP: not in table nat")
		}
		p.r.target, p.last = tgt, tgt
		return nil
	}
	c := p.t.chains[name]
	if c == nil || c.policy != "" {
		return fmt.Errorf("%s %q: no such target or chain", opt, name)
	}
	p.r.jump, p.r.isGoto, p.last = name, isGoto, nil
	return nil
}

func (p *parser) prefix(dst **prefixMatch, opt string, neg bool) error {
	s, err := p.next(opt)
	if err != nil {
		return err
	}
	if *dst != nil {
		return fmt.Errorf("%s: given twice", opt)
	}
	pfx, err := parsePrefix(p.family, s)
	if err != nil {
		return fmt.Errorf("%s: %w", opt, err)
	}
	if pfx.Bits() == 0 && neg {
		return fmt.Errorf("%s: ! %s never matches", opt, s)
	}
	*dst = &prefixMatch{prefix: pfx, neg: neg}
	return nil
}

func parsePrefix(f fwd.Family, s string) (netip.Prefix, error) {
	host, mask, masked := strings.Cut(s, "/")
	a, err := parseAddr(f, host)
	if err != nil {
		return netip.Prefix{}, err
	}
	bits := f.Bits()
	if masked {
		if bits, err = parseMask(f, mask); err != nil {
			return netip.Prefix{}, err
		}
	}
	return netip.PrefixFrom(a, bits).Masked(), nil
}

func parseAddr(f fwd.Family, s string) (netip.Addr, error) {
	a, err := netip.ParseAddr(s)
	if err != nil || a.Zone() != "" || fwd.FamilyOf(a) != f {
		return netip.Addr{}, fmt.Errorf("%q is not an %s address", s, f)
	}
	return a, nil
}

// parseMask parses a prefix length or a contiguous mask in the form of an address.
func parseMask(f fwd.Family, s string) (int, error) {
	if n, err := strconv.ParseUint(s, 10, 8); err == nil && int(n) <= f.Bits() {
		return int(n), nil
	}
	if a, err := parseAddr(f, s); err == nil {
		for n := range f.Bits() + 1 {
			if maskAddr(f, n) == a {
				return n, nil
			}
		}
	}
	return 0, fmt.Errorf("mask %q", s)
}

// maskAddr is the mask of a prefix length in the form of an address.
func maskAddr(f fwd.Family, bits int) netip.Addr {
	ones := make([]byte, f.Bits()/8)
	for i := range bits {
		ones[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(ones)
	return a
}

func (p *parser) iface(dst **ifaceMatch, opt string, neg bool) error {
	s, err := p.next(opt)
	if err != nil {
		return err
	}
	switch {
	case *dst != nil:
		return fmt.Errorf("%s: given twice", opt)
	case s == "" || len(s) > 15 || strings.ContainsAny(s, "/ \t"):
		return fmt.Errorf("%s: interface name %q", opt, s)
	}
	name, wild := strings.CutSuffix(s, "+")
	*dst = &ifaceMatch{name: name, wild: wild, neg: neg}
	return nil
}

func (p *parser) protocol(opt string, neg bool) error {
	s, err := p.next(opt)
	if err != nil {
		return err
	}
	if p.r.proto != nil {
		return fmt.Errorf("%s: given twice", opt)
	}
	n, ok := protoNumbers[strings.ToLower(s)]
	if !ok {
		v, err := number(s, 8)
		if err != nil {
			return fmt.Errorf("%s: unknown protocol %q", opt, s)
		}
		n = uint8(v)
	}
	if n == 0 && neg {
		return fmt.Errorf("%s: ! all never matches", opt)
	}
	p.r.proto = &protoMatch{number: n, neg: neg}
	return nil
}

var protoNumbers = map[string]uint8{
	"all": 0, "icmp": 1, "tcp": 6, "udp": 17, "esp": 50, "ah": 51, "ipv6-icmp": 58, "icmpv6": 58, "sctp": 132,
}

func protoName(n uint8) string {
	for _, name := range []string{"all", "icmp", "tcp", "udp", "esp", "ah", "ipv6-icmp", "sctp"} {
		if protoNumbers[name] == n {
			return name
		}
	}
	return strconv.Itoa(int(n))
}

// hasPorts returns whether the rule is for one protocol with ports, so that its target may change a
// port.
func (r *rule) hasPorts() bool {
	return r.proto != nil && !r.proto.neg && slices.Contains([]string{"tcp", "udp", "sctp"}, protoName(r.proto.number))
}

// String is the rule as iptables-save prints it, without "-A CHAIN ".
func (r *rule) String() string {
	var out []string
	not := func(neg bool) {
		if neg {
			out = append(out, "!")
		}
	}
	for _, a := range []struct {
		opt string
		m   *prefixMatch
	}{{"-s", r.src}, {"-d", r.dst}} {
		if a.m != nil && a.m.prefix.Bits() > 0 {
			not(a.m.neg)
			out = append(out, a.opt, a.m.prefix.String())
		}
	}
	for _, i := range []struct {
		opt string
		m   *ifaceMatch
	}{{"-i", r.in}, {"-o", r.out}} {
		if i.m != nil && (i.m.name != "" || i.m.neg) {
			not(i.m.neg)
			out = append(out, i.opt, i.m.String())
		}
	}
	if r.proto != nil && r.proto.number != 0 {
		not(r.proto.neg)
		out = append(out, "-p", protoName(r.proto.number))
	}
	for _, m := range r.matches {
		out = append(out, "-m", m.String())
	}
	switch {
	case r.target != nil:
		out = append(out, "-j", r.target.String())
	case r.isGoto:
		out = append(out, "-g", r.jump)
	case r.jump != "":
		out = append(out, "-j", r.jump)
	}
	return strings.Join(out, " ")
}

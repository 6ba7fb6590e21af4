package ipvssim

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/fairlead/fairlead/internal/fwd"
	"github.com/fairlead/fairlead/internal/host/xtables/rulesim"
)

// Machine is a host with rules of one family, and what these depend on.
type Machine struct {
	Rules *rulesim.Ruleset
	Host  rulesim.Host
}

// New returns a host with these addresses and nothing else.
func New(f fwd.Family, local []netip.Addr) *Machine {
	m := &Machine{Rules: rulesim.New(f), Host: rulesim.Host{
		Local:   slices.Clone(local),
		Sets:    make(map[string]*rulesim.Set),
		Servers: make(map[rulesim.ServerKey]rulesim.Server),
	}}
	m.Rules.HaveSet = func(name string) bool { return m.Host.Sets[name] != nil }
	return m
}

// Parse returns a host with these addresses, programmed with the text.
func Parse(f fwd.Family, text string, local []netip.Addr) (*Machine, error) {
	p := parser{family: f, m: New(f, local), tables: make(map[string]bool)}
	var section func(line string, words []string) error
	sections := map[string]func(string, []string) error{
		"# ipset restore":               p.set,
		"# iptables-restore --noflush":  p.rule,
		"# ip6tables-restore --noflush": p.rule,
		"# ipvsadm --restore":           p.server,
		"# ip -batch -":                 p.address,
	}
	for i, line := range strings.Split(text, "\n") {
		if line == "" {
			continue
		}
		if s := sections[line]; s != nil {
			section = s
			continue
		}
		if section == nil {
			return nil, fmt.Errorf("line %d %q: outside of a section", i+1, line)
		}
		if err := section(line, strings.Fields(line)); err != nil {
			return nil, fmt.Errorf("line %d %q: %w", i+1, line, err)
		}
	}
	if p.rules.Len() > 0 {
		return nil, fmt.Errorf("rules without COMMIT: %q", p.rules.String())
	}
	return p.m, nil
}

type parser struct {
	family fwd.Family
	m      *Machine
	// rules are the lines of a table before its COMMIT.
	rules  strings.Builder
	tables map[string]bool
	device bool
	table  string
}

var errSyntax = errors.New("unknown syntax")

// set processes a line for ipset restore.
func (p *parser) set(_ string, w []string) error {
	switch {
	case len(w) == 5 && w[0] == "create" && w[3] == "family" && w[4] == map[fwd.Family]string{fwd.IPv4: "inet", fwd.IPv6: "inet6"}[p.family]:
		if p.m.Host.Sets[w[1]] != nil {
			return fmt.Errorf("the set exists")
		}
		s, err := rulesim.NewSet(w[2], p.family)
		p.m.Host.Sets[w[1]] = s
		return err
	case len(w) == 3 && w[0] == "add":
		s := p.m.Host.Sets[w[1]]
		if s == nil {
			return fmt.Errorf("there is no such set")
		}
		e, err := element(w[2])
		if err != nil {
			return err
		}
		return s.Add(e)
	}
	return errSyntax
}

// element parses "ADDR", "ADDR,PROTO:PORT" or "ADDR,PROTO:PORT,THIRD".
func element(text string) (rulesim.Element, error) {
	var e rulesim.Element
	parts := strings.Split(text, ",")
	var err error
	if e.Addr, err = netip.ParseAddr(parts[0]); err != nil {
		return e, err
	}
	if len(parts) > 1 {
		proto, port, _ := strings.Cut(parts[1], ":")
		if e.Proto, err = fwd.ParseProto(proto); err != nil {
			return e, err
		}
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil {
			return e, err
		}
		e.Port = uint16(n)
	}
	if len(parts) > 2 {
		if a, err := netip.ParseAddr(parts[2]); err == nil {
			e.Third = netip.PrefixFrom(a, a.BitLen())
		} else if e.Third, err = netip.ParsePrefix(parts[2]); err != nil {
			return e, err
		}
	}
	if len(parts) > 3 {
		return e, errSyntax
	}
	return e, nil
}

// rule processes a line for iptables-restore.
func (p *parser) rule(line string, _ []string) error {
	p.rules.WriteString(line + "\n")
	if line != "COMMIT" {
		return nil
	}
	text := p.rules.String()
	p.rules.Reset()
	return p.m.Rules.Restore(text)
}

var protocols = map[string]fwd.Proto{"-t": fwd.TCP, "-u": fwd.UDP, "--sctp-service": fwd.SCTP}

// server processes a line for ipvsadm --restore.
func (p *parser) server(_ string, w []string) error {
	if len(w) < 5 {
		return errSyntax
	}
	addr, err := netip.ParseAddrPort(w[2])
	if err != nil {
		return err
	}
	k := rulesim.ServerKey{Proto: protocols[w[1]], Addr: addr}
	if k.Proto == 0 || fwd.FamilyOf(addr.Addr()) != p.family {
		return errSyntax
	}
	s, exists := p.m.Host.Servers[k]
	switch {
	case w[0] == "-A" && !exists && w[3] == "-s":
		s.Scheduler = w[4]
	case w[0] == "-a" && exists:
		if s.Reals, err = addReal(s.Reals, w[3:]); err != nil {
			return err
		}
	default:
		return fmt.Errorf("the virtual server exists or is missing, or %w", errSyntax)
	}
	p.m.Host.Servers[k] = s
	return nil
}

// addReal processes the options "-r ADDR -m -w WEIGHT".
func addReal(reals []rulesim.Real, w []string) ([]rulesim.Real, error) {
	if len(w) != 5 || w[0] != "-r" || w[2] != "-m" || w[3] != "-w" {
		return nil, errSyntax
	}
	addr, err := netip.ParseAddrPort(w[1])
	if err != nil {
		return nil, err
	}
	weight, err := strconv.ParseUint(w[4], 10, 31)
	if err != nil {
		return nil, err
	}
	if slices.ContainsFunc(reals, func(r rulesim.Real) bool { return r.Addr == addr }) {
		return nil, fmt.Errorf("the real server exists")
	}
	return append(slices.Clip(reals), rulesim.Real{Addr: addr, Weight: uint32(weight)}), nil
}

// address processes a line for ip -batch.
func (p *parser) address(_ string, w []string) error {
	if p.family == fwd.IPv6 && w[0] == "-6" {
		w = w[1:]
	}
	if len(w) < 5 {
		return errSyntax
	}
	switch w[0] + " " + w[1] {
	case "link add":
		p.device = option(w, "type") == "dummy"
		return nil
	case "rule add":
		value, mask, _ := strings.Cut(option(w, "fwmark"), "/")
		n, err := strconv.ParseUint(value, 0, 32)
		if err != nil || value != mask {
			return fmt.Errorf("mark %q: want one with itself as mask", option(w, "fwmark"))
		}
		p.table, p.m.Host.DivertMark = option(w, "lookup"), uint32(n)
		return nil
	case "address add":
		prefix, err := netip.ParsePrefix(w[2])
		if err != nil || !prefix.IsSingleIP() || !p.device || option(w, "scope") != "link" {
			return fmt.Errorf("want one address with scope link on the dummy device")
		}
		p.m.Host.LocalPrefixes = append(p.m.Host.LocalPrefixes, prefix)
		return nil
	case "route add":
		return p.route(w[2:])
	}
	return errSyntax
}

// option returns the word after name.
func option(w []string, name string) string {
	if i := slices.Index(w, name); i >= 0 && i+1 < len(w) {
		return w[i+1]
	}
	return ""
}

// route processes the words after "route add".
func (p *parser) route(w []string) error {
	if p.table != "" && strings.Join(w, " ") == "local default dev lo table "+p.table {
		return nil
	}
	prefix, err := netip.ParsePrefix(w[1])
	if err != nil || w[0] != "local" || option(w, "table") != "local" {
		return errSyntax
	}
	if src := option(w, "src"); src != "" && !slices.ContainsFunc(p.m.Host.Local, func(a netip.Addr) bool { return a.String() == src }) {
		return fmt.Errorf("src %s is not an address of the host", src)
	}
	p.m.Host.LocalPrefixes = append(p.m.Host.LocalPrefixes, prefix)
	return nil
}

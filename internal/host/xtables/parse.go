package xtables

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strings"
)

// Table is a table as read: its chains by name.
type Table map[string]Chain

// Chain is a chain as read.
type Chain struct {
	// Policy is ACCEPT or DROP for a built-in chain, empty for others.
	Policy string
	// Rules are the rules in order, each the text after "-A CHAIN ".
	Rules []string
}

// ErrTruncated means that the last table does not end with COMMIT, so rules may be missing.
var ErrTruncated = errors.New("iptables-save output ends without COMMIT")

// ParseSave parses the output of iptables-save for one or more tables. It reads a stream and
// allocates once per rule. It ignores counters. A rule with a comment that contains line breaks,
// which other programs may write, is one rule.
func ParseSave(r io.Reader) (map[string]Table, error) {
	p := parser{in: bufio.NewReaderSize(r, 64<<10), tables: make(map[string]Table)}
	for {
		line, err := p.in.ReadString('\n')
		if line != "" {
			p.n++
			if perr := p.line(strings.TrimSuffix(line, "\n")); perr != nil {
				return nil, fmt.Errorf("iptables-save output, line %d: %w", p.n, perr)
			}
		}
		switch {
		case err == io.EOF && (p.table != "" || p.open != ""):
			return nil, ErrTruncated
		case err == io.EOF:
			return p.tables, nil
		case err != nil:
			return nil, fmt.Errorf("read iptables-save output: %w", err)
		}
	}
}

// ParseTable is ParseSave for one table. It returns nil if the output has no table of that name.
func ParseTable(r io.Reader, name string) (Table, error) {
	all, err := ParseSave(r)
	return all[name], err
}

type parser struct {
	in     *bufio.Reader
	n      int
	tables map[string]Table
	table  string // name of the table that is being read, empty between tables
	chains map[string]*Chain
	open   string // a rule whose quotes are not closed yet
	last   string // the name of the previous rule's chain: rules come in runs
	chain  *Chain // the chain of that name
}

func (p *parser) line(l string) error {
	if p.open != "" {
		l, p.open = p.open+"\n"+l, ""
		return p.rule(l)
	}
	switch {
	case strings.TrimSpace(l) == "" || l[0] == '#':
		return nil
	case l[0] == '*':
		return p.begin(strings.TrimSpace(l[1:]))
	case p.table == "":
		return fmt.Errorf("%q is outside of a table", l)
	case l[0] == ':':
		return p.declare(l[1:])
	case l[0] == '[':
		_, rest, ok := strings.Cut(l, "] ")
		if !ok {
			return fmt.Errorf("counters without a rule: %q", l)
		}
		return p.rule(rest)
	case strings.TrimSpace(l) == "COMMIT":
		p.commit()
		return nil
	}
	return p.rule(l)
}

func (p *parser) begin(name string) error {
	if p.table != "" {
		return fmt.Errorf("table %s begins inside of table %s", name, p.table)
	}
	if _, twice := p.tables[name]; twice || name == "" {
		return fmt.Errorf("table %q has no name or comes twice", name)
	}
	p.table, p.chains, p.last, p.chain = name, make(map[string]*Chain), "", nil
	return nil
}

func (p *parser) declare(l string) error {
	f := strings.Fields(l)
	if len(f) < 2 {
		return fmt.Errorf("chain without a policy: %q", l)
	}
	if p.chains[f[0]] != nil {
		return fmt.Errorf("chain %s comes twice", f[0])
	}
	c := &Chain{}
	if f[1] != "-" {
		c.Policy = f[1]
	}
	p.chains[f[0]] = c
	return nil
}

func (p *parser) rule(l string) error {
	rest, ok := strings.CutPrefix(l, "-A ")
	if !ok {
		return fmt.Errorf("%q is not a rule", l)
	}
	if quoteOpen(rest) {
		p.open = l
		return nil
	}
	name, rule, _ := strings.Cut(rest, " ")
	if p.chain == nil || name != p.last {
		c := p.chains[name]
		if c == nil {
			return fmt.Errorf("rule in chain %q, which is not declared", name)
		}
		p.last, p.chain = name, c
	}
	p.chain.Rules = append(p.chain.Rules, rule)
	return nil
}

func (p *parser) commit() {
	t := make(Table, len(p.chains))
	for name, c := range p.chains {
		t[name] = *c
	}
	p.tables[p.table] = t
	p.table, p.chains, p.chain = "", nil, nil
}

// quoteOpen returns whether a double quote is open at the end of the text. iptables-save escapes
// quotes inside quotes with a backslash, and does not escape line breaks.
func quoteOpen(s string) bool {
	i := strings.IndexByte(s, '"')
	if i < 0 {
		return false
	}
	open := false
	for ; i < len(s); i++ {
		switch {
		case s[i] == '"':
			open = !open
		case s[i] == '\\' && open:
			i++
		}
	}
	return open
}

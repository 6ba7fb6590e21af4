package xtables

import (
	"context"
	"errors"
	"strings"
)

// Exchange swaps two prefixes of names: names of chains, and of the sets and lists in rules. So a
// program whose rules use one prefix can write them with the other one, and never sees or changes
// chains that have the first prefix in the kernel. The zero Exchange changes nothing. Applying an
// Exchange twice gives the original.
type Exchange struct {
	a, b     string
	replacer *strings.Replacer
}

// NewExchange returns the Exchange of a and b. Neither may be a prefix of the other.
func NewExchange(a, b string) Exchange {
	if a == b {
		return Exchange{}
	}
	var pairs []string
	// Names of interfaces stay: users choose them. Comments stay because they are quoted.
	for _, before := range []string{"-i ", "-o "} {
		pairs = append(pairs, before+a, before+a, before+b, before+b)
	}
	for _, before := range []string{" ", "\n:"} {
		pairs = append(pairs, before+a, before+b, before+b, before+a)
	}
	return Exchange{a, b, strings.NewReplacer(pairs...)}
}

// Name exchanges the prefix of a name.
func (x Exchange) Name(name string) string {
	if x.replacer == nil {
		return name
	}
	if rest, ok := strings.CutPrefix(name, x.a); ok {
		return x.b + rest
	}
	if rest, ok := strings.CutPrefix(name, x.b); ok {
		return x.a + rest
	}
	return name
}

// Text exchanges the prefixes in input of iptables-restore, a line of it, or a rule.
func (x Exchange) Text(s string) string {
	if x.replacer == nil {
		return s
	}
	return x.replacer.Replace(s)
}

// Table exchanges the prefixes in a table that was read.
func (x Exchange) Table(t Table) Table {
	if x.replacer == nil || t == nil {
		return t
	}
	out := make(Table, len(t))
	for name, c := range t {
		rules := make([]string, len(c.Rules))
		for i, r := range c.Rules {
			rules[i] = x.Text(r)
		}
		c.Rules = rules
		out[x.Name(name)] = c
	}
	return out
}

// failure exchanges the prefixes in the line of a RestoreError, so that it is the line that the
// caller wrote.
func (x Exchange) failure(err error) error {
	var re *RestoreError
	if x.replacer != nil && errors.As(err, &re) {
		exchanged := *re
		exchanged.LineText = x.Text(re.LineText)
		return &exchanged
	}
	return err
}

// Exchanged returns t with exchanged names.
func Exchanged(t Interface, x Exchange) Interface {
	if x.replacer == nil {
		return t
	}
	return exchanged{t, x}
}

type exchanged struct {
	Interface
	x Exchange
}

func (e exchanged) Read(ctx context.Context, table string) (Table, error) {
	t, err := e.Interface.Read(ctx, table)
	return e.x.Table(t), err
}

func (e exchanged) Restore(ctx context.Context, input []byte) error {
	return e.x.failure(e.Interface.Restore(ctx, []byte(e.x.Text(string(input)))))
}

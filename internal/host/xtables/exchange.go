package xtables

import (
	"context"
	"errors"
	"strings"
)

// Exchange lets two prefixes of names change places: of chains, and of the sets and lists that rules name. A program whose rules
// have the one prefix can so write them with the other, and never sees, nor touches, chains that have its own. The zero Exchange
// changes nothing. Applied twice it changes nothing either.
type Exchange struct {
	a, b     string
	replacer *strings.Replacer
}

// NewExchange returns the Exchange of a and b, which do not begin with one another.
func NewExchange(a, b string) Exchange {
	if a == b {
		return Exchange{}
	}
	var pairs []string
	// Names of interfaces, which users choose, stay. Comments stay since no word in them is a word of the rule: they are quoted.
	for _, before := range []string{"-i ", "-o "} {
		pairs = append(pairs, before+a, before+a, before+b, before+b)
	}
	for _, before := range []string{" ", "\n:"} {
		pairs = append(pairs, before+a, before+b, before+b, before+a)
	}
	return Exchange{a, b, strings.NewReplacer(pairs...)}
}

// Name is a name after the exchange.
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

// Text is input of iptables-restore, a line of it, or a rule after the exchange.
func (x Exchange) Text(s string) string {
	if x.replacer == nil {
		return s
	}
	return x.replacer.Replace(s)
}

// Table is what was read after the exchange.
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

// failure is the error of a restore, whose line is one that the caller wrote.
func (x Exchange) failure(err error) error {
	var re *RestoreError
	if x.replacer != nil && errors.As(err, &re) {
		own := *re
		own.LineText = x.Text(re.LineText)
		return &own
	}
	return err
}

// Exchanged returns t as it looks through x.
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

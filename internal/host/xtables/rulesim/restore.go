package rulesim

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// The limits of iptables-restore's line reader.
const (
	maxLine  = 10239
	maxWord  = 1023
	maxWords = 254
)

// Refusal is the error of Restore.
type Refusal struct {
	// Line is the number of the refused line, from 1, and Text the line itself.
	Line int
	Text string
	Err  error
}

func (r *Refusal) Error() string { return fmt.Sprintf("line %d %q: %v", r.Line, r.Text, r.Err) }

// Restore does what `iptables-restore --noflush` does with text: a chain that is declared is made, or emptied if it is
// there and not built in; other rules stay. Each section takes effect at its COMMIT; an error names the line, and the
// sections committed before it remain. The error is a *Refusal.
func (rs *Ruleset) Restore(text string) error {
	var cur *table
	for i, line := range strings.Split(text, "\n") {
		if len(line) > maxLine {
			return &Refusal{i + 1, line, fmt.Errorf("longer than %d bytes", maxLine)}
		}
		var err error
		switch {
		case line == "" || line[0] == '#':
		case line[0] == '*':
			if cur != nil {
				err = errors.New("COMMIT expected")
			} else if t := rs.tables[line[1:]]; t == nil {
				err = fmt.Errorf("unknown table %q", line[1:])
			} else {
				cur = t.edit()
			}
		case cur == nil:
			err = errors.New("no table")
		case line == "COMMIT":
			if err = cur.check(); err == nil {
				cur.owned = nil
				rs.tables[cur.name], cur = cur, nil
			}
		case line[0] == ':':
			err = cur.declare(line[1:])
		default:
			err = rs.command(cur, line)
		}
		if err != nil {
			return &Refusal{i + 1, line, err}
		}
	}
	if cur != nil {
		return &Refusal{strings.Count(text, "\n") + 1, "", fmt.Errorf("table %s: COMMIT expected at the end", cur.name)}
	}
	return nil
}

// declare carries out ":CHAIN POLICY [packets:bytes]".
func (t *table) declare(line string) error {
	f := strings.Fields(line)
	if len(f) != 2 && len(f) != 3 {
		return errors.New("want :CHAIN POLICY [packets:bytes]")
	}
	if len(f) == 3 {
		if err := counters(f[2]); err != nil {
			return err
		}
	}
	name, policy := f[0], f[1]
	if slices.Contains(hooks[t.name], name) {
		if policy == "-" {
			return nil
		}
		return t.setPolicy(name, policy)
	}
	if policy != "-" {
		return fmt.Errorf("policy %q for a chain that is not built in", policy)
	}
	if c := t.own(name); c != nil {
		t.flush(c)
		return nil
	}
	return t.create(name)
}

func (t *table) setPolicy(name, policy string) error {
	c := t.own(name)
	switch {
	case c == nil || c.policy == "":
		return fmt.Errorf("no built-in chain %q", name)
	case policy != "ACCEPT" && policy != "DROP":
		return fmt.Errorf("policy %q: want ACCEPT or DROP", policy)
	}
	c.policy = policy
	return nil
}

func counters(s string) error {
	p, b, ok := strings.Cut(strings.TrimSuffix(strings.TrimPrefix(s, "["), "]"), ":")
	_, errP := strconv.ParseUint(p, 10, 64)
	_, errB := strconv.ParseUint(b, 10, 64)
	if !ok || errP != nil || errB != nil || s != "["+p+":"+b+"]" {
		return fmt.Errorf("counters %q: want [packets:bytes]", s)
	}
	return nil
}

// command carries out one line such as "-A CHAIN ...".
func (rs *Ruleset) command(t *table, line string) error {
	if line[0] == '[' {
		c, rest, _ := strings.Cut(line, " ")
		if err := counters(c); err != nil {
			return err
		}
		line = rest
	}
	w, err := words(line)
	if err != nil {
		return err
	}
	if len(w) == 1 && w[0] == "-F" {
		for name := range t.chains {
			t.flush(t.own(name))
		}
		return nil
	}
	if len(w) < 2 {
		return errors.New("want a command and a chain")
	}
	cmd, name, args := w[0], w[1], w[2:]
	switch cmd {
	case "-A", "-I", "-D":
		return rs.ruleCommand(t, cmd, name, args)
	case "-P":
		if len(args) != 1 {
			return errors.New("want -P CHAIN POLICY")
		}
		return t.setPolicy(name, args[0])
	case "-N", "-F", "-X":
		if len(args) != 0 {
			return fmt.Errorf("unexpected %q", args[0])
		}
		return t.chainCommand(cmd, name)
	}
	return fmt.Errorf("unknown command %q", cmd)
}

func (t *table) chainCommand(cmd, name string) error {
	switch cmd {
	case "-N":
		return t.create(name)
	case "-X":
		return t.remove(name)
	}
	c := t.own(name)
	if c == nil {
		return fmt.Errorf("no chain %q", name)
	}
	t.flush(c)
	return nil
}

// ruleCommand carries out -A CHAIN rule, -I CHAIN [n] rule, -D CHAIN n and -D CHAIN rule. (-R is not known: the nft
// userland refuses it for a rule that the same section made.)
func (rs *Ruleset) ruleCommand(t *table, cmd, name string, args []string) error {
	c := t.own(name)
	if c == nil {
		return fmt.Errorf("no chain %q", name)
	}
	at, given := 1, false
	if cmd != "-A" && len(args) > 0 {
		if n, err := strconv.Atoi(args[0]); err == nil {
			if n < 1 {
				return fmt.Errorf("rule number %d", n)
			}
			at, given, args = n, true, args[1:]
		}
	}
	switch {
	case cmd == "-D" && given && len(args) > 0:
		return fmt.Errorf("unexpected %q", args[0])
	case cmd == "-D" && given && at > len(c.rules), cmd == "-I" && at > len(c.rules)+1:
		return fmt.Errorf("rule number %d, the chain has %d", at, len(c.rules))
	}
	if cmd == "-D" && given {
		t.deleteRule(c, at-1)
		return nil
	}
	r, err := rs.parseRule(t, name, args)
	if err != nil {
		return err
	}
	switch cmd {
	case "-A":
		c.rules = append(c.rules, r)
	case "-I":
		c.rules = slices.Insert(c.rules, at-1, r)
	case "-D":
		i := slices.IndexFunc(c.rules, func(o *rule) bool { return o.text == r.text })
		if i < 0 {
			return errors.New("no such rule")
		}
		t.deleteRule(c, i)
		return nil
	}
	t.ref(r)
	return nil
}

func (t *table) deleteRule(c *chain, i int) {
	t.unref(c.rules[i])
	c.rules = slices.Delete(c.rules, i, i+1)
}

// words splits a line as iptables-restore does: at blanks, but not inside double quotes, where a backslash takes the
// meaning from the next character. A closing quote ends the word.
func words(line string) ([]string, error) {
	var out []string
	var word []byte
	quoted, escaped := false, false
	end := func() {
		out, word = append(out, string(word)), nil
	}
	for i := range len(line) {
		c := line[i]
		switch {
		case escaped:
			word, escaped = append(word, c), false
		case quoted && c == '\\':
			escaped = true
		case c == '"':
			if quoted {
				end()
			}
			quoted = !quoted
		case !quoted && (c == ' ' || c == '\t'):
			if len(word) > 0 {
				end()
			}
		case c == 0 || c == '\r':
			return nil, errors.New("control character")
		default:
			word = append(word, c)
		}
		if len(word) > maxWord {
			return nil, fmt.Errorf("a word is longer than %d bytes", maxWord)
		}
	}
	if quoted {
		return nil, errors.New("quote is not closed")
	}
	if len(word) > 0 {
		end()
	}
	if len(out) > maxWords {
		return nil, fmt.Errorf("more than %d words", maxWords)
	}
	return out, nil
}

// quote prints a word as iptables-save does, so that words reads it again.
func quote(s string) string {
	plain := s != ""
	for _, c := range s {
		if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '_' || c == '-') {
			plain = false
		}
	}
	if plain {
		return s
	}
	var b strings.Builder
	b.WriteByte('"')
	for i := range len(s) {
		if c := s[i]; c == '"' || c == '\\' || c == '\'' {
			b.WriteByte('\\')
		}
		b.WriteByte(s[i])
	}
	b.WriteByte('"')
	return b.String()
}

package rulesim

import (
	"errors"
	"fmt"
	"regexp"
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

// Restore does what `iptables-restore --noflush` does with text. Declaring a chain creates it, or
// empties it if it exists and is not built in; other rules stay. Each section takes effect at its
// COMMIT. After an error, the sections committed before it remain. The error is a *Refusal.
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

// declare executes ":CHAIN POLICY [packets:bytes]".
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

// command executes one line such as "-A CHAIN ...".
func (rs *Ruleset) command(t *table, line string) error {
	w, err := words(line)
	if err != nil {
		return err
	}
	if len(w) < 2 {
		return errors.New("want a command and a chain")
	}
	cmd, name, args := w[0], w[1], w[2:]
	c := t.own(name)
	if c == nil {
		return fmt.Errorf("no chain %q", name)
	}
	switch cmd {
	case "-A":
		return rs.insert(t, c, len(c.rules), args)
	case "-I":
		at := 0
		if len(args) > 0 {
			if n, err := strconv.Atoi(args[0]); err == nil {
				at, args = n-1, args[1:]
			}
		}
		return rs.insert(t, c, at, args)
	case "-D":
		return rs.deleteRule(t, c, args)
	case "-P":
		if len(args) != 1 {
			return errors.New("want -P CHAIN POLICY")
		}
		return t.setPolicy(name, args[0])
	}
	if len(args) != 0 {
		return fmt.Errorf("unexpected %q", args[0])
	}
	switch cmd {
	case "-F":
		t.flush(c)
		return nil
	case "-X":
		return t.remove(name)
	}
	return fmt.Errorf("unknown command %q", cmd)
}

// insert puts a rule before the one at an index.
func (rs *Ruleset) insert(t *table, c *chain, at int, args []string) error {
	if at < 0 || at > len(c.rules) {
		return fmt.Errorf("rule number %d, the chain has %d", at+1, len(c.rules))
	}
	r, err := rs.parseRule(t, c.name, args)
	if err != nil {
		return err
	}
	c.rules = slices.Insert(c.rules, at, r)
	t.ref(r)
	return nil
}

func (rs *Ruleset) deleteRule(t *table, c *chain, args []string) error {
	r, err := rs.parseRule(t, c.name, args)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(c.rules, func(o *rule) bool { return o.text == r.text })
	if i < 0 {
		return errors.New("no such rule")
	}
	t.unref(c.rules[i])
	c.rules = slices.Delete(c.rules, i, i+1)
	return nil
}

// words splits a line as iptables-restore does: at blanks, but not inside double quotes, where a
// backslash escapes the next character. A closing quote ends the word.
func words(line string) ([]string, error) {
	if strings.ContainsAny(line, "\x00\r") {
		return nil, errors.New("control character")
	}
	var out []string
	for line = strings.TrimLeft(line, " \t"); line != ""; line = strings.TrimLeft(line, " \t") {
		word, rest, err := cutWord(line)
		if err != nil {
			return nil, err
		}
		if len(word) > maxWord {
			return nil, fmt.Errorf("a word is longer than %d bytes", maxWord)
		}
		out, line = append(out, word), rest
	}
	if len(out) > maxWords {
		return nil, fmt.Errorf("more than %d words", maxWords)
	}
	return out, nil
}

// cutWord returns the first word of a line without its quotes, and what follows it.
func cutWord(line string) (word, rest string, err error) {
	var out []byte
	quoted := false
	for i := 0; i < len(line); i++ {
		switch c := line[i]; {
		case quoted && c == '\\' && i+1 < len(line):
			i++
			out = append(out, line[i])
		case c == '"' && quoted:
			return string(out), line[i+1:], nil
		case c == '"':
			quoted = true
		case !quoted && (c == ' ' || c == '\t'):
			return string(out), line[i:], nil
		default:
			out = append(out, c)
		}
	}
	if quoted {
		return "", "", errors.New("quote is not closed")
	}
	return string(out), "", nil
}

// quote prints a word as iptables-save does, so that words can parse it.
func quote(s string) string {
	if plainWord.MatchString(s) {
		return s
	}
	return `"` + strings.NewReplacer(`"`, `\"`, `\`, `\\`, `'`, `\'`).Replace(s) + `"`
}

var plainWord = regexp.MustCompile(`^[a-zA-Z0-9_-]+$`)

package main

import (
	_ "embed"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

//go:embed exceptions.txt
var exceptionsText string

// exception is a test that is known to fail.
type exception struct {
	who    string
	test   *regexp.Regexp
	reason string
}

func parseExceptions(text string) ([]exception, error) {
	var all []exception
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\n")
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		fields := strings.Split(line, "\t")
		if len(fields) != 3 || fields[2] == "" {
			return nil, fmt.Errorf("exception %q: want who, a regular expression and a reason, separated by tabs", line)
		}
		test, err := regexp.Compile(fields[1])
		if err != nil {
			return nil, fmt.Errorf("exception %q: %w", line, err)
		}
		all = append(all, exception{who: fields[0], test: test, reason: fields[2]})
	}
	return all, nil
}

// judge moves the failures that are known to the expected ones, with the reason that is on record,
// and returns how many are left. A mistake in exceptions.txt, which a test checks, excuses nothing.
func (r *results) judge(who string) int {
	exceptions, err := parseExceptions(exceptionsText)
	if err != nil {
		return len(r.failed)
	}
	r.failed = slices.DeleteFunc(r.failed, func(s spec) bool {
		for _, e := range exceptions {
			if (e.who == "*" || e.who == who) && e.test.MatchString(s.name) {
				r.expected = append(r.expected, spec{name: s.name, reason: e.reason})
				return true
			}
		}
		return false
	})
	return len(r.failed)
}

// print writes what failed and was skipped, with reasons, and the numbers.
func (r results) print(w io.Writer) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, part := range []struct {
		state string
		specs []spec
	}{{"FAILED", r.failed}, {"failed as expected", r.expected}, {"skipped", r.skipped}} {
		for _, s := range part.specs {
			fmt.Fprintf(t, "%s\t%s\t%s\n", part.state, s.name, s.reason)
		}
	}
	t.Flush()
	fmt.Fprintf(w, "%d passed, %d failed, %d failed as expected, %d skipped, in %s\n",
		len(r.passed), len(r.failed), len(r.expected), len(r.skipped), r.duration.Round(time.Second))
}

// row is the run's line in the table of results.
func (r results) row(install, mode, version string) []string {
	proxy := "Fairlead, " + install
	if install == "kube-proxy" {
		proxy = "kube-proxy"
	}
	return []string{
		proxy, mode, version, r.date.UTC().Format(time.DateOnly), fmt.Sprint(len(r.passed)), fmt.Sprint(len(r.failed) + len(r.expected)),
		fmt.Sprint(len(r.skipped)), r.duration.Round(time.Second).String(),
	}
}

// The table of results is between these lines of the page.
const (
	tableBegin = "<!-- results: make conformance writes these lines -->"
	tableEnd   = "<!-- end of results -->"
)

// updateTable puts a row into the table of a page, in place of the one of the same proxy and mode.
func updateTable(path string, row []string) error {
	content, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	before, rest, found := strings.Cut(string(content), tableBegin)
	table, after, closed := strings.Cut(rest, tableEnd)
	if !found || !closed {
		return errors.New("update " + path + ": no table of results in it")
	}
	lines := strings.Split(strings.TrimSpace(table), "\n")
	if len(lines) < 2 {
		return errors.New("update " + path + ": the table of results has no head")
	}
	key := "| " + strings.Join(row[:2], " | ") + " |"
	rows := slices.DeleteFunc(lines[2:], func(l string) bool { return strings.HasPrefix(l, key) })
	rows = append(rows, "| "+strings.Join(row, " | ")+" |")
	slices.Sort(rows)
	text := before + tableBegin + "\n\n" + strings.Join(append(lines[:2:2], rows...), "\n") + "\n\n" + tableEnd + after
	return os.WriteFile(path, []byte(text), 0o644)
}

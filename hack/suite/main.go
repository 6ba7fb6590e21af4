// Command suite runs targets of the Makefile one after the other, continues after a failure, and
// lists all failures at the end, so that a failing package hides no other one and nobody has to
// search through thousands of lines. It passes on the output of the targets. The exit code is 1 if
// a target failed.
//
// Usage: suite TARGET...
package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"regexp"
	"slices"
	"strings"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	parts := runAll(ctx, os.Args[1:], os.Stdout, os.Stderr)
	if !summarize(os.Stdout, parts) {
		os.Exit(1)
	}
}

// part is the result of one target.
type part struct {
	target string
	// err is the target's error, nil if it passed.
	err error
	// failures are the failed packages with their tests. notes are the target's messages about
	// skipped tests.
	failures, notes []string
}

// runAll runs the targets until the context is done.
func runAll(ctx context.Context, targets []string, stdout, stderr io.Writer) []part {
	var parts []part
	for _, target := range targets {
		if ctx.Err() != nil {
			parts = append(parts, part{target: target, err: context.Cause(ctx)})
			continue
		}
		r := reader{}
		c := exec.CommandContext(ctx, "make", "--no-print-directory", "--keep-going", target)
		// make then stops its children and removes incomplete files.
		c.Cancel = func() error { return c.Process.Signal(syscall.SIGTERM) }
		c.Stdout, c.Stderr = io.MultiWriter(stdout, &r), stderr
		err := c.Run()
		parts = append(parts, part{target: target, err: err, failures: r.failures, notes: r.notes})
	}
	return parts
}

// summarize prints what failed, and returns true if nothing did.
func summarize(w io.Writer, parts []part) (ok bool) {
	var passed []string
	fmt.Fprintln(w)
	for _, p := range parts {
		if p.err == nil && len(p.failures) == 0 {
			passed = append(passed, p.target)
			continue
		}
		fmt.Fprintf(w, "FAILED  %s: %v\n", p.target, p.err)
		for _, f := range p.failures {
			fmt.Fprintf(w, "            %s\n", f)
		}
	}
	if len(passed) > 0 {
		fmt.Fprintf(w, "passed  %s\n", strings.Join(passed, ", "))
	}
	for _, p := range parts {
		for _, n := range p.notes {
			fmt.Fprintln(w, n)
		}
	}
	return len(passed) == len(parts)
}

// reader finds failures in the output of "go test" and hack/guest/jobs.
type reader struct {
	failures, notes []string
	// partial is an incomplete line, tests are the failed tests of the current package.
	partial []byte
	tests   []string
}

var (
	failedTest = regexp.MustCompile(`^ *--- FAIL: (\S+)`)
	// When a test panics or a package times out, the output lists the running tests.
	panicked    = regexp.MustCompile(`^panic: (.*)`)
	runningTest = regexp.MustCompile(`^\t\t(Test\S+) \(`)
	failedPkg   = regexp.MustCompile(`^FAIL\t(\S+)( \[.*\])?`)
	passedPkg   = regexp.MustCompile(`^(ok  |\?   )\t`)
	note        = regexp.MustCompile(`^\*\*\* `)
)

func (r *reader) Write(p []byte) (int, error) {
	r.partial = append(r.partial, p...)
	for {
		line, rest, found := bytes.Cut(r.partial, []byte("\n"))
		if !found {
			return len(p), nil
		}
		r.line(string(line))
		r.partial = rest
	}
}

func (r *reader) line(s string) {
	if m := failedTest.FindStringSubmatch(s); m != nil {
		// A subtest is printed after its parent.
		if n := len(r.tests); n > 0 && strings.HasPrefix(m[1], r.tests[n-1]+"/") {
			r.tests = r.tests[:n-1]
		}
		r.test(m[1])
	} else if m := panicked.FindStringSubmatch(s); m != nil {
		r.test("panic: " + m[1])
	} else if m := runningTest.FindStringSubmatch(s); m != nil {
		r.test(m[1])
	} else if m := failedPkg.FindStringSubmatch(s); m != nil {
		failure := m[1] + m[2]
		if len(r.tests) > 0 {
			failure += ": " + strings.Join(r.tests, ", ")
		}
		r.failures, r.tests = append(r.failures, failure), nil
	} else if passedPkg.MatchString(s) {
		r.tests = nil
	} else if note.MatchString(s) {
		r.notes = append(r.notes, s)
	}
}

func (r *reader) test(name string) {
	if !slices.Contains(r.tests, name) {
		r.tests = append(r.tests, name)
	}
}

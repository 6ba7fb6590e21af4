package main

import (
	"bytes"
	"context"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// output is what "go test" and hack/uml/jobs print.
const output = `ok  	example/a	0.1s
--- FAIL: TestOne (0.00s)
    one_test.go:7: no
--- FAIL: TestTwo (0.00s)
    --- FAIL: TestTwo/x (0.00s)
        --- FAIL: TestTwo/x/deep (0.00s)
    --- FAIL: TestTwo/y (0.00s)
FAIL
FAIL	example/b	0.2s
FAIL	example/c [build failed]
?   	example/d	[no test files]
panic: test timed out after 5m0s
	running tests:
		TestHangs (5m0s)

FAIL	example/e	300.004s
    --- FAIL: TestLate (0.00s)
ok  	example/f	0.1s
*** SKIPPED: there is no root
FAIL	example/g	0.2s
FAIL
`

func TestReaderFindsWhatFailed(t *testing.T) {
	want := []string{
		"example/b: TestOne, TestTwo/x/deep, TestTwo/y", "example/c [build failed]",
		"example/e: panic: test timed out after 5m0s, TestHangs", "example/g",
	}
	for _, size := range []int{1, 7, len(output)} { // however it comes in
		var r reader
		for rest := output; rest != ""; {
			n, err := r.Write([]byte(rest[:min(size, len(rest))]))
			if err != nil {
				t.Fatal(err)
			}
			rest = rest[n:]
		}
		if diff := cmp.Diff(want, r.failures); diff != "" {
			t.Errorf("in pieces of %d bytes (-want +got):\n%s", size, diff)
		}
		if diff := cmp.Diff([]string{"*** SKIPPED: there is no root"}, r.notes); diff != "" {
			t.Errorf("notes (-want +got):\n%s", diff)
		}
	}
}

// TestFailureHidesNothing runs the targets of a temporary Makefile.
func TestFailureHidesNothing(t *testing.T) {
	t.Chdir(t.TempDir())
	makefile := `
first:
	@printf -- '--- FAIL: TestX (0.00s)\nFAIL\texample/a\t0.1s\n'; exit 1
second:
	@echo second ran; echo '*** SKIPPED: half of it'
parts: one two
one:
	@exit 3
two:
	@echo two ran
`
	if err := os.WriteFile("Makefile", []byte(makefile), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Setenv("MAKEFLAGS", "")
	var stdout, stderr, summary bytes.Buffer
	parts := runAll(t.Context(), []string{"first", "second", "parts"}, &stdout, &stderr)
	ok := summarize(&summary, parts)
	want := `
FAILED  first: exit status 2
            example/a: TestX
FAILED  parts: exit status 2
passed  second
*** SKIPPED: half of it
`
	if diff := cmp.Diff(want, summary.String()); diff != "" || ok {
		t.Errorf("ok is %v, summary (-want +got):\n%s", ok, diff)
	}
	for _, s := range []string{"second ran\n", "two ran\n", "FAIL\texample/a\t0.1s\n"} {
		if !strings.Contains(stdout.String(), s) {
			t.Errorf("%q is missing in the output:\n%s%s", s, stdout.String(), stderr.String())
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if summarize(&summary, runAll(ctx, []string{"second"}, &stdout, &stderr)) {
		t.Error("what did not run, since a signal came, is said to have passed")
	}
}

func TestSummaryOfSuccess(t *testing.T) {
	var w bytes.Buffer
	if ok := summarize(&w, []part{{target: "lint"}, {target: "unit"}}); !ok || w.String() != "\npassed  lint, unit\n" {
		t.Errorf("got %v, %q", ok, w.String())
	}
}

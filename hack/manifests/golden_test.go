package main

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// manifests is the directory that is rendered.
const manifests = "../../manifests"

// TestGolden runs the command in the first line of each file in testdata, such as "# kustomize
// kubeadm nftables", and compares the output with the rest of the file.
func TestGolden(t *testing.T) {
	t.Chdir(manifests)
	for _, file := range files(t, "testdata/*.yaml") {
		t.Run(filepath.Base(file), func(t *testing.T) {
			words, want := split(t, file)
			out, err := run(strings.Fields(words))
			if err != nil {
				t.Fatal(err)
			}
			got := string(out)
			if *update {
				if err := os.WriteFile(file, []byte("# "+words+"\n"+got), 0o644); err != nil {
					t.Fatal(err)
				}
			} else if got != want {
				t.Errorf("%s differs from the output of %q; run make manifests and review the change. Got:\n%s", file, words, got)
			}
		})
	}
}

// TestRefused renders the chart with invalid values. The error must contain the first line of the
// file.
func TestRefused(t *testing.T) {
	t.Chdir(manifests)
	for _, file := range files(t, "testdata/refused/*.yaml") {
		t.Run(filepath.Base(file), func(t *testing.T) {
			want, _ := split(t, file)
			out, err := run([]string{"chart", "chart", file})
			if err == nil {
				t.Fatalf("accepted:\n%s", out)
			}
			if !strings.Contains(err.Error(), want) {
				t.Errorf("error %q, want %q in it", err, want)
			}
		})
	}
}

func TestUsage(t *testing.T) {
	for _, args := range [][]string{nil, {"kustomize"}, {"helm", manifests}, {"kustomize", manifests}, {"chart", manifests}} {
		if out, err := run(args); err == nil {
			t.Errorf("%q: no error, but\n%s", args, out)
		}
	}
}

func files(t *testing.T, pattern string) []string {
	t.Helper()
	found, err := filepath.Glob(pattern)
	if err != nil || len(found) == 0 {
		t.Fatalf("%s: found %d files: %v", pattern, len(found), err)
	}
	return found
}

// split separates the comment in the first line of a file from the rest.
func split(t *testing.T, file string) (first, rest string) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	first, rest, _ = strings.Cut(string(text), "\n")
	comment, ok := strings.CutPrefix(first, "# ")
	if !ok {
		t.Fatalf("%s: the first line %q is not a comment", file, first)
	}
	return comment, rest
}

// Package docs tests what the pages in this directory say.
package docs

import (
	"flag"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/pflag"

	"github.com/fairlead/fairlead/internal/config"
	"github.com/fairlead/fairlead/internal/fwd"
)

var update = flag.Bool("update", false, "rewrite the tables of flags.md")

// The tables of flags.md stand between these lines.
const begin, end = "<!-- made by go test ./docs -update -->\n", "<!-- end -->\n"

// TestFlags compares the tables of flags.md with the daemon's flags and the fields of KubeProxyConfiguration.
func TestFlags(t *testing.T) {
	page := read(t, "flags.md")
	before, rest, found := strings.Cut(page, begin)
	have, after, ended := strings.Cut(rest, end)
	if !found || !ended {
		t.Fatal("flags.md has no place for the tables")
	}
	want := tables()
	if *update {
		if err := os.WriteFile("flags.md", []byte(before+begin+want+end+after), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if d := cmp.Diff(want, have); d != "" {
		t.Errorf("flags.md is not up to date, run go test ./docs -update (-want +got):\n%s", d)
	}
	fs := pflag.NewFlagSet("fairlead", pflag.ContinueOnError)
	config.Default().Bind(fs)
	fs.VisitAll(func(f *pflag.Flag) {
		if !strings.Contains(have, "`--"+f.Name+"`") {
			t.Errorf("--%s is missing", f.Name)
		}
	})
	for _, field := range config.Fields() {
		if !strings.Contains(have, "`"+field+"`") {
			t.Errorf("the field %s is missing", field)
		}
	}
}

// tables writes all flags and fields, under their headings.
func tables() string {
	var b strings.Builder
	group := ""
	for _, r := range config.References() {
		if r.Group != group {
			group = r.Group
			fmt.Fprintf(&b, "\n## %s\n\n| Flag | Field | Default | Reloaded | Meaning |\n| --- | --- | --- | --- | --- |\n", group)
		}
		var names []string
		for _, n := range []string{r.Flag, r.Alias} {
			if n != "" {
				names = append(names, "--"+n)
			}
		}
		if r.Short != "" {
			names = append(names, "-"+r.Short)
		}
		meaning := strings.ToUpper(r.Usage[:1]) + r.Usage[1:] + "."
		if r.More != "" {
			meaning += " " + strings.ToUpper(r.More[:1]) + r.More[1:]
			if !strings.HasSuffix(r.More, ".") {
				meaning += "."
			}
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s |\n", code(names...), code(r.Fields...), code(r.Default), r.Reload, meaning)
	}
	return b.String() + "\n"
}

// code quotes names for Markdown.
func code(names ...string) string {
	var out []string
	for _, n := range names {
		if n != "" {
			out = append(out, "`"+n+"`")
		}
	}
	return strings.Join(out, ", ")
}

// TestReasons looks for the handle of each rule in datapath.md.
func TestReasons(t *testing.T) {
	page := read(t, "datapath.md")
	for r := fwd.Reason(0); ; r++ {
		handle, _, _ := strings.Cut(r.String(), ":")
		if handle == fmt.Sprintf("reason(%d)", r) {
			if r == 0 {
				t.Fatal("there are no reasons")
			}
			return
		}
		if !strings.Contains(page, "| `"+handle+"` |") {
			t.Errorf("no row for %s", handle)
		}
	}
}

// TestLinks follows the relative links of all pages.
func TestLinks(t *testing.T) {
	link := regexp.MustCompile(`\]\(([^)#:]+)(?:#([^)]*))?\)`)
	entries, err := os.ReadDir(".")
	if err != nil {
		t.Fatal(err)
	}
	pages := []string{"../README.md"}
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), ".md") {
			pages = append(pages, e.Name())
		}
	}
	for _, page := range pages {
		for _, m := range link.FindAllStringSubmatch(read(t, page), -1) {
			target := m[1]
			if page == "../README.md" {
				target = "../" + target
			}
			if _, err := os.Stat(target); err != nil {
				t.Errorf("%s: link to %s: %v", page, m[1], err)
				continue
			}
			if m[2] != "" && !hasAnchor(read(t, target), m[2]) {
				t.Errorf("%s: %s has no heading #%s", page, target, m[2])
			}
		}
	}
}

// hasAnchor says whether a heading of the page gets that name on GitHub.
func hasAnchor(page, anchor string) bool {
	for line := range strings.Lines(page) {
		if !strings.HasPrefix(line, "#") {
			continue
		}
		name := strings.ToLower(strings.TrimSpace(strings.TrimLeft(line, "#")))
		name = regexp.MustCompile(`[^a-z0-9 _-]`).ReplaceAllString(name, "")
		if strings.ReplaceAll(name, " ", "-") == anchor {
			return true
		}
	}
	return false
}

func read(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

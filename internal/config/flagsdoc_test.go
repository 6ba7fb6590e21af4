package config

import (
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/kube-proxy/config/v1alpha1"
)

// flagsPage describes all flags; its tables are between the lines tablesBegin and tablesEnd.
const (
	flagsPage   = "../../docs/flags.md"
	tablesBegin = "<!-- made by go test ./internal/config -update -->\n"
	tablesEnd   = "<!-- end -->\n"
)

// allFields returns the paths of all fields of KubeProxyConfiguration, sorted.
func allFields() []string {
	var out []string
	for path := range fieldsOf(new(v1alpha1.KubeProxyConfiguration)) {
		out = append(out, path)
	}
	slices.Sort(out)
	return out
}

// TestFlagsPage compares the tables of docs/flags.md with the settings, and checks that every flag
// and every field of KubeProxyConfiguration is in them.
func TestFlagsPage(t *testing.T) {
	page, err := os.ReadFile(flagsPage)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, found := strings.Cut(string(page), tablesBegin)
	have, after, ended := strings.Cut(rest, tablesEnd)
	if !found || !ended {
		t.Fatalf("%s has no place for the tables", flagsPage)
	}
	want := tables()
	if *update {
		if err := os.WriteFile(flagsPage, []byte(before+tablesBegin+want+tablesEnd+after), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if d := cmp.Diff(want, have); d != "" {
		t.Errorf("%s is out of date, run go test ./internal/config -update (-want +got):\n%s", flagsPage, d)
	}
	names := allFields()
	for _, s := range Default().settings {
		for _, n := range []string{s.flag, s.alias} {
			if n != "" {
				names = append(names, "--"+n)
			}
		}
	}
	for _, n := range names {
		if !strings.Contains(have, "`"+n+"`") {
			t.Errorf("%s is missing", n)
		}
	}
}

// tables returns the tables of all settings, under their headings. Settings that share a flag are
// one row.
func tables() string {
	settings := Default().settings
	var b strings.Builder
	group := ""
	for i, s := range settings {
		sameFlag := func(o *setting) bool { return o.flag == s.flag && s.flag != "" }
		if slices.ContainsFunc(settings[:i], sameFlag) {
			continue
		}
		fields := []string{s.field}
		for _, o := range settings[i+1:] {
			if sameFlag(o) {
				fields = append(fields, o.field)
			}
		}
		if s.group != group {
			group = s.group
			fmt.Fprintf(&b, "\n## %s\n\n| Flag | Field | Default | Reloaded | Meaning |\n| --- | --- | --- | --- | --- |\n", group)
		}
		meaning := sentence(s.usage)
		extra := s.more
		if s.note != "" && s.note != s.usage {
			extra = s.note
		}
		if extra != "" {
			meaning += " " + sentence(extra)
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s |\n", code(dashed("--", s.flag), dashed("--", s.alias), dashed("-", s.short)),
			code(fields...), code(s.def), s.reloaded(), meaning)
	}
	return b.String() + "\n"
}

// reloaded describes when a change in the file is applied without a restart; empty means that the
// setting is not in the file or has no effect.
func (s *setting) reloaded() string {
	always, never := Default(), Default()
	never.Mode, never.DetectMode, never.Gates.LoadBalancerIPMode = ModeNFTables, DetectNodeCIDR, false
	never.BindAddress = netip.IPv6Unspecified()
	switch {
	case s.note != "" || s.field == "":
		return ""
	case s.reload == nil:
		return "no"
	case s.reload(always, never):
		return "yes"
	}
	return "mostly"
}

func sentence(s string) string {
	return strings.TrimSuffix(strings.ToUpper(s[:1])+s[1:], ".") + "."
}

func dashed(dashes, name string) string {
	if name == "" {
		return ""
	}
	return dashes + name
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

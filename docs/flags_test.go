// Package docs tests what the pages in this directory say.
package docs

import (
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/pflag"

	"github.com/fairlead/fairlead/internal/config"
	"github.com/fairlead/fairlead/internal/fwd"
)

// TestFlags compares flags.md with the daemon's flags, both ways, with their defaults.
func TestFlags(t *testing.T) {
	page, _, found := strings.Cut(read(t, "flags.md"), "## Of other commands alone")
	if !found {
		t.Fatal("flags.md has no section about other commands")
	}
	rows := make(map[string]string)
	for _, m := range regexp.MustCompile("(?m)^\\| `--([a-z-]+)`(?:, `-[a-z]`)? \\| (.*?) \\|").FindAllStringSubmatch(page, -1) {
		rows[m[1]] = strings.Trim(m[2], "`")
	}
	fs := pflag.NewFlagSet("fairlead", pflag.ContinueOnError)
	config.Default().Bind(fs)
	fs.VisitAll(func(f *pflag.Flag) {
		said, found := rows[f.Name]
		delete(rows, f.Name)
		switch {
		case !found:
			t.Errorf("--%s is missing", f.Name)
		case f.DefValue != "" && said != f.DefValue:
			t.Errorf("--%s has the default %q, the page says %q", f.Name, f.DefValue, said)
		}
	})
	for name := range rows {
		t.Errorf("--%s is no flag", name)
	}
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

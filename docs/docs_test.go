// Package docs tests what the pages in this directory say.
package docs

import (
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/fairlead/fairlead/internal/fwd"
)

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

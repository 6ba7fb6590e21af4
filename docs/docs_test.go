// Package docs tests the pages in this directory.
package docs

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/fairlead/fairlead/internal/fwd"
)

// TestReasons checks that datapath.md has a row for each rule's handle.
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

// TestWhereToLook checks that the functions in a table of architecture.md are in the files next to
// them.
func TestWhereToLook(t *testing.T) {
	row := regexp.MustCompile(`(?m)^\| .* \| \[.*\]\((.*)\) \| (.*) \|$`)
	rows := row.FindAllStringSubmatch(read(t, "architecture.md"), -1)
	if len(rows) == 0 {
		t.Fatal("architecture.md has no table of files and functions")
	}
	for _, r := range rows {
		source := read(t, r[1])
		for name := range strings.SplitSeq(r[2], ", ") {
			name = strings.Trim(name, "`")
			if !regexp.MustCompile(`(?m)^func (\(.*\) )?` + name + `[\[(]`).MatchString(source) {
				t.Errorf("%s has no function %s", r[1], name)
			}
		}
	}
}

// TestMessages checks that the log messages in a table of operations.md are in the code.
func TestMessages(t *testing.T) {
	_, section, _ := strings.Cut(read(t, "operations.md"), "\n## The log\n")
	section, _, _ = strings.Cut(section, "\n## ")
	section, _, _ = strings.Cut(section, "\n### ")
	var messages []string
	for _, row := range regexp.MustCompile("(?m)^\\| (`.*?) \\|").FindAllStringSubmatch(section, -1) {
		for _, m := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(row[1], -1) {
			messages = append(messages, m[1])
		}
	}
	if len(messages) == 0 {
		t.Fatal("operations.md has no table of messages")
	}
	var code strings.Builder
	for _, root := range []string{"../cmd", "../internal"} {
		err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
			if err == nil && strings.HasSuffix(path, ".go") && !strings.HasSuffix(path, "_test.go") {
				code.WriteString(read(t, path))
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, m := range messages {
		if !strings.Contains(code.String(), `"`+m+`"`) {
			t.Errorf("no log message %q in the code", m)
		}
	}
}

// TestLinks checks the relative links of all pages.
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

// hasAnchor reports whether a heading of the page has this anchor on GitHub.
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

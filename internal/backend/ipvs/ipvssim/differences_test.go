package ipvssim

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// docs/ipvs.md has a table of the same differences in the same words.
func TestDifferencesAreDocumented(t *testing.T) {
	page, err := os.ReadFile("../../../../docs/ipvs.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, ok := strings.Cut(string(page), "\n## What differs from the other modes\n")
	if !ok {
		t.Fatal("docs/ipvs.md has no section on differences")
	}
	section, _, _ = strings.Cut(section, "\n## ")
	var got, want []string
	for line := range strings.Lines(section) {
		if strings.HasPrefix(line, "| `") {
			got = append(got, strings.TrimSpace(line))
		}
	}
	for _, d := range Differences {
		want = append(want, fmt.Sprintf("| `%s` | %s |", d.Name, d.Text))
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("docs/ipvs.md (-Differences +page):\n%s", diff)
	}
}

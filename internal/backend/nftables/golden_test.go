package nftables

import (
	"bytes"
	"regexp"
	"strings"
	"testing"

	"github.com/fairlead/fairlead/internal/backend/backendtest"
	"github.com/fairlead/fairlead/internal/fwd"
)

// emptySet matches a set without elements.
var emptySet = regexp.MustCompile(`(?m)^\t(set|map) .* \{\n(\t\t(typeof|size|flags) .*\n)+\t\}\n`)

// withoutCommon removes from a program what tells nothing about its table: empty sets, the set that
// never changes, and chains of common pools that nothing refers to.
func withoutCommon(fam fwd.Family, text string) string {
	before, after, _ := strings.Cut(text, "\tset "+setEqualBytes+" {\n")
	_, after, _ = strings.Cut(after, "\n\t}\n")
	text = emptySet.ReplaceAllString(before+after, "")
	for _, p := range commonPools[fam.Index()]() {
		head := "\tchain " + p.id.Name + " {\n"
		if at := strings.Index(text, head); at >= 0 && !strings.Contains(text, "goto "+p.id.Name+"\n") && !strings.Contains(text, "goto "+p.id.Name+",") {
			end := at + strings.Index(text[at:], "\n\t}\n") + len("\n\t}\n")
			text = text[:at] + text[end:]
		}
	}
	return text
}

// TestGolden: the programs are input for nft -f, apart from what withoutCommon removes.
func TestGolden(t *testing.T) {
	backendtest.Golden(t, func(t *testing.T, f fwd.Family, _ string, table *fwd.Table) string {
		var b bytes.Buffer
		if err := Render(&b, f, 0, table); err != nil {
			t.Fatal(err)
		}
		return withoutCommon(f, b.String())
	})
}

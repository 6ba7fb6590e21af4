package nftables

import (
	"bytes"
	"strings"
	"testing"

	"github.com/fairlead/fairlead/internal/backend/backendtest"
	"github.com/fairlead/fairlead/internal/fwd"
)

// withoutIdle leaves out the chains that are always there and to which nothing leads in this table, and the set that is always the same.
func withoutIdle(fam fwd.Family, text string) string {
	begin, rest, found := strings.Cut(text, "\tset "+setEqualBytes+" {\n")
	if _, end, closed := strings.Cut(rest, "\n\t}\n"); found && closed {
		text = begin + end
	}
	for _, p := range commonPools[fam.Index()]() {
		head := "\tchain " + p.id.Name + " {\n"
		if at := strings.Index(text, head); at >= 0 && !strings.Contains(text, "goto "+p.id.Name+"\n") && !strings.Contains(text, "goto "+p.id.Name+",") {
			end := at + strings.Index(text[at:], "\n\t}\n") + len("\n\t}\n")
			text = text[:at] + text[end:]
		}
	}
	return text
}

// The programs are as nft -f takes them, without what is always there.
func TestGolden(t *testing.T) {
	backendtest.Golden(t, func(t *testing.T, f fwd.Family, _ string, table *fwd.Table) string {
		var b bytes.Buffer
		if err := Render(&b, f, 0, table); err != nil {
			t.Fatal(err)
		}
		return withoutIdle(f, b.String())
	})
}

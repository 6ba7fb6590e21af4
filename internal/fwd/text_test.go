package fwd_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/fairlead/fairlead/internal/fwd"
	"github.com/fairlead/fairlead/internal/fwdtext"
)

// TestTextRoundTrip proves that a table that is written and read is the same. It is here because
// the random tables are.
func TestTextRoundTrip(t *testing.T) {
	for seed := range uint64(50) {
		table := fwd.RandomTable(seed)
		text := textOf(t, table)
		again, err := fwdtext.Read(strings.NewReader(text))
		if err != nil {
			t.Fatalf("seed %d: %v\n%s", seed, err, text)
		}
		if d := cmp.Diff(text, textOf(t, again)); d != "" {
			t.Fatalf("seed %d: written (-) and read and written again (+):\n%s", seed, d)
		}
		for f := range table.Services() {
			if got := again.Fragment(f.Owner); got == nil || !got.Equal(f) {
				t.Errorf("seed %d: %s is not the same after reading", seed, f.Owner)
			}
		}
		h, want := again.Header(), table.Header()
		if !h.Equal(&want) {
			t.Errorf("seed %d: the header is not the same after reading", seed)
		}
	}
}

func textOf(t *testing.T, table *fwd.Table) string {
	t.Helper()
	var b strings.Builder
	if err := fwdtext.Write(&b, table); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

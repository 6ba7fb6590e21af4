package nft

import (
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/fairlead/fairlead/internal/fwd"
)

// TestElements: elements that were added in any order, some of them twice, are there once, sorted.
func TestElements(t *testing.T) {
	sets := map[string]struct {
		set   Set
		value func(i int) string
	}{
		"set":      {Set{Key: []Field{DestAddr}}, func(int) string { return "" }},
		"map":      {Set{Key: []Field{DestAddr}, Value: []Field{Number}}, func(i int) string { return strings.Repeat(string(rune('a'+i)), 4) }},
		"verdicts": {Set{Key: []Field{DestAddr}, Verdicts: true}, func(i int) string { return [...]string{"drop", "goto a", "goto b"}[i%3] }},
		"ranges":   {Set{Key: []Field{DestAddr}, Interval: true}, func(int) string { return "" }},
	}
	for name, tc := range sets {
		var want []Element
		for i := range 20 {
			want = append(want, Element{Key: "\x0a\x00\x00" + string([]byte{byte(i)}), Value: tc.value(i)})
			if tc.set.Interval {
				want = append(want, Element{Key: want[len(want)-1].Key, End: true})
			}
		}
		r := rand.New(rand.NewPCG(1, 2))
		add := func(els *Elements, list []Element) {
			for _, i := range r.Perm(len(list)) {
				els.Add(list[i])
			}
		}
		els := NewElements(tc.set.Shape(fwd.IPv4))
		add(&els, want)
		if doubles := els.Sort(); doubles || !slices.Equal(els.All(), want) {
			t.Errorf("%s: got %+v, doubles %v, want %+v", name, els.All(), doubles, want)
		}
		add(&els, want[3:5])
		if doubles := els.Sort(); !doubles || !slices.Equal(els.All(), want) {
			t.Errorf("%s, two added again: got %+v, doubles %v, want %+v", name, els.All(), doubles, want)
		}

		part, rest := NewElements(tc.set.Shape(fwd.IPv4)), NewElements(tc.set.Shape(fwd.IPv4))
		add(&part, want[:12])
		add(&rest, want[9:])
		rest.Add(Element{Value: "drop"})
		part.Join(rest)
		if doubles := part.Sort(); !doubles || !slices.Equal(part.All(), want) || !part.CatchAll || els.CatchAll {
			t.Errorf("%s, joined: got %+v, doubles %v, for all others %v, want %+v", name, part.All(), doubles, part.CatchAll, want)
		}
	}
}

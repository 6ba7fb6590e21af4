package xtables

import (
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestFakeAgreesWithRealities holds the Fake to the outcomes that TestRealities checks on a kernel.
func TestFakeAgreesWithRealities(t *testing.T) {
	x := NewFake()
	for _, r := range realities {
		if err := x.Restore(t.Context(), []byte(r.input)); (err != nil) != r.fails {
			t.Errorf("%s: got %v, want error: %v", r.name, err, r.fails)
		}
	}
	if len(x.Restores()) != len(realities) || len(x.Restores()) != 0 {
		t.Error("the log of restores is wrong")
	}
}

func TestFakeCounts(t *testing.T) {
	x := NewFake()
	input := "*nat\n:A - [0:0]\n:B - [0:0]\n-A A -j B\n-I A -j B\nCOMMIT\n*filter\n:C - [0:0]\n-X C\nCOMMIT\n"
	if err := x.Restore(t.Context(), []byte(input)); err != nil {
		t.Fatal(err)
	}
	want := []FakeRestore{{Input: []byte(input), Chains: map[string][]string{"nat": {"A", "B"}, "filter": {"C"}}, Rules: 2}}
	if diff := cmp.Diff(want, x.Restores()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestFakeFails(t *testing.T) {
	const input = "*nat\n:A - [0:0]\n-A A -j ACCEPT\n-A A -j RETURN\nCOMMIT\n"
	refuse := func(table, chain, rule string) bool { return table == "nat" && chain == "A" && rule == "-j RETURN" }
	hook := errors.New("hook")
	tests := []struct {
		name      string
		fake      func(*Fake)
		line      int
		text      string
		transient bool
		is        error
	}{
		{"refused as legacy says it", func(f *Fake) { f.Refuse = refuse }, 5, "COMMIT", false, nil},
		{"refused as nft says it", func(f *Fake) { f.Refuse, f.LineOfRule = refuse, true }, 4, "-A A -j RETURN", false, nil},
		{"by chance", func(f *Fake) { f.FailEvery, f.Rand = 1, rand.New(rand.NewPCG(1, 2)) }, 0, "", true, nil},
		{"by hook", func(f *Fake) { f.Hook = func([]byte) error { return hook } }, 0, "", false, hook},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			x := NewFake()
			tt.fake(x)
			err := x.Restore(t.Context(), []byte(input))
			var re *RestoreError
			switch {
			case tt.is != nil:
				if !errors.Is(err, tt.is) {
					t.Errorf("got %v", err)
				}
			case !errors.As(err, &re) || re.Line != tt.line || re.LineText != tt.text || re.Transient != tt.transient:
				t.Errorf("got %+v", err)
			}
			if got := x.Dump(); got != "" {
				t.Errorf("written all the same:\n%s", got)
			}
		})
	}
}

func TestTarget(t *testing.T) {
	for rule, want := range map[string]string{
		"-j ACCEPT":                        "ACCEPT",
		"-p tcp -g X":                      "X",
		"-p tcp":                           "",
		"":                                 "",
		`-m comment --comment "-j A" -j B`: "B",
		`-m comment --comment "a \" -j A" -j B --set "-j C"`: "B",
		`-m comment --comment "open -j A`:                    "",
		"-j":                                                 "",
	} {
		if got := target(rule); got != want {
			t.Errorf("%s: got %q, want %q", rule, got, want)
		}
	}
}

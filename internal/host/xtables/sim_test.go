package xtables_test

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/fairlead/fairlead/internal/fwd"
	"github.com/fairlead/fairlead/internal/host/xtables"
	"github.com/fairlead/fairlead/internal/host/xtables/rulesim"
)

// choosy refuses inputs that contain one of the words.
type choosy struct {
	*rulesim.Tables
	words     []string
	transient bool
}

func (c choosy) Restore(ctx context.Context, input []byte) error {
	for _, w := range c.words {
		if strings.Contains(string(input), w) {
			return &xtables.RestoreError{Err: errors.New("no " + w), Transient: c.transient}
		}
	}
	return c.Tables.Restore(ctx, input)
}

func TestLacking(t *testing.T) {
	a, b, c := xtables.Need{"filter", "-m addrtype --dst-type LOCAL -j RETURN", "xt_addrtype"}, xtables.Need{"nat", "-m mark --mark 0x1/0x1 -j RETURN", "xt_mark"}, xtables.Need{"nat", "-j RETURN", "none"}
	for _, tt := range []struct {
		name      string
		refused   []string
		transient bool
		want      map[xtables.Need]string
		fails     bool
	}{
		{"all is there", nil, false, nil, false},
		{"one is missing", []string{"addrtype"}, false, map[xtables.Need]string{a: "no addrtype"}, false},
		{"two are missing", []string{"mark", "addrtype"}, false, map[xtables.Need]string{a: "no addrtype", b: "no mark"}, false},
		{"the lock is held", []string{"addrtype"}, true, nil, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := &rulesim.Tables{Rules: rulesim.New(fwd.IPv4)}
			before := f.Save()
			got, err := xtables.Lacking(t.Context(), choosy{f, tt.refused, tt.transient}, "PROBE", []xtables.Need{a, b, c})
			if (err != nil) != tt.fails || len(got) != len(tt.want) {
				t.Errorf("%v, error %v, want %v", got, err, tt.want)
			}
			for need, why := range tt.want {
				if got[need] == nil || !strings.Contains(got[need].Error(), why) {
					t.Errorf("%v: %v, want %s", need, got[need], why)
				}
			}
			if f.Save() != before {
				t.Errorf("left is\n%s", f.Save())
			}
		})
	}
}

func TestExchangedHidesTheOtherPrefix(t *testing.T) {
	fake := &rulesim.Tables{Rules: rulesim.New(fwd.IPv4)}
	if err := fake.Restore(t.Context(), []byte("*nat\n:A-1 - [0:0]\n:B-1 - [0:0]\n-A A-1 -j RETURN\n-A B-1 -j ACCEPT\n-A PREROUTING -j A-1\n-A PREROUTING -j B-1\nCOMMIT\n")); err != nil {
		t.Fatal(err)
	}
	before := fake.Save()
	tables := xtables.Exchanged(fake, xtables.NewExchange("A-", "B-"))
	got, err := tables.Read(t.Context(), "nat")
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(got["A-1"].Rules, []string{"-j ACCEPT"}) || !slices.Equal(got["B-1"].Rules, []string{"-j RETURN"}) ||
		!slices.Equal(got["PREROUTING"].Rules, []string{"-j B-1", "-j A-1"}) || got["PREROUTING"].Policy != "ACCEPT" {
		t.Errorf("read %v", got)
	}
	if len(got) != len(slices.Collect(maps.Keys(got))) || fake.Save() != before {
		t.Error("reading changed what was read")
	}
	if err := tables.Restore(t.Context(), []byte("*nat\n:A-1 - [0:0]\n-F A-1\n-D PREROUTING -j A-1\n-X A-1\nCOMMIT\n")); err != nil {
		t.Fatal(err)
	}
	if d := fake.Save(); strings.Contains(d, "B-1") || !strings.Contains(d, "-A PREROUTING -j A-1") {
		t.Errorf("after the removal:\n%s", d)
	}
	// An error has the line as the caller wrote it, so that the caller can find the owner.
	err = tables.Restore(t.Context(), []byte("*nat\n:A-1 - [0:0]\n-A A-1 -j A-nowhere\nCOMMIT\n"))
	var refused *xtables.RestoreError
	if !errors.As(err, &refused) || strings.Contains(refused.LineText, "B-") {
		t.Errorf("got %v", err)
	}
}

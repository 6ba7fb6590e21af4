package xtables

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/fairlead/fairlead/internal/host/hosttest"
)

// choosy refuses inputs that contain one of the words.
type choosy struct {
	*Fake
	words     []string
	transient bool
}

func (c choosy) Restore(ctx context.Context, input []byte) error {
	for _, w := range c.words {
		if strings.Contains(string(input), w) {
			return &RestoreError{Err: errors.New("no " + w), Transient: c.transient}
		}
	}
	return c.Fake.Restore(ctx, input)
}

func TestLacking(t *testing.T) {
	a, b, c := Need{"filter", "-m addrtype --dst-type LOCAL -j RETURN", "xt_addrtype"}, Need{"nat", "-m mark --mark 0x1/0x1 -j RETURN", "xt_mark"}, Need{"nat", "-j RETURN", "none"}
	for _, tt := range []struct {
		name      string
		refused   []string
		transient bool
		want      map[Need]string
		fails     bool
	}{
		{"all is there", nil, false, nil, false},
		{"one is missing", []string{"addrtype"}, false, map[Need]string{a: "no addrtype"}, false},
		{"two are missing", []string{"mark", "addrtype"}, false, map[Need]string{a: "no addrtype", b: "no mark"}, false},
		{"the lock is held", []string{"addrtype"}, true, nil, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := NewFake()
			before := f.Dump()
			got, err := Lacking(t.Context(), choosy{f, tt.refused, tt.transient}, "PROBE", []Need{a, b, c})
			if (err != nil) != tt.fails || len(got) != len(tt.want) {
				t.Errorf("%v, error %v, want %v", got, err, tt.want)
			}
			for need, why := range tt.want {
				if got[need] == nil || !strings.Contains(got[need].Error(), why) {
					t.Errorf("%v: %v, want %s", need, got[need], why)
				}
			}
			if f.Dump() != before {
				t.Errorf("left is\n%s", f.Dump())
			}
		})
	}
}

func TestLackingOnTheKernel(t *testing.T) {
	for _, fl := range Installed() {
		for _, ipv6 := range []bool{false, true} {
			t.Run(fl.command(ipv6, ""), func(t *testing.T) {
				need(t, fl)
				hosttest.Netns(t, fl.command(ipv6, ""))
				x, err := New(fl, ipv6)
				if err != nil {
					t.Fatal(err)
				}
				nosuch := Need{"nat", "-m nosuchmatch -j RETURN", "xt_nosuchmatch"}
				got, err := Lacking(t.Context(), x, "FAIRLEAD-PROBE", []Need{{"filter", "-j RETURN", ""}, nosuch, {"nat", "-m mark --mark 0x1/0x1 -j RETURN", "xt_mark"}})
				if err != nil || len(got) != 1 || got[nosuch] == nil {
					t.Errorf("%v, error %v, want %v alone", got, err, nosuch)
				}
				for _, table := range []string{"filter", "nat"} {
					if chains, err := x.Read(t.Context(), table); err != nil || strings.Contains(fmt.Sprint(chains), "PROBE") {
						t.Errorf("left is %v, %v", chains, err)
					}
				}
			})
		}
	}
}

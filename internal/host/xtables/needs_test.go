package xtables

import (
	"fmt"
	"strings"
	"testing"

	"github.com/fairlead/fairlead/internal/host/hosttest"
)

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

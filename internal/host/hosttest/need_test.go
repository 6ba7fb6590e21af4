package hosttest

import (
	"errors"
	"fmt"
	"strings"
	"testing"
)

// recorder is a test that records how it ended.
type recorder struct {
	testing.TB
	skipped, failed string
}

func (r *recorder) Helper()                   {}
func (r *recorder) Skipf(f string, a ...any)  { r.skipped = fmt.Sprintf(f, a...) }
func (r *recorder) Fatal(a ...any)            { r.failed = fmt.Sprint(a...) }
func (r *recorder) Fatalf(f string, a ...any) { r.failed = fmt.Sprintf(f, a...) }

func TestNeed(t *testing.T) {
	missing := func() error { return errors.New("unheard of") }
	there := func() error { return nil }
	const machine, ipvs, vm = "", EnvIPVS, EnvVM
	for _, tt := range []struct {
		name            string
		features        []Feature
		env             string // the variable of the run
		skipped, failed string // parts of the message
	}{
		{"there", []Feature{{"x", there, withIPVS}}, machine, "", ""},
		{"there in the IPVS run", []Feature{{"x", there, withIPVS}}, ipvs, "", ""},
		{"another run has it", []Feature{{"x", missing, withIPVS}}, machine, "make test-ipvs", ""},
		{"another run has it, from the IPVS run", []Feature{{"x", missing, withNFTables}}, ipvs, "make test-kernel", ""},
		{"this run should have it", []Feature{{"x", missing, withNFTables}}, machine, "", "no x: unheard of"},
		{"the IPVS run should have it", []Feature{{"x", missing, withIPVS}}, ipvs, "", "no x: unheard of"},
		{"the emulated machine should have it", []Feature{{"x", missing, withIPVS}}, vm, "", "no x: unheard of"},
		{"one run has both", []Feature{{"x", missing, withIPVS}, {"y", there, withNFTables}}, machine, "make test-vm", ""},
		{"one run has both, from the IPVS run", []Feature{{"x", there, withIPVS}, {"y", missing, withNFTables}}, ipvs, "make test-vm", ""},
		{"this run should have one of them", []Feature{{"x", there, withIPVS}, {"y", missing, withNFTables}}, machine, "", "no y: unheard of"},
		{"no run has both", []Feature{{"x", missing, []Target{WithIPVS}}, {"y", there, []Target{OnMachine}}}, machine, "", "no make target"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, ci := range []string{"", "true"} { // makes no difference: CI runs the other targets too
				t.Setenv("CI", ci)
				t.Setenv(Env, "1")
				for _, env := range []string{EnvIPVS, EnvVM} {
					t.Setenv(env, "")
				}
				if tt.env != "" {
					t.Setenv(tt.env, "1")
				}
				var r recorder
				Need(&r, tt.features...)
				for _, x := range []struct{ got, want string }{{r.skipped, tt.skipped}, {r.failed, tt.failed}} {
					if !strings.Contains(x.got, x.want) || x.want == "" && x.got != "" {
						t.Errorf("CI=%q: got skipped %q, failed %q", ci, r.skipped, r.failed)
					}
				}
			}
		})
	}
}

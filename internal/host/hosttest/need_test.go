package hosttest

import (
	"errors"
	"fmt"
	"strings"
	"testing"
)

// recorder is a test that only notes how it ended.
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
	for _, tt := range []struct {
		name            string
		feature         Feature
		inIPVS          string
		skipped, failed string // what the message holds
	}{
		{"there", Feature{"x", there, true}, "", "", ""},
		{"there in the IPVS run", Feature{"x", there, true}, "1", "", ""},
		{"the other run has it", Feature{"x", missing, true}, "", "make test-ipvs", ""},
		{"the other run has it, from the IPVS run", Feature{"x", missing, false}, "1", "make test-kernel", ""},
		{"this run should have it", Feature{"x", missing, false}, "", "", "no x: unheard of"},
		{"the IPVS run should have it", Feature{"x", missing, true}, "1", "", "no x: unheard of"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, ci := range []string{"", "true"} { // makes no difference: the other run is part of CI, too
				t.Setenv("CI", ci)
				t.Setenv(Env, "1")
				t.Setenv(EnvIPVS, tt.inIPVS)
				var r recorder
				Need(&r, tt.feature)
				for _, x := range []struct{ got, want string }{{r.skipped, tt.skipped}, {r.failed, tt.failed}} {
					if !strings.Contains(x.got, x.want) || x.want == "" && x.got != "" {
						t.Errorf("CI=%q: got skipped %q, failed %q", ci, r.skipped, r.failed)
					}
				}
			}
		})
	}
}

package iptables

import (
	"bytes"
	"testing"

	"github.com/fairlead/fairlead/internal/backend/backendtest"
	"github.com/fairlead/fairlead/internal/fwd"
	"github.com/fairlead/fairlead/internal/host/xtables/rulesim"
)

// TestGolden compares the rendered rules with golden files. rulesim checks that they are valid.
func TestGolden(t *testing.T) {
	backendtest.Golden(t, func(t *testing.T, f fwd.Family, _ string, table *fwd.Table) string {
		var b bytes.Buffer
		if err := Render(&b, f, FamilyOptions{HairpinBPF: true, RandomFully: true, DropInvalid: true}, table); err != nil {
			t.Fatal(err)
		}
		if _, err := rulesim.Parse(f, b.String()); err != nil {
			t.Errorf("%s: %v", f, err)
		}
		return b.String()
	})
}

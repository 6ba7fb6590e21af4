package ipvs

import (
	"bytes"
	"testing"

	"github.com/fairlead/fairlead/internal/backend/backendtest"
	"github.com/fairlead/fairlead/internal/backend/ipvs/ipvssim"
	"github.com/fairlead/fairlead/internal/fwd"
)

// A program "IPv4 route" is that of IPv4 with --ipvs-vip=route; ipvssim has read it.
func TestGolden(t *testing.T) {
	backendtest.Golden(t, func(t *testing.T, f fwd.Family, mode string, table *fwd.Table) string {
		vips, err := ParseVIPMode(mode)
		if err != nil {
			t.Fatal(err)
		}
		h := table.Header()
		o := RenderOptions{VIPs: vips, HairpinBPF: true, RandomFully: true}
		for _, a := range h.LocalAddrs {
			if fwd.FamilyOf(a) == f {
				o.NodeIP = a
				break
			}
		}
		var b bytes.Buffer
		if err := Render(&b, f, o, table); err != nil {
			t.Fatal(err)
		}
		if _, err := ipvssim.Parse(f, b.String(), h.LocalAddrs); err != nil {
			t.Errorf("%s %s: %v", f, mode, err)
		}
		return b.String()
	})
}

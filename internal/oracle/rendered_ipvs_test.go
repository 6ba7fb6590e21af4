package oracle

import (
	"bytes"
	"fmt"
	"math/rand"
	"slices"
	"strings"
	"testing"

	"github.com/fairlead/fairlead/internal/backend/ipvs"
	"github.com/fairlead/fairlead/internal/backend/ipvs/ipvssim"
	"github.com/fairlead/fairlead/internal/fwd"
	"github.com/fairlead/fairlead/internal/host/xtables/rulesim"
)

// virtual is the product with the program that it renders for mode ipvs, interpreted.
type virtual struct {
	*product
	options  ipvssim.Options
	machines map[fwd.Family]*ipvssim.Machine
}

func newVirtual(t testing.TB, c *Cluster, cfg *Config, o ipvs.RenderOptions) *virtual {
	t.Helper()
	v := &virtual{product: newProduct(t, cfg), machines: make(map[fwd.Family]*ipvssim.Machine)}
	v.options = ipvssim.Options{Divert: o.VIPs == ipvs.VIPMark, Route: o.VIPs == ipvs.VIPRoute, HairpinBPF: o.HairpinBPF}
	v.load(&Cluster{}, c)
	h := v.table.Header()
	for _, f := range fwd.Families {
		var text bytes.Buffer
		if err := ipvs.Render(&text, f, o, &v.table); err != nil {
			t.Fatal(err)
		}
		m, err := ipvssim.Parse(f, text.String(), h.LocalAddrs)
		if err != nil {
			t.Fatalf("%s: the rendered program is refused: %v", f, err)
		}
		v.machines[f] = m
	}
	return v
}

// results are what an Answer allows, without probabilities.
func (a Answer) results() []rulesim.Result {
	if a.Verdict != fwd.VerdictForward {
		return []rulesim.Result{{Verdict: a.Verdict, Probability: 1}}
	}
	out := make([]rulesim.Result, len(a.Endpoints))
	for i, e := range a.Endpoints {
		out[i] = rulesim.Result{Verdict: a.Verdict, Endpoint: e, Masquerade: a.Masquerade[e], Probability: 1}
	}
	return out
}

// resultsText is one line for all that may happen to a packet.
func resultsText(h fwd.Header, p fwd.Packet, results []rulesim.Result) string {
	var parts []string
	for _, r := range results {
		s := r.Verdict.String()
		if r.Verdict == fwd.VerdictForward {
			s += " " + r.Endpoint.String()
			// What arrives and is sent to an address of this very node is delivered here and never
			// leaves, so that its source stays, whatever the rules ask for.
			if r.Masquerade && (p.InInterface == "" || !h.IsLocal(r.Endpoint.Addr())) {
				s += "+masq"
			}
		}
		parts = append(parts, s)
	}
	slices.Sort(parts)
	return strings.Join(slices.Compact(parts), " ")
}

// TestRenderedVirtualServersAgree compares an interpretation of what mode ipvs would make of the
// kernel with the oracle, except for the documented differences.
func TestRenderedVirtualServersAgree(t *testing.T) {
	judged := 0
	for seed := range seeds(300) {
		c, cfg, packets := Random(rand.New(rand.NewSource(int64(seed))), RandomOptions{ForKernel: seed%4 == 0})
		cfg.NFTables = false
		o := ipvs.RenderOptions{VIPs: ipvs.VIPMode(seed % 3), HairpinBPF: seed%5 != 0}
		v := newVirtual(t, c, cfg, o)
		h := v.table.Header()
		for _, p := range packets {
			if p.Src.Is4() != p.Dst.Addr().Is4() {
				continue // no such packet exists
			}
			m := v.machines[fwd.FamilyOf(p.Src)]
			got, err := m.Rules.Run(m.Host, p)
			if err != nil {
				t.Fatal(err)
			}
			expected := v.options.Expect(&v.table, p, Judge(c, cfg, p).results())
			if expected == nil {
				continue // from or to somebody whose address the node has taken: nobody can say
			}
			judged++
			want := resultsText(h, p, expected)
			if got := resultsText(h, p, got); got != want {
				t.Logf("seed %d", seed)
				Disagreement(t, "", c, cfg, p, want, fmt.Sprintf("%s (rendered for mode ipvs, VIPs by %s)", got, o.VIPs))
				return
			}
		}
	}
	if judged < 1000 {
		t.Errorf("only %d packets were judged", judged)
	}
}

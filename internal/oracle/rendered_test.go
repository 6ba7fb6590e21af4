package oracle

import (
	"bytes"
	"math/rand"
	"net/netip"
	"slices"
	"testing"

	"github.com/fairlead/fairlead/internal/backend/iptables"
	"github.com/fairlead/fairlead/internal/fwd"
	"github.com/fairlead/fairlead/internal/host/xtables/rulesim"
)

// rendered is the product with the rules that it renders for iptables, interpreted.
type rendered struct {
	*product
	rules map[fwd.Family]*rulesim.Ruleset
}

func newRendered(t testing.TB, c *Cluster, cfg *Config, bpf bool) *rendered {
	t.Helper()
	r := &rendered{product: newProduct(t, cfg), rules: make(map[fwd.Family]*rulesim.Ruleset)}
	r.load(&Cluster{}, c)
	for _, f := range fwd.Families {
		var text bytes.Buffer
		if err := iptables.Render(&text, f, iptables.FamilyOptions{HairpinBPF: bpf}, &r.table); err != nil {
			t.Fatal(err)
		}
		rules, err := rulesim.Parse(f, text.String())
		if err != nil {
			t.Fatalf("%s: the rendered rules are refused: %v", f, err)
		}
		r.rules[f] = rules
	}
	return r
}

// answer is what the rules do with a packet. Rules do not say which Service they serve, so that
// comes from the oracle.
func (r *rendered) answer(p fwd.Packet, service string) Answer {
	r.t.Helper()
	h := r.table.Header()
	results, err := r.rules[fwd.FamilyOf(p.Dst.Addr())].Run(rulesim.Host{Local: h.LocalAddrs}, p)
	if err != nil {
		r.t.Fatal(err)
	}
	a := Answer{Verdict: results[0].Verdict, Service: service}
	for _, res := range results {
		if res.Verdict != a.Verdict {
			r.t.Errorf("the rules do one thing or another with %+v: %v", p, results)
		}
		if res.Verdict == fwd.VerdictForward {
			a.add(res.Endpoint, res.Masquerade)
		}
	}
	return a
}

// TestRenderedRulesAgree compares an interpretation of the rules that go to iptables-restore with
// the oracle.
func TestRenderedRulesAgree(t *testing.T) {
	for seed := range seeds(600) {
		c, cfg, packets := Random(rand.New(rand.NewSource(int64(seed))), RandomOptions{ForKernel: seed%4 == 0})
		cfg.NFTables = false
		bpf := seed%5 != 0
		rules := newRendered(t, c, cfg, bpf)
		for _, p := range packets {
			if p.Src.Is4() != p.Dst.Addr().Is4() {
				continue // no such packet exists
			}
			want := Judge(c, cfg, p)
			for e := range want.Masquerade {
				// What arrives and is sent to an address of this very node is delivered here and
				// never leaves, so that its source stays, whatever the rules ask for.
				if h := rules.table.Header(); p.InInterface != "" && h.IsLocal(e.Addr()) {
					want.Masquerade[e] = false
				}
				// Nothing is rewritten where the endpoint is what was dialled, and the source's own
				// address or another one of this node: connection tracking then does not count the
				// connection as translated, and there is no need.
				if h := rules.table.Header(); p.Dst == e && (p.Src == e.Addr() || h.IsLocal(e.Addr())) {
					want.Masquerade[e] = false
				}
			}
			slices.SortFunc(want.Endpoints, netip.AddrPort.Compare)
			got := rules.answer(p, want.Service)
			slices.SortFunc(got.Endpoints, netip.AddrPort.Compare)
			if want.String() != got.String() {
				t.Logf("seed %d", seed)
				Disagreement(t, "", c, cfg, p, want.String(), got.String()+" (rendered iptables rules)")
				return
			}
		}
	}
}

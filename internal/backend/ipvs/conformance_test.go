package ipvs

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/fairlead/fairlead/internal/backend"
	"github.com/fairlead/fairlead/internal/backend/backendtest"
	"github.com/fairlead/fairlead/internal/backend/iptables/rulesim"
	"github.com/fairlead/fairlead/internal/backend/ipvs/ipvssim"
	"github.com/fairlead/fairlead/internal/fwd"
)

// mapTarget is a Target that keeps objects in a map.
type mapTarget struct {
	family  fwd.Family
	objects map[Key]Value
	writes  *int
	fail    *int
}

func (t *mapTarget) Read(context.Context) (map[Key]Value, error) { return maps.Clone(t.objects), nil }

func (t *mapTarget) Write(_ context.Context, p backend.Plan[Key, Value], done func(Key)) error {
	*t.writes++
	if *t.fail > 0 {
		*t.fail--
		return errors.New("made to fail")
	}
	for k, v := range p.Upserts {
		t.objects[k] = v
		done(k)
	}
	for k := range p.Deletes {
		delete(t.objects, k)
		done(k)
	}
	return nil
}

// simulation is a Subject: the backend on simulated kernels, one for each family.
type simulation struct {
	header  fwd.Header
	options RenderOptions
	targets map[fwd.Family]*mapTarget
	backend backend.Backend
	writes  int
	fail    int
	// machines are made of what the targets held when there had been this many writes.
	machines map[fwd.Family]*ipvssim.Machine
	built    int
}

func newSimulation(h fwd.Header, o RenderOptions) *simulation {
	s := &simulation{header: h, options: o, targets: make(map[fwd.Family]*mapTarget), machines: make(map[fwd.Family]*ipvssim.Machine)}
	for _, f := range fwd.Families {
		s.targets[f] = &mapTarget{f, make(map[Key]Value), &s.writes, &s.fail}
	}
	s.Restart()
	return s
}

func (s *simulation) Backend() backend.Backend { return s.backend }
func (s *simulation) Writes() int              { return s.writes }
func (s *simulation) Fail(n int)               { s.fail = n }
func (s *simulation) Foreign()                 {}
func (s *simulation) ForeignIntact() error     { return nil }

func (s *simulation) Restart() backend.Backend {
	var families []backend.Backend
	for _, f := range fwd.Families {
		families = append(families, backend.NewEngine(f, newRenderer(f, s.options), s.targets[f], same))
	}
	s.backend = backend.Join(families...)
	return s.backend
}

func (s *simulation) Judge(p fwd.Packet) ([]backendtest.Outcome, error) {
	m, err := s.machine(fwd.FamilyOf(p.Dst.Addr()))
	if err != nil {
		return nil, err
	}
	results, err := m.Rules.Run(m.Host, p)
	return outcomes(results), err
}

// machine returns the simulated host of a family as it was written last.
func (s *simulation) machine(f fwd.Family) (*ipvssim.Machine, error) {
	if s.built != s.writes {
		s.built = s.writes
		clear(s.machines)
	}
	if m := s.machines[f]; m != nil {
		return m, nil
	}
	var text strings.Builder
	if err := writeText(&text, f, s.options.VIPs, s.targets[f].objects); err != nil {
		return nil, err
	}
	m, err := ipvssim.Parse(f, text.String(), s.header.LocalAddrs)
	s.machines[f] = m
	return m, err
}

func outcomes(results []rulesim.Result) []backendtest.Outcome {
	out := make([]backendtest.Outcome, len(results))
	for i, r := range results {
		out[i] = backendtest.Outcome{Verdict: r.Verdict, Endpoint: r.Endpoint, Masquerade: r.Masquerade, Probability: r.Probability}
	}
	return out
}

func (s *simulation) Deviate(t *fwd.Table, p fwd.Packet, lookup []backendtest.Outcome) []backendtest.Outcome {
	want := make([]rulesim.Result, len(lookup))
	for i, o := range lookup {
		want[i] = rulesim.Result{Verdict: o.Verdict, Endpoint: o.Endpoint, Masquerade: o.Masquerade, Probability: o.Probability}
	}
	o := ipvssim.Options{Divert: s.options.VIPs == VIPMark, Route: s.options.VIPs == VIPRoute, HairpinBPF: s.options.HairpinBPF, Exclude: s.options.Exclude}
	return outcomes(o.Expect(t, p, want))
}

func (s *simulation) Dump() string {
	var b strings.Builder
	for _, f := range fwd.Families {
		var lines []string
		for k, v := range s.targets[f].objects {
			v.Owner = fwd.Service{}
			server := ""
			if v.Server != nil {
				server = fmt.Sprintf("%+v", *v.Server)
			}
			v.Server = nil
			lines = append(lines, fmt.Sprintf("%+v: %+v %s", k, v, server))
		}
		slices.Sort(lines)
		fmt.Fprintf(&b, "%s\n%s\n", f, strings.Join(lines, "\n"))
	}
	return b.String()
}

func TestConformance(t *testing.T) {
	t.Parallel()
	backendtest.Run(t, func(_ testing.TB, h fwd.Header) backendtest.Subject {
		return newSimulation(h, RenderOptions{HairpinBPF: true, RandomFully: true})
	})
}

func TestConformanceOfVariants(t *testing.T) {
	for name, o := range map[string]RenderOptions{
		"route":                     {VIPs: VIPRoute, HairpinBPF: true, RandomFully: true},
		"mark":                      {VIPs: VIPMark, HairpinBPF: true, RandomFully: true},
		"without optional features": {},
		"with addresses of others": {VIPs: VIPRoute, HairpinBPF: true, NodeIP: netip.MustParseAddr("192.168.7.10"), Exclude: []netip.Prefix{
			netip.MustParsePrefix("10.96.0.32/27"), netip.MustParsePrefix("203.0.113.80/32"), netip.MustParsePrefix("fd00:99::/125")}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			backendtest.RunBriefly(t, func(_ testing.TB, h fwd.Header) backendtest.Subject { return newSimulation(h, o) })
		})
	}
}

package iptables

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/fairlead/fairlead/internal/backend"
	"github.com/fairlead/fairlead/internal/backend/backendtest"
	"github.com/fairlead/fairlead/internal/fwd"
	"github.com/fairlead/fairlead/internal/host/xtables"
	"github.com/fairlead/fairlead/internal/host/xtables/rulesim"
)

// simTables are the tables of one family in a simulated kernel.
type simTables struct {
	rulesim.Tables
	// failReads is the number of following reads that fail.
	failReads int
}

func (s *simTables) Read(ctx context.Context, table string) (xtables.Table, error) {
	if s.failReads > 0 {
		s.failReads--
		return nil, errors.New("made to fail")
	}
	return s.Tables.Read(ctx, table)
}

// restore counts a restore of a family, and fails it if requested.
func (s *simulation) restore(f fwd.Family, input string) error {
	s.writes++
	if s.fail == 0 {
		return nil
	}
	s.fail--
	// A restore that fails may have written the tables before the one at which it failed.
	if i := strings.Index(input, "COMMIT\n"); s.fail%2 == 1 && i >= 0 {
		if err := s.tables[f].Rules.Restore(input[:i+len("COMMIT\n")]); err != nil {
			return err
		}
	}
	return &xtables.RestoreError{Stderr: "made to fail", Transient: true, Err: errors.New("exit status 4")}
}

// simulation is a Subject: the backend on simulated tables.
type simulation struct {
	header  fwd.Header
	options FamilyOptions
	tables  map[fwd.Family]*simTables
	backend backend.Families
	mode    *Backend
	foreign string
	writes  int
	fail    int
}

func newSimulation(h fwd.Header, o FamilyOptions) *simulation {
	s := &simulation{header: h, options: o, tables: make(map[fwd.Family]*simTables)}
	for _, f := range fwd.Families {
		s.tables[f] = &simTables{Tables: rulesim.Tables{
			Rules: rulesim.New(f),
			Hook:  func(input []byte) error { return s.restore(f, string(input)) },
		}}
	}
	s.Restart()
	return s
}

func (s *simulation) Backend() backend.Families { return s.backend }
func (s *simulation) Writes() int               { return s.writes }
func (s *simulation) Fail(n int)                { s.fail = n }

// Finder implements backendtest.Finding.
func (s *simulation) Finder() backend.Finder { return s.mode.Found }

var _ backendtest.Finding = (*simulation)(nil)

func (s *simulation) FailReads(f fwd.Family, n int) { s.tables[f].failReads = n }

func (s *simulation) Restart() backend.Families {
	opts := make(map[fwd.Family]FamilyOptions)
	for f, t := range s.tables {
		o := s.options
		o.Tables = t
		opts[f] = o
	}
	b := New(opts)
	s.backend, s.mode = b.Families, b
	return s.backend
}

func (s *simulation) Judge(p fwd.Packet) ([]backendtest.Outcome, error) {
	return s.judge(p, rulesim.Host{})
}

func (s *simulation) JudgeMarked(p fwd.Packet, mark uint32) ([]backendtest.Outcome, error) {
	return s.judge(p, rulesim.Host{Mark: mark})
}

func (s *simulation) judge(p fwd.Packet, h rulesim.Host) ([]backendtest.Outcome, error) {
	t := s.tables[fwd.FamilyOf(p.Dst.Addr())]
	h.Local = s.header.LocalAddrs
	results, err := t.Rules.Run(h, p)
	if err != nil {
		return nil, err
	}
	out := make([]backendtest.Outcome, len(results))
	for i, r := range results {
		out[i] = backendtest.Outcome{Verdict: r.Verdict, Endpoint: r.Endpoint, Masquerade: r.Masquerade, Source: r.Source, Reset: r.Reset, Probability: r.Probability}
	}
	return out, nil
}

func (s *simulation) JudgeAfter(p, earlier fwd.Packet, chosen netip.AddrPort, ageSec uint32) ([]backendtest.Outcome, error) {
	t := s.tables[fwd.FamilyOf(earlier.Dst.Addr())]
	results, err := t.Rules.Run(rulesim.Host{Local: s.header.LocalAddrs}, earlier)
	if err != nil {
		return nil, err
	}
	recent := make(rulesim.RecentState)
	for _, r := range results {
		if r.Endpoint == chosen {
			for _, list := range r.Recent {
				recent[list] = map[netip.Addr]uint32{earlier.Src: ageSec}
			}
		}
	}
	return s.judge(p, rulesim.Host{Recent: recent})
}

func (s *simulation) Dump() string {
	var b strings.Builder
	for _, f := range fwd.Families {
		rules := s.tables[f].Rules
		for _, table := range []Table{Filter, NAT} {
			for _, name := range rules.Chains(table.String()) {
				lines := rules.Rules(table.String(), name)
				if builtin(name) {
					lines = slices.DeleteFunc(slices.Clone(lines), func(r string) bool { return !jumpsToOurs(r) })
					if len(lines) == 0 {
						continue
					}
				}
				if !strings.HasPrefix(name, "KUBE-") {
					fmt.Fprintf(&b, "%s %s %s\n%s\n", f, table, name, strings.Join(lines, "\n"))
				}
			}
		}
	}
	return b.String()
}

func (s *simulation) Foreign() {
	for _, f := range fwd.Families {
		if err := s.tables[f].Rules.Restore(backendtest.ForeignRules); err != nil {
			panic(err)
		}
	}
	s.foreign = s.foreignText()
}

func (s *simulation) foreignText() string {
	var b strings.Builder
	for _, f := range fwd.Families {
		for line := range strings.Lines(s.tables[f].Rules.Save()) {
			if !strings.Contains(line, chainPrefix) {
				b.WriteString(line)
			}
		}
	}
	return b.String()
}

func (s *simulation) ForeignIntact() error { return backendtest.Unchanged(s.foreign, s.foreignText()) }

// Drift changes rules as other programs and people do.
func (s *simulation) Drift(r *rand.Rand) string {
	f := fwd.Families[r.IntN(2)]
	rules := s.tables[f].Rules
	var ours []string
	for _, name := range rules.Chains("nat") {
		if !builtin(name) {
			ours = append(ours, name)
		}
	}
	if len(ours) == 0 {
		return ""
	}
	name := ours[r.IntN(len(ours))]
	how := []string{"-F " + name, "-F PREROUTING", "-A " + name + " -j RETURN", "-I OUTPUT -j " + chainServices}[r.IntN(4)]
	if err := rules.Restore("*nat\n" + how + "\nCOMMIT\n"); err != nil {
		panic(err)
	}
	return fmt.Sprintf("%s nat %s", f, how)
}

func TestConformance(t *testing.T) {
	backendtest.Run(t, func(_ testing.TB, h fwd.Header) backendtest.Subject {
		return newSimulation(h, FamilyOptions{HairpinBPF: true, RandomFully: true, DropInvalid: true})
	})
}

func TestConformanceOfVariants(t *testing.T) {
	for name, o := range map[string]FamilyOptions{
		"without optional features": {},
		"in small pieces":           {HairpinBPF: true, MaxChains: 5},
	} {
		t.Run(name, func(t *testing.T) {
			backendtest.RunBriefly(t, func(_ testing.TB, h fwd.Header) backendtest.Subject { return newSimulation(h, o) })
		})
	}
}

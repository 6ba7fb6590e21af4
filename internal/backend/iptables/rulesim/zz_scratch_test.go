package rulesim_test

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
	"github.com/fairlead/fairlead/internal/backend/iptables"
	"github.com/fairlead/fairlead/internal/backend/iptables/rulesim"
	"github.com/fairlead/fairlead/internal/fwd"
	"github.com/fairlead/fairlead/internal/host/xtables"
)

type simTables struct {
	s  *subject
	rs *rulesim.Ruleset
}

func (t *simTables) Save(_ context.Context, table string) ([]byte, error) {
	return []byte(t.rs.Save(table)), nil
}

func (t *simTables) Restore(_ context.Context, in []byte) error {
	t.s.writes++
	if t.s.fail > 0 {
		t.s.fail--
		return &xtables.RestoreError{Transient: true}
	}
	if err := t.rs.Restore(string(in)); err != nil {
		fmt.Println(string(in))
		return err
	}
	return nil
}

type subject struct {
	h            fwd.Header
	bpf          bool
	sims         map[fwd.Family]*simTables
	b            *iptables.Backend
	writes, fail int
	foreign      map[fwd.Family]string
}

const foreignRules = "*filter\n:DOCKER - [0:0]\n-A DOCKER -j RETURN\n-A FORWARD -j DOCKER\nCOMMIT\n*nat\n:DOCKER - [0:0]\n-A DOCKER -j RETURN\n-A OUTPUT -j DOCKER\nCOMMIT\n"

func (s *subject) Backend() backend.Backend { return s.b }
func (s *subject) Restart() backend.Backend {
	o := map[fwd.Family]iptables.FamilyOptions{}
	for f, t := range s.sims {
		o[f] = iptables.FamilyOptions{Tables: t, HairpinBPF: s.bpf, RandomFully: true, DropInvalid: true}
	}
	s.b = iptables.New(o)
	return s.b
}
func (s *subject) Writes() int { return s.writes }
func (s *subject) Fail(n int)  { s.fail = n }
func (s *subject) dump(ours bool) string {
	var b strings.Builder
	for _, f := range fwd.Families {
		for line := range strings.Lines(s.sims[f].rs.Save()) {
			if strings.Contains(line, "FAIRLEAD-") == ours && (ours || strings.HasPrefix(line, "-A")) {
				b.WriteString(fmt.Sprintf("%d %s", f, line))
			}
		}
	}
	return b.String()
}
func (s *subject) Dump() string { return s.dump(true) }
func (s *subject) Foreign() {
	for _, t := range s.sims {
		if err := t.rs.Restore(foreignRules); err != nil {
			panic(err)
		}
	}
}
func (s *subject) ForeignIntact() error {
	if n := strings.Count(s.dump(false), "DOCKER"); n != 8 {
		return fmt.Errorf("foreign: %d\n%s", n, s.dump(false))
	}
	return nil
}
func (s *subject) Drift(r *rand.Rand) string {
	f := fwd.Families[r.IntN(2)]
	t := []string{"nat", "filter"}[r.IntN(2)]
	var lines []string
	for line := range strings.Lines(s.sims[f].rs.Save(t)) {
		if strings.HasPrefix(line, "-A") && strings.Contains(line, "FAIRLEAD") {
			lines = append(lines, strings.TrimSpace(line))
		}
	}
	l := lines[r.IntN(len(lines))]
	if err := s.sims[f].rs.Restore("*" + t + "\n-D" + l[2:] + "\nCOMMIT\n"); err != nil {
		panic(err)
	}
	return l
}
func (s *subject) host() rulesim.Host { return rulesim.Host{Local: s.h.LocalAddrs} }
func (s *subject) run(h rulesim.Host, p fwd.Packet) ([]rulesim.Result, error) {
	return s.sims[fwd.FamilyOf(p.Src)].rs.Run(h, p)
}
func conv(rs []rulesim.Result) []backendtest.Outcome {
	var out []backendtest.Outcome
	for _, r := range rs {
		out = append(out, backendtest.Outcome{Verdict: r.Verdict, Endpoint: r.Endpoint, Masquerade: r.Masquerade, Probability: r.Probability})
	}
	return out
}
func (s *subject) Judge(p fwd.Packet) ([]backendtest.Outcome, error) {
	rs, err := s.run(s.host(), p)
	return conv(rs), err
}
func (s *subject) JudgeAfter(p, earlier fwd.Packet, chosen netip.AddrPort, age uint32) ([]backendtest.Outcome, error) {
	rs, err := s.run(s.host(), earlier)
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(rs, func(r rulesim.Result) bool { return r.Endpoint == chosen })
	if i < 0 {
		return nil, errors.New("never chosen")
	}
	h := s.host()
	h.Recent = rulesim.RecentState{}
	for _, l := range rs[i].Recent {
		h.Recent[l] = map[netip.Addr]uint32{p.Src: age}
	}
	rs, err = s.run(h, p)
	return conv(rs), err
}

func TestScratch(t *testing.T) {
	backendtest.Run(t, func(_ testing.TB, h fwd.Header) backendtest.Subject {
		s := &subject{h: h, bpf: true, sims: map[fwd.Family]*simTables{}}
		for _, f := range fwd.Families {
			s.sims[f] = &simTables{s, rulesim.New(f)}
		}
		s.Restart()
		return s
	})
}

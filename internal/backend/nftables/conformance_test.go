package nftables

import (
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/internal/backend"
	"github.com/fairlead/fairlead/internal/backend/backendtest"
	"github.com/fairlead/fairlead/internal/backend/nftables/nftsim"
	"github.com/fairlead/fairlead/internal/fwd"
	"github.com/fairlead/fairlead/internal/host/nft"
)

// simulation is a Subject: the backend on simulated tables. Our table contains nothing of others.
type simulation struct {
	header fwd.Header
	chunk  int
	// strictly applies strictHeader to every header.
	strictly bool
	tables   map[fwd.Family]*nftsim.Table
	backend  backend.Families
	mode     *Backend
	// failReads is how many reads of a family will fail.
	failReads map[fwd.Family]int
	writes    int
	fail      int
}

func newSimulation(h fwd.Header, chunk int, strictly bool) *simulation {
	s := &simulation{header: h, chunk: chunk, strictly: strictly, tables: make(map[fwd.Family]*nftsim.Table), failReads: make(map[fwd.Family]int)}
	for _, f := range fwd.Families {
		t := nftsim.New(f)
		t.Before = func() error {
			s.writes++
			if s.fail > 0 {
				s.fail--
				return &nft.Error{Errno: unix.EBUSY, Text: "made to fail"}
			}
			return nil
		}
		s.tables[f] = t
	}
	s.Restart()
	return s
}

func (s *simulation) Backend() backend.Families     { return s.backend }
func (s *simulation) Writes() int                   { return s.writes }
func (s *simulation) Fail(n int)                    { s.fail = n }
func (s *simulation) FailReads(f fwd.Family, n int) { s.failReads[f] = n }
func (s *simulation) Foreign()                      {}
func (s *simulation) ForeignIntact() error          { return nil }

// Finder implements backendtest.Finding.
func (s *simulation) Finder() backend.Finder { return s.mode.Found }

var _ backendtest.Finding = (*simulation)(nil)

func (s *simulation) Restart() backend.Families {
	tables := make(map[fwd.Family]nft.Interface)
	for f, t := range s.tables {
		tables[f] = failingReads{t, s, f}
	}
	b := newBackend(tables, cmp.Or(s.chunk, defaultChunk), nil)
	s.backend, s.mode = b.Families, b
	for i, b := range s.backend {
		if s.strictly {
			s.backend[i] = strict{b}
		}
	}
	return s.backend
}

// failingReads is the table of a family with simulation.failReads.
type failingReads struct {
	*nftsim.Table
	sim    *simulation
	family fwd.Family
}

// Read implements nft.Interface.
func (t failingReads) Read(ctx context.Context) (nft.Content, error) {
	if t.sim.failReads[t.family] > 0 {
		t.sim.failReads[t.family]--
		return nft.Content{}, &nft.Error{Errno: unix.EINTR, Text: "made to fail"}
	}
	return t.Table.Read(ctx)
}

// strict is a backend that rejects other ports of cluster IPs and drops packets to addresses of no
// Service.
type strict struct{ backend.Backend }

func (r strict) Update(ch fwd.Changes) {
	if ch.Header != nil {
		h := strictHeader(*ch.Header)
		ch.Header = &h
	}
	r.Backend.Update(ch)
}

// strictHeader sets CIDRs with cluster IPs, addresses of no Service, of other kinds, and of this
// host.
func strictHeader(h fwd.Header) fwd.Header {
	h.RejectOtherPorts, h.DropUnallocated = h.MasqueradeBit%4 != 0, true
	h.ServiceCIDRs = [2][]netip.Prefix{
		{netip.MustParsePrefix("10.96.0.0/26"), netip.MustParsePrefix("203.0.113.64/27")},
		{netip.MustParsePrefix("2001:db8:1::/120"), netip.MustParsePrefix("fd00:96::/121")}}
	return h
}

func (s *simulation) Judge(p fwd.Packet) ([]backendtest.Outcome, error) {
	return s.judge(p, nftsim.Host{})
}

func (s *simulation) JudgeMarked(p fwd.Packet, mark uint32) ([]backendtest.Outcome, error) {
	return s.judge(p, nftsim.Host{Mark: mark})
}

func (s *simulation) judge(p fwd.Packet, h nftsim.Host) ([]backendtest.Outcome, error) {
	h.Local = s.header.LocalAddrs
	results, err := s.tables[fwd.FamilyOf(p.Dst.Addr())].Run(h, p)
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
	results, err := s.tables[fwd.FamilyOf(earlier.Dst.Addr())].Run(nftsim.Host{Local: s.header.LocalAddrs}, earlier)
	if err != nil {
		return nil, err
	}
	remembered := make(map[string]map[string]bool)
	for _, r := range results {
		for _, n := range r.Added {
			if r.Endpoint == chosen && ageSec <= n.TimeoutSec {
				remembered[n.Set] = map[string]bool{n.Key: true}
			}
		}
	}
	return s.judge(p, nftsim.Host{Remembered: remembered})
}

// Deviate returns the result of Lookup with the strict header.
func (s *simulation) Deviate(t *fwd.Table, p fwd.Packet, lookup []backendtest.Outcome) []backendtest.Outcome {
	if !s.strictly || t.Lookup(p).Verdict != fwd.VerdictPass {
		return lookup
	}
	h := t.Header()
	t.SetHeader(strictHeader(h))
	o := t.Lookup(p)
	t.SetHeader(h)
	if o.Verdict == fwd.VerdictPass {
		return lookup
	}
	return []backendtest.Outcome{{Verdict: o.Verdict, Reset: o.Verdict == fwd.VerdictReject && p.Proto == fwd.TCP, Probability: 1}}
}

func (s *simulation) Dump() string {
	var b strings.Builder
	for _, f := range fwd.Families {
		m, err := (&target{family: f, table: s.tables[f]}).Read(context.Background())
		if err != nil {
			panic(err)
		}
		for _, kind := range []Kind{KindTable, KindSet, KindChain, KindFrontend, KindElement} {
			for _, id := range sorted(m, kind) {
				b.WriteString(f.String() + " " + strconv.Itoa(int(kind)) + " " + id.Name + " " + hex.EncodeToString([]byte(id.Key)) + ": " +
					hex.EncodeToString([]byte(m[id].Value)) + "\n") // fmt would take a tenth of the suite's time
			}
		}
	}
	return b.String()
}

// Drift does what other programs and people do to a table.
func (s *simulation) Drift(r *rand.Rand) string {
	f := fwd.Families[r.IntN(2)]
	t := s.tables[f]
	c, err := t.Read(context.Background())
	if err != nil || !c.Exists {
		return ""
	}
	ch := c.Chains[r.IntN(len(c.Chains))]
	ops := []nft.Op{{Kind: nft.DelTable}}
	switch r.IntN(7) {
	case 0:
		ops = []nft.Op{{Kind: nft.FlushChain, Name: ch.Name}}
	case 1:
		ops = []nft.Op{{Kind: nft.AddRules, Name: ch.Name, Rules: []nft.Rule{{nft.Verdict("return")}}}}
	case 2:
		ops = []nft.Op{{Kind: nft.AddChain, Name: "foreign"}, {Kind: nft.AddRules, Name: "foreign", Rules: []nft.Rule{{nft.Verdict("jump " + chainRefuse)}}}}
	case 3:
		odd := nft.Set{Name: "foreign-set", Key: []nft.Field{nft.DestPort}}
		ops = []nft.Op{{Kind: nft.AddSet, Name: odd.Name, Set: odd}, {Kind: nft.AddElements, Name: odd.Name, Set: odd, Elements: []nft.Element{{Key: "ab"}}}}
	case 4, 5:
		for _, name := range slices.Sorted(maps.Keys(c.Elements)) {
			set, static := staticSet(name)
			if els := c.Elements[name]; static && els.Len() > 0 && r.IntN(2) == 0 {
				ops = []nft.Op{{Kind: nft.DelElements, Name: name, Set: set, Elements: els.All()[:1+r.IntN(els.Len())]}}
			}
		}
	}
	s.tables[f].Before = nil
	defer func(t *nftsim.Table) { t.Before = func() error { s.writes++; return nil } }(t)
	if err := t.Commit(context.Background(), ops); err != nil {
		panic(err)
	}
	return fmt.Sprintf("%s %v", f, ops)
}

func TestConformance(t *testing.T) {
	t.Parallel()
	backendtest.Run(t, func(_ testing.TB, h fwd.Header) backendtest.Subject { return newSimulation(h, 0, true) })
}

func TestConformanceInSmallPieces(t *testing.T) {
	t.Parallel()
	backendtest.RunBriefly(t, func(_ testing.TB, h fwd.Header) backendtest.Subject { return newSimulation(h, 7, false) })
}

// TestRefusal: errors that will not go away are distinguished from those that may.
func TestRefusal(t *testing.T) {
	for errno, refused := range map[unix.Errno]bool{unix.EINVAL: true, unix.EOPNOTSUPP: true, unix.EBUSY: false, unix.ENOENT: false, unix.ENOMEM: false} {
		table := nftsim.New(fwd.IPv4)
		table.Before = func() error { return &nft.Error{Errno: errno} }
		b := New(map[fwd.Family]nft.Interface{fwd.IPv4: table}, nil)
		give(b, everyShape())
		_, err := b.Apply(context.Background())
		var fe *backend.FamilyError
		if !errors.As(err, &fe) || fe.Refused != refused || fe.Family != fwd.IPv4 || !errors.Is(err, errno) {
			t.Errorf("%v: got %v, want refused %v", errno, err, refused)
		}
	}
}

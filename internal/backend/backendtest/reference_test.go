package backendtest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/fairlead/fairlead/internal/backend"
	"github.com/fairlead/fairlead/internal/fwd"
)

// bugs are what can be wrong with the reference backend.
type bugs struct {
	forgetsRemovals    bool // a removed Service stays in the kernel
	forgetsOthers      bool // only the first Service of Changes counts, not those that gain or lose a key by it
	ignoresHeader      bool // a header that changes later is not written
	believesFailures   bool // a failed write counts as done
	writesHalf         bool // Apply succeeds but leaves something unwritten
	writesAlways       bool // each Apply writes something
	rewritesAll        bool // each change writes all Services
	blind              bool // Observe finds nothing of ours
	misreadsOne        bool // what Observe reads of one Service is not what was written
	takesForeign       bool // Cleanup removes foreign objects
	leavesSome         bool // Cleanup leaves something
	refuses            bool // a failure that may pass is reported as a refusal
	bareError          bool // a failure is not a FamilyError
	ignoresHairpin     bool
	ignoresWeights     bool
	ignoresSources     bool
	ignoresClass       bool // all sources go the way of Outside
	ignoresLoopback    bool
	takesAddresses     bool // an address of the node that Services claim is theirs alone
	masqueradesAll     bool
	losesLast          bool // the last endpoint of a large pool is never chosen
	straysWhenFailing  bool // after a failed write packets go astray
	alwaysBare         bool // what an earlier run left counts for nothing
	failsTogether      bool // one family that cannot be read keeps the other from being read
	forgetsClients     bool // no session affinity
	remembersForever   bool // session affinity does not end
	remembersByService bool // session affinity is not per port
}

// object keys what the reference kernel holds: for each family the header, and what effective
// fragments have of it.
type object struct {
	family  fwd.Family
	service fwd.Service
	header  bool
}

type value struct {
	header *fwd.Header
	frag   *fwd.Fragment
}

func (v value) equal(o value) bool {
	if v.header != nil && o.header != nil {
		return v.header.Equal(o.header)
	}
	return v.frag != nil && o.frag != nil && v.frag.Equal(o.frag)
}

// reference is a Subject whose kernel is a map, and which judges by Lookup over it.
type reference struct {
	bugs    bugs
	first   fwd.Header
	kernel  map[object]value
	foreign bool
	intact  bool
	writes  int
	failing int
	astray  bool
	// failReads is, by fwd.Family.Index, how many readings are to fail.
	failReads [2]int
	backend   backend.Families
	cached    [2]*fwd.Table
	cachedAt  [2]int
}

func newReference(b bugs) func(fwd.Header) Subject {
	return func(h fwd.Header) Subject {
		s := &reference{bugs: b, first: h, kernel: make(map[object]value), cachedAt: [2]int{-1, -1}}
		s.Restart()
		return s
	}
}

// refBackend is the Engine over one family of the reference kernel.
type refBackend struct {
	s      *reference
	family fwd.Family
	engine *backend.Engine[object, value]
	// headers counts how many were seen.
	headers int
	all     map[object]value
}

func (s *reference) Backend() backend.Families { return s.backend }

func (s *reference) Restart() backend.Families {
	for i, f := range fwd.Families {
		b := &refBackend{s: s, family: f, all: make(map[object]value)}
		b.engine = backend.NewEngine(f, b, b, value.equal)
		s.backend[i] = b
	}
	return s.backend
}

func (s *reference) Writes() int { return s.writes }
func (s *reference) Fail(n int)  { s.failing = n }

func (s *reference) FailReads(f fwd.Family, n int) { s.failReads[f.Index()] = n }

func (s *reference) Foreign() { s.foreign, s.intact = true, true }

func (s *reference) ForeignIntact() error {
	if s.foreign && !s.intact {
		return errors.New("the foreign object is gone")
	}
	return nil
}

func (s *reference) Dump() string {
	var lines []string
	for k, v := range s.kernel {
		if v.header != nil {
			lines = append(lines, fmt.Sprintf("%s header %+v", k.family, *v.header))
		} else {
			lines = append(lines, fmt.Sprintf("%s service %s %+v", k.family, k.service, *v.frag))
		}
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

func (s *reference) Drift(r *rand.Rand) string {
	keys := slices.SortedFunc(maps.Keys(s.kernel), func(a, b object) int { return cmp.Or(a.service.Compare(b.service), cmp.Compare(a.family, b.family)) })
	k := keys[r.IntN(len(keys))]
	delete(s.kernel, k)
	s.writes++
	return "removed " + k.service.String()
}

// table is what the kernel holds of a family as a forwarding table.
func (s *reference) table(f fwd.Family) *fwd.Table {
	if s.cachedAt[f.Index()] == s.writes {
		return s.cached[f.Index()]
	}
	t := &fwd.Table{}
	for k, v := range s.kernel {
		if k.family != f {
			continue
		}
		if v.header != nil {
			t.SetHeader(*v.header)
		} else {
			t.Put(v.frag)
		}
	}
	s.cached[f.Index()], s.cachedAt[f.Index()] = t, s.writes
	return t
}

func (s *reference) lookup(p fwd.Packet) fwd.Outcome {
	t, b := s.table(fwd.FamilyOf(p.Dst.Addr())), s.bugs
	h := t.Header()
	if b.ignoresClass && h.IsLocal(p.Src) {
		p.Src, p.InInterface = netip.MustParseAddr("198.51.100.1"), "eth0"
	}
	o := t.Lookup(p)
	if f := t.Frontend(o.Key); b.ignoresSources && o.Reason == fwd.ReasonSourceRanges && f.Routes[o.Class].Action == fwd.Forward {
		r := f.Routes[o.Class]
		o.Verdict, o.Masquerade, o.Endpoints = fwd.VerdictForward, r.Masquerade, t.Pool(f.Pool(r)).Endpoints
	}
	if b.ignoresLoopback && o.Reason == fwd.ReasonLoopback {
		o.Verdict = fwd.VerdictPass
	}
	if dst := p.Dst.Addr(); b.takesAddresses && o.Verdict == fwd.VerdictPass && slices.ContainsFunc(t.VIPs(), func(v fwd.VIP) bool { return v.Addr == dst }) {
		o.Verdict = fwd.VerdictReject
	}
	if o.Verdict == fwd.VerdictForward && b.masqueradesAll {
		o.Masquerade = true
	}
	return o
}

func (s *reference) Judge(p fwd.Packet) ([]Outcome, error) { return s.judge(p, s.lookup(p)), nil }

func (s *reference) judge(p fwd.Packet, o fwd.Outcome) []Outcome {
	eps := slices.Clone(o.Endpoints)
	if s.bugs.losesLast && len(eps) > 32 {
		eps = eps[:len(eps)-1]
	}
	for i := range eps {
		if s.bugs.ignoresWeights {
			eps[i].Weight = 1
		}
		if s.astray {
			eps[i].Addr = netip.MustParseAddrPort("192.0.2.1:1")
		}
	}
	o.Endpoints = eps
	out := outcomes(p, o)
	for i := range out {
		if s.bugs.ignoresHairpin && out[i].Endpoint.Addr() == p.Src {
			out[i].Masquerade = o.Masquerade
		}
		if h := s.table(fwd.FamilyOf(p.Dst.Addr())).Header(); out[i].Masquerade {
			out[i].Source = h.MasqueradeSource[fwd.FamilyOf(p.Src).Index()]
		}
	}
	return out
}

func (s *reference) JudgeAfter(p, earlier fwd.Packet, chosen netip.AddrPort, age uint32) ([]Outcome, error) {
	was, o := s.lookup(earlier), s.lookup(p)
	same := was.Owner == o.Owner || s.bugs.remembersByService && was.Owner.Service == o.Owner.Service
	i := slices.IndexFunc(o.Endpoints, func(e fwd.Endpoint) bool { return e.Addr == chosen })
	if same && i >= 0 && o.AffinitySec > 0 && !s.bugs.forgetsClients && (age <= o.AffinitySec || s.bugs.remembersForever) {
		o.Endpoints = o.Endpoints[i : i+1]
	}
	return s.judge(p, o), nil
}

// only is what a fragment has of a family, nil if nothing.
func only(f *fwd.Fragment, family fwd.Family) *fwd.Fragment {
	if f == nil {
		return nil
	}
	out := &fwd.Fragment{Owner: f.Owner, CreatedUnix: f.CreatedUnix}
	for _, fe := range f.Frontends {
		if fe.Key.Family == family {
			out.Frontends = append(out.Frontends, fe)
		}
	}
	for _, p := range f.Pools {
		if p.Key.Family == family {
			out.Pools = append(out.Pools, p)
		}
	}
	if out.Empty() {
		return nil
	}
	return out
}

// Render implements backend.Renderer.
func (b *refBackend) Render(ch fwd.Changes) []backend.Edit[object, value] {
	var out []backend.Edit[object, value]
	if ch.Header != nil {
		b.headers++
		if b.headers == 1 || !b.s.bugs.ignoresHeader {
			out = append(out, backend.Edit[object, value]{Key: object{family: b.family, header: true}, Value: value{header: ch.Header}})
		}
	}
	for i, c := range ch.Services {
		if i > 0 && b.s.bugs.forgetsOthers {
			break
		}
		k := object{family: b.family, service: c.Owner}
		switch frag := only(c.New, b.family); {
		case frag != nil:
			out = append(out, backend.Edit[object, value]{Key: k, Value: value{frag: frag}})
			b.all[k] = value{frag: frag}
		case !b.s.bugs.forgetsRemovals:
			out = append(out, backend.Edit[object, value]{Key: k, Delete: true})
			delete(b.all, k)
		}
	}
	return out
}

func (b *refBackend) Update(ch fwd.Changes) { b.engine.Update(ch) }

func (b *refBackend) Apply(ctx context.Context) (backend.Result, error) {
	pending := b.engine.Pending()
	res, err := b.engine.Apply(ctx)
	if b.s.bugs.rewritesAll && pending > 0 {
		res.Written = len(b.all)
	}
	if b.s.bugs.writesAlways {
		b.s.writes++
	}
	if b.s.bugs.bareError && err != nil {
		err = errors.New("failed")
	}
	return res, err
}

func (b *refBackend) Observe(ctx context.Context) (int, error) {
	if b.s.bugs.failsTogether && b.s.failReads != [2]int{} {
		return 0, errors.New("one family cannot be read")
	}
	return b.engine.Observe(ctx)
}

func (b *refBackend) Bare() bool { return b.s.bugs.alwaysBare || b.engine.Bare() }

func (b *refBackend) Begin() backend.Reading { return b.engine.Begin() }

func (b *refBackend) Cleanup(ctx context.Context) error {
	if b.s.bugs.takesForeign {
		b.s.intact = false
	}
	return b.engine.Cleanup(ctx)
}

// Read implements backend.Target.
func (b *refBackend) Read(context.Context) (map[object]value, error) {
	s, i := b.s, b.family.Index()
	if s.failReads[i] > 0 {
		s.failReads[i]--
		return nil, errors.New("made to fail")
	}
	out := maps.Clone(s.kernel)
	maps.DeleteFunc(out, func(k object, _ value) bool { return k.family != b.family })
	if s.bugs.blind {
		clear(out)
	}
	for k, v := range out {
		if s.bugs.misreadsOne && v.frag != nil && len(v.frag.Frontends) > 2 {
			f := *v.frag
			f.Frontends = f.Frontends[1:]
			out[k] = value{frag: &f}
		}
	}
	return out, nil
}

// Write implements backend.Target: each object is a write call.
func (b *refBackend) Write(_ context.Context, p backend.Plan[object, value], done func(object)) error {
	s := b.s
	s.astray = false
	left := 0
	write := func(k object, do func()) error {
		s.writes++
		if s.failing > 0 {
			s.failing--
			s.astray = s.bugs.straysWhenFailing
			if s.bugs.believesFailures {
				done(k)
				return nil
			}
			return &backend.FamilyError{Family: b.family, Refused: s.bugs.refuses, Err: errors.New("try again")}
		}
		do()
		done(k)
		return nil
	}
	for _, k := range sortedObjects(p.Upserts) {
		v := p.Upserts[k]
		if left++; s.bugs.writesHalf && left%7 == 0 {
			done(k)
			continue
		}
		if err := write(k, func() { s.kernel[k] = v }); err != nil {
			return err
		}
	}
	for _, k := range sortedObjects(p.Deletes) {
		if s.bugs.leavesSome && len(s.kernel) == 1 {
			done(k)
			continue
		}
		if err := write(k, func() { delete(s.kernel, k) }); err != nil {
			return err
		}
	}
	return nil
}

func sortedObjects(m map[object]value) []object {
	return slices.SortedFunc(maps.Keys(m), func(a, b object) int {
		if a.header != b.header {
			if a.header {
				return -1
			}
			return 1
		}
		return a.service.Compare(b.service)
	})
}

func TestReference(t *testing.T) {
	Run(t, func(_ testing.TB, h fwd.Header) Subject { return newReference(bugs{})(h) })
}

// deviant is a backend that masquerades everything, and says so.
type deviant struct{ *reference }

func (deviant) Deviate(_ *fwd.Table, _ fwd.Packet, lookup []Outcome) []Outcome {
	for i := range lookup {
		lookup[i].Masquerade = lookup[i].Verdict == fwd.VerdictForward
	}
	return lookup
}

func TestDeviationsAreAllowed(t *testing.T) {
	masquerading := newReference(bugs{masqueradesAll: true})
	newDeviant := func(h fwd.Header) Subject { return deviant{masquerading(h).(*reference)} }
	if err := checkLookup(1, newDeviant); err != nil {
		t.Error(err)
	}
	if err := checkLookup(1, masquerading); err == nil {
		t.Error("without Deviate: nothing found")
	}
}

// TestOptionalInterfaces hides everything but Subject.
func TestOptionalInterfaces(t *testing.T) {
	plain := func(h fwd.Header) Subject { return struct{ Subject }{newReference(bugs{})(h)} }
	for name, run := range map[string]func(uint64, func(fwd.Header) Subject) error{"Affinity": checkAffinity, "DriftIsRepaired": checkDrift} {
		if err := run(0, plain); err != errNotApplicable {
			t.Errorf("%s: got %v, want %v", name, err, errNotApplicable)
		}
	}
}

func TestCompare(t *testing.T) {
	a, b, node := netip.MustParseAddrPort("10.0.0.1:80"), netip.MustParseAddrPort("10.0.0.2:80"), netip.MustParseAddrPort("192.168.7.10:80")
	p := fwd.Packet{Src: netip.MustParseAddr("198.51.100.1"), Dst: netip.MustParseAddrPort("10.96.0.1:80"), Proto: fwd.TCP, InInterface: "eth0"}
	to := func(eps ...netip.AddrPort) fwd.Outcome {
		o := fwd.Outcome{Verdict: fwd.VerdictForward, Masquerade: true}
		for _, e := range eps {
			o.Endpoints = append(o.Endpoints, fwd.Endpoint{Addr: e, Weight: 1})
		}
		return o
	}
	got := func(ep netip.AddrPort, masq bool, prob float64) Outcome {
		return Outcome{Verdict: fwd.VerdictForward, Endpoint: ep, Masquerade: masq, Probability: prob}
	}
	drop := []Outcome{{Verdict: fwd.VerdictDrop, Probability: 1}}
	tests := []struct {
		name string
		want fwd.Outcome
		got  []Outcome
		ok   bool
	}{
		{"equal", to(a, b), []Outcome{got(b, true, 0.5), got(a, true, 0.5)}, true},
		{"within tolerance", to(a, b), []Outcome{got(b, true, 0.5+5e-7), got(a, true, 0.5-5e-7)}, true},
		{"out of tolerance", to(a, b), []Outcome{got(b, true, 0.5+2e-6), got(a, true, 0.5-2e-6)}, false},
		{"probability unknown", to(a, b), []Outcome{got(b, true, -1), got(a, true, -1)}, true},
		{"one missing", to(a, b), []Outcome{got(b, true, -1)}, false},
		{"one too many", to(a), []Outcome{got(a, true, 1), got(b, true, -1)}, false},
		{"twice the same", to(a), []Outcome{got(a, true, 1), got(a, true, 1)}, false},
		{"no masquerade", to(a), []Outcome{got(a, false, 1)}, false},
		{"no masquerade to the node itself", to(node), []Outcome{got(node, false, 1)}, true},
		{"masquerade to the node itself", to(node), []Outcome{got(node, true, 1)}, true},
		{"another verdict", to(a), drop, false},
		{"drop", fwd.Outcome{Verdict: fwd.VerdictDrop}, drop, true},
		{"nothing", to(a), nil, false},
	}
	w := &world{header: fwd.Header{LocalAddrs: []netip.Addr{node.Addr()}}}
	for _, tc := range tests {
		if err := w.compare(p, tc.want, tc.got); (err == nil) != tc.ok {
			t.Errorf("%s: got %v, want ok=%v", tc.name, err, tc.ok)
		}
	}
}

// TestBugsAreCaught runs each check over each bug: the checks that are named must find it.
func TestBugsAreCaught(t *testing.T) {
	tests := []struct {
		name   string
		bug    bugs
		caught []string
	}{
		{"forgets removals", bugs{forgetsRemovals: true}, []string{"IncrementalEqualsScratch", "RemovedServicesLeaveNothing", "OneOfManyIsCheap"}},
		{"forgets Services that gain or lose a key", bugs{forgetsOthers: true}, []string{"IncrementalEqualsScratch"}},
		{"ignores a new header", bugs{ignoresHeader: true}, []string{"Lookup", "IncrementalEqualsScratch"}},
		{"believes that failed writes were done", bugs{believesFailures: true}, []string{"IncrementalEqualsScratch"}},
		{"writes half", bugs{writesHalf: true}, []string{"Lookup"}},
		{"writes always", bugs{writesAlways: true}, []string{"Lookup", "IncrementalEqualsScratch", "RestartWritesNothing"}},
		{"rewrites all", bugs{rewritesAll: true}, []string{"OneOfManyIsCheap"}},
		{"observes nothing", bugs{blind: true}, []string{"RestartWritesNothing", "DriftIsRepaired", "CleanupRemovesAllThatIsOurs"}},
		{"misreads an object", bugs{misreadsOne: true}, []string{"RestartWritesNothing", "DriftIsRepaired"}},
		{"cleans up what is foreign", bugs{takesForeign: true}, []string{"CleanupRemovesAllThatIsOurs"}},
		{"cleans up not all", bugs{leavesSome: true}, []string{"CleanupRemovesAllThatIsOurs"}},
		{"reports failures as refusals", bugs{refuses: true}, []string{"IncrementalEqualsScratch"}},
		{"reports failures without their family", bugs{bareError: true}, []string{"IncrementalEqualsScratch"}},
		{"ignores hairpin", bugs{ignoresHairpin: true}, []string{"Lookup"}},
		{"ignores weights", bugs{ignoresWeights: true}, []string{"Lookup"}},
		{"ignores source ranges", bugs{ignoresSources: true}, []string{"Lookup"}},
		{"ignores the class of the source", bugs{ignoresClass: true}, []string{"Lookup"}},
		{"ignores the protection of loopback", bugs{ignoresLoopback: true}, []string{"Lookup"}},
		{"takes the node's addresses", bugs{takesAddresses: true}, []string{"NodeKeepsItsAddresses"}},
		{"masquerades always", bugs{masqueradesAll: true}, []string{"Lookup"}},
		{"loses an endpoint of large pools", bugs{losesLast: true}, []string{"Lookup", "PoolGrowthIsCheap"}},
		{"sends packets astray after a failure", bugs{straysWhenFailing: true}, []string{"IncrementalEqualsScratch"}},
		{"takes any kernel for empty", bugs{alwaysBare: true}, []string{"LoadInPieces"}},
		{"fails together", bugs{failsTogether: true}, []string{"UnreadFamily"}},
		{"forgets clients", bugs{forgetsClients: true}, []string{"Affinity"}},
		{"remembers clients for ever", bugs{remembersForever: true}, []string{"Affinity"}},
		{"remembers clients across ports", bugs{remembersByService: true}, []string{"Affinity"}},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			for _, name := range tc.caught {
				i := slices.IndexFunc(checks, func(c check) bool { return c.name == name })
				if i < 0 {
					t.Fatalf("no check %s", name)
				}
				var err error
				for seed := uint64(0); seed < uint64(checks[i].seeds) && err == nil; seed++ {
					err = checks[i].run(seed, newReference(tc.bug))
				}
				if err == nil || err == errNotApplicable {
					t.Errorf("check %s found nothing: %v", name, err)
				} else {
					t.Logf("%s: %v", name, err)
				}
			}
		})
	}
}

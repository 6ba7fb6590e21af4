package backendtest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/fairlead/fairlead/internal/backend"
	"github.com/fairlead/fairlead/internal/fwd"
)

// errNotApplicable says that the Subject lacks an optional interface.
var errNotApplicable = errors.New("not applicable")

// check is one property of a backend.
type check struct {
	name  string
	seeds int
	run   func(seed uint64, newSubject func(fwd.Header) Subject) error
}

var checks = []check{
	{"Lookup", 12, checkLookup},
	{"NodeKeepsItsAddresses", 8, checkOwnAddresses},
	{"ForeignMarks", 4, checkForeignMarks},
	{"UnmovedConnections", 2, checkUnmoved},
	{"Affinity", 6, checkAffinity},
	{"IncrementalEqualsScratch", 12, checkIncremental},
	{"LoadInPieces", 6, checkPieces},
	{"UnreadFamily", 6, checkUnread},
	{"RestartWritesNothing", 4, checkRestart},
	{"RestartFindsFrontends", 4, checkFound},
	{"DriftIsRepaired", 6, checkDrift},
	{"CleanupRemovesAllThatIsOurs", 4, checkCleanup},
	{"RemovedServicesLeaveNothing", 4, checkRemoval},
	{"PoolGrowthIsCheap", 3, checkPoolGrowth},
	{"OneOfManyIsCheap", 2, checkOneOfMany},
}

func random(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 0x6661_6972)) }

// populated returns a world with foreign objects and n random Services, programmed.
func populated(r *rand.Rand, n int, newSubject func(fwd.Header) Subject) (*world, error) {
	w, err := newWorld(newSubject, randomHeader(r))
	if err != nil {
		return nil, err
	}
	w.subject.Foreign()
	for i := range n {
		w.put(randomFragment(r, i))
	}
	_, err = w.apply()
	return w, err
}

// checkLookup compares what the kernel does with what the table says.
func checkLookup(seed uint64, newSubject func(fwd.Header) Subject) error {
	r := random(seed)
	w, err := populated(r, 1+r.IntN(40), newSubject)
	if err != nil {
		return err
	}
	if err := w.agree(randomPackets(r, w.table, 400)); err != nil {
		return err
	}
	if err := w.idle("second Apply"); err != nil {
		return err
	}
	w.setHeader(randomHeader(r))
	if _, err := w.apply(); err != nil {
		return err
	}
	if err := w.agree(randomPackets(r, w.table, 200)); err != nil {
		return fmt.Errorf("after a change of the header: %w", err)
	}
	return w.subject.ForeignIntact()
}

// checkAffinity gives a client a history and looks where its next connection goes.
func checkAffinity(seed uint64, newSubject func(fwd.Header) Subject) error {
	r := random(seed)
	w, err := populated(r, 40, newSubject)
	if err != nil {
		return err
	}
	s, ok := w.subject.(Rememberer)
	if !ok {
		return errNotApplicable
	}
	judged := 0
	for _, earlier := range randomPackets(r, w.table, 2000) {
		was := w.table.Lookup(earlier)
		if was.Verdict != fwd.VerdictForward || was.AffinitySec == 0 {
			continue
		}
		chosen := pick(r, w.want(earlier, was)...).Endpoint
		p := later(r, w.table, earlier, was, chosen)
		age := pick(r, 0, was.AffinitySec/2, was.AffinitySec-1, was.AffinitySec+2, 2*was.AffinitySec+2)
		got, err := s.JudgeAfter(p, earlier, chosen, age)
		if err != nil {
			return fmt.Errorf("packet %+v after %+v: %w", p, earlier, err)
		}
		want := w.table.Lookup(p)
		if i := chooses(want, chosen); want.Owner == was.Owner && i >= 0 && age <= was.AffinitySec {
			want.Endpoints = want.Endpoints[i : i+1]
		}
		if err := w.compare(p, want, got); err != nil {
			return fmt.Errorf("packet %+v, %d of %d s after %+v went to %v:\n%w", p, age, was.AffinitySec, earlier, chosen, err)
		}
		if judged++; judged == 150 {
			break
		}
	}
	if judged == 0 {
		return errors.New("the random table has no frontend with affinity: choose other seeds")
	}
	return nil
}

// later is another packet of the client: the same again, one to any frontend of the Service, or one
// to another port of it that could choose the same endpoint.
func later(r *rand.Rand, t *fwd.Table, earlier fwd.Packet, was fwd.Outcome, chosen netip.AddrPort) fwd.Packet {
	how := r.IntN(3)
	if how == 0 {
		return earlier
	}
	p := earlier
	for range 40 {
		fe := pick(r, t.Fragment(was.Owner.Service).Frontends...)
		if fe.Key.Family != was.Key.Family {
			continue
		}
		a := fe.Key.Addr
		if fe.Key.IsNodePort() {
			a = plans[fe.Key.Family.Index()].local[0]
		}
		p.Proto, p.Dst = fe.Key.Proto, netip.AddrPortFrom(a, fe.Key.Port)
		o := t.Lookup(p)
		if how == 1 || o.Owner != was.Owner && chooses(o, chosen) >= 0 {
			break
		}
	}
	return p
}

// chooses returns the index of an endpoint in an outcome, -1 if it is not there.
func chooses(o fwd.Outcome, endpoint netip.AddrPort) int {
	return slices.IndexFunc(o.Endpoints, func(e fwd.Endpoint) bool { return e.Addr == endpoint })
}

// checkIncremental changes the table at random, with failing writes and restarts, and compares with
// a fresh backend.
func checkIncremental(seed uint64, newSubject func(fwd.Header) Subject) error {
	r := random(seed)
	w, err := populated(r, 6, newSubject)
	if err != nil {
		return err
	}
	h := halfWritten{w: w}
	h.settled(r)
	for step := range steps() {
		if err := randomStep(r, w, &h); err != nil {
			return fmt.Errorf("step %d: %w", step, err)
		}
	}
	h.failNothing()
	if _, err := w.apply(); err != nil {
		return fmt.Errorf("last Apply, nothing fails any more: %w", err)
	}
	if err := w.agree(randomPackets(r, w.table, 200)); err != nil {
		return err
	}
	if err := w.asFromScratch(newSubject); err != nil {
		return err
	}
	return w.subject.ForeignIntact()
}

// StepsVariable is an environment variable that says how many random changes the check
// IncrementalEqualsScratch makes for each seed.
const StepsVariable = "FAIRLEAD_SUITE_STEPS"

func steps() int {
	if n, err := strconv.Atoi(os.Getenv(StepsVariable)); err == nil && n > 0 {
		return n
	}
	return 60
}

// checkPieces programs a node in batches, as the loop does if the kernel has none of our objects.
// After each batch the kernel does what a table with the Services so far says. A new process must
// not take a programmed kernel for empty.
func checkPieces(seed uint64, newSubject func(fwd.Header) Subject) error {
	r := random(seed)
	w, err := newWorld(newSubject, randomHeader(r))
	if err != nil {
		return err
	}
	w.subject.Foreign()
	const services, piece = 12, 4
	for i := range services {
		if i%piece == 0 {
			if !w.backend.Bare() {
				return fmt.Errorf("with %d Services, all there is: Bare says that the kernel holds other objects", i)
			}
			if i == piece {
				h := randomHeader(r)
				h.LocalAddrs = w.header.LocalAddrs
				w.setHeader(h)
			}
		}
		w.put(randomFragment(r, i))
		if i%piece < piece-1 {
			continue
		}
		if _, err := w.apply(); err != nil {
			return err
		}
		if err := w.agree(randomPackets(r, w.table, 100)); err != nil {
			return fmt.Errorf("with %d of %d Services: %w", i+1, services, err)
		}
	}
	if err := w.asFromScratch(newSubject); err != nil {
		return err
	}

	w.frags = nil
	if err := w.restart(nil); err != nil {
		return err
	}
	if w.backend.Bare() {
		return fmt.Errorf("a new process that does not know the %d Services in the kernel takes it for empty", services)
	}
	return w.subject.ForeignIntact()
}

func randomStep(r *rand.Rand, w *world, h *halfWritten) error {
	i := r.IntN(14)
	switch n := r.IntN(100); {
	case n < 45:
		w.put(randomFragment(r, i))
	case n < 60:
		w.remove(serviceName(i))
	case n < 65:
		w.setHeader(randomHeader(r))
	case n < 70:
		return w.restart(r)
	case n < 73:
		if one(r, 3) {
			w.subject.FailReads(pick(r, fwd.Families[:]...), 1)
		}
		_, err := w.backend.Observe(context.Background())
		h.failNothing()
		return mayPass(err)
	default:
		return h.apply(r)
	}
	return nil
}

// halfWritten checks the states between two successful writes: a packet goes to no endpoint that
// none of the tables since the last success has for it.
type halfWritten struct {
	w       *world
	packets []fwd.Packet
	allowed []map[netip.AddrPort]bool
}

// settled starts over after a successful write.
func (h *halfWritten) settled(r *rand.Rand) {
	h.packets = randomPackets(r, h.w.table, 15)
	h.allowed = make([]map[netip.AddrPort]bool, len(h.packets))
	for i := range h.allowed {
		h.allowed[i] = make(map[netip.AddrPort]bool)
	}
	h.allow()
}

func (h *halfWritten) allow() {
	for i, p := range h.packets {
		for _, o := range h.w.want(p, h.w.table.Lookup(p)) {
			h.allowed[i][o.Endpoint] = true
		}
	}
}

// failNothing lets all operations succeed again.
func (h *halfWritten) failNothing() {
	h.w.subject.Fail(0)
	for _, f := range fwd.Families {
		h.w.subject.FailReads(f, 0)
	}
}

// apply applies once with up to two failing writes, one time in five, and fails to read a family
// where that is needed, as often.
func (h *halfWritten) apply(r *rand.Rand) error {
	if one(r, 5) {
		h.w.subject.Fail(1 + r.IntN(2))
	}
	if one(r, 5) {
		h.w.subject.FailReads(pick(r, fwd.Families[:]...), 1)
	}
	h.allow()
	_, err := h.w.apply()
	h.failNothing()
	if err == nil {
		if err := h.w.idle("Apply after a successful one"); err != nil {
			return err
		}
		h.settled(r)
		return h.w.agree(h.packets)
	}
	if err := mayPass(err); err != nil {
		return err
	}
	for i, p := range h.packets {
		got, err := h.w.subject.Judge(p)
		if err != nil {
			return fmt.Errorf("after a failed write, packet %+v: %w", p, err)
		}
		for _, o := range got {
			if o.Verdict == fwd.VerdictForward && !h.allowed[i][o.Endpoint] {
				return fmt.Errorf("after a failed write, packet %+v goes to %v, which no table since the last success has for it", p, o.Endpoint)
			}
		}
	}
	return nil
}

// mayPass checks that an error, if there is one, consists of FamilyErrors that are not refusals.
func mayPass(err error) error {
	if err == nil {
		return nil
	}
	found := 0
	var visit func(error) error
	visit = func(e error) error {
		switch x := e.(type) {
		case *backend.FamilyError:
			found++
			if x.Refused {
				return fmt.Errorf("a failure that may pass is reported as a refusal: %w", err)
			}
			return nil
		case interface{ Unwrap() []error }:
			for _, e := range x.Unwrap() {
				if err := visit(e); err != nil {
					return err
				}
			}
		case interface{ Unwrap() error }:
			return visit(x.Unwrap())
		}
		return nil
	}
	if bad := visit(err); bad != nil {
		return bad
	}
	if found == 0 {
		return fmt.Errorf("the failure of a write is not reported as a FamilyError: %w", err)
	}
	return nil
}

// checkUnread starts a new process that cannot read one family. The other one is brought up to
// date; the objects of the first one stay in the kernel until it can be read.
func checkUnread(seed uint64, newSubject func(fwd.Header) Subject) error {
	r := random(seed)
	w, err := populated(r, 15, newSubject)
	if err != nil {
		return err
	}
	ctx, broken := context.Background(), fwd.Families[seed%2]
	w.backend = w.subject.Restart()
	w.subject.FailReads(broken, 1000)
	if err := w.onlyFails(ctx, broken); err != nil {
		return err
	}
	before := w.table
	w.table = &fwd.Table{}
	w.backend.Update(w.table.SetHeader(w.header))
	for _, o := range slices.SortedFunc(maps.Keys(w.frags), fwd.Service.Compare) {
		w.backend.Update(w.table.Put(w.frags[o]))
	}
	for i := range 8 {
		w.put(randomFragment(r, 2*i))
		w.remove(serviceName(2*i + 1))
	}
	for i, f := range fwd.Families {
		if f != broken {
			if _, err := w.backend[i].Apply(ctx); err != nil {
				return fmt.Errorf("%s cannot be read, and %s cannot be written: %w", broken, f, err)
			}
		}
	}
	now := w.table
	for _, t := range []*fwd.Table{before, now} {
		w.table = t
		packets := slices.DeleteFunc(slices.Concat(randomPackets(r, before, 200), randomPackets(r, now, 200)), func(p fwd.Packet) bool {
			return (fwd.FamilyOf(p.Dst.Addr()) == broken) != (t == before)
		})
		if err := w.agree(packets); err != nil {
			return fmt.Errorf("while %s cannot be read: %w", broken, err)
		}
	}
	w.subject.FailReads(broken, 0)
	if _, err := w.backend[broken.Index()].Observe(ctx); err != nil {
		return fmt.Errorf("%s can be read again: %w", broken, err)
	}
	if _, err := w.apply(); err != nil {
		return err
	}
	if err := w.asFromScratch(newSubject); err != nil {
		return err
	}
	return w.subject.ForeignIntact()
}

// onlyFails reads both families, of which one must fail.
func (w *world) onlyFails(ctx context.Context, broken fwd.Family) error {
	for i, f := range fwd.Families {
		_, err := w.backend[i].Observe(ctx)
		var fe *backend.FamilyError
		switch {
		case f != broken && err != nil:
			return fmt.Errorf("%s cannot be read, and %s cannot either: %w", broken, f, err)
		case f == broken && (!errors.As(err, &fe) || fe.Family != f || fe.Refused):
			return fmt.Errorf("reading %s failed, and the error is %w", f, err)
		}
	}
	return nil
}

// checkRestart restarts without a change, with the Services in another order, and then with a
// change in between.
func checkRestart(seed uint64, newSubject func(fwd.Header) Subject) error {
	r := random(seed)
	w, err := populated(r, 20, newSubject)
	if err != nil {
		return err
	}
	if err := w.restart(r); err != nil {
		return err
	}
	if err := w.idle("restart without a change"); err != nil {
		return err
	}
	w.frags[serviceName(3)] = randomFragment(r, 3)
	delete(w.frags, serviceName(4))
	if err := w.restart(r); err != nil {
		return err
	}
	if _, err := w.apply(); err != nil {
		return err
	}
	if err := w.asFromScratch(newSubject); err != nil {
		return fmt.Errorf("after a restart with changes: %w", err)
	}
	return w.subject.ForeignIntact()
}

// checkFound lets a new process read what another one left: all frontends of UDP, once, and nothing
// later.
func checkFound(seed uint64, newSubject func(fwd.Header) Subject) error {
	r := random(seed)
	w, err := populated(r, 1+r.IntN(40), newSubject)
	if err != nil {
		return err
	}
	s, ok := w.subject.(Finding)
	if !ok {
		return errNotApplicable
	}
	if found := s.Finder().Found(); len(found) > 0 {
		return fmt.Errorf("in an empty kernel it found %v", found)
	}
	var want []fwd.Key
	for f := range w.table.Services() {
		for i := range f.Frontends {
			if k := f.Frontends[i].Key; k.Proto == fwd.UDP {
				want = append(want, k)
			}
		}
	}
	slices.SortFunc(want, fwd.Key.Compare)
	if err := w.restart(r); err != nil {
		return err
	}
	finder := s.Finder()
	got := slices.SortedFunc(slices.Values(finder.Found()), fwd.Key.Compare)
	if !slices.Equal(want, got) {
		return fmt.Errorf("a new process found %v, want %v", got, want)
	}
	w.put(randomFragment(r, 50))
	if _, err := w.apply(); err != nil {
		return err
	}
	if _, err := w.subject.Backend().Observe(context.Background()); err != nil {
		return err
	}
	if found := s.Finder().Found(); len(found) > 0 {
		return fmt.Errorf("a later reading found %v", found)
	}
	return nil
}

// checkDrift changes the kernel without the backend, which must notice and repair it.
func checkDrift(seed uint64, newSubject func(fwd.Header) Subject) error {
	r := random(seed)
	w, err := populated(r, 12, newSubject)
	if err != nil {
		return err
	}
	d, ok := w.subject.(Drifter)
	if !ok {
		return errNotApplicable
	}
	want := w.subject.Dump()
	if n, err := w.backend.Observe(context.Background()); err != nil || n != 0 {
		return fmt.Errorf("Observe after Apply found %d objects that differ (%v), want none", n, err)
	}
	for range 5 {
		what := d.Drift(r)
		if w.subject.Dump() == want {
			continue // the change has no effect
		}
		n, err := w.backend.Observe(context.Background())
		if err != nil {
			return fmt.Errorf("%s: Observe: %w", what, err)
		}
		if n == 0 {
			return fmt.Errorf("%s: Observe noticed nothing", what)
		}
		if _, err := w.apply(); err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		if got := w.subject.Dump(); got != want {
			return fmt.Errorf("%s: not repaired:\n%s", what, firstDifferences(want, got))
		}
	}
	return w.agree(randomPackets(r, w.table, 100))
}

// checkCleanup removes everything, by the process that wrote it and by another one that knows
// nothing.
func checkCleanup(seed uint64, newSubject func(fwd.Header) Subject) error {
	r := random(seed)
	h := randomHeader(r)
	empty := newSubject(h).Dump()
	w, err := newWorld(newSubject, h)
	if err != nil {
		return err
	}
	w.subject.Foreign()
	clean := func(who string) error {
		if err := w.backend.Cleanup(context.Background()); err != nil {
			return fmt.Errorf("%s: Cleanup: %w", who, err)
		}
		if got := w.subject.Dump(); got != empty {
			return fmt.Errorf("%s: Cleanup left:\n%s", who, firstDifferences(empty, got))
		}
		return w.subject.ForeignIntact()
	}
	if err := clean("on a kernel that has nothing of ours"); err != nil {
		return err
	}
	for i := range 15 {
		w.frags[serviceName(i)] = randomFragment(r, i)
	}
	for _, who := range []string{"by the process that wrote it", "by a new process"} {
		if err := w.restart(r); err != nil {
			return err
		}
		if _, err := w.apply(); err != nil {
			return err
		}
		if err := w.agree(randomPackets(r, w.table, 50)); err != nil {
			return err
		}
		if who == "by a new process" {
			w.backend = w.subject.Restart()
		}
		for _, again := range []string{"", ", again"} {
			if err := clean(who + again); err != nil {
				return err
			}
		}
	}
	return nil
}

// checkRemoval removes all Services again.
func checkRemoval(seed uint64, newSubject func(fwd.Header) Subject) error {
	r := random(seed)
	w, err := populated(r, 25, newSubject)
	if err != nil {
		return err
	}
	for i := range 25 {
		w.remove(serviceName(i))
		if one(r, 8) {
			if _, err := w.apply(); err != nil {
				return err
			}
		}
	}
	if _, err := w.apply(); err != nil {
		return err
	}
	want, err := w.scratch(newSubject)
	if err != nil {
		return err
	}
	if got := w.subject.Dump(); got != want {
		return fmt.Errorf("removed Services left something:\n%s", firstDifferences(want, got))
	}
	return w.agree(randomPackets(r, w.table, 50))
}

// The most objects that a small change may write and delete. That a Service comes or goes may split
// or join parts of an index; that a pool changes may not.
const (
	poolBound  = 16
	indexBound = 40
)

// touches applies and checks how many objects were written and deleted.
func (w *world) touches(what string, atMost int) error {
	res, err := w.apply()
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	if n := res.Written + res.Deleted; n == 0 || n > atMost {
		return fmt.Errorf("%s: wrote %d and deleted %d objects, want 1 to %d", what, res.Written, res.Deleted, atMost)
	}
	return nil
}

// plainFragment is a Service with one cluster IP of IPv4 and endpoints with the given numbers.
func plainFragment(i int, endpoints ...int) *fwd.Fragment {
	pl := plans[0]
	sp := fwd.ServicePort{Service: serviceName(i), Port: "http", Proto: fwd.TCP}
	key := fwd.PoolKey{Port: sp, Family: fwd.IPv4}
	pool := fwd.Pool{Key: key}
	for _, n := range endpoints {
		a := nth(pl.pods, n)
		pool.Endpoints = append(pool.Endpoints, fwd.Endpoint{Addr: netip.AddrPortFrom(a, 8080), Weight: 1, Local: pl.nodePods.Contains(a)})
	}
	masq := fwd.Route{Action: fwd.Forward, Masquerade: true, Reason: fwd.ReasonCluster}
	pod := fwd.Route{Action: fwd.Forward, Reason: fwd.ReasonCluster}
	return &fwd.Fragment{Owner: sp.Service, Pools: []fwd.Pool{pool}, Frontends: []fwd.Frontend{{
		Key: fwd.Key{Family: fwd.IPv4, Addr: nth(netip.MustParsePrefix("10.96.0.0/12"), 1+i), Proto: fwd.TCP, Port: 80}, Owner: sp,
		Routes: [fwd.NumClasses]fwd.Route{fwd.Outside: masq, fwd.Pod: pod, fwd.Host: masq}}}}
}

// checkPoolGrowth lets a pool grow from 100 to 101 endpoints and shrink again, anywhere in its
// order.
func checkPoolGrowth(seed uint64, newSubject func(fwd.Header) Subject) error {
	r := random(seed)
	w, err := populated(r, 10, newSubject)
	if err != nil {
		return err
	}
	numbers := make([]int, 100)
	for i := range numbers {
		numbers[i] = 10 * (i + 1)
	}
	w.put(plainFragment(5000, numbers...))
	if _, err := w.apply(); err != nil {
		return err
	}
	more := append(slices.Clone(numbers), 10*(1+r.IntN(100))+5)
	slices.SortFunc(more, cmp.Compare[int])
	f := plainFragment(5000, more...)
	w.put(f)
	if err := w.touches("a pool grows from 100 to 101 endpoints", poolBound); err != nil {
		return err
	}
	p := fwd.Packet{Src: nth(plans[0].clients, 3), Dst: netip.AddrPortFrom(f.Frontends[0].Key.Addr, 80), Proto: fwd.TCP, InInterface: "eth0"}
	if err := w.agree([]fwd.Packet{p}); err != nil {
		return err
	}
	w.put(plainFragment(5000, numbers...))
	return w.touches("a pool shrinks from 101 to 100 endpoints", poolBound)
}

// checkOneOfMany changes, removes and adds one of 2000 Services.
func checkOneOfMany(seed uint64, newSubject func(fwd.Header) Subject) error {
	r := random(seed)
	w, err := newWorld(newSubject, randomHeader(r))
	if err != nil {
		return err
	}
	for i := range 2000 {
		w.put(plainFragment(i, i+1, i+2, i+3))
	}
	if _, err := w.apply(); err != nil {
		return err
	}
	for range 5 {
		i := r.IntN(2000)
		w.put(plainFragment(i, i+1, i+3, i+4))
		if err := w.touches("an endpoint of one of 2000 Services changes", poolBound); err != nil {
			return err
		}
		w.remove(serviceName(i))
		if err := w.touches("one of 2000 Services goes", indexBound); err != nil {
			return err
		}
		w.put(plainFragment(i, i+1))
		if err := w.touches("one of 2000 Services comes", indexBound); err != nil {
			return err
		}
	}
	return w.agree(randomPackets(r, w.table, 20))
}

// firstDifferences shows the first lines that only one of two texts has.
func firstDifferences(want, got string) string {
	const most, longest = 8, 300
	var b strings.Builder
	only := func(sign string, a, other string) {
		in := make(map[string]bool)
		for line := range strings.Lines(other) {
			in[line] = true
		}
		n := 0
		for line := range strings.Lines(a) {
			if in[line] {
				continue
			}
			if n++; n > most {
				fmt.Fprintf(&b, "%s ...\n", sign)
				return
			}
			line = strings.TrimSuffix(line, "\n")
			if len(line) > longest {
				line = line[:longest] + "..."
			}
			fmt.Fprintf(&b, "%s %s\n", sign, line)
		}
	}
	only("-want", want, got)
	only("+got ", got, want)
	if b.Len() == 0 {
		return "the same lines in another order"
	}
	return b.String()
}

package reconcile

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fairlead/fairlead/internal/backend"
	"github.com/fairlead/fairlead/internal/cluster"
	"github.com/fairlead/fairlead/internal/config"
	"github.com/fairlead/fairlead/internal/fwd"
)

// turn makes what a test changes visible to the loop that runs next. Test and loop take turns, and
// synctest.Wait makes what the loop did visible to the test; in the other direction, a timer of the
// bubble does not count as synchronization.
var turn atomic.Int64

// fakeFeed is a Feed that the test fills.
type fakeFeed struct {
	wake chan struct{}
	// mu guards all that follows.
	mu     sync.Mutex
	synced bool
	puts   []func(*cluster.Store)
	d      cluster.Drained
}

func (f *fakeFeed) Wake() <-chan struct{} { return f.wake }

func (f *fakeFeed) Synced() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.synced
}

func (f *fakeFeed) Drain(s *cluster.Store) cluster.Drained {
	f.mu.Lock()
	defer f.mu.Unlock()
	turn.Load()
	d := f.d
	for _, put := range f.puts {
		put(s)
	}
	f.puts, f.d = nil, cluster.Drained{}
	return d
}

// change changes the feed and wakes the loop.
func (f *fakeFeed) change(fn func()) {
	f.mu.Lock()
	fn()
	f.mu.Unlock()
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

func (f *fakeFeed) put(fns ...func(*cluster.Store)) {
	f.change(func() { f.puts = append(f.puts, fns...) })
}

// fakePlan is what a write was to make, sorted, and what it was to delete.
type fakePlan struct{ upserts, deletes []fwd.Service }

// fakeKernel is one family's kernel: one object for each Service that has a frontend of the family.
type fakeKernel struct {
	family fwd.Family
	// mu guards all that follows between Read and Write, which can run at the same time; a test
	// looks at it when neither runs.
	mu      sync.Mutex
	objects map[fwd.Service]string
	// fail is returned by the next writes and reads, refuse by writes that hold one of the
	// Services.
	failWrite, failRead error
	refuse              map[fwd.Service]bool
	// lose is how many readings miss one of the objects.
	lose int
	// slow is how long a write takes.
	slow time.Duration
	// slowRead is how long a read takes, after which it returns what was there at its beginning.
	slowRead time.Duration
	// reads and writes count calls; at is when writes began, plans are what they were to write.
	// failAt is the number of a write that fails, from 1 on.
	reads, writes, failAt int
	at                    []time.Time
	plans                 []fakePlan
}

func (k *fakeKernel) Read(ctx context.Context) (map[fwd.Service]string, error) {
	k.mu.Lock()
	turn.Load()
	k.reads++
	objects, err, slow := maps.Clone(k.objects), k.failRead, k.slowRead
	k.mu.Unlock()
	defer func() {
		k.mu.Lock()
		defer k.mu.Unlock()
		turn.Load()
		for s := range objects {
			if k.lose > 0 {
				k.lose--
				delete(objects, s)
			}
		}
	}()
	if slow > 0 {
		select {
		case <-time.After(slow):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return objects, err
}

func (k *fakeKernel) Write(ctx context.Context, plan backend.Plan[fwd.Service, string], done func(fwd.Service)) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	turn.Load()
	k.writes++
	k.at = append(k.at, time.Now())
	if k.slow > 0 {
		select {
		case <-time.After(k.slow):
			turn.Load() // the test may have looked meanwhile
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	k.plans = append(k.plans, fakePlan{slices.SortedFunc(maps.Keys(plan.Upserts), fwd.Service.Compare), slices.SortedFunc(maps.Keys(plan.Deletes), fwd.Service.Compare)})
	if k.writes == k.failAt {
		return errors.New("lock held")
	}
	if k.failWrite != nil {
		return k.failWrite
	}
	for _, s := range slices.SortedFunc(maps.Keys(plan.Upserts), fwd.Service.Compare) {
		if k.refuse[s] {
			return &backend.FamilyError{Family: k.family, Refused: true, Culprits: []fwd.Service{s}, Err: fmt.Errorf("no such match %s", s)}
		}
	}
	for s, v := range plan.Upserts {
		k.objects[s] = v
		done(s)
	}
	for s := range plan.Deletes {
		delete(k.objects, s)
		done(s)
	}
	return nil
}

// Render makes an object of each Service's frontends of the family.
func (k *fakeKernel) Render(ch fwd.Changes) []backend.Edit[fwd.Service, string] {
	var out []backend.Edit[fwd.Service, string]
	for _, s := range ch.Services {
		var text strings.Builder
		if s.New != nil {
			for _, f := range s.New.Frontends {
				if f.Key.Family == k.family {
					fmt.Fprintln(&text, f.Key, f.Routes)
				}
			}
			for _, p := range s.New.Pools {
				if p.Key.Family == k.family {
					fmt.Fprintln(&text, p.Endpoints)
				}
			}
		}
		out = append(out, backend.Edit[fwd.Service, string]{Key: s.Owner, Value: text.String(), Delete: text.Len() == 0})
	}
	return out
}

func newFakeBackends(kernels *[2]fakeKernel) backend.Families {
	var families backend.Families
	for i := range kernels {
		k := &kernels[i]
		k.family = fwd.Families[i]
		if k.objects == nil {
			k.objects = make(map[fwd.Service]string)
		}
		families[i] = backend.NewEngine(k.family, k, k, func(a, b string) bool { return a == b })
	}
	return families
}

// follower records what the loop tells others.
type follower struct {
	queued []time.Time
	syncs  []Sync
	nodes  int
	events []string
	// verified counts, by fwd.Family.Index, the readings that found everything; configs the new
	// configurations.
	verified [2]int
	configs  int
	// flows records the arguments of Submit.
	flows []submitted
}

func (f *follower) Queued(t time.Time)                   { f.queued = append(f.queued, t) }
func (f *follower) Synced(s Sync)                        { f.syncs = append(f.syncs, s) }
func (f *follower) Verified(fam fwd.Family, _ time.Time) { f.verified[fam.Index()]++ }
func (f *follower) Node(cluster.Node)                    { f.nodes++ }
func (f *follower) Configured(*config.Config)            { f.configs++ }
func (f *follower) Warn(s fwd.Service, r, msg string)    { f.events = append(f.events, s.String()+" "+r) }
func (f *follower) Update(fwd.Changes)                   {}
func (f *follower) Submit(written [2]bool, all bool) {
	f.flows = append(f.flows, submitted{written, all})
}

// submitted are the arguments of Flows.Submit.
type submitted struct {
	Written [2]bool
	All     bool
}

// order sorts IPv4 before IPv6.
func (s submitted) order() []int {
	if s.Written[0] {
		return []int{0}
	}
	return []int{1}
}

// recordedChecks counts what the loop tells those who answer load balancers, and keeps the header.
type recordedChecks struct {
	updates int
	// programmed counts calls by fwd.Family.Index.
	programmed [2]int
	header     fwd.Header
	// seen, if not nil, takes each header.
	seen func(fwd.Header)
}

func (c *recordedChecks) Update(ch fwd.Changes) {
	c.updates++
	if ch.Header != nil {
		c.header = *ch.Header
		if c.seen != nil {
			c.seen(c.header)
		}
	}
}

func (c *recordedChecks) Programmed(f fwd.Family) { c.programmed[f.Index()]++ }

// house is a Loop with its surroundings, running in a synctest bubble.
type house struct {
	feed    *fakeFeed
	kernels *[2]fakeKernel
	follow  *follower
	checks  *recordedChecks
	log     *bytes.Buffer
	config  *config.Config
	configs chan *config.Config
	addrs   chan struct{}
	drift   chan backend.Drift
	// written and verified are the families that the loop reported.
	written, verified []fwd.Family
	cancel            context.CancelFunc
	done              chan error
}

// start runs a Loop. Its feed has not synced yet.
func start(t *testing.T, kernels *[2]fakeKernel, args ...string) *house {
	t.Helper()
	args = append([]string{"--cluster-cidr=10.0.0.0/8,fd00::/8", "--nodeport-addresses=all"}, args...)
	cfg, err := config.Parse(args, func() (string, error) { return "n1", nil })
	if err != nil {
		t.Fatal(err)
	}
	h := &house{
		feed:   &fakeFeed{wake: make(chan struct{}, 1)},
		config: cfg, configs: make(chan *config.Config, 1),
		kernels: kernels, follow: &follower{}, checks: &recordedChecks{}, log: &bytes.Buffer{}, addrs: make(chan struct{}, 1), drift: make(chan backend.Drift, 1), done: make(chan error, 1),
	}
	l := New(Options{
		Config: cfg, Configs: h.configs, Feed: h.feed, Backends: newFakeBackends(kernels), Flows: h.follow, Checks: h.checks, Events: h.follow, Monitor: h.follow,
		LocalAddrs:  func() ([]netip.Addr, error) { return []netip.Addr{netip.MustParseAddr("192.0.2.1")}, nil },
		AddrChanges: h.addrs, Drift: h.drift,
		OnWritten:  func(f fwd.Family) { h.written = append(h.written, f) },
		OnVerified: func(f fwd.Family) { h.verified = append(h.verified, f) },
		Logger:     slog.New(slog.NewTextHandler(h.log, nil)),
	})
	ctx, cancel := context.WithCancel(t.Context())
	h.cancel = cancel
	go func() { h.done <- l.Run(ctx) }()
	h.settle()
	return h
}

// settle lets the loop do what it can do at this moment.
func (h *house) settle() {
	turn.Add(1)
	synctest.Wait()
}

// after lets time pass.
func (h *house) after(d time.Duration) {
	turn.Add(1)
	time.Sleep(d) // the clock of the bubble
	synctest.Wait()
}

// sync says that the first lists are complete.
func (h *house) sync() {
	h.feed.change(func() { h.feed.synced = true })
	h.settle()
}

// stop ends the loop and returns its error.
func (h *house) stop(t *testing.T) error {
	t.Helper()
	began := time.Now()
	h.cancel()
	err := <-h.done
	if took := time.Since(began); took >= time.Second {
		t.Errorf("ended after %v", took)
	}
	return err
}

// last is the last report.
func (h *house) last() Sync { return h.follow.syncs[len(h.follow.syncs)-1] }

// failed says by fwd.Family.Index where not everything is in the kernel.
func failed(s Sync) [2]bool { return [2]bool{s.Families[0].Failed, s.Families[1].Failed} }

// written counts the objects that a sync wrote.
func written(s Sync) int { return s.Families[0].Result.Written + s.Families[1].Result.Written }

// drifted counts the objects of all reports that others had changed.
func (h *house) drifted() (n int) {
	for _, s := range h.follow.syncs {
		n += s.Families[0].Drifted + s.Families[1].Drifted
	}
	return n
}

// count counts lines of the log with that text.
func (h *house) count(text string) int {
	n := 0
	for line := range strings.Lines(h.log.String()) {
		if strings.Contains(line, text) {
			n++
		}
	}
	return n
}

func name(i int) fwd.Service {
	return fwd.Service{Namespace: "ns", Name: fmt.Sprintf("s%d", i)}
}

// service puts a dual-stack UDP Service without endpoints; version changes it.
func service(i, version int) func(*cluster.Store) {
	return func(s *cluster.Store) {
		s.SetService(&cluster.Service{
			Name:       name(i),
			ClusterIPs: [2]netip.Addr{netip.AddrFrom4([4]byte{10, 96, byte(i >> 8), byte(i)}), netip.MustParseAddr(fmt.Sprintf("fd00::%x", i))},
			Ports:      []cluster.ServicePort{{Name: "dns", Protocol: fwd.UDP, Port: uint16(1000 + version)}},
		})
	}
}

func (h *house) has(i int) [2]bool {
	_, v4 := h.kernels[0].objects[name(i)]
	_, v6 := h.kernels[1].objects[name(i)]
	return [2]bool{v4, v6}
}

package ipvs

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Fake is IPVS in memory. It refuses what the kernel refuses, with the kernel's error numbers, goes on after an operation
// that fails, and treats connections as the kernel does: weight 0 keeps them, a deletion cuts them, and a real server that
// is added again begins without any. Fields may be set before use; a Fake is safe for concurrent use. The zero Fake is
// an empty table in a kernel with all schedulers.
type Fake struct {
	// Fail is called before each operation that would succeed, if it is set; its error, such as a unix.Errno, is returned
	// for the operation, which is not carried out unless the error is ENOBUFS.
	Fail func(Op) error
	// FailCall is called at the start of each method of Interface, if it is set, with the method's name; its error is
	// returned, by Apply for every operation, and nothing is done.
	FailCall func(method string) error
	// Schedulers are those that the kernel has; nil stands for all of Linux 6.1.
	Schedulers []string
	// NoIPv6 is a kernel that was started without IPv6.
	NoIPv6 bool

	mu       sync.Mutex // guards what follows
	servers  map[VirtualServer]*fakeServer
	marks    []MarkServer
	timeouts Timeouts
	written  []Op
	batches  []int
	cut      int
}

type fakeServer struct {
	settings Settings
	stats    Stats
	reals    map[netip.AddrPort]RealState
}

var _ Interface = (*Fake)(nil)

// schedulers are those of Linux 6.1.
var schedulers = []string{"rr", "wrr", "lc", "wlc", "lblc", "lblcr", "dh", "sh", "mh", "sed", "nq", "fo", "ovf"}

// Apply implements Interface.
func (f *Fake) Apply(ctx context.Context, ops []Op) []error {
	f.mu.Lock()
	defer f.mu.Unlock()
	errs := make(results, len(ops))
	for at := 0; at < len(ops); at += maxBatch {
		batch := ops[at:min(at+maxBatch, len(ops))]
		err := ctx.Err()
		if err == nil {
			err = f.failCall("Apply")
		}
		if err != nil {
			errs.rest(ops, at, err)
			break
		}
		f.batches = append(f.batches, len(batch))
		for i, op := range batch {
			if err := f.apply(op); err != nil {
				errs[at+i] = &Error{Op: op, Err: err}
			} else {
				f.written = append(f.written, op)
			}
		}
	}
	return errs.orNil()
}

func (f *Fake) apply(op Op) error {
	if err := f.refuse(op); err != nil {
		return err
	}
	var failed error
	if f.Fail != nil {
		if failed = f.Fail(op); failed != nil && failed != unix.ENOBUFS {
			return failed
		}
	}
	s := f.servers[op.Server]
	switch op.Verb {
	case AddServer:
		f.put(op.Server, op.Settings)
	case SetServer:
		s.settings = op.Settings
	case DelServer:
		for _, r := range s.reals {
			f.cut += int(r.Active + r.Inactive)
		}
		delete(f.servers, op.Server)
	case AddReal, SetReal:
		r := s.reals[op.Real.Addr]
		r.RealServer = op.Real
		s.reals[op.Real.Addr] = r
	case DelReal:
		r := s.reals[op.Real.Addr]
		f.cut += int(r.Active + r.Inactive)
		delete(s.reals, op.Real.Addr)
	}
	return failed
}

// refuse checks in the order of the kernel.
func (f *Fake) refuse(op Op) error {
	if err := op.check(); err != nil {
		return err
	}
	if f.NoIPv6 && op.Server.Addr.Addr().Is6() {
		return unix.EAFNOSUPPORT
	}
	s, there := f.servers[op.Server]
	switch {
	case op.Verb == AddServer && there:
		return unix.EEXIST
	case op.Verb != AddServer && !there:
		return unix.ESRCH
	}
	switch op.Verb {
	case AddServer, SetServer:
		if !f.hasScheduler(op.Settings.Scheduler) {
			return unix.ENOENT
		}
	case AddReal, SetReal, DelReal:
		return f.refuseReal(op, s)
	}
	return nil
}

func (f *Fake) refuseReal(op Op, s *fakeServer) error {
	addr := op.Real.Addr.Addr()
	mixed := addr.Is6() != op.Server.Addr.Addr().Is6()
	_, there := s.reals[op.Real.Addr]
	switch {
	case f.NoIPv6 && addr.Is6():
		return unix.EAFNOSUPPORT
	case mixed && op.Verb != DelReal && op.Real.Method != Tunnel:
		return unix.EINVAL
	case op.Verb != DelReal && op.Real.Weight > MaxWeight:
		return unix.ERANGE
	case op.Verb == AddReal && there:
		return unix.EEXIST
	case op.Verb != AddReal && !there:
		return unix.ENOENT
	case op.Verb == AddReal && !unicast(addr):
		return unix.EINVAL
	}
	return nil
}

// unicast tells of addresses to which packets can be sent, without a look at routes. The kernel takes link-local addresses
// of IPv6 only where they are its own.
func unicast(a netip.Addr) bool {
	return !a.IsUnspecified() && !a.IsMulticast() && a != netip.AddrFrom4([4]byte{255, 255, 255, 255}) && (a.Is4() || !a.IsLinkLocalUnicast())
}

func (f *Fake) hasScheduler(name string) bool {
	has := f.Schedulers
	if has == nil {
		has = schedulers
	}
	return slices.Contains(has, name)
}

func (f *Fake) put(v VirtualServer, s Settings) *fakeServer {
	if f.servers == nil {
		f.servers = make(map[VirtualServer]*fakeServer)
	}
	f.servers[v] = &fakeServer{settings: s, reals: make(map[netip.AddrPort]RealState)}
	return f.servers[v]
}

// Read implements Interface.
func (f *Fake) Read(ctx context.Context) (Content, error) {
	return f.content(ctx, "Read", true)
}

// List implements Interface.
func (f *Fake) List(ctx context.Context) (Content, error) {
	return f.content(ctx, "List", false)
}

func (f *Fake) content(ctx context.Context, method string, reals bool) (Content, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.begin(ctx, method); err != nil {
		return Content{}, err
	}
	c := Content{Marks: slices.Clone(f.marks)}
	for _, v := range slices.SortedFunc(maps.Keys(f.servers), VirtualServer.Compare) {
		s := f.servers[v]
		out := Server{VirtualServer: v, Settings: s.settings, Stats: s.stats}
		if reals {
			out.Reals = s.sorted()
			for i := range out.Reals {
				out.Reals[i].Persistent = 0
			}
		}
		c.Servers = append(c.Servers, out)
	}
	return c, nil
}

func (s *fakeServer) sorted() []RealState {
	return slices.SortedFunc(maps.Values(s.reals), compareReals)
}

// RealServers implements Interface.
func (f *Fake) RealServers(ctx context.Context, v VirtualServer) ([]RealState, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.begin(ctx, "RealServers"); err != nil {
		return nil, err
	}
	s, ok := f.servers[v]
	if !ok {
		return nil, fmt.Errorf("read real servers of %v: %w", v, unix.ESRCH)
	}
	return s.sorted(), nil
}

// Timeouts implements Interface.
func (f *Fake) Timeouts(ctx context.Context) (Timeouts, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.begin(ctx, "Timeouts"); err != nil {
		return Timeouts{}, err
	}
	return f.timeouts.or(defaultTimeouts), nil
}

// SetTimeouts implements Interface.
func (f *Fake) SetTimeouts(ctx context.Context, t Timeouts) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.begin(ctx, "SetTimeouts"); err != nil {
		return err
	}
	if err := t.check(); err != nil {
		return err
	}
	f.timeouts = t.or(f.timeouts)
	return nil
}

// defaultTimeouts are the kernel's.
var defaultTimeouts = Timeouts{TCP: 15 * time.Minute, TCPFin: 2 * time.Minute, UDP: 5 * time.Minute}

// ConnTableSize implements Interface; the table has the kernel's default size.
func (f *Fake) ConnTableSize(ctx context.Context) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return 4096, f.begin(ctx, "ConnTableSize")
}

// ProbeScheduler implements Interface.
func (f *Fake) ProbeScheduler(ctx context.Context, name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.begin(ctx, "ProbeScheduler"); err != nil {
		return err
	}
	if !f.hasScheduler(name) {
		return fmt.Errorf("probe scheduler %q: %w", name, unix.ENOENT)
	}
	return nil
}

func (f *Fake) begin(ctx context.Context, method string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return f.failCall(method)
}

func (f *Fake) failCall(method string) error {
	if f.FailCall == nil {
		return nil
	}
	return f.FailCall(method)
}

// Put makes or replaces a virtual server with real servers as another program would: it is not counted as written, and
// connections of a real server that was there already stay.
func (f *Fake) Put(v VirtualServer, s Settings, reals ...RealServer) {
	f.mu.Lock()
	defer f.mu.Unlock()
	old := f.servers[v]
	n := f.put(v, s)
	for _, r := range reals {
		state := RealState{RealServer: r}
		if old != nil {
			o := old.reals[r.Addr]
			state.Active, state.Inactive, state.Persistent = o.Active, o.Inactive, o.Persistent
		}
		n.reals[r.Addr] = state
	}
	if old != nil {
		n.stats = old.stats
	}
}

// PutMark adds a virtual server for a mark.
func (f *Fake) PutMark(m MarkServer) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.marks = append(f.marks, m)
	slices.SortFunc(f.marks, compareMarks)
}

// Flush removes all virtual servers as "ipvsadm -C" does.
func (f *Fake) Flush() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.servers, f.marks = nil, nil
}

// SetConnections sets the connections of a real server. It panics if there is no such real server.
func (f *Fake) SetConnections(v VirtualServer, real netip.AddrPort, active, inactive, persistent uint32) {
	f.mu.Lock()
	defer f.mu.Unlock()
	r, ok := f.servers[v].reals[real]
	if !ok {
		panic(fmt.Sprintf("BUG: %v has no real server %v", v, real))
	}
	r.Active, r.Inactive, r.Persistent = active, inactive, persistent
	f.servers[v].reals[real] = r
}

// SetStats sets the counters of a virtual server, which must be there.
func (f *Fake) SetStats(v VirtualServer, s Stats) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.servers[v].stats = s
}

// Written returns the operations that were carried out since the last call, in their order.
func (f *Fake) Written() []Op {
	f.mu.Lock()
	defer f.mu.Unlock()
	w := f.written
	f.written = nil
	return w
}

// Batches returns the number of operations of each system call since the last call, those that failed included.
func (f *Fake) Batches() []int {
	f.mu.Lock()
	defer f.mu.Unlock()
	b := f.batches
	f.batches = nil
	return b
}

// Cut returns how many connections, active and inactive, were lost because their real server was deleted.
func (f *Fake) Cut() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.cut
}

// Dump returns the table in the text form of Format.
func (f *Fake) Dump() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var c Content
	for _, v := range slices.SortedFunc(maps.Keys(f.servers), VirtualServer.Compare) {
		c.Servers = append(c.Servers, Server{VirtualServer: v, Settings: f.servers[v].settings, Reals: f.servers[v].sorted()})
	}
	return Format(c)
}

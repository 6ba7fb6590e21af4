package ipvsfake

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/internal/host/ipvs"
)

// Table implements ipvs.Interface in memory. It refuses what the kernel refuses, with the kernel's
// error numbers, continues after an operation that fails, and treats connections like the kernel:
// weight 0 keeps them, a deletion breaks them, and a real server that is added again starts without
// any. The zero Table is empty, in a kernel with all schedulers. Exported fields may be set before
// use; a Table is safe for concurrent use.
type Table struct {
	// Fail, if set, is called before each operation that would succeed. Its error, such as a
	// unix.Errno, is returned for the operation, which is not executed unless the error is ENOBUFS.
	Fail func(ipvs.Op) error
	// FailCall, if set, is called at the start of each method of ipvs.Interface with the method's
	// name. Its error is returned, by Apply for every operation, and nothing else is done.
	FailCall func(method string) error
	// Schedulers are the kernel's schedulers; nil means Schedulers of the package.
	Schedulers []string
	// NoIPv6 simulates a kernel that was started without IPv6.
	NoIPv6 bool

	mu       sync.Mutex // guards the fields below
	servers  map[ipvs.VirtualServer]*fakeServer
	timeouts ipvs.Timeouts
	written  []ipvs.Op
	batches  []int
	cut      int
}

type fakeServer struct {
	settings ipvs.Settings
	reals    map[netip.AddrPort]ipvs.RealState
}

var _ ipvs.Interface = (*Table)(nil)

// Schedulers are those of Linux 6.1.
var Schedulers = []string{"rr", "wrr", "lc", "wlc", "lblc", "lblcr", "dh", "sh", "mh", "sed", "nq", "fo", "ovf"}

// Apply implements ipvs.Interface.
func (f *Table) Apply(ctx context.Context, ops []ipvs.Op) []error {
	f.mu.Lock()
	defer f.mu.Unlock()
	errs := make([]error, len(ops))
	failed := false
	for i, op := range ops {
		var err error
		if i%ipvs.MaxBatch == 0 {
			if err = f.begin(ctx, "Apply"); err == nil {
				f.batches = append(f.batches, min(ipvs.MaxBatch, len(ops)-i))
			}
		}
		if err != nil {
			for ; i < len(ops); i++ {
				errs[i] = &ipvs.Error{Op: ops[i], Err: err}
			}
			return errs
		}
		if err = f.apply(op); err == nil {
			f.written = append(f.written, op)
			continue
		}
		errs[i], failed = &ipvs.Error{Op: op, Err: err}, true
	}
	if !failed {
		return nil
	}
	return errs
}

func (f *Table) apply(op ipvs.Op) error {
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
	case ipvs.AddServer:
		f.put(op.Server, op.Settings)
	case ipvs.SetServer:
		s.settings = op.Settings
	case ipvs.DelServer:
		for _, r := range s.reals {
			f.cut += int(r.Active + r.Inactive)
		}
		delete(f.servers, op.Server)
	case ipvs.AddReal, ipvs.SetReal:
		r := s.reals[op.Real.Addr]
		r.RealServer = op.Real
		s.reals[op.Real.Addr] = r
	case ipvs.DelReal:
		r := s.reals[op.Real.Addr]
		f.cut += int(r.Active + r.Inactive)
		delete(s.reals, op.Real.Addr)
	}
	return failed
}

// refuse checks an operation in the order of the kernel.
func (f *Table) refuse(op ipvs.Op) error {
	if err := op.Check(); err != nil {
		return err
	}
	if f.NoIPv6 && op.Server.Addr.Addr().Is6() {
		return unix.EAFNOSUPPORT
	}
	s, there := f.servers[op.Server]
	switch {
	case op.Verb == ipvs.AddServer && there:
		return unix.EEXIST
	case op.Verb != ipvs.AddServer && !there:
		return unix.ESRCH
	}
	switch op.Verb {
	case ipvs.AddServer, ipvs.SetServer:
		if !f.hasScheduler(op.Settings.Scheduler) {
			return unix.ENOENT
		}
	case ipvs.AddReal, ipvs.SetReal, ipvs.DelReal:
		return f.refuseReal(op, s)
	}
	return nil
}

func (f *Table) refuseReal(op ipvs.Op, s *fakeServer) error {
	addr := op.Real.Addr.Addr()
	mixed := addr.Is6() != op.Server.Addr.Addr().Is6()
	_, there := s.reals[op.Real.Addr]
	switch {
	case f.NoIPv6 && addr.Is6():
		return unix.EAFNOSUPPORT
	case mixed && op.Verb != ipvs.DelReal && op.Real.Method != ipvs.Tunnel:
		return unix.EINVAL
	case op.Verb != ipvs.DelReal && op.Real.Weight > ipvs.MaxWeight:
		return unix.ERANGE
	case op.Verb == ipvs.AddReal && there:
		return unix.EEXIST
	case op.Verb != ipvs.AddReal && !there:
		return unix.ENOENT
	case op.Verb == ipvs.AddReal && !unicast(addr):
		return unix.EINVAL
	}
	return nil
}

// unicast reports whether packets can be sent to an address, regardless of routes. The kernel
// accepts link-local IPv6 addresses only if they are its own.
func unicast(a netip.Addr) bool {
	return !a.IsUnspecified() && !a.IsMulticast() && a != netip.AddrFrom4([4]byte{255, 255, 255, 255}) && (a.Is4() || !a.IsLinkLocalUnicast())
}

func (f *Table) hasScheduler(name string) bool {
	if f.Schedulers != nil {
		return slices.Contains(f.Schedulers, name)
	}
	return slices.Contains(Schedulers, name)
}

func (f *Table) put(v ipvs.VirtualServer, s ipvs.Settings) *fakeServer {
	if f.servers == nil {
		f.servers = make(map[ipvs.VirtualServer]*fakeServer)
	}
	f.servers[v] = &fakeServer{settings: s, reals: make(map[netip.AddrPort]ipvs.RealState)}
	return f.servers[v]
}

// Read implements ipvs.Interface.
func (f *Table) Read(ctx context.Context) (ipvs.Content, error) {
	return f.content(ctx, "Read", true)
}

// List implements ipvs.Interface.
func (f *Table) List(ctx context.Context) (ipvs.Content, error) {
	return f.content(ctx, "List", false)
}

func (f *Table) content(ctx context.Context, method string, reals bool) (ipvs.Content, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.begin(ctx, method); err != nil {
		return ipvs.Content{}, err
	}
	return f.table(reals), nil
}

func (f *Table) table(reals bool) (c ipvs.Content) {
	for _, v := range slices.SortedFunc(maps.Keys(f.servers), ipvs.VirtualServer.Compare) {
		s := ipvs.Server{VirtualServer: v, Settings: f.servers[v].settings}
		if reals {
			s.Reals = f.servers[v].sorted()
		}
		c.Servers = append(c.Servers, s)
	}
	return c
}

func (s *fakeServer) sorted() []ipvs.RealState {
	return slices.SortedFunc(maps.Values(s.reals), func(a, b ipvs.RealState) int { return a.Addr.Compare(b.Addr) })
}

// RealServers implements ipvs.Interface.
func (f *Table) RealServers(ctx context.Context, v ipvs.VirtualServer) ([]ipvs.RealState, error) {
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

// ipvs.Timeouts implements ipvs.Interface.
func (f *Table) Timeouts(ctx context.Context) (ipvs.Timeouts, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.begin(ctx, "Timeouts"); err != nil {
		return ipvs.Timeouts{}, err
	}
	t, def := f.timeouts, defaultTimeouts
	return ipvs.Timeouts{TCP: cmp.Or(t.TCP, def.TCP), TCPFin: cmp.Or(t.TCPFin, def.TCPFin), UDP: cmp.Or(t.UDP, def.UDP)}, nil
}

// SetTimeouts implements ipvs.Interface.
func (f *Table) SetTimeouts(ctx context.Context, t ipvs.Timeouts) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.begin(ctx, "SetTimeouts"); err != nil {
		return err
	}
	if err := t.Check(); err != nil {
		return err
	}
	f.timeouts = ipvs.Timeouts{TCP: cmp.Or(t.TCP, f.timeouts.TCP), TCPFin: cmp.Or(t.TCPFin, f.timeouts.TCPFin), UDP: cmp.Or(t.UDP, f.timeouts.UDP)}
	return nil
}

// defaultTimeouts are the kernel's.
var defaultTimeouts = ipvs.Timeouts{TCP: 15 * time.Minute, TCPFin: 2 * time.Minute, UDP: 5 * time.Minute}

// ConnTableSize implements ipvs.Interface; the table has the kernel's default size.
func (f *Table) ConnTableSize(ctx context.Context) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return 4096, f.begin(ctx, "ConnTableSize")
}

// ProbeScheduler implements ipvs.Interface.
func (f *Table) ProbeScheduler(ctx context.Context, name string) error {
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

func (f *Table) begin(ctx context.Context, method string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if f.FailCall == nil {
		return nil
	}
	return f.FailCall(method)
}

// Put creates or replaces a virtual server with real servers, as another program would: Written
// does not report it, and existing real servers keep their connections.
func (f *Table) Put(v ipvs.VirtualServer, s ipvs.Settings, reals ...ipvs.RealServer) {
	f.mu.Lock()
	defer f.mu.Unlock()
	old := f.servers[v]
	n := f.put(v, s)
	for _, r := range reals {
		state := ipvs.RealState{RealServer: r}
		if old != nil {
			o := old.reals[r.Addr]
			state.Active, state.Inactive = o.Active, o.Inactive
		}
		n.reals[r.Addr] = state
	}
}

// Flush removes all virtual servers as "ipvsadm -C" does.
func (f *Table) Flush() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.servers = nil
}

// SetConnections sets the number of connections of a real server, which must exist.
func (f *Table) SetConnections(v ipvs.VirtualServer, real netip.AddrPort, active, inactive uint32) {
	f.mu.Lock()
	defer f.mu.Unlock()
	r, ok := f.servers[v].reals[real]
	if !ok {
		panic(fmt.Sprintf("BUG: %v has no real server %v", v, real))
	}
	r.Active, r.Inactive = active, inactive
	f.servers[v].reals[real] = r
}

// Written returns the operations that succeeded since the last call, in order.
func (f *Table) Written() []ipvs.Op {
	f.mu.Lock()
	defer f.mu.Unlock()
	w := f.written
	f.written = nil
	return w
}

// Batches returns the number of operations of each system call since the last call, including
// failed ones.
func (f *Table) Batches() []int {
	f.mu.Lock()
	defer f.mu.Unlock()
	b := f.batches
	f.batches = nil
	return b
}

// Cut returns the number of connections, active and inactive, that deletions of real servers broke.
func (f *Table) Cut() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.cut
}

// Dump returns the table in the form of Format.
func (f *Table) Dump() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return Format(f.table(true))
}

// Format returns the lines that "ipvsadm --save --numeric" prints.
func Format(c ipvs.Content) string {
	var b strings.Builder
	for _, s := range c.Servers {
		fmt.Fprintln(&b, ipvs.FormatServer(s.VirtualServer, s.Settings))
		for _, r := range s.Reals {
			fmt.Fprintln(&b, ipvs.FormatReal(s.VirtualServer, r.RealServer))
		}
	}
	return b.String()
}

package ipvs

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/internal/host/netlink"
)

// Kernel is the IPVS of the network namespace of the thread that called Open. It needs
// CAP_NET_ADMIN in the initial user namespace. Calls are serialized.
type Kernel struct {
	mu   sync.Mutex // guards the fields below
	conn *netlink.Conn
	// family is the number of the family IPVS in generic netlink.
	family uint16
	// table is /proc/net/ip_vs, open because a file belongs to the namespace in which it was
	// opened.
	table *os.File
}

var _ Interface = (*Kernel)(nil)

// ErrUnavailable means that the kernel has no IPVS and could not load it.
var ErrUnavailable = errors.New(`no IPVS in this kernel: load ip_vs ("modprobe ip_vs" on the host), or use a kernel built with CONFIG_IP_VS`)

// Open connects to the kernel, which loads the module ip_vs if possible.
func Open(ctx context.Context) (*Kernel, error) {
	k := &Kernel{}
	if err := k.open(ctx); err != nil {
		return nil, fmt.Errorf("open IPVS: %w", errors.Join(err, k.Close()))
	}
	return k, nil
}

func (k *Kernel) open(ctx context.Context) (err error) {
	if k.conn, err = netlink.Dial(unix.NETLINK_GENERIC); err != nil {
		return err
	}
	if err := k.findFamily(ctx); err != nil {
		return err
	}
	k.table, err = os.Open("/proc/thread-self/net/ip_vs")
	return err
}

// findFamily looks up the number of the family IPVS. The lookup makes the kernel load the module.
func (k *Kernel) findFamily(ctx context.Context) error {
	req := netlink.AppendText([]byte{unix.CTRL_CMD_GETFAMILY, 1, 0, 0}, unix.CTRL_ATTR_FAMILY_NAME, genlName)
	msgs, err := k.conn.Get(ctx, netlink.Request{Type: unix.GENL_ID_CTRL, Body: req})
	if errors.Is(err, unix.ENOENT) {
		return ErrUnavailable
	}
	var a attrs
	if err == nil && (len(msgs) != 1 || a.message(msgs[0].Body) != nil || !a.sized(2, unix.CTRL_ATTR_FAMILY_ID)) {
		err = netlink.ErrMalformed
	}
	if err != nil {
		return fmt.Errorf("look up the netlink family %s: %w", genlName, err)
	}
	k.family = a.u16(unix.CTRL_ATTR_FAMILY_ID)
	return nil
}

// Close closes the socket and the file; virtual servers stay.
func (k *Kernel) Close() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	var errs []error
	if k.conn != nil {
		errs = append(errs, k.conn.Close())
	}
	if k.table != nil {
		errs = append(errs, k.table.Close())
	}
	return errors.Join(errs...)
}

// Apply implements Interface.
func (k *Kernel) Apply(ctx context.Context, ops []Op) []error {
	k.mu.Lock()
	defer k.mu.Unlock()
	errs := make([]error, len(ops))
	valid := make([]int, 0, len(ops)) // indices of ops
	for i, op := range ops {
		if err := op.Check(); err != nil {
			errs[i] = &Error{Op: op, Err: err}
		} else {
			valid = append(valid, i)
		}
	}
	failed := len(valid) < len(ops)
	for batch := range slices.Chunk(valid, MaxBatch) {
		reqs := make([]netlink.Request, len(batch))
		for j, i := range batch {
			reqs[j] = netlink.Request{Type: k.family, Body: ops[i].encode()}
		}
		refused, err := make([]error, len(batch)), ctx.Err()
		if err == nil {
			// If the context ended during the send, it would be unknown which operations were
			// executed.
			var answers []error
			answers, err = k.conn.Do(context.WithoutCancel(ctx), reqs)
			copy(refused, answers)
			if err != nil {
				err = fmt.Errorf("answer lost: %w: %w", unix.ENOBUFS, err)
			}
		}
		for j, i := range batch {
			if e := cmp.Or(refused[j], err); e != nil {
				errs[i], failed = &Error{Op: ops[i], Err: e}, true
			}
		}
	}
	if !failed {
		return nil
	}
	return errs
}

// readTries is how often Read starts over because others changed the table meanwhile.
const readTries = 5

// Read implements Interface.
func (k *Kernel) Read(ctx context.Context) (Content, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	var err error
	for range readTries {
		var c Content
		if c, err = k.list(ctx); err != nil {
			break
		}
		if err = k.fill(ctx, &c); err == nil {
			return c, nil
		}
	}
	return Content{}, fmt.Errorf("read IPVS: %w", err)
}

// fill adds the real servers to c, which it reads all at once from /proc. It fails if /proc has
// virtual servers that c does not have. The reverse is expected: if other network namespaces have
// virtual servers as well, the kernel skips some at the end of a page (seen with Linux 6.1: it
// resumes by the count of the namespace's own virtual servers, but continues counting those of
// all). The real servers of skipped ones are read one by one.
func (k *Kernel) fill(ctx context.Context, c *Content) error {
	if _, err := k.table.Seek(0, io.SeekStart); err != nil {
		return err
	}
	var text strings.Builder
	if _, err := io.Copy(&text, k.table); err != nil {
		return err
	}
	table, err := parseTable(text.String())
	if err != nil {
		return err
	}
	for i := range c.Servers {
		s := &c.Servers[i]
		reals, ok := table[s.VirtualServer]
		if !ok {
			if reals, err = k.realServers(ctx, s.VirtualServer); err != nil {
				return fmt.Errorf("%v, which is missing in the table: %w", s.VirtualServer, err)
			}
		}
		s.Reals = reals
		delete(table, s.VirtualServer)
	}
	for v := range table {
		return fmt.Errorf("%v was added while the table was read", v)
	}
	return nil
}

// List implements Interface.
func (k *Kernel) List(ctx context.Context) (Content, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	c, err := k.list(ctx)
	if err != nil {
		return Content{}, fmt.Errorf("list virtual servers: %w", err)
	}
	return c, nil
}

func (k *Kernel) list(ctx context.Context) (Content, error) {
	msgs, err := k.conn.List(ctx, netlink.Request{Type: k.family, Body: body(cmdGetService)})
	if err != nil {
		return Content{}, err
	}
	var c Content
	for _, m := range msgs {
		switch s, ok, err := decodeServer(m.Body); {
		case err != nil:
			return Content{}, err
		case ok:
			c.Servers = append(c.Servers, s)
		}
	}
	slices.SortFunc(c.Servers, func(a, b Server) int { return a.VirtualServer.Compare(b.VirtualServer) })
	return c, nil
}

// RealServers implements Interface.
func (k *Kernel) RealServers(ctx context.Context, v VirtualServer) ([]RealState, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	reals, err := k.realServers(ctx, v)
	if err != nil {
		return nil, fmt.Errorf("read real servers of %v: %w", v, err)
	}
	return reals, nil
}

func (k *Kernel) realServers(ctx context.Context, v VirtualServer) ([]RealState, error) {
	msgs, err := k.conn.List(ctx, netlink.Request{Type: k.family, Body: appendServer(body(cmdGetDest), v, nil)})
	if err != nil {
		return nil, err
	}
	if len(msgs) == 0 {
		// The kernel lists none if the virtual server does not exist.
		_, err := k.conn.Get(ctx, netlink.Request{Type: k.family, Body: appendServer(body(cmdGetService), v, nil)})
		return nil, err
	}
	reals := make([]RealState, 0, len(msgs))
	for _, m := range msgs {
		r, err := decodeReal(m.Body, v)
		if err != nil {
			return nil, err
		}
		reals = append(reals, r)
	}
	slices.SortFunc(reals, RealState.compare)
	return reals, nil
}

// ConnTableSize implements Interface.
func (k *Kernel) ConnTableSize(ctx context.Context) (int, error) {
	a, err := k.get(ctx, cmdGetInfo, infoConnTableSize)
	if err != nil {
		return 0, fmt.Errorf("read the size of the IPVS connection table: %w", err)
	}
	return int(a.u32(infoConnTableSize)), nil
}

// get reads numbers of 32 bits.
func (k *Kernel) get(ctx context.Context, cmd uint8, want ...uint16) (a attrs, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	msgs, err := k.conn.Get(ctx, netlink.Request{Type: k.family, Body: body(cmd)})
	if err == nil && (len(msgs) != 1 || a.message(msgs[0].Body) != nil || !a.sized(4, want...)) {
		err = netlink.ErrMalformed
	}
	return a, err
}

// Timeouts implements Interface.
func (k *Kernel) Timeouts(ctx context.Context) (Timeouts, error) {
	a, err := k.get(ctx, cmdGetConfig, attrTimeoutTCP, attrTimeoutTCPFin, attrTimeoutUDP)
	if err != nil {
		return Timeouts{}, fmt.Errorf("read IPVS timeouts: %w", err)
	}
	seconds := func(typ uint16) time.Duration { return time.Duration(a.u32(typ)) * time.Second }
	return Timeouts{TCP: seconds(attrTimeoutTCP), TCPFin: seconds(attrTimeoutTCPFin), UDP: seconds(attrTimeoutUDP)}, nil
}

// SetTimeouts implements Interface.
func (k *Kernel) SetTimeouts(ctx context.Context, t Timeouts) error {
	if err := t.Check(); err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	b := netlink.AppendUint32(body(cmdSetConfig), attrTimeoutTCP, uint32(t.TCP/time.Second))
	b = netlink.AppendUint32(b, attrTimeoutTCPFin, uint32(t.TCPFin/time.Second))
	b = netlink.AppendUint32(b, attrTimeoutUDP, uint32(t.UDP/time.Second))
	if _, err := k.conn.Get(ctx, netlink.Request{Type: k.family, Body: b}); err != nil {
		return fmt.Errorf("set IPVS timeouts %v: %w", t, err)
	}
	return nil
}

// ProbeScheduler tries up to probePorts ports until one is unused. The first is the port that
// kube-proxy probes with.
const (
	firstProbePort = 20000
	probePorts     = 16
)

// ProbeScheduler implements Interface. Its virtual server has an address reserved for documentation
// and the flag Sched3.
func (k *Kernel) ProbeScheduler(ctx context.Context, name string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	send := func(o Op) error {
		_, err := k.conn.Get(ctx, netlink.Request{Type: k.family, Body: o.encode()})
		return err
	}
	o := Op{Settings: Settings{Scheduler: name, Flags: Sched3}}
	err := error(unix.EEXIST)
	for i := uint16(0); i < probePorts && errors.Is(err, unix.EEXIST); i++ {
		o.Verb = AddServer
		o.Server = VirtualServer{Protocol: unix.IPPROTO_TCP, Addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 51, 100, 0}), firstProbePort+i)}
		err = send(o)
	}
	if err != nil {
		return fmt.Errorf("probe scheduler %q: %w", name, err)
	}
	o.Verb = DelServer
	ctx = context.WithoutCancel(ctx)
	if err := send(o); err != nil {
		return fmt.Errorf("remove the virtual server that probed scheduler %q: %w", name, err)
	}
	return nil
}

package conntrack

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/internal/host/netlink"
)

// Table is the connection tracking table. Kernel implements it, and conntrackfake.Table for tests.
type Table interface {
	// Dump calls yield for each flow that a query matches until yield returns false. complete is
	// false if the kernel reports that the dump may have missed flows. yield may call Delete.
	Dump(ctx context.Context, q Query, yield func(Flow) bool) (complete bool, err error)
	// Delete deletes flows that a Dump yielded and returns how many still existed. If some cannot
	// be deleted, the others are, and the error says how many failed and why the first one did.
	Delete(ctx context.Context, flows []Flow) (deleted int, err error)
}

// Query selects flows of one address family and protocol.
type Query struct {
	IPv6 bool
	// Proto is the transport protocol by its IANA number.
	Proto uint8
	// Dst, if valid, is the original destination. The kernel reads its whole table, but copies only
	// these flows (Linux 5.8).
	Dst netip.AddrPort
	// Opening selects only flows that are Opening. The kernel filters them since Linux 5.18.
	Opening bool
}

// Matches reports whether the query selects the flow.
func (q Query) Matches(f *Flow) bool {
	return f.Proto == q.Proto && f.IPv6() == q.IPv6 && (!q.Dst.IsValid() || f.OrigDst == q.Dst) && (!q.Opening || f.Opening)
}

// Kernel is the table of the network namespace of the calling thread. It needs CAP_NET_ADMIN. It
// keeps nothing open and is safe for concurrent use.
type Kernel struct{}

const (
	msgNew    = unix.NFNL_SUBSYS_CTNETLINK << 8
	msgGet    = unix.NFNL_SUBSYS_CTNETLINK<<8 | 1
	msgDelete = unix.NFNL_SUBSYS_CTNETLINK<<8 | 2

	// deleteBatch is the number of flows that are deleted together.
	deleteBatch = 512
)

// errEnough ends a dump.
var errEnough = errors.New("enough")

// Dump implements Table. The kernel filters where it can.
func (Kernel) Dump(ctx context.Context, q Query, yield func(Flow) bool) (complete bool, err error) {
	err = dump(ctx, q, appendFilter(nil, q), yield)
	// Filters came with Linux 5.8. Older kernels mostly ignore the attribute; one that does not
	// refuses it at once, before it yields anything.
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) {
		err = dump(ctx, q, nil, yield)
	}
	switch {
	case errors.Is(err, netlink.ErrInterrupted):
		return false, nil
	case err != nil && !errors.Is(err, errEnough):
		return false, fmt.Errorf("dump conntrack flows %+v: %w", q, err)
	}
	return true, nil
}

func dump(ctx context.Context, q Query, filter []byte, yield func(Flow) bool) error {
	c, err := netlink.Dial(unix.NETLINK_NETFILTER)
	if err != nil {
		return err
	}
	defer c.Close()
	return c.Dump(ctx, request(msgGet, 0, q.IPv6, filter), func(m netlink.Message) error {
		if m.Type != msgNew {
			return nil
		}
		attrs, err := m.NetfilterAttrs()
		if err != nil {
			return err
		}
		f, err := decode(attrs)
		if err == nil && q.Matches(&f) && !yield(f) {
			err = errEnough
		}
		return err
	})
}

// Delete implements Table. It deletes in batches of one system call each.
func (Kernel) Delete(ctx context.Context, flows []Flow) (deleted int, err error) {
	if len(flows) == 0 {
		return 0, nil
	}
	c, err := netlink.Dial(unix.NETLINK_NETFILTER)
	if err != nil {
		return 0, fmt.Errorf("delete conntrack flows: %w", err)
	}
	defer c.Close()
	failed := 0
	var first error
	for batch := range slices.Chunk(flows, deleteBatch) {
		reqs := make([]netlink.Request, len(batch))
		for i := range batch {
			reqs[i] = request(msgDelete, 0, batch[i].IPv6(), appendKey(nil, &batch[i]))
		}
		errs, err := c.Do(ctx, reqs)
		if err != nil {
			return deleted, fmt.Errorf("delete conntrack flows: %w", err)
		}
		deleted += len(batch)
		for i, err := range errs {
			if err == nil {
				continue
			}
			deleted--
			if errors.Is(err, unix.ENOENT) {
				continue
			}
			failed++
			if first == nil {
				first = fmt.Errorf("%v to %v: %w", batch[i].OrigSrc, batch[i].OrigDst, err)
			}
		}
	}
	if first != nil {
		return deleted, fmt.Errorf("delete conntrack flows: %d of %d failed, first %w", failed, len(flows), first)
	}
	return deleted, nil
}

func request(typ, flags uint16, ipv6 bool, attrs []byte) netlink.Request {
	family := uint8(unix.NFPROTO_IPV4)
	if ipv6 {
		family = unix.NFPROTO_IPV6
	}
	return netlink.Request{Type: typ, Flags: flags, Body: append(netlink.NetfilterHeader(family), attrs...)}
}

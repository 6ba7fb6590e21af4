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

// Table is the connection tracking table. Kernel and Fake implement it.
type Table interface {
	// Dump calls yield for each flow of one family and protocol until it returns false. complete is false where the
	// kernel said that it left something out. yield may call Delete.
	Dump(ctx context.Context, ipv6 bool, proto uint8, yield func(Flow) bool) (complete bool, err error)
	// DumpTo is Dump for the flows whose original destination is dst alone. Memory is read for it as for a Dump, but only
	// these flows are copied (Linux 5.8).
	DumpTo(ctx context.Context, proto uint8, dst netip.AddrPort, yield func(Flow) bool) error
	// DumpOpening is Dump for the TCP connections that are Opening alone (Linux 5.18; older kernels send the others too,
	// which are left out here).
	DumpOpening(ctx context.Context, ipv6 bool, yield func(Flow) bool) (complete bool, err error)
	// Delete deletes flows that a Dump yielded and returns how many were still there. Where some cannot be deleted the
	// others are, and the error tells how many failed and why the first did.
	Delete(ctx context.Context, flows []Flow) (deleted int, err error)
}

// Kernel is the table of the network namespace of the calling thread. It needs CAP_NET_ADMIN. It keeps nothing open and
// is safe for concurrent use.
type Kernel struct{}

const (
	msgNew    = unix.NFNL_SUBSYS_CTNETLINK << 8
	msgGet    = unix.NFNL_SUBSYS_CTNETLINK<<8 | 1
	msgDelete = unix.NFNL_SUBSYS_CTNETLINK<<8 | 2

	// sizeofGenmsg is the header of netfilter's messages: family, version, resource.
	sizeofGenmsg = 4
	// deleteBatch is the number of flows that are deleted together.
	deleteBatch = 512
)

// Dump streams flows. The kernel filters by protocol where it can.
func (Kernel) Dump(ctx context.Context, ipv6 bool, proto uint8, yield func(Flow) bool) (complete bool, err error) {
	complete, err = dumpFiltered(ctx, ipv6, proto, netip.AddrPort{}, yield)
	if err != nil {
		return false, fmt.Errorf("dump conntrack flows (IPv6: %v, protocol %d): %w", ipv6, proto, err)
	}
	return complete, nil
}

// DumpTo streams flows to one destination. The kernel filters where it can.
func (Kernel) DumpTo(ctx context.Context, proto uint8, dst netip.AddrPort, yield func(Flow) bool) error {
	_, err := dumpFiltered(ctx, dst.Addr().Is6(), proto, dst, func(f Flow) bool { return f.OrigDst != dst || yield(f) })
	if err != nil {
		return fmt.Errorf("dump conntrack flows to %v (protocol %d): %w", dst, proto, err)
	}
	return nil
}

// DumpOpening streams TCP connections that wait for their first answer. The kernel filters where it can.
func (Kernel) DumpOpening(ctx context.Context, ipv6 bool, yield func(Flow) bool) (complete bool, err error) {
	filter := func(b []byte) []byte { return appendUnreplied(appendFilter(b, unix.IPPROTO_TCP, netip.AddrPort{})) }
	complete, err = dumpWith(ctx, ipv6, unix.IPPROTO_TCP, filter, func(f Flow) bool { return !f.Opening || yield(f) })
	if err != nil {
		return false, fmt.Errorf("dump opening TCP connections of conntrack (IPv6: %v): %w", ipv6, err)
	}
	return complete, nil
}

func dumpFiltered(ctx context.Context, ipv6 bool, proto uint8, dst netip.AddrPort, yield func(Flow) bool) (complete bool, err error) {
	return dumpWith(ctx, ipv6, proto, func(b []byte) []byte { return appendFilter(b, proto, dst) }, yield)
}

// dumpWith dumps with a filter if the kernel takes it.
func dumpWith(ctx context.Context, ipv6 bool, proto uint8, filter func([]byte) []byte, yield func(Flow) bool) (complete bool, err error) {
	complete, err = dump(ctx, ipv6, proto, filter, yield)
	// Filters came with Linux 5.8. Older kernels mostly ignore the attribute; one that does not refuses it at once, before
	// it yields anything.
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) {
		complete, err = dump(ctx, ipv6, proto, func(b []byte) []byte { return b }, yield)
	}
	return complete, err
}

// errEnough says that no more flows are wanted.
var errEnough = errors.New("enough")

func dump(ctx context.Context, ipv6 bool, proto uint8, filter func([]byte) []byte, yield func(Flow) bool) (complete bool, err error) {
	c, err := netlink.Dial(unix.NETLINK_NETFILTER)
	if err != nil {
		return false, err
	}
	defer c.Close()
	err = c.Dump(ctx, request(msgGet, 0, ipv6, filter), func(m netlink.Message) error {
		if m.Type != msgNew {
			return nil
		}
		f, err := flow(m)
		if err == nil && f.Proto == proto && f.IPv6() == ipv6 && !yield(f) {
			err = errEnough
		}
		return err
	})
	switch {
	case errors.Is(err, netlink.ErrInterrupted):
		return false, nil
	case errors.Is(err, errEnough):
		err = nil
	}
	return err == nil, err
}

// Delete deletes in batches, one system call each.
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
			reqs[i] = request(msgDelete, 0, batch[i].IPv6(), func(b []byte) []byte { return appendKey(b, &batch[i]) })
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

// flow reads a message about one entry.
func flow(m netlink.Message) (Flow, error) {
	if len(m.Body) < sizeofGenmsg {
		return Flow{}, netlink.ErrMalformed
	}
	return decode(m.Body[sizeofGenmsg:])
}

// request returns a request whose attributes attrs appends.
func request(typ, flags uint16, ipv6 bool, attrs func([]byte) []byte) netlink.Request {
	family := byte(unix.AF_INET)
	if ipv6 {
		family = unix.AF_INET6
	}
	return netlink.Request{Type: typ, Flags: flags, Body: attrs([]byte{family, unix.NFNETLINK_V0, 0, 0})}
}

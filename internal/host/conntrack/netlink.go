package conntrack

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
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
	// readBuffer is more than the kernel puts into one part of a dump.
	readBuffer = 64 << 10
	// deleteBatch is the number of requests in one message. An answer to each, some 800 bytes of accounted memory, must
	// fit into the default receive buffer of 208 KiB.
	deleteBatch = 128
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

func dump(ctx context.Context, ipv6 bool, proto uint8, filter func([]byte) []byte, yield func(Flow) bool) (complete bool, err error) {
	s, err := open()
	if err != nil {
		return false, err
	}
	defer s.close()
	err = s.send(appendMessage(nil, msgGet, unix.NLM_F_REQUEST|unix.NLM_F_DUMP, 1, ipv6, filter))
	if err != nil {
		return false, err
	}
	complete = true
	for {
		if err := ctx.Err(); err != nil {
			return false, err
		}
		b, err := s.receive()
		if err != nil {
			return false, err
		}
		for m, err := range messages(b) {
			switch {
			case err != nil:
				return false, err
			case m.flags&unix.NLM_F_DUMP_INTR != 0:
				complete = false
			}
			switch m.typ {
			case unix.NLMSG_DONE:
				return m.dumpEnd(complete)
			case unix.NLMSG_ERROR:
				return false, m.errno()
			case msgNew:
				f, err := m.flow()
				if err != nil {
					return false, err
				}
				if f.Proto == proto && f.IPv6() == ipv6 && !yield(f) {
					return complete, nil
				}
			}
		}
	}
}

// Delete deletes in batches, one system call each.
func (Kernel) Delete(ctx context.Context, flows []Flow) (deleted int, err error) {
	if len(flows) == 0 {
		return 0, nil
	}
	s, err := open()
	if err != nil {
		return 0, fmt.Errorf("delete conntrack flows: %w", err)
	}
	defer s.close()
	failed := 0
	var first error
	for batch := range slices.Chunk(flows, deleteBatch) {
		if err := ctx.Err(); err != nil {
			return deleted, fmt.Errorf("delete conntrack flows: %w", err)
		}
		errs, err := s.deleteBatch(batch)
		if err != nil {
			return deleted, fmt.Errorf("delete conntrack flows: %w", err)
		}
		deleted += len(batch)
		for i, errno := range errs {
			deleted--
			if errno == unix.ENOENT {
				continue
			}
			failed++
			if first == nil {
				first = fmt.Errorf("%v to %v: %w", batch[i].OrigSrc, batch[i].OrigDst, errno)
			}
		}
	}
	if first != nil {
		return deleted, fmt.Errorf("delete conntrack flows: %d of %d failed, first %w", failed, len(flows), first)
	}
	return deleted, nil
}

// deleteBatch sends one request for each flow and returns the errors by index. Only the last request asks for an answer;
// of the others the kernel answers those that fail, before it answers the last.
func (s *socket) deleteBatch(batch []Flow) (map[int]unix.Errno, error) {
	var b []byte
	for i := range batch {
		flags := uint16(unix.NLM_F_REQUEST)
		if i == len(batch)-1 {
			flags |= unix.NLM_F_ACK
		}
		b = appendMessage(b, msgDelete, flags, uint32(i+1), batch[i].IPv6(), func(b []byte) []byte { return appendKey(b, &batch[i]) })
	}
	if err := s.send(b); err != nil {
		return nil, err
	}
	errs := make(map[int]unix.Errno)
	for {
		b, err := s.receive()
		if err != nil {
			return nil, err
		}
		for m, err := range messages(b) {
			if err != nil {
				return nil, err
			}
			if m.typ != unix.NLMSG_ERROR || m.seq == 0 || int(m.seq) > len(batch) {
				return nil, errMalformed
			}
			if err := m.errno(); err != nil {
				var errno unix.Errno
				if !errors.As(err, &errno) {
					return nil, err
				}
				errs[int(m.seq)-1] = errno
			}
			if int(m.seq) == len(batch) {
				return errs, nil
			}
		}
	}
}

// socket is a netlink socket to netfilter with a buffer to receive into.
type socket struct {
	fd  int
	buf []byte
}

func open() (*socket, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("open a netfilter socket: %w", err)
	}
	s := &socket{fd: fd, buf: make([]byte, readBuffer)}
	err = unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
	if err == nil {
		// The kernel answers within the system call; the time-out is for a kernel that does not.
		err = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 10})
	}
	if err == nil {
		// Errors need not repeat the request. Kernels before 4.3 do it anyway.
		_ = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1)
		return s, nil
	}
	s.close()
	return nil, fmt.Errorf("open a netfilter socket: %w", err)
}

func (s *socket) close() { _ = unix.Close(s.fd) }

func (s *socket) send(b []byte) error {
	if err := unix.Sendto(s.fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("send to netfilter: %w", err)
	}
	return nil
}

// receive returns one datagram from the kernel, valid until the next call.
func (s *socket) receive() ([]byte, error) {
	for {
		n, _, flags, from, err := unix.Recvmsg(s.fd, s.buf, nil, 0)
		switch sa, ok := from.(*unix.SockaddrNetlink); {
		case err == unix.EINTR:
			continue
		case err != nil:
			return nil, fmt.Errorf("receive from netfilter: %w", err)
		case flags&unix.MSG_TRUNC != 0:
			return nil, fmt.Errorf("receive from netfilter: datagram larger than %d bytes", len(s.buf))
		case ok && sa.Pid == 0: // others may write to the socket as well
			return s.buf[:n], nil
		}
	}
}

// message is a netlink message.
type message struct {
	typ, flags uint16
	seq        uint32
	data       []byte
}

// messages yields the messages of a datagram.
func messages(b []byte) iter.Seq2[message, error] {
	return func(yield func(message, error) bool) {
		for len(b) > 0 {
			if len(b) < unix.SizeofNlMsghdr {
				yield(message{}, errMalformed)
				return
			}
			n := binary.NativeEndian.Uint32(b)
			if n < unix.SizeofNlMsghdr || uint64(n) > uint64(len(b)) {
				yield(message{}, errMalformed)
				return
			}
			m := message{
				typ:   binary.NativeEndian.Uint16(b[4:]),
				flags: binary.NativeEndian.Uint16(b[6:]),
				seq:   binary.NativeEndian.Uint32(b[8:]),
				data:  b[unix.SizeofNlMsghdr:n],
			}
			if !yield(m, nil) {
				return
			}
			b = b[min(align(int(n)), len(b)):]
		}
	}
}

// errno returns the error that a message of type NLMSG_ERROR carries, nil if it says that all is well.
func (m message) errno() error {
	if len(m.data) < 4 {
		return errMalformed
	}
	if code := int32(binary.NativeEndian.Uint32(m.data)); code != 0 {
		return unix.Errno(-code)
	}
	return nil
}

// dumpEnd reads the end of a dump. It too may carry an error; EINTR means that the dump is of use but not whole.
func (m message) dumpEnd(complete bool) (bool, error) {
	err := error(nil)
	if len(m.data) >= 4 {
		err = m.errno()
	}
	if errors.Is(err, unix.EINTR) {
		return false, nil
	}
	return complete && err == nil, err
}

func (m message) flow() (Flow, error) {
	if len(m.data) < sizeofGenmsg {
		return Flow{}, errMalformed
	}
	return decode(m.data[sizeofGenmsg:])
}

// appendMessage appends a request whose attributes attrs appends.
func appendMessage(b []byte, typ, flags uint16, seq uint32, ipv6 bool, attrs func([]byte) []byte) []byte {
	family := byte(unix.AF_INET)
	if ipv6 {
		family = unix.AF_INET6
	}
	at := len(b)
	b = binary.NativeEndian.AppendUint32(b, 0)
	b = binary.NativeEndian.AppendUint16(b, typ)
	b = binary.NativeEndian.AppendUint16(b, flags)
	b = binary.NativeEndian.AppendUint32(b, seq)
	b = binary.NativeEndian.AppendUint32(b, 0)
	b = attrs(append(b, family, unix.NFNETLINK_V0, 0, 0))
	binary.NativeEndian.PutUint32(b[at:], uint32(len(b)-at))
	return b
}

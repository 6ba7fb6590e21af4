package nft

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/internal/fwd"
)

// The sizes of the socket's buffers. A transaction must fit into the first one as a whole.
const (
	sendBuffer    = 64 << 20
	receiveBuffer = 1 << 20
	// MaxTransaction is the size of a transaction in bytes that Commit refuses to exceed.
	MaxTransaction = sendBuffer / 4
)

// waitSec is how long the kernel may take for an answer.
const waitSec = 60

// Conn is a table in the kernel of the network namespace in which Open was called. It implements Interface. Commit and Read
// may run at the same time, in different goroutines.
type Conn struct {
	family fwd.Family
	table  string
	// writes and reads are sockets, each guarded by its mutex.
	writes, reads    socket
	writing, reading sync.Mutex
}

// socket is the file descriptor of a netlink socket.
type socket int

var _ Interface = (*Conn)(nil)

// Open connects to the kernel for one table of one family.
func Open(f fwd.Family, table string) (*Conn, error) {
	w, err := dial()
	if err != nil {
		return nil, fmt.Errorf("netlink socket for nf_tables: %w", err)
	}
	r, err := dial()
	if err != nil {
		return nil, fmt.Errorf("netlink socket for nf_tables: %w", errors.Join(err, unix.Close(int(w))))
	}
	return &Conn{family: f, table: table, writes: w, reads: r}, nil
}

// Close gives the sockets back; what was written stays.
func (c *Conn) Close() error {
	return errors.Join(unix.Close(int(c.writes)), unix.Close(int(c.reads)))
}

func dial() (socket, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return 0, err
	}
	if err := setUp(fd); err != nil {
		return 0, errors.Join(err, unix.Close(fd))
	}
	return socket(fd), nil
}

func setUp(fd int) error {
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, sendBuffer); err != nil {
		return err
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer); err != nil {
		return err
	}
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: waitSec}); err != nil {
		return err
	}
	// Kernels without these explain less.
	for _, opt := range []int{unix.NETLINK_EXT_ACK, unix.NETLINK_CAP_ACK} {
		if err := unix.SetsockoptInt(fd, unix.SOL_NETLINK, opt, 1); err != nil && !errors.Is(err, unix.ENOPROTOOPT) {
			return err
		}
	}
	return nil
}

// Commit implements Interface.
func (c *Conn) Commit(ctx context.Context, ops []Op) error { return c.transact(ctx, ops, true) }

// Check implements Interface. Kernels before 5.12 do not look for what only shows in all of it, such as loops.
func (c *Conn) Check(ctx context.Context, ops []Op) error { return c.transact(ctx, ops, false) }

func (c *Conn) transact(ctx context.Context, ops []Op, commit bool) error {
	if err := ctx.Err(); err != nil || len(ops) == 0 {
		return err
	}
	e := encoder{family: c.family, table: c.table}
	if err := e.transaction(ops, commit); err != nil {
		return err
	}
	if len(e.buf) > MaxTransaction {
		return fmt.Errorf("a transaction of %d bytes, want at most %d", len(e.buf), MaxTransaction)
	}
	c.writing.Lock()
	defer c.writing.Unlock()
	if err := c.writes.send(e.buf); err != nil {
		return fmt.Errorf("send %d bytes to nf_tables: %w", len(e.buf), err)
	}
	return c.writes.answer(&e)
}

func (s socket) send(b []byte) error {
	return unix.Sendto(int(s), b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
}

// answer reads what the kernel says of a transaction. It works while the message is sent, so that all it has to say is
// there by then: errors, and an answer to the last message whether or not the transaction succeeded.
func (s socket) answer(e *encoder) error {
	buf := make([]byte, receiveBuffer/4)
	answered := false
	var first error
	for {
		n, _, err := unix.Recvfrom(int(s), buf, unix.MSG_DONTWAIT)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EAGAIN) && first != nil:
			return first
		case errors.Is(err, unix.EAGAIN) && answered:
			return nil
		case errors.Is(err, unix.EAGAIN):
			return errors.New("nf_tables does not answer")
		case err != nil:
			return fmt.Errorf("answer of nf_tables: %w", err)
		}
		err = messages(buf[:n], func(m message) error {
			if m.typ != unix.NLMSG_ERROR || len(m.body) < 4 {
				return nil
			}
			answered = true
			if errno := -int32(binary.NativeEndian.Uint32(m.body)); errno != 0 && first == nil {
				first = e.refusal(m.seq, unix.Errno(errno), m.explanation())
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
}

// refusal is the error that the kernel answered a message with.
func (e *encoder) refusal(seq uint32, errno unix.Errno, text string) *Error {
	out := &Error{Errno: errno, Text: text}
	if int(seq) < len(e.sent) && e.sent[seq].op != nil {
		s := e.sent[seq]
		out.Op, out.Name, out.Elements = s.op.String(), s.op.Name, s.elements
	}
	return out
}

// message is a netlink message without its header.
type message struct {
	typ, flags uint16
	seq        uint32
	body       []byte
}

// messages yields those that a buffer holds.
func messages(buf []byte, yield func(message) error) error {
	for len(buf) >= unix.NLMSG_HDRLEN {
		n := int(binary.NativeEndian.Uint32(buf))
		if n < unix.NLMSG_HDRLEN || n > len(buf) {
			return fmt.Errorf("a netlink message of %d bytes in %d", n, len(buf))
		}
		m := message{
			typ: binary.NativeEndian.Uint16(buf[4:]), flags: binary.NativeEndian.Uint16(buf[6:]),
			seq: binary.NativeEndian.Uint32(buf[8:]), body: buf[unix.NLMSG_HDRLEN:n],
		}
		if err := yield(m); err != nil {
			return err
		}
		buf = buf[min((n+3)&^3, len(buf)):]
	}
	return nil
}

// nlmsgerrMessage is the attribute with the kernel's explanation of an error (NLMSGERR_ATTR_MSG).
const nlmsgerrMessage = 1

// explanation is the text that the kernel adds to an error: after the error number and the header of the message at fault.
func (m message) explanation() string {
	if len(m.body) < 4+unix.NLMSG_HDRLEN || m.flags&unix.NLM_F_ACK_TLVS == 0 {
		return ""
	}
	text := ""
	skip := 4 + unix.NLMSG_HDRLEN
	if m.flags&unix.NLM_F_CAPPED == 0 {
		skip = 4 + (int(binary.NativeEndian.Uint32(m.body[4:]))+3)&^3
	}
	if skip > len(m.body) {
		return ""
	}
	if err := Attrs(string(m.body[skip:]), func(a Attr) {
		if a.Type == nlmsgerrMessage {
			text = a.Text()
		}
	}); err != nil {
		return ""
	}
	return text
}

package nlbatch

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"
)

const (
	// bufferSize is wanted for sending and receiving. Only CAP_NET_ADMIN in the first user namespace gets it; others have
	// what net.core.wmem_max and rmem_max allow, and smaller batches.
	bufferSize = 1 << 20
	// answerSize is what an error takes of the receive buffer at most: 36 bytes, the kernel's explanation, and the
	// kernel's own bookkeeping.
	answerSize = 1280
	// maxBatch is the number of messages in one send. The kernel holds its lock no longer than for one message, so that
	// it may be large; beyond some hundreds it gains nothing.
	maxBatch = 512
	// readBuffer is more than the kernel puts into one part of a dump (32 KiB).
	readBuffer = 64 << 10
	// waitSec is how long the kernel may take to answer. It works while the message is sent, so that an answer is there by
	// then, except to dumps.
	waitSec = 60
	// dumpTries is how often a list is read that changes while it is read.
	dumpTries = 5
)

// ErrInterrupted says that a list changed each time it was read.
var ErrInterrupted = errors.New("the list changed each time while it was read")

// Conn is a netlink socket in the network namespace in which Dial was called. It is safe for concurrent use.
type Conn struct {
	mu  sync.Mutex // guards what follows
	fd  int
	seq uint32
	buf []byte
	// batch and batchBytes limit one send.
	batch, batchBytes int
}

// Request is one netlink message to the kernel.
type Request struct {
	// Type is the message type: RTM_NEWADDR, the id of a generic netlink family, a netfilter subsystem and command.
	Type uint16
	// Flags are added to NLM_F_REQUEST. NLM_F_ACK and NLM_F_DUMP are not for the caller to set.
	Flags uint16
	// Body is what follows the netlink header.
	Body []byte
}

// Message is one netlink message from the kernel.
type Message struct {
	Type, Flags uint16
	Seq         uint32
	// Body is what follows the netlink header.
	Body []byte
}

// Dial opens a socket for a protocol, such as unix.NETLINK_ROUTE.
func Dial(protocol int) (*Conn, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		return nil, fmt.Errorf("open a netlink socket for protocol %d: %w", protocol, err)
	}
	c := &Conn{fd: fd, buf: make([]byte, readBuffer)}
	if err := c.setUp(protocol); err != nil {
		return nil, fmt.Errorf("open a netlink socket for protocol %d: %w", protocol, errors.Join(err, unix.Close(fd)))
	}
	return c, nil
}

func (c *Conn) setUp(protocol int) error {
	if err := unix.Bind(c.fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	if err := unix.SetsockoptTimeval(c.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: waitSec}); err != nil {
		return err
	}
	send, err := c.enlarge(unix.SO_SNDBUFFORCE, unix.SO_SNDBUF)
	if err != nil {
		return err
	}
	receive, err := c.enlarge(unix.SO_RCVBUFFORCE, unix.SO_RCVBUF)
	if err != nil {
		return err
	}
	c.batch, c.batchBytes = min(maxBatch, receive/answerSize), send/2
	// Answers with explanations and without a copy of the request; kernels before 4.12 explain nothing.
	options := []int{unix.NETLINK_CAP_ACK, unix.NETLINK_EXT_ACK}
	if protocol == unix.NETLINK_ROUTE {
		// The kernel leaves out of a dump what was not asked for (4.20).
		options = append(options, unix.NETLINK_GET_STRICT_CHK)
	}
	for _, o := range options {
		if err := unix.SetsockoptInt(c.fd, unix.SOL_NETLINK, o, 1); err != nil && !errors.Is(err, unix.ENOPROTOOPT) {
			return err
		}
	}
	return nil
}

// enlarge sets the size of a buffer and returns what it has become.
func (c *Conn) enlarge(force, plain int) (int, error) {
	err := unix.SetsockoptInt(c.fd, unix.SOL_SOCKET, force, bufferSize)
	if errors.Is(err, unix.EPERM) {
		err = unix.SetsockoptInt(c.fd, unix.SOL_SOCKET, plain, bufferSize)
	}
	if err != nil {
		return 0, err
	}
	return unix.GetsockoptInt(c.fd, unix.SOL_SOCKET, plain)
}

// Close gives the socket back.
func (c *Conn) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return unix.Close(c.fd)
}

// Do sends all requests, in order, hundreds in one system call. failed is nil if all succeeded; otherwise it is as long as
// reqs and holds an *Error for each that the kernel refused. err says that it is not known what became of requests from
// the first of a batch on: the socket failed, or the context ended between batches; failed then tells of those before.
func (c *Conn) Do(ctx context.Context, reqs []Request) (failed []error, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for done := 0; done < len(reqs); {
		if err := ctx.Err(); err != nil {
			return failed, err
		}
		msg, n := c.pack(reqs[done:])
		if err := c.send(msg); err != nil {
			return failed, err
		}
		err := c.answers(n, func(i int, e error) {
			if failed == nil {
				failed = make([]error, len(reqs))
			}
			failed[done+i] = e
		})
		if err != nil {
			return failed, err
		}
		done += n
	}
	return failed, nil
}

// pack puts as many requests as go into one send into a buffer, at least one.
func (c *Conn) pack(reqs []Request) (msg []byte, n int) {
	for n < len(reqs) && n < c.batch && (n == 0 || len(msg)+len(reqs[n].Body)+unix.NLMSG_HDRLEN <= c.batchBytes) {
		n++
		msg = reqs[n-1].append(msg, 0, c.seq+uint32(n))
	}
	// The last one asks for an answer.
	last := reqs[n-1]
	at := len(msg) - align(unix.NLMSG_HDRLEN+len(last.Body))
	return last.append(msg[:at], unix.NLM_F_ACK, c.seq+uint32(n)), n
}

// answers reads what the kernel says of the next n sequence numbers.
func (c *Conn) answers(n int, fail func(i int, e error)) error {
	first := c.seq + 1
	c.seq += uint32(n)
	for {
		b, err := c.receive()
		if err != nil {
			return err
		}
		for m, err := range Messages(b) {
			if err != nil {
				return err
			}
			i := m.Seq - first
			if i >= uint32(n) || m.Type != unix.NLMSG_ERROR {
				continue // of an earlier call, or an echo
			}
			if e := m.err(); e != nil {
				fail(int(i), e)
			}
			if i == uint32(n)-1 {
				return nil
			}
		}
	}
}

// Get sends one request and returns the messages with which the kernel answers it, none for requests that only change
// something. An error that the kernel answers is an *Error.
func (c *Conn) Get(ctx context.Context, req Request) ([]Message, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	out, _, err := c.ask(req, unix.NLM_F_ACK)
	return out, err
}

// Dump sends one request for a list and returns its messages. A list that changed while it was read is read again, in the
// end the error is ErrInterrupted. An error that the kernel answers is an *Error.
func (c *Conn) Dump(ctx context.Context, req Request) ([]Message, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for range dumpTries {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		switch out, complete, err := c.ask(req, unix.NLM_F_DUMP); {
		case err != nil:
			return nil, err
		case complete:
			return out, nil
		}
	}
	return nil, ErrInterrupted
}

// ask collects the messages with which the kernel answers a request, up to the one that says that there are no more.
func (c *Conn) ask(req Request, flags uint16) (out []Message, complete bool, err error) {
	c.seq++
	if err := c.send(req.append(nil, flags, c.seq)); err != nil {
		return nil, false, err
	}
	a := answer{seq: c.seq, complete: true}
	for {
		b, err := c.receive()
		if err != nil {
			return nil, false, err
		}
		if done, err := a.take(append([]byte(nil), b...)); done || err != nil { // the messages live on in the copy
			return a.out, a.complete, err
		}
	}
}

// answer is what the kernel answered to the request with a sequence number.
type answer struct {
	seq uint32
	out []Message
	// complete is false where the kernel said that a list changed while it was read.
	complete bool
}

// take takes in a datagram. It returns true after the last message, and the error that it carries.
func (a *answer) take(b []byte) (done bool, err error) {
	for m, err := range Messages(b) {
		switch {
		case err != nil:
			return false, err
		case m.Seq != a.seq: // of an earlier call
			continue
		case m.Flags&unix.NLM_F_DUMP_INTR != 0:
			a.complete = false
		}
		switch m.Type {
		case unix.NLMSG_DONE:
			err := m.err()
			if errors.Is(err, unix.EINTR) {
				a.complete, err = false, nil
			}
			return true, err
		case unix.NLMSG_ERROR:
			return true, m.err()
		default:
			a.out = append(a.out, m)
		}
	}
	return false, nil
}

func (c *Conn) send(b []byte) error {
	for {
		err := unix.Sendto(c.fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("send %d bytes to the kernel: %w", len(b), err)
		}
		return nil
	}
}

// receive returns one datagram from the kernel, valid until the next call.
func (c *Conn) receive() ([]byte, error) {
	for {
		n, _, flags, from, err := unix.Recvmsg(c.fd, c.buf, nil, 0)
		switch sa, ok := from.(*unix.SockaddrNetlink); {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return nil, fmt.Errorf("receive from the kernel: %w", err)
		case flags&unix.MSG_TRUNC != 0:
			return nil, fmt.Errorf("receive from the kernel: a datagram larger than %d bytes", len(c.buf))
		case ok && sa.Pid == 0: // other processes may write to the socket too
			return c.buf[:n], nil
		}
	}
}

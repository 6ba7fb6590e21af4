package netlink

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

const (
	// answerSize is the maximum size of an error in the receive buffer, in bytes: 36, the
	// explanation, and the kernel's overhead.
	answerSize = 1280
	// maxBatch is the maximum number of messages in one send. The kernel locks for each message, so
	// it may be large, but more than a few hundred bring nothing.
	maxBatch = 512
	// listTries is how often a list is read that changes meanwhile.
	listTries = 5
)

var (
	// ErrInterrupted means that a list changed while it was read.
	ErrInterrupted = errors.New("the list changed while it was read")
	// ErrAnswerLost means that the kernel could not deliver its answer, so that the outcome of a
	// request is unknown.
	ErrAnswerLost = errors.New("the kernel's answer was lost")
)

// Conn is a connection to the kernel in the network namespace in which Dial was called. It is safe
// for concurrent use: calls are carried out one after the other. It replaces its socket when needed
// (invariant 3 of the package).
type Conn struct {
	settings
	mu     sync.Mutex // guards the fields below, except ports
	socket *socket    // nil if the last one was closed
	seq    uint32     // the last sequence number, of all sockets
	closed bool
	// ports are the addresses of the current socket and of the one before it.
	ports [2]atomic.Uint32
}

// Dial opens a connection for a protocol, such as unix.NETLINK_ROUTE.
func Dial(protocol int) (*Conn, error) { return DialSize(protocol, bufferSize) }

// DialSize is Dial with the size of the send buffer in bytes. No message can be larger.
func DialSize(protocol, sendSize int) (*Conn, error) {
	ns, err := currentNamespace()
	if err != nil {
		return nil, fmt.Errorf("open a netlink socket for protocol %d: %w", protocol, err)
	}
	c := &Conn{settings: settings{protocol: protocol, sendSize: sendSize, namespace: ns}}
	if err := c.replace(); err != nil {
		return nil, errors.Join(err, ns.Close())
	}
	return c, nil
}

// replace opens a new socket.
func (c *Conn) replace() error {
	s, err := c.open()
	if err != nil {
		return err
	}
	c.socket = s
	c.ports[1].Store(c.ports[0].Load())
	c.ports[0].Store(s.port)
	return nil
}

// Close closes the socket.
func (c *Conn) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	errs := []error{c.namespace.Close()}
	if c.socket != nil {
		errs = append(errs, c.socket.close())
		c.socket = nil
	}
	return errors.Join(errs...)
}

// Sent reports whether a message that the kernel multicasts was caused by a request of this Conn.
func (c *Conn) Sent(m Message) bool {
	return m.Port != 0 && (m.Port == c.ports[0].Load() || m.Port == c.ports[1].Load())
}

// converse calls talk with a clean socket, and closes the socket unless talk leaves it clean.
func (c *Conn) converse(ctx context.Context, talk func(*socket) error) (err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	if c.closed {
		return fmt.Errorf("netlink connection for protocol %d: %w", c.protocol, unix.EBADF)
	}
	if c.socket == nil {
		if err := c.replace(); err != nil {
			return err
		}
	}
	s := c.socket
	defer func() { // also if talk panics
		if !s.clean {
			c.socket = nil
			_ = s.close()
		}
	}()
	s.clean = true
	return talk(s)
}

// Do sends all requests, in order, hundreds in one system call. failed is nil if all succeeded;
// otherwise it is as long as reqs and has an *Error for each request that the kernel refused. If
// err is not nil, the socket failed or the context ended between batches: the outcome of the
// requests of this and later batches is unknown, failed is valid for those before.
func (c *Conn) Do(ctx context.Context, reqs []Request) (failed []error, err error) {
	err = c.converse(ctx, func(s *socket) error {
		for done := 0; done < len(reqs); {
			if err := ctx.Err(); err != nil {
				return err
			}
			msg, n := pack(reqs[done:], c.seq+1, min(maxBatch, s.receiveSize/answerSize), s.sendSize/2)
			first := c.seq + 1
			c.seq += uint32(n)
			if err := s.send(msg); err != nil {
				return err
			}
			err := s.answers(ctx, first, n, func(i int, e *Error) {
				if failed == nil {
					failed = make([]error, len(reqs))
				}
				failed[done+i] = e
			})
			if err != nil {
				return err
			}
			done += n
		}
		return nil
	})
	return failed, err
}

// pack encodes as many requests as fit into one send, at least one. Only the last one asks for an
// answer.
func pack(reqs []Request, first uint32, most, bytes int) (msg []byte, n int) {
	for n < len(reqs) && n < most && (n == 0 || len(msg)+len(reqs[n].Body)+unix.NLMSG_HDRLEN <= bytes) {
		msg = reqs[n].append(msg, 0, first+uint32(n))
		n++
	}
	last := reqs[n-1]
	at := len(msg) - align(unix.NLMSG_HDRLEN+len(last.Body))
	return last.append(msg[:at], unix.NLM_F_ACK, first+uint32(n)-1), n
}

// answers receives the answers to the n requests from sequence number first on.
func (s *socket) answers(ctx context.Context, first uint32, n int, fail func(i int, e *Error)) error {
	for last := uint32(n) - 1; ; {
		b, err := s.receive(ctx)
		if err != nil {
			return lost(err)
		}
		err = s.acks(b, first, n, func(i uint32, e *Error) {
			if e != nil {
				fail(int(i), e)
			}
			s.clean = i == last
		})
		if err != nil || s.clean {
			return err
		}
	}
}

// acks calls f for each answer in a datagram to one of the n requests from sequence number first
// on. e is nil if the kernel carried the request out.
func (s *socket) acks(b []byte, first uint32, n int, f func(i uint32, e *Error)) error {
	for m, err := range Messages(b) {
		if err != nil {
			return err
		}
		i := m.Seq - first
		if i >= uint32(n) || m.Port != s.port || m.Type != unix.NLMSG_ERROR {
			continue // an answer to something else, or an echo
		}
		e, err := m.err()
		if err != nil {
			return err
		}
		f(i, e)
	}
	return nil
}

// lost adds ErrAnswerLost to the error of an overrun.
func lost(err error) error {
	if errors.Is(err, unix.ENOBUFS) {
		return fmt.Errorf("%w: %w", ErrAnswerLost, err)
	}
	return err
}

// Refusal is the kernel's refusal of a transaction.
type Refusal struct {
	// Index is the index of the first request that was refused; it is outside of the requests if
	// the kernel refused the transaction as a whole.
	Index int
	Err   *Error
}

// Transact sends requests to a subsystem of nfnetlink, such as unix.NFNL_SUBSYS_NFTABLES, which
// carries out all of them or none. Without commit the subsystem checks the requests and undoes
// them. refused is nil if the kernel accepts them. err says that they were not sent, or that their
// outcome is not known.
func (c *Conn) Transact(ctx context.Context, subsystem uint16, reqs []Request, commit bool) (refused *Refusal, err error) {
	if len(reqs) == 0 {
		return nil, nil
	}
	bound := Request{Body: []byte{unix.NFPROTO_UNSPEC, unix.NFNETLINK_V0, byte(subsystem >> 8), byte(subsystem)}}
	err = c.converse(ctx, func(s *socket) error {
		first := c.seq + 1
		msgs := make([]byte, 0, Size(reqs)+2*bound.size())
		add := func(r Request, flags uint16) {
			c.seq++
			msgs = r.append(msgs, flags, c.seq)
		}
		bound.Type = unix.NFNL_MSG_BATCH_BEGIN
		add(bound, 0)
		last := len(reqs) - 1
		for _, r := range reqs[:last] {
			add(r, 0)
		}
		add(reqs[last], unix.NLM_F_ACK)
		if commit {
			bound.Type = unix.NFNL_MSG_BATCH_END
			add(bound, 0)
		}
		if err := s.send(msgs); err != nil {
			return err
		}
		refused, err = s.outcome(first, int(c.seq-first)+1)
		return err
	})
	return refused, err
}

// outcome receives the answers to a transaction. The kernel has sent all of them when send returns:
// errors, and the answer to the message with NLM_F_ACK, whether or not the transaction as a whole
// succeeded.
func (s *socket) outcome(first uint32, n int) (refused *Refusal, err error) {
	answered, overrun := false, error(nil)
	for {
		b, err := s.poll()
		if errors.Is(err, unix.ENOBUFS) {
			overrun = lost(err) // the answers that did fit follow
			continue
		}
		if errors.Is(err, unix.EAGAIN) {
			break
		}
		if err == nil {
			err = s.acks(b, first, n, func(i uint32, e *Error) {
				answered = true
				if e != nil && refused == nil {
					refused = &Refusal{Index: int(i) - 1, Err: e} // the first message is not a request
				}
			})
		}
		if err != nil {
			return nil, err
		}
	}
	s.clean = answered && overrun == nil
	switch {
	case refused != nil:
		return refused, nil
	case overrun != nil:
		return nil, overrun
	case !answered:
		return nil, ErrAnswerLost
	}
	return nil, nil
}

// Get sends one request and returns the messages of the answer; requests that only change something
// have none. If the kernel refuses the request the error is an *Error.
func (c *Conn) Get(ctx context.Context, req Request) (out []Message, err error) {
	err = c.ask(ctx, req, unix.NLM_F_ACK, func(m Message) error {
		out = append(out, m.clone())
		return nil
	})
	return out, err
}

// List is Dump into a slice. A list that changes while it is read is read again, up to five times.
func (c *Conn) List(ctx context.Context, req Request) (out []Message, err error) {
	for range listTries {
		out = nil
		err = c.Dump(ctx, req, func(m Message) error {
			out = append(out, m.clone())
			return nil
		})
		if !errors.Is(err, ErrInterrupted) {
			break
		}
	}
	if err != nil {
		return nil, err
	}
	return out, nil
}

// Dump sends one request for a list and yields its messages as they arrive, in constant memory. A
// message is valid until yield returns. An error of yield ends the dump and is returned; yield must
// not use the Conn. If the kernel refuses the request the error is an *Error. ErrInterrupted means
// that the list changed, so that messages may be duplicated or missing.
func (c *Conn) Dump(ctx context.Context, req Request, yield func(Message) error) error {
	return c.ask(ctx, req, unix.NLM_F_DUMP, yield)
}

func (c *Conn) ask(ctx context.Context, req Request, flags uint16, yield func(Message) error) error {
	return c.converse(ctx, func(s *socket) error {
		c.seq++
		if err := s.send(req.append(nil, flags, c.seq)); err != nil {
			return err
		}
		a := answer{port: s.port, seq: c.seq}
		for {
			if err := ctx.Err(); err != nil {
				return err
			}
			b, err := s.receive(ctx)
			if err != nil {
				return lost(err)
			}
			done, err := a.take(b, yield)
			if s.clean = done; done || err != nil {
				return err
			}
		}
	})
}

// answer is the kernel's answer to the request with a sequence number.
type answer struct {
	port, seq uint32
	// interrupted means that the list changed while it was read.
	interrupted bool
}

// take processes a datagram. done is true after the last message; err is then the error in it.
func (a *answer) take(b []byte, yield func(Message) error) (done bool, err error) {
	for m, err := range Messages(b) {
		if err != nil {
			return false, err
		}
		if m.Seq != a.seq || m.Port != a.port {
			continue
		}
		a.interrupted = a.interrupted || m.Flags&unix.NLM_F_DUMP_INTR != 0
		switch m.Type {
		case unix.NLMSG_DONE, unix.NLMSG_ERROR:
			e, err := m.err()
			switch {
			case err != nil:
				return false, err
			case m.Type == unix.NLMSG_DONE && (e == nil && a.interrupted || e != nil && e.Errno == unix.EINTR):
				return true, ErrInterrupted
			case e != nil:
				return true, e
			}
			return true, nil
		}
		if err := yield(m); err != nil {
			return false, err
		}
	}
	return false, nil
}

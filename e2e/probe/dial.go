package probe

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// Entrance runs a function inside a network namespace, on its own thread.
type Entrance interface {
	Do(func() error) error
}

// Target is where to connect to.
type Target struct {
	// Proto is "tcp", "udp" or "sctp".
	Proto string
	// Src is the source address. The kernel chooses the address or port if it is zero.
	Src netip.AddrPort
	Dst netip.AddrPort
	// Timeout is the time limit of the whole exchange; zero means DefaultTimeout.
	Timeout time.Duration
}

// DefaultTimeout is long enough that a busy machine does not look like packet loss.
const DefaultTimeout = 15 * time.Second

// Briefly returns the target with a short timeout, for connections that are expected to get no
// answer. A slow machine cannot make such a test fail.
func (t Target) Briefly() Target {
	t.Timeout = 500 * time.Millisecond
	if t.Proto == "tcp" && t.Dst.Addr().Is6() {
		// Longer than the 1 s after which Linux sends a second SYN. Between namespaces the answer
		// to the first one arrives while connect(2) still locks the socket; an ICMPv6 port
		// unreachable then has no effect, and only the answer to the second SYN refuses the
		// connection. In IPv4 the first one does (observed with Linux 6.18).
		t.Timeout = 1600 * time.Millisecond
	}
	return t
}

func (t Target) String() string {
	src := "any"
	if t.Src.IsValid() {
		src = t.Src.String()
	}
	return fmt.Sprintf("%s %s -> %s", t.Proto, src, t.Dst)
}

func (t Target) timeout() time.Duration {
	if t.Timeout != 0 {
		return t.Timeout
	}
	return DefaultTimeout
}

// Verdict is the outcome of an exchange.
type Verdict uint8

// The verdicts.
const (
	Failed Verdict = iota
	Answered
	Refused
	Lost
)

func (v Verdict) String() string { return [...]string{"failed", "answered", "refused", "lost"}[v] }

// Result is the result of an exchange.
type Result struct {
	Verdict Verdict
	// Server is the name of the server that answered, At its address, and Saw the client's address
	// as the server saw it.
	Server  string
	At, Saw netip.AddrPort
	// Err is the error if the verdict is not Answered.
	Err error
	// Took is the duration of the exchange.
	Took time.Duration
}

func (r Result) String() string {
	if r.Verdict == Answered {
		return fmt.Sprintf("answered by %s at %s, which saw %s", r.Server, r.At, r.Saw)
	}
	return fmt.Sprintf("%s: %v", r.Verdict, r.Err)
}

// Dialer connects from one namespace. It is safe for concurrent use.
type Dialer struct {
	in   Entrance
	last atomic.Uint64
	// sctp serializes SCTP exchanges: ICMP errors reach every raw socket with the same addresses.
	sctp sync.Mutex
}

// NewDialer returns a Dialer for a namespace.
func NewDialer(in Entrance) *Dialer { return &Dialer{in: in} }

// Dial opens a connection, exchanges one question and answer, and closes it.
func (d *Dialer) Dial(ctx context.Context, t Target) Result {
	start := time.Now()
	res := d.dial(ctx, t)
	res.Took = time.Since(start)
	return res
}

func (d *Dialer) dial(ctx context.Context, t Target) Result {
	if t.Proto == "sctp" {
		return d.dialSCTP(t)
	}
	ctx, cancel := context.WithTimeout(ctx, t.timeout())
	defer cancel()
	c, err := d.Open(ctx, t)
	if err != nil {
		return failure(err)
	}
	defer c.Close()
	return c.Ask(ctx)
}

// DialAll connects to all targets with the given concurrency and returns the results in the order
// of the targets.
func (d *Dialer) DialAll(ctx context.Context, targets []Target, parallel int) []Result {
	results := make([]Result, len(targets))
	slots := make(chan struct{}, max(parallel, 1))
	var wg sync.WaitGroup
	for i, t := range targets {
		slots <- struct{}{}
		wg.Go(func() {
			results[i] = d.Dial(ctx, t)
			<-slots
		})
	}
	wg.Wait()
	return results
}

// Conn is an open TCP connection or a connected UDP socket. It is used by one goroutine.
type Conn struct {
	conn   net.Conn
	read   *bufio.Reader
	dialer *Dialer
}

// Open connects. A UDP error is reported only by Ask.
func (d *Dialer) Open(ctx context.Context, t Target) (*Conn, error) {
	nd := net.Dialer{}
	switch {
	case t.Proto == "tcp" && t.Src.IsValid():
		nd.LocalAddr = net.TCPAddrFromAddrPort(t.Src)
	case t.Proto == "udp" && t.Src.IsValid():
		nd.LocalAddr = net.UDPAddrFromAddrPort(t.Src)
	}
	var c net.Conn
	err := d.in.Do(func() error {
		var err error
		c, err = nd.DialContext(ctx, t.Proto, t.Dst.String())
		return err
	})
	if err != nil {
		return nil, err
	}
	return &Conn{conn: c, read: bufio.NewReader(c), dialer: d}, nil
}

// Ask exchanges one question and answer, until the context's deadline or DefaultTimeout.
func (c *Conn) Ask(ctx context.Context) Result {
	deadline, ok := ctx.Deadline()
	if !ok {
		deadline = time.Now().Add(DefaultTimeout)
	}
	if err := c.conn.SetDeadline(deadline); err != nil {
		return failure(err)
	}
	question := fmt.Sprint(c.dialer.last.Add(1))
	if _, err := c.conn.Write([]byte(question + "\n")); err != nil && !filtered(err) {
		return failure(err)
	}
	for {
		line, err := c.read.ReadString('\n')
		if err != nil {
			return failure(err)
		}
		if res, ok := parse(line, question); ok {
			return res
		}
	}
}

// Local returns the connection's local address.
func (c *Conn) Local() netip.AddrPort {
	a, _ := netip.ParseAddrPort(c.conn.LocalAddr().String())
	return a
}

// Close closes the connection.
func (c *Conn) Close() error { return c.conn.Close() }

// failure classifies an error.
func failure(err error) Result {
	res := Result{Verdict: Failed, Err: err}
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		res.Verdict = Refused
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded), isTimeout(err):
		res.Verdict = Lost
	}
	return res
}

// filtered reports whether a packet was dropped or rejected before it left the host. The next read
// tells which of both.
func filtered(err error) bool { return errors.Is(err, syscall.EPERM) }

func isTimeout(err error) bool {
	var ne net.Error
	return errors.As(err, &ne) && ne.Timeout()
}

// answer returns the line with which a server replies to a question.
func answer(question, name string, at, saw netip.AddrPort) string {
	return fmt.Sprintf("%s %s %s %s\n", question, name, at, saw)
}

// parse parses the answer to this question; ok is false for other lines.
func parse(line, question string) (Result, bool) {
	f := strings.Fields(line)
	if len(f) != 4 || f[0] != question {
		return Result{}, false
	}
	at, err := netip.ParseAddrPort(f[2])
	saw, err2 := netip.ParseAddrPort(f[3])
	if err := errors.Join(err, err2); err != nil {
		return Result{Verdict: Failed, Err: fmt.Errorf("answer %q: %w", line, err)}, true
	}
	return Result{Verdict: Answered, Server: f[1], At: at, Saw: saw}, true
}

package nodelock

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Process is what a process says of itself.
type Process struct {
	// Instance is its value of --service-proxy-name, Mode its mode, Version its version.
	Instance string `json:"instance"`
	Mode     string `json:"mode"`
	Version  string `json:"version"`
	// PID is its process ID as we see it, 0 where it is in a PID namespace that we cannot see.
	PID int `json:"-"`
}

// ErrUntrusted says that the lock's socket is one that a user made who has no business with it.
var ErrUntrusted = errors.New("the socket belongs to another user than root")

// HeldError says that another process holds a lock.
type HeldError struct {
	// Name is that of the lock.
	Name string
	// By is the holder; only PID is known of one that does not answer.
	By Process
}

func (e *HeldError) Error() string {
	return fmt.Sprintf("another process holds the lock @%s (%s)", e.Name, e.By)
}

func (p Process) String() string {
	pid := "in another PID namespace"
	if p.PID != 0 {
		pid = fmt.Sprintf("process %d", p.PID)
	}
	if p.Mode == "" {
		return pid
	}
	name := "without --service-proxy-name"
	if p.Instance != "" {
		name = "--service-proxy-name " + p.Instance
	}
	return fmt.Sprintf("fairlead %s, mode %s, %s, %s", p.Version, p.Mode, name, pid)
}

// helloTimeout bounds how long the other end may take to say who it is, and maxHello how long that may be.
const (
	helloTimeout = 2 * time.Second
	maxHello     = 4 << 10
)

// maxVisitors bounds the connections that a holder keeps open.
const maxVisitors = 64

// Lock is a lock that is held until Release or the end of the process.
type Lock struct {
	listener *net.UnixListener
	self     Process
	visitors chan Process
	done     sync.WaitGroup

	mu    sync.Mutex // guards what follows
	conns map[*net.UnixConn]bool
	ended bool
}

// Acquire takes a lock, and does not wait for it. The error is a *HeldError where another process holds it, ErrUntrusted where the
// socket is no lock.
func Acquire(ctx context.Context, name string, self Process) (*Lock, error) {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "unix", "@"+name)
	if errors.Is(err, unix.EADDRINUSE) {
		by, held, lerr := Look(ctx, name)
		switch {
		case lerr != nil:
			return nil, lerr
		case held:
			return nil, &HeldError{name, by}
		}
		l, err = lc.Listen(ctx, "unix", "@"+name) // it ended in between
		if errors.Is(err, unix.EADDRINUSE) {
			return nil, &HeldError{Name: name}
		}
	}
	if err != nil {
		return nil, fmt.Errorf("lock @%s: %w", name, err)
	}
	k := &Lock{listener: l.(*net.UnixListener), self: self, visitors: make(chan Process, maxVisitors), conns: make(map[*net.UnixConn]bool)}
	k.done.Go(k.accept)
	return k, nil
}

// Release gives the lock back.
func (l *Lock) Release() {
	l.mu.Lock()
	l.ended = true
	_ = l.listener.Close() // what Close may fail with, the kernel has done
	for c := range l.conns {
		_ = c.Close()
	}
	l.mu.Unlock()
	l.done.Wait()
}

// Visitors receives who visits, and who waits for the lock, each once as they come.
func (l *Lock) Visitors() <-chan Process { return l.visitors }

func (l *Lock) accept() {
	for {
		c, err := l.listener.AcceptUnix()
		if err != nil {
			return // released; nothing else ends an accept on such a socket for good
		}
		if !l.keep(c) {
			_ = c.Close()
			continue
		}
		l.done.Go(func() {
			l.serve(c)
			l.mu.Lock()
			delete(l.conns, c)
			l.mu.Unlock()
			_ = c.Close()
		})
	}
}

// keep notes a connection that is to end with the lock.
func (l *Lock) keep(c *net.UnixConn) bool {
	cred, err := credentials(c)
	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil || !trusted(cred) || l.ended || len(l.conns) >= maxVisitors {
		return false
	}
	l.conns[c] = true
	return true
}

// serve says who we are and hears who visits, then waits for the end of the connection.
func (l *Lock) serve(c *net.UnixConn) {
	_ = c.SetDeadline(time.Now().Add(helloTimeout))
	if json.NewEncoder(c).Encode(l.self) != nil {
		return
	}
	var p Process
	if json.NewDecoder(io.LimitReader(c, maxHello)).Decode(&p) == nil {
		if cred, err := credentials(c); err == nil {
			p.PID = int(cred.Pid)
		}
		select {
		case l.visitors <- p:
		default: // nobody reads
		}
		_ = c.SetDeadline(time.Time{})
		_, _ = io.Copy(io.Discard, c)
	}
}

// Look says who holds a lock.
func Look(ctx context.Context, name string) (by Process, held bool, err error) {
	c, err := dial(ctx, name)
	if c == nil {
		return Process{}, false, err
	}
	defer c.Close()
	return hello(c), true, nil
}

// dial connects to a holder; nil if there is none.
func dial(ctx context.Context, name string) (*net.UnixConn, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", "@"+name)
	if errors.Is(err, unix.ECONNREFUSED) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look who holds the lock @%s: %w", name, err)
	}
	c := conn.(*net.UnixConn)
	cred, err := credentials(c)
	if err == nil && !trusted(cred) {
		err = fmt.Errorf("%w (user %d, process %d)", ErrUntrusted, cred.Uid, cred.Pid)
	}
	if err != nil {
		_ = c.Close()
		return nil, fmt.Errorf("lock @%s: %w", name, err)
	}
	return c, nil
}

// hello hears who holds the lock.
func hello(c *net.UnixConn) (p Process) {
	_ = c.SetReadDeadline(time.Now().Add(helloTimeout))
	_ = json.NewDecoder(io.LimitReader(c, maxHello)).Decode(&p) // what it does not say is not known
	_ = c.SetReadDeadline(time.Time{})
	p.PID = 0
	if cred, err := credentials(c); err == nil {
		p.PID = int(cred.Pid)
	}
	return p
}

// Wait returns nil when a lock may be free, at once if it is, and the error of the context when that ends before. self is told to the
// holder.
func Wait(ctx context.Context, name string, self Process) error {
	return visit(ctx, name, self)
}

// Visit tells the holder of a lock, and each holder after it, that we are here, until the context ends.
func Visit(ctx context.Context, name string, self Process) {
	for {
		_ = visit(ctx, name, self) // a holder that cannot be told now will be below
		t := time.NewTimer(visitPause)
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-t.C:
		}
	}
}

// visitPause is the time between two visits where nobody holds the lock.
const visitPause = time.Second

// visit stays with the holder until it, or the context, ends.
func visit(ctx context.Context, name string, self Process) error {
	c, err := dial(ctx, name)
	if c == nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	defer stop()
	defer c.Close()
	if err := json.NewEncoder(c).Encode(self); err == nil {
		_, _ = io.Copy(io.Discard, c)
	}
	return ctx.Err()
}

// Held returns the names of locks that are held and begin with the prefix, sorted. Those of untrusted users are among them.
func Held(prefix string) ([]string, error) {
	list, err := os.ReadFile("/proc/thread-self/net/unix")
	if err != nil {
		return nil, fmt.Errorf("look for locks: %w", err)
	}
	return parseHeld(string(list), prefix), nil
}

// parseHeld reads /proc/net/unix: Num RefCount Protocol Flags Type St Inode Path.
func parseHeld(list, prefix string) []string {
	const listens = "00010000" // SO_ACCEPTCON
	var out []string
	for line := range strings.Lines(list) {
		f := strings.Fields(line)
		if len(f) != 8 || f[3] != listens {
			continue
		}
		if name, ok := strings.CutPrefix(f[7], "@"); ok && strings.HasPrefix(name, prefix) {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// credentials are those of the process that listens, for a connection that was made to it, and of the one that connected, for one
// that was accepted.
func credentials(c *net.UnixConn) (cred *unix.Ucred, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	cerr := raw.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	return cred, errors.Join(err, cerr)
}

// trusted says whether a process may hold a lock, or speak to its holder.
func trusted(cred *unix.Ucred) bool { return cred.Uid == 0 || int(cred.Uid) == os.Geteuid() }

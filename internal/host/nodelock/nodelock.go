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

// Process is what a process tells others about itself.
type Process struct {
	// Instance is its value of --service-proxy-name.
	Instance string `json:"instance"`
	Mode     string `json:"mode"`
	Version  string `json:"version"`
	// PID is its process ID as we see it; 0 if it is in a PID namespace that we cannot see.
	PID int `json:"-"`
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

// ErrUntrusted says that the lock's socket belongs to a user who may not hold the lock.
var ErrUntrusted = errors.New("the socket belongs to another user than root")

// HeldError says that another process holds a lock.
type HeldError struct {
	// Name is that of the lock.
	Name string
	// By is the holder. Only the PID of a holder that does not respond is known.
	By Process
}

func (e *HeldError) Error() string {
	return fmt.Sprintf("another process holds the lock @%s (%s)", e.Name, e.By)
}

const (
	// helloTimeout is how long the other end may take to say who it is, and maxHello how many bytes
	// that may be.
	helloTimeout = 2 * time.Second
	maxHello     = 4 << 10
	// maxVisitors is how many connections a holder keeps open.
	maxVisitors = 64
	// visitPause is the time between two visits while nobody holds the lock.
	visitPause = time.Second
)

// Lock is a lock that is held until Release or the end of the process.
type Lock struct {
	listener *net.UnixListener
	visitors chan Process
	// release ends the context of the connections of visitors, done waits for their goroutines.
	release context.CancelFunc
	done    sync.WaitGroup
}

// Acquire takes a lock if it is free; it does not wait. The error is a *HeldError if another
// process holds the lock, and wraps ErrUntrusted if the socket is no lock.
func Acquire(ctx context.Context, name string, self Process) (*Lock, error) {
	var lc net.ListenConfig
	listener, err := lc.Listen(ctx, "unix", "@"+name)
	if errors.Is(err, unix.EADDRINUSE) {
		by, held, lerr := Look(ctx, name)
		switch {
		case lerr != nil:
			return nil, lerr
		case held:
			return nil, &HeldError{name, by}
		}
		listener, err = lc.Listen(ctx, "unix", "@"+name) // the holder ended in between
		if errors.Is(err, unix.EADDRINUSE) {
			return nil, &HeldError{Name: name}
		}
	}
	if err != nil {
		return nil, fmt.Errorf("lock @%s: %w", name, err)
	}
	held, release := context.WithCancel(context.WithoutCancel(ctx))
	l := &Lock{listener: listener.(*net.UnixListener), visitors: make(chan Process, maxVisitors), release: release}
	l.done.Go(func() { l.accept(held, self) })
	return l, nil
}

// Release gives the lock back. A nil Lock may be released.
func (l *Lock) Release() {
	if l == nil {
		return
	}
	_ = l.listener.Close() // cannot fail
	l.release()
	l.done.Wait()
}

// Visitors receives each process that visits or waits for the lock, once, when it comes.
func (l *Lock) Visitors() <-chan Process { return l.visitors }

func (l *Lock) accept(held context.Context, self Process) {
	slots := make(chan struct{}, maxVisitors)
	for {
		c, err := l.listener.AcceptUnix()
		if err != nil {
			return // released; nothing else makes accept on such a socket fail for good
		}
		pid, err := peer(c)
		if err != nil {
			_ = c.Close()
			continue
		}
		select {
		case slots <- struct{}{}:
			l.done.Go(func() {
				defer func() { <-slots }()
				defer context.AfterFunc(held, func() { _ = c.Close() })()
				defer c.Close()
				l.serve(c, pid, self)
			})
		default: // too many visitors
			_ = c.Close()
		}
	}
}

// serve says who holds the lock, reads who visits, and waits for the end of the connection.
func (l *Lock) serve(c *net.UnixConn, pid int, self Process) {
	_ = c.SetDeadline(time.Now().Add(helloTimeout))
	if json.NewEncoder(c).Encode(self) != nil {
		return
	}
	var p Process
	if json.NewDecoder(io.LimitReader(c, maxHello)).Decode(&p) != nil {
		return
	}
	p.PID = pid
	select {
	case l.visitors <- p:
	default: // nobody reads
	}
	_ = c.SetDeadline(time.Time{})
	_, _ = io.Copy(io.Discard, c)
}

// Look says who holds a lock.
func Look(ctx context.Context, name string) (by Process, held bool, err error) {
	c, pid, err := dial(ctx, name)
	if c == nil {
		return Process{}, false, err
	}
	defer c.Close()
	_ = c.SetReadDeadline(time.Now().Add(helloTimeout))
	_ = json.NewDecoder(io.LimitReader(c, maxHello)).Decode(&by) // what it does not say remains unknown
	by.PID = pid
	return by, true, nil
}

// Wait returns nil when a lock may be free, at once if it is, and the error of the context if that
// ends first. It tells the holder who waits.
func Wait(ctx context.Context, name string, self Process) error {
	c, _, err := dial(ctx, name)
	if c == nil {
		return err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { _ = c.Close() })()
	if err := json.NewEncoder(c).Encode(self); err == nil {
		_, _ = io.Copy(io.Discard, c)
	}
	return ctx.Err()
}

// Visit tells the holder of a lock, and each later holder, that this process is there, until the
// context ends.
func Visit(ctx context.Context, name string, self Process) {
	for ctx.Err() == nil {
		_ = Wait(ctx, name, self) // a holder that cannot be reached now is visited later
		pause := time.NewTimer(visitPause)
		select {
		case <-ctx.Done():
		case <-pause.C:
		}
		pause.Stop()
	}
}

// dial connects to the holder of a lock and returns its PID. The connection is nil if there is no
// holder.
func dial(ctx context.Context, name string) (*net.UnixConn, int, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", "@"+name)
	if errors.Is(err, unix.ECONNREFUSED) {
		return nil, 0, nil
	}
	if err != nil {
		return nil, 0, fmt.Errorf("look who holds the lock @%s: %w", name, err)
	}
	c := conn.(*net.UnixConn)
	pid, err := peer(c)
	if err != nil {
		_ = c.Close()
		return nil, 0, fmt.Errorf("lock @%s: %w", name, err)
	}
	return c, pid, nil
}

// peer returns the PID of the process at the other end, the one that listens or the one that
// connected. The error wraps ErrUntrusted if that is neither root's process nor our own user's,
// which may not hold a lock or talk to its holder.
func peer(c *net.UnixConn) (pid int, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	cerr := raw.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err := errors.Join(err, cerr); err != nil {
		return 0, err
	}
	if cred.Uid != 0 && int(cred.Uid) != os.Geteuid() {
		return 0, fmt.Errorf("%w (user %d, process %d)", ErrUntrusted, cred.Uid, cred.Pid)
	}
	return int(cred.Pid), nil
}

// Held returns the names of locks that are held and begin with the prefix, sorted, including those
// of untrusted users.
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

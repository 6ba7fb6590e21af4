package daemon

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Host is a network namespace.
type Host interface {
	Command(ctx context.Context, name string, args ...string) *exec.Cmd
	Run(ctx context.Context, name string, args ...string) (string, error)
}

// EnvBinary is an environment variable with the path of a binary. If it is set, Build returns it
// instead of building one, which would take minutes in user-mode Linux.
const EnvBinary = "FAIRLEAD_BINARY"

// Build builds the binary in the directory and returns its path.
func Build(ctx context.Context, dir string) (string, error) {
	if path := os.Getenv(EnvBinary); path != "" {
		return path, nil
	}
	path := filepath.Join(dir, "fairlead")
	cmd := exec.CommandContext(ctx, "go", "build", "-o", path, "github.com/fairlead/fairlead/cmd/fairlead")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build fairlead: %w\n%s", err, out)
	}
	return path, nil
}

// Hint creates the chain by which the kubelet marks the node's iptables userland: "legacy" or
// "nft".
func Hint(ctx context.Context, h Host, userland string) error {
	for _, tool := range []string{"iptables-", "ip6tables-"} {
		if _, err := h.Run(ctx, tool+userland, "-w", "-t", "mangle", "-N", "KUBE-IPTABLES-HINT"); err != nil {
			return fmt.Errorf("create the kubelet's hint: %w", err)
		}
	}
	return nil
}

// Daemon is a running fairlead.
type Daemon struct {
	cmd  *exec.Cmd
	done chan struct{}
	log  *log
}

// Start runs the binary with these flags on the host.
func Start(h Host, binary string, flags ...string) (*Daemon, error) {
	d := &Daemon{done: make(chan struct{}), log: newLog()}
	// The daemon outlives the step of a test that starts it; Stop and Kill end it.
	d.cmd = h.Command(context.Background(), binary, flags...)
	d.cmd.Stdout, d.cmd.Stderr = d.log, d.log
	if err := d.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", binary, err)
	}
	go func() {
		_ = d.cmd.Wait()
		close(d.done)
	}()
	return d, nil
}

// Log returns the daemon's output so far.
func (d *Daemon) Log() string { return d.log.String() }

// AwaitLog waits until the daemon's log contains the text. It returns an error if the daemon ends
// first.
func (d *Daemon) AwaitLog(ctx context.Context, text string) error {
	for {
		grown := d.log.wait()
		if bytes.Contains([]byte(d.log.String()), []byte(text)) {
			return nil
		}
		select {
		case <-grown:
		case <-d.done:
			return fmt.Errorf("wait for %q: the daemon has ended: %s\n%s", text, d.cmd.ProcessState, d.Log())
		case <-ctx.Done():
			return fmt.Errorf("wait for %q in the daemon's log: %w\n%s", text, ctx.Err(), d.Log())
		}
	}
}

// Pid is the daemon's process id.
func (d *Daemon) Pid() int { return d.cmd.Process.Pid }

// CPU returns the CPU time of the daemon and its reaped children, in steps of 10 ms.
func (d *Daemon) CPU() (time.Duration, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", d.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	// The second field, the name, may contain spaces. Times are fields 14 to 17 of
	// proc_pid_stat(5), in ticks of 10 ms.
	_, rest, _ := strings.Cut(string(text), ") ")
	fields := strings.Fields(rest)
	if len(fields) < 15 {
		return 0, fmt.Errorf("read the daemon's CPU time: %q", text)
	}
	var sum time.Duration
	for _, f := range fields[11:15] {
		n, err := strconv.Atoi(f)
		if err != nil {
			return 0, fmt.Errorf("read the daemon's CPU time: %w", err)
		}
		sum += time.Duration(n) * 10 * time.Millisecond
	}
	return sum, nil
}

// stopTimeout is the time limit for a daemon to stop.
const stopTimeout = 10 * time.Second

// Stop sends SIGTERM to the daemon, as the kubelet does, and waits for it. An exit code other than
// 0 is an error.
func (d *Daemon) Stop() error {
	if err := d.signal(syscall.SIGTERM); err != nil {
		return err
	}
	select {
	case <-d.done:
	case <-time.After(stopTimeout):
		return errors.Join(fmt.Errorf("the daemon did not stop within %v after SIGTERM\n%s", stopTimeout, d.Log()), d.Kill())
	}
	if !d.cmd.ProcessState.Success() {
		return fmt.Errorf("the daemon ended with %s\n%s", d.cmd.ProcessState, d.Log())
	}
	return nil
}

// Kill kills the daemon and waits for it. It is not an error if the daemon has already ended.
func (d *Daemon) Kill() error {
	if err := d.signal(syscall.SIGKILL); err != nil {
		return err
	}
	<-d.done
	return nil
}

func (d *Daemon) signal(s syscall.Signal) error {
	if err := d.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("send %s to the daemon: %w", s, err)
	}
	return nil
}

// log collects output and wakes waiters when there is more.
type log struct {
	// mu guards text and grown.
	mu    sync.Mutex
	text  bytes.Buffer
	grown chan struct{}
}

func newLog() *log { return &log{grown: make(chan struct{})} }

// Write implements io.Writer.
func (l *log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	close(l.grown)
	l.grown = make(chan struct{})
	return l.text.Write(p)
}

// wait returns a channel that is closed when something is written after this call.
func (l *log) wait() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.grown
}

func (l *log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

package guest

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// ErrTime is the cause of a context that ends because its time is up. It says that the time limit ended the guest.
var ErrTime = errors.New("time limit")

// tail is how many lines of the console a failure shows.
const tail = 60

// Run boots a guest, lets it run the job and returns the exit code of the command. An error says why there is none; it is
// the context's cause if that ended first. What the kernel had to say about a failure goes to stderr.
func (k Kernel) Run(ctx context.Context, memory string, j Job, stdout, stderr io.Writer) (int, error) {
	// The kernel dies with the thread that starts it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return 0, fmt.Errorf("become the parent of orphans: %w", err)
	}
	dir, err := os.MkdirTemp("", "fairlead-"+k.Name+"-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	g, err := k.Command(ctx, dir, memory, j)
	if err != nil {
		return 0, err
	}

	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var log console
	var code int
	ended := make(chan struct{}) // closed when code is the command's
	pass := func(w io.Writer) func(io.Reader) {
		return func(r io.Reader) {
			if _, err := io.Copy(w, r); err != nil {
				cancel(fmt.Errorf("hand the output on: %w", err)) // or the command would wait for ever
			}
		}
	}
	var readers sync.WaitGroup
	var theirs []*os.File
	for _, read := range []func(io.Reader){
		pass(&log),
		pass(stdout),
		pass(stderr),
		func(r io.Reader) {
			for lines := bufio.NewScanner(r); lines.Scan(); {
				switch word, rest, _ := strings.Cut(lines.Text(), " "); word {
				case saysStart:
					log.mark()
				case saysEnd:
					if n, err := strconv.Atoi(rest); err == nil {
						code = n
						close(ended)
						return
					}
				}
			}
		},
	} {
		r, w, err := os.Pipe()
		if err != nil {
			return 0, err
		}
		theirs = append(theirs, w)
		readers.Go(func() { defer r.Close(); read(r) })
	}
	// One group, so that one signal reaches the kernel and all its processes, and the terminal's SIGINT none of them.
	g.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	g.Stdout, g.Stderr, g.ExtraFiles = theirs[0], theirs[0], theirs[1:]
	err = g.Start()
	for _, w := range theirs {
		w.Close()
	}
	if err != nil {
		return 0, err
	}

	dead := make(chan struct{})
	go func() { defer close(dead); _ = g.Wait() }()
	select {
	case <-ended:
	case <-dead:
	case <-ctx.Done():
	}
	// The command's output was all taken before the guest told its exit code, so nothing is lost here.
	_ = syscall.Kill(-g.Process.Pid, syscall.SIGKILL)
	<-dead
	readers.Wait()
	reap()

	select {
	case <-ended:
		if code != 0 {
			log.print(stderr)
		}
		return code, nil
	default:
	}
	log.print(stderr)
	if ctx.Err() != nil {
		return 0, context.Cause(ctx)
	}
	return 0, fmt.Errorf("the guest ended before its command did: %s: %v", filepath.Base(g.Path), g.ProcessState)
}

// Write writes the job to a file, which the kernel parameter EnvJob names to the guest.
func (j Job) Write(path string) error {
	text, err := json.Marshal(j)
	if err != nil {
		return err
	}
	return os.WriteFile(path, text, 0o600)
}

// reap waits for the guest's processes, which outlive their kernel by a moment and are then children of this process.
func reap() {
	for {
		if _, err := unix.Wait4(-1, nil, 0, nil); err != nil && err != unix.EINTR {
			return
		}
	}
}

// console collects what the kernel writes to its console.
type console struct {
	mu    sync.Mutex
	text  []byte
	start int // length of text when the command was started
}

func (c *console) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.text = append(c.text, p...)
	return len(p), nil
}

func (c *console) mark() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.start = len(c.text)
}

// print shows the last lines since the start of the command, or of the kernel if it did not come to that.
func (c *console) print(w io.Writer) {
	c.mu.Lock()
	defer c.mu.Unlock()
	lines := strings.Split(strings.TrimSpace(string(c.text[c.start:])), "\n")
	for _, line := range lines[max(0, len(lines)-tail):] {
		if line = strings.TrimRight(line, "\r"); line != "" {
			fmt.Fprintln(w, "kernel:", line)
		}
	}
}

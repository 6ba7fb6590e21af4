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

// ErrTime is the cause of a context that ends because the time limit of the guest was reached.
var ErrTime = errors.New("time limit")

// tail is the number of console lines that are shown after a failure.
const tail = 60

// Run boots a guest, runs the job in it and returns the exit code of the command. Without an exit
// code it returns an error, which is the context's cause if the context ended first. After a
// failure the last lines of the kernel's console go to stderr.
func (k Kernel) Run(ctx context.Context, memory string, j Job, stdout, stderr io.Writer) (int, error) {
	// The kernel is killed when the thread that started it ends.
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
	ended := make(chan struct{}) // closed once code is set
	copyTo := func(w io.Writer) func(io.Reader) {
		return func(r io.Reader) {
			if _, err := io.Copy(w, r); err != nil {
				cancel(fmt.Errorf("copy the output: %w", err)) // otherwise the command would block forever
			}
		}
	}
	verdict := func(r io.Reader) {
		if n, ok := readVerdict(r, &log); ok {
			code = n
			close(ended)
		}
	}
	theirs, readers, err := pipes(copyTo(&log), copyTo(stdout), copyTo(stderr), verdict)
	if err != nil {
		return 0, err
	}
	// One process group: a signal reaches the kernel and all its processes, the terminal's SIGINT
	// none of them.
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
	// The guest sends the exit code only after all output was read, so killing it loses nothing.
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
	return 0, fmt.Errorf("the guest stopped before its command: %s: %v", filepath.Base(g.Path), g.ProcessState)
}

// pipes opens a pipe for each reader and starts the reader. It returns the write ends.
func pipes(readers ...func(io.Reader)) ([]*os.File, *sync.WaitGroup, error) {
	var running sync.WaitGroup
	var theirs []*os.File
	for _, read := range readers {
		r, w, err := os.Pipe()
		if err != nil {
			for _, w := range theirs {
				w.Close()
			}
			return nil, nil, err
		}
		theirs = append(theirs, w)
		running.Go(func() { defer r.Close(); read(r) })
	}
	return theirs, &running, nil
}

// readVerdict reads what the guest reports about the command and returns its exit code, if there is
// one.
func readVerdict(r io.Reader, log *console) (code int, ok bool) {
	for lines := bufio.NewScanner(r); lines.Scan(); {
		switch word, value, _ := strings.Cut(lines.Text(), " "); word {
		case verdictStart:
			log.mark()
		case verdictEnd:
			if n, err := strconv.Atoi(value); err == nil {
				return n, true
			}
		}
	}
	return 0, false
}

// Write writes the job to a file. The kernel parameter EnvJob passes its path to the guest.
func (j Job) Write(path string) error {
	text, err := json.Marshal(j)
	if err != nil {
		return err
	}
	return os.WriteFile(path, text, 0o600)
}

// reap waits for the guest's processes, which briefly outlive their kernel as children of this
// process.
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
	start int // length of text when the command started
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

// print shows the last lines since the start of the command, or of the kernel if the command did
// not start.
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

package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// errTime says that the time limit ended the guest.
var errTime = errors.New("time limit")

const (
	// kernel is user-mode Linux as Debian calls it.
	kernel = "linux.uml"
	// tail is how many lines of the console a failure shows.
	tail = 60
)

// run boots a guest, lets it run the job and returns the exit code of the command. An error says why there is none; it is
// the context's cause if that ended first. What the kernel had to say about a failure goes to stderr.
func run(ctx context.Context, memory string, j job, stdout, stderr io.Writer) (int, error) {
	// The kernel dies with the thread that starts it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return 0, fmt.Errorf("become the parent of orphans: %w", err)
	}
	dir, err := os.MkdirTemp("", "fairlead-uml-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	g, err := newGuest(ctx, dir, memory, j)
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
	return 0, fmt.Errorf("the guest ended before its command did: %s: %v", kernel, g.ProcessState)
}

// newGuest is the process of a guest, not yet started, that has its files in dir and its streams, after standard output and
// error for the kernel, from file descriptor 3 on: the command's output, its errors, and what the guest says about it.
func newGuest(ctx context.Context, dir, memory string, j job) (*exec.Cmd, error) {
	program, err := exec.LookPath(kernel)
	if err != nil {
		return nil, fmt.Errorf("%w; install it with hack/deps.sh uml", err)
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	text, err := json.Marshal(j)
	if err != nil {
		return nil, err
	}
	path := filepath.Join(dir, "job")
	if err := os.WriteFile(path, text, 0o600); err != nil {
		return nil, err
	}
	g := exec.Command(program, "mem="+memory, "rootfstype=hostfs", "rootflags=/", "ro", "init="+self, jobEnv+"="+path,
		// A panic ends the guest at once; an oops is one, for what a kernel does after it proves nothing.
		"panic=-1", "oops=panic",
		// Warnings and worse. What it says about each link and module hides them.
		"loglevel=5",
		"uml_dir="+dir, "umid=guest",
		"con=null", "con0=null,fd:1", "con1=null,fd:3", "con2=null,fd:4", "con3=null,fd:5")
	// The guest's memory is a file that the kernel creates and unlinks; it prefers a tmpfs if no variable says otherwise.
	g.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir}
	// The kernel's own environment does not reach the guest, so that the library is in no program there.
	if library, err := preload(ctx); err != nil {
		return nil, err
	} else if library != "" {
		g.Env = append(g.Env, "LD_PRELOAD="+library)
	}
	// One group, so that one signal reaches the kernel and all its processes, and the terminal's SIGINT none of them.
	g.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	return g, nil
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

package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
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

// run boots a guest, lets it run the job and returns the exit code of the command. An error says why there is none.
func run(ctx context.Context, memory string, j job) (int, error) {
	if _, err := exec.LookPath(kernel); err != nil {
		return 0, fmt.Errorf("%w; install it with hack/deps.sh uml", err)
	}
	self, err := os.Executable()
	if err != nil {
		return 0, err
	}
	dir, err := os.MkdirTemp("", "fairlead-uml-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	text, err := json.Marshal(j)
	if err != nil {
		return 0, err
	}
	path := filepath.Join(dir, "job")
	if err := os.WriteFile(path, text, 0o600); err != nil {
		return 0, err
	}

	g := exec.Command(kernel, "mem="+memory, "rootfstype=hostfs", "rootflags=/", "ro", "init="+self, jobEnv+"="+path,
		// A panic ends the guest at once; an oops is one, for what a kernel does after it proves nothing.
		"panic=-1", "oops=panic",
		"uml_dir="+dir, "umid=guest",
		// The kernel logs to the first console; the others are the three streams that it hands to process 1.
		"con=null", "con0=null,fd:1", "con1=null,fd:3", "con2=null,fd:4", "con3=null,fd:5")
	// The guest's memory is a file that the kernel creates and unlinks; it prefers a tmpfs if no variable says otherwise.
	g.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir}
	// The kernel and its processes are one group, so that one signal reaches all; SIGINT at a terminal must not.
	g.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}

	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return 0, fmt.Errorf("become the parent of orphans: %w", err)
	}

	var readers sync.WaitGroup
	var console log
	var code int
	verdict := make(chan struct{}) // closed when code is the command's
	streams := []func(io.Reader){
		func(r io.Reader) { console.read(r) },
		func(r io.Reader) { _, _ = io.Copy(os.Stdout, r) },
		func(r io.Reader) { _, _ = io.Copy(os.Stderr, r) },
		func(r io.Reader) {
			for lines := bufio.NewScanner(r); lines.Scan(); {
				word, rest, _ := strings.Cut(lines.Text(), " ")
				switch word {
				case saysStart:
					console.mark()
				case saysEnd:
					n, err := strconv.Atoi(rest)
					if err == nil {
						code = n
						close(verdict)
						return
					}
				}
			}
		},
	}
	var theirs []*os.File
	for _, read := range streams {
		r, w, err := os.Pipe()
		if err != nil {
			return 0, err
		}
		theirs = append(theirs, w)
		readers.Go(func() { defer r.Close(); read(r) })
	}
	g.Stdout, g.Stderr = theirs[0], theirs[0]
	g.ExtraFiles = theirs[1:]
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
	case <-verdict:
	case <-dead:
	case <-ctx.Done():
	}
	// The command's output was all taken before its verdict was given, so nothing is lost here.
	_ = syscall.Kill(-g.Process.Pid, syscall.SIGKILL)
	<-dead
	readers.Wait()
	reap()

	select {
	case <-verdict:
		if code != 0 {
			console.print()
		}
		return code, nil
	default:
	}
	console.print()
	if ctx.Err() != nil {
		return 0, context.Cause(ctx)
	}
	return 0, fmt.Errorf("the guest ended without a verdict on the command: %s: %v", kernel, g.ProcessState)
}

// reap waits for the guest's processes, which outlive their kernel by a moment and are then children of this process.
func reap() {
	for {
		if _, err := unix.Wait4(-1, nil, 0, nil); err != nil && err != unix.EINTR {
			return
		}
	}
}

// log is what the kernel wrote to its console.
type log struct {
	mu    sync.Mutex
	text  bytes.Buffer
	start int // length of text when the command was started
}

func (l *log) read(r io.Reader) {
	buf := make([]byte, 4096)
	for {
		n, err := r.Read(buf)
		l.mu.Lock()
		l.text.Write(buf[:n])
		l.mu.Unlock()
		if err != nil {
			return
		}
	}
}

func (l *log) mark() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.start = l.text.Len()
}

// print shows the last lines since the start of the command, or of the kernel if it did not come to that.
func (l *log) print() {
	l.mu.Lock()
	defer l.mu.Unlock()
	lines := strings.Split(strings.TrimSpace(string(l.text.Bytes()[l.start:])), "\n")
	if len(lines) > tail {
		lines = lines[len(lines)-tail:]
	}
	for _, line := range lines {
		if line = strings.TrimRight(line, "\r"); line != "" {
			fmt.Fprintln(os.Stderr, "kernel:", line)
		}
	}
}

package xtables

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"time"
)

const (
	// timeout kills a child that hangs. The largest restore measured, 10,000 Services, took 5 s.
	timeout = 5 * time.Minute
	// maxStderr limits the stored part of a child's messages: a restore may print one for each line
	// of its input.
	maxStderr = 64 << 10
	// maxSave limits the size of a table: about ten times the largest known one.
	maxSave = 512 << 20
)

// result is how a child process ended.
type result struct {
	path   string
	stderr string
	cause  error // nil if the exit status was 0
}

// err is the error with the child's messages.
func (r result) err() error {
	if r.cause == nil {
		return nil
	}
	if r.stderr == "" {
		return fmt.Errorf("%s: %w", r.path, r.cause)
	}
	return fmt.Errorf("%s: %w: %s", r.path, r.cause, r.stderr)
}

// run runs a child process. The end of the context kills it.
func run(ctx context.Context, stdin io.Reader, stdout io.Writer, path string, args ...string) result {
	return runRecorded(ctx, nil, stdin, stdout, path, args...)
}

// runRecorded is run for a child that writes. It records the process ID in w if that is not nil.
func runRecorded(ctx context.Context, w *writers, stdin io.Reader, stdout io.Writer, path string, args ...string) result {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, args...)
	// newRestoreError parses the messages, so they must not be translated.
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	cmd.Stdin, cmd.Stdout = stdin, stdout
	stderr := &limited{max: maxStderr}
	cmd.Stderr = stderr
	// Kill the child when this process ends, however that happens. For the kernel the parent is a
	// thread.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	// A grandchild can keep the pipes open after the child was killed.
	cmd.WaitDelay = 5 * time.Second
	err := w.start(cmd)
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil && ctx.Err() != nil {
		err = ctx.Err()
	}
	return result{path: path, stderr: strings.TrimSpace(stderr.buf.String()), cause: err}
}

// limited keeps the first max bytes. If fail is set it refuses more, which ends the child by a
// broken pipe.
type limited struct {
	buf  bytes.Buffer
	max  int
	fail bool
}

func (l *limited) Write(p []byte) (int, error) {
	left := l.max - l.buf.Len()
	if len(p) > left {
		l.buf.Write(p[:left])
		if l.fail {
			return left, fmt.Errorf("more than %d bytes of output", l.max)
		}
		return len(p), nil
	}
	return l.buf.Write(p)
}

// transient returns whether the same command may succeed later.
func (r result) transient() bool {
	if errors.Is(r.cause, context.Canceled) || errors.Is(r.cause, context.DeadlineExceeded) ||
		errors.Is(r.cause, syscall.EAGAIN) || errors.Is(r.cause, syscall.ENOMEM) {
		return true
	}
	var exit *exec.ExitError
	if errors.As(r.cause, &exit) {
		if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() {
			return true
		}
	}
	// The exit status is not enough: nft exits with 4 for a lock, for lack of memory and for a
	// refused rule.
	for _, text := range []string{
		"xtables lock",
		"Resource temporarily unavailable", // EAGAIN
		"Interrupted system call",          // EINTR
		"No buffer space available",        // ENOBUFS
		"Cannot allocate memory",           // ENOMEM
		"Message too long",                 // EMSGSIZE: could not get a socket buffer
	} {
		if strings.Contains(r.stderr, text) {
			return true
		}
	}
	return false
}

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
	// timeout ends a child that hangs. The largest load measured, 10,000 Services, took 5 s.
	timeout = 5 * time.Minute
	// maxStderr bounds what is kept of a child's messages; a restore may print one for each line of its input.
	maxStderr = 64 << 10
	// maxSave bounds what is read of one table: some ten times the largest one known.
	maxSave = 512 << 20
)

// result is how a child ended.
type result struct {
	path   string
	stderr string
	cause  error // nil if the child ended with status 0
}

// err describes a failure together with the child's messages.
func (r result) err() error {
	if r.cause == nil {
		return nil
	}
	if r.stderr == "" {
		return fmt.Errorf("%s: %w", r.path, r.cause)
	}
	return fmt.Errorf("%s: %w: %s", r.path, r.cause, r.stderr)
}

// run runs a child to its end; the end of the context kills it.
func run(ctx context.Context, stdin io.Reader, stdout io.Writer, path string, args ...string) result {
	return runNoted(ctx, nil, stdin, stdout, path, args...)
}

// runNoted is run for a child that writes: its process ID is noted in w, if that is not nil.
func runNoted(ctx context.Context, w *writers, stdin io.Reader, stdout io.Writer, path string, args ...string) result {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, args...)
	// Messages are read by restoreError, so they must be the untranslated ones.
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	cmd.Stdin, cmd.Stdout = stdin, stdout
	stderr := &limited{max: maxStderr}
	cmd.Stderr = stderr
	// Nothing goes on writing when this process has ended, in whatever way. The kernel looks at the thread that made the child.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	// A grandchild could keep the pipes open after the child was killed.
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

// limited keeps the first max bytes. With fail it refuses more, which ends the child by a broken pipe.
type limited struct {
	buf  bytes.Buffer
	max  int
	fail bool
}

func (l *limited) Write(p []byte) (int, error) {
	room := l.max - l.buf.Len()
	if len(p) > room {
		l.buf.Write(p[:room])
		if l.fail {
			return room, fmt.Errorf("more than %d bytes of output", l.max)
		}
		return len(p), nil
	}
	return l.buf.Write(p)
}

// passing says whether a child that failed so may succeed when it is run again.
func (r result) passing() bool {
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
	// The status says too little: nft ends with 4 for a lock, for a lack of memory and for a rule that the kernel refuses.
	for _, text := range []string{
		"xtables lock",
		"Resource temporarily unavailable", // EAGAIN
		"Interrupted system call",          // EINTR
		"No buffer space available",        // ENOBUFS
		"Cannot allocate memory",           // ENOMEM
		"Message too long",                 // EMSGSIZE: the socket buffer was not to be had
	} {
		if strings.Contains(r.stderr, text) {
			return true
		}
	}
	return false
}

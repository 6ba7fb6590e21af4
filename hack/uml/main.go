package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// What the exit codes of this program mean beside the command's own.
const (
	exitUsage   = 2
	exitTime    = 124
	exitBroken  = 125
	exitSignals = 128 // plus the signal's number
)

// words is a flag that may be given more than once.
type words []string

func (w *words) String() string     { return strings.Join(*w, " ") }
func (w *words) Set(s string) error { *w = append(*w, s); return nil }

func main() {
	if path := os.Getenv(jobEnv); path != "" && os.Getpid() == 1 {
		guest(path)
		return
	}
	os.Exit(host())
}

func host() int {
	var env, writable words
	memory := flag.String("mem", "2G", "the guest's `memory`; what the command writes counts, too")
	limit := flag.Duration("timeout", 10*time.Minute, "the `time` after which the guest is killed")
	flag.Var(&env, "env", "`NAME` of a variable to carry over, or NAME=VALUE; may be repeated")
	flag.Var(&writable, "rw", "`directory` in which what the command writes stays; may be repeated")
	flag.Usage = func() {
		fmt.Fprintln(os.Stderr, "Usage: hack/uml/run [flags] COMMAND [ARGUMENT...]")
		flag.PrintDefaults()
	}
	flag.Parse()
	if flag.NArg() == 0 {
		flag.Usage()
		return exitUsage
	}
	// A reader that goes away must not end this process before the guest's.
	signal.Ignore(syscall.SIGPIPE)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()

	j, err := newJob(flag.Args(), env, writable)
	if err != nil {
		fmt.Fprintln(os.Stderr, "uml:", err)
		return exitBroken
	}
	ctx, cancel := context.WithTimeoutCause(ctx, *limit, fmt.Errorf("not done after %v: %w", *limit, errTime))
	defer cancel()
	code, err := run(ctx, *memory, j, os.Stdout, os.Stderr)
	switch {
	case err == nil:
		return code
	case errors.Is(err, errTime):
		code = exitTime
	case ctx.Err() != nil:
		code = exitSignals + int(syscall.SIGINT)
	default:
		code = exitBroken
	}
	fmt.Fprintln(os.Stderr, "uml:", err)
	return code
}

// newJob says what the guest shall run, seen from this process.
func newJob(command, env, writable []string) (job, error) {
	dir, err := os.Getwd()
	if err != nil {
		return job{}, err
	}
	j := job{Command: command, Dir: dir, Env: environ(os.Environ(), env)}
	for _, w := range writable {
		path, err := filepath.Abs(w)
		if err == nil {
			path, err = filepath.EvalSymlinks(path)
		}
		if err != nil {
			return job{}, fmt.Errorf("-rw %s: %w", w, err)
		}
		j.Writable = append(j.Writable, path)
	}
	return j, nil
}

// environ chooses from the variables of this process those that the command gets. A later one wins.
func environ(have, wanted []string) []string {
	var out []string
	for _, kv := range have {
		name, value, _ := strings.Cut(kv, "=")
		switch {
		case name == "PATH":
			out = append(out, "PATH="+value+":/usr/sbin:/sbin")
		case name == "HOME", name == "CI", strings.HasPrefix(name, "FAIRLEAD_"):
			out = append(out, kv)
		}
	}
	for _, w := range wanted {
		if strings.Contains(w, "=") {
			out = append(out, w)
			continue
		}
		for _, kv := range have {
			if name, _, _ := strings.Cut(kv, "="); name == w {
				out = append(out, kv)
			}
		}
	}
	return out
}

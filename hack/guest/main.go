package guest

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
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

// Kernel says how a guest with a kernel is started.
type Kernel struct {
	// Name begins the messages, and is the guest's name as a host.
	Name string
	// Timeout is the limit that a run has if no flag says otherwise.
	Timeout time.Duration
	// Command returns the process that is a guest, not yet started. Its standard output and error take what the kernel writes
	// to its console; its file descriptors 3, 4 and 5 take what the job calls Stdout, Stderr and Verdict. It fills in what in
	// the job depends on the kernel. Files of the guest go into dir, which is removed afterwards.
	Command func(ctx context.Context, dir, memory string, j Job) (*exec.Cmd, error)
}

// Main runs the command in the arguments of this process in a guest, and ends the process with the exit code that the package
// documents. The program's own flags are defined before.
func Main(k Kernel) { os.Exit(k.main()) }

func (k Kernel) main() int {
	var env, writable words
	memory := flag.String("mem", "2G", "the guest's `memory`; what the command writes counts, too")
	limit := flag.Duration("timeout", k.Timeout, "the `time` after which the guest is killed")
	flag.Var(&env, "env", "`NAME` of a variable to carry over, or NAME=VALUE; may be repeated")
	flag.Var(&writable, "rw", "`directory` in which what the command writes stays; may be repeated")
	flag.Usage = func() {
		fmt.Fprintln(os.Stderr, "Usage: hack/"+k.Name+"/run [flags] COMMAND [ARGUMENT...]")
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

	j, err := NewJob(flag.Args(), env, writable)
	if err != nil {
		fmt.Fprintln(os.Stderr, k.Name+":", err)
		return exitBroken
	}
	ctx, cancel := context.WithTimeoutCause(ctx, *limit, fmt.Errorf("not done after %v: %w", *limit, ErrTime))
	defer cancel()
	code, err := k.Run(ctx, *memory, j, os.Stdout, os.Stderr)
	switch {
	case err == nil:
		return code
	case errors.Is(err, ErrTime):
		code = exitTime
	case ctx.Err() != nil:
		code = exitSignals + int(syscall.SIGINT)
	default:
		code = exitBroken
	}
	fmt.Fprintln(os.Stderr, k.Name+":", err)
	return code
}

// NewJob says what the guest shall run, seen from this process.
func NewJob(command, env, writable []string) (Job, error) {
	dir, err := os.Getwd()
	if err != nil {
		return Job{}, err
	}
	j := Job{Command: command, Dir: dir, Env: environ(os.Environ(), env)}
	for _, w := range writable {
		path, err := filepath.Abs(w)
		if err == nil {
			path, err = filepath.EvalSymlinks(path)
		}
		if err != nil {
			return Job{}, fmt.Errorf("-rw %s: %w", w, err)
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

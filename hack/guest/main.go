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

// Exit codes of this program in addition to the command's own.
const (
	exitUsage   = 2
	exitTime    = 124
	exitBroken  = 125
	exitSignals = 128 // plus the signal's number
)

// list is a flag that may be given more than once.
type list []string

func (l *list) String() string     { return strings.Join(*l, " ") }
func (l *list) Set(s string) error { *l = append(*l, s); return nil }

// Kernel describes how to start a guest with a certain kernel.
type Kernel struct {
	// Name is the prefix of messages and the guest's host name.
	Name string
	// Timeout is the default time limit of a run.
	Timeout time.Duration
	// Command returns the guest's process, not yet started. The process writes the kernel's console
	// to its standard output and error, and the job's Stdout, Stderr and Verdict to file
	// descriptors 3, 4 and 5. Command sets the fields of the job that depend on the kernel. Files
	// of the guest go into dir, which is removed afterwards.
	Command func(ctx context.Context, dir, memory string, j Job) (*exec.Cmd, error)
}

// Main runs the command line of this process in a guest, and exits with the code that the package
// documents. The program defines its own flags before.
func Main(k Kernel) { os.Exit(k.main()) }

func (k Kernel) main() int {
	var env, writable list
	memory := flag.String("mem", "2G", "the guest's `memory`, including everything that the command writes")
	limit := flag.Duration("timeout", k.Timeout, "the `time` after which the guest is killed")
	flag.Var(&env, "env", "`NAME` of a variable to pass on, or NAME=VALUE; may be repeated")
	flag.Var(&writable, "rw", "`directory` in which the command's writes persist; may be repeated")
	flag.Usage = func() {
		fmt.Fprintln(os.Stderr, "Usage: hack/"+k.Name+"/run [flags] COMMAND [ARGUMENT...]")
		flag.PrintDefaults()
	}
	flag.Parse()
	if flag.NArg() == 0 {
		flag.Usage()
		return exitUsage
	}
	// A reader that closes its end must not kill this process before the guest.
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

// NewJob returns the job of running a command in this process' directory.
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

// environ selects the variables of this process that the command gets. A later one wins.
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

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/pflag"
)

func main() {
	ctx, stop := signalContext()
	s := streams{out: os.Stdout, err: os.Stderr}
	ended := make(chan int, 1)
	go func() { ended <- run(ctx, os.Args[1:], s) }()
	code := waitForExit(ctx, ended, s)
	stop()
	os.Exit(code)
}

// stopTimeout is how long a command may continue after a signal. The daemon's parts get much less
// (shutdownTimeout), so that an orderly shutdown is not cut off on a busy machine. The kubelet
// waits 10 s or more.
const stopTimeout = 5 * time.Second

// waitForExit returns the exit code of a running command. After a signal it does not wait for what
// no context can interrupt: the command may be reading from a pipe that nobody writes to, or from a
// file system whose server is gone.
func waitForExit(ctx context.Context, ended <-chan int, s streams) int {
	select {
	case code := <-ended:
		return code
	case <-ctx.Done():
	}
	timeout := time.NewTimer(stopTimeout)
	defer timeout.Stop()
	select {
	case code := <-ended:
		return code
	case <-timeout.C:
		fmt.Fprintln(s.err, "fairlead: stopped by a signal while waiting for something that cannot be interrupted, such as a read from a pipe")
		return 1
	}
}

// signalContext returns a context that ends with the first SIGTERM or SIGINT. A second one ends the
// process at once.
func signalContext() (context.Context, context.CancelFunc) {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	context.AfterFunc(ctx, stop)
	return ctx, stop
}

// streams are the outputs of a command.
type streams struct{ out, err io.Writer }

// command is a subcommand.
type command struct {
	name, summary string
	run           func(context.Context, []string, streams) error
}

// commands lists the subcommands. The daemon runs without one.
func commands() []command {
	return []command{
		{"trace", "show what the node does with a packet, and why", runTrace},
		{"render", "print the kernel program that the daemon would write", runRender},
		{"dump", "print the forwarding table of the node", runDump},
		{"cleanup", "remove everything that Fairlead wrote from the kernel", runCleanup},
		{"version", "print the version", runVersion},
		{"help", "print this help", runHelp},
	}
}

// run executes a command line and returns the exit code. An error is printed as one line.
func run(ctx context.Context, args []string, s streams) int {
	err := dispatch(ctx, args, s)
	if err == nil || errors.Is(err, pflag.ErrHelp) {
		return 0
	}
	fmt.Fprintf(s.err, "fairlead: %s\n", oneLine(err))
	return 1
}

func dispatch(ctx context.Context, args []string, s streams) error {
	if len(args) == 0 || strings.HasPrefix(args[0], "-") {
		return runDaemon(ctx, args, s)
	}
	var names []string
	for _, c := range commands() {
		if c.name == args[0] {
			return c.run(ctx, args[1:], s)
		}
		names = append(names, c.name)
	}
	return fmt.Errorf("unknown command %q: want flags of the daemon, or one of %s", args[0], strings.Join(names, ", "))
}

// oneLine returns the text of an error without the line breaks that errors.Join makes.
func oneLine(err error) string {
	return strings.Join(strings.FieldsFunc(err.Error(), func(r rune) bool { return r == '\n' || r == '\r' }), "; ")
}

func runHelp(_ context.Context, _ []string, s streams) error {
	fmt.Fprint(s.out, "Fairlead forwards connections to Kubernetes Services to their endpoints, on every node, in place of kube-proxy.\n\n"+
		"Usage:\n  fairlead [flags]             run on a node until it is stopped\n")
	for _, c := range commands() {
		fmt.Fprintf(s.out, "  fairlead %-20s%s\n", c.name, c.summary)
	}
	fmt.Fprint(s.out, "\nfairlead --help and fairlead COMMAND --help list flags.\n")
	return nil
}

func runVersion(_ context.Context, args []string, s streams) error {
	if len(args) > 0 {
		return fmt.Errorf("argument %q: version takes none", args[0])
	}
	fmt.Fprintf(s.out, "fairlead %s %s %s/%s\n", version(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
	return nil
}

// release is set by the linker if the build has no version control information, as when an image is
// built.
var release string

// version returns the release, or else the version that the Go tool wrote into the binary.
func version() string {
	if release != "" {
		return release
	}
	info, ok := debug.ReadBuildInfo()
	if !ok || info.Main.Version == "" {
		return "unknown"
	}
	return info.Main.Version
}

// notesLogger returns the log of commands: lines on standard error without the time.
func notesLogger(s streams, level slog.Level) *slog.Logger {
	return slog.New(slog.NewTextHandler(s.err, &slog.HandlerOptions{Level: level, ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}}))
}

// parseFlags parses the flags of a command; --help prints them.
func parseFlags(fs *pflag.FlagSet, args []string, usage string, s streams) error {
	fs.SortFlags = true
	fs.Usage = func() {
		fmt.Fprintf(s.out, "Usage:\n  %s\n\nFlags:\n%s", usage, fs.FlagUsages())
	}
	return fs.Parse(args)
}

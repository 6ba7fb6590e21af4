package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	osexec "os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fairlead/fairlead/internal/host/hosttest"
)

// asProgram makes the test binary another program: "fairlead", or one that takes a signal and goes
// on.
const asProgram = "FAIRLEAD_TEST_PROGRAM"

func TestMain(m *testing.M) {
	switch os.Getenv(asProgram) {
	case "fairlead":
		main()
	case "stubborn":
		ctx, _ := signalContext()
		fmt.Println("ready")
		<-ctx.Done()
		fmt.Println("signalled")
		select {}
	}
	os.Exit(m.Run())
}

// limit is how long anything may take that takes much less on a machine that is not busy.
const limit = 3 * time.Minute

// program is the test binary that runs as another program, in the network namespace of the calling
// goroutine.
type program struct {
	cmd   *osexec.Cmd
	lines chan string
	log   bytes.Buffer
	done  chan error
}

func startProgram(t *testing.T, as string, env []string, args ...string) *program {
	t.Helper()
	p := &program{cmd: osexec.Command("/proc/self/exe", args...), lines: make(chan string, 10_000), done: make(chan error, 1)}
	p.cmd.Env = append(append(os.Environ(), asProgram+"="+as), env...)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	p.cmd.Stdout, p.cmd.Stderr = w, w
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_ = w.Close()
	go func() {
		for s := bufio.NewScanner(r); s.Scan(); {
			p.lines <- s.Text()
		}
		_ = r.Close()
		close(p.lines)
	}()
	go func() { p.done <- p.cmd.Wait() }()
	t.Cleanup(func() { _ = p.cmd.Process.Kill() })
	return p
}

// until waits for a line of the program's output.
func (p *program) until(t *testing.T, text string) {
	t.Helper()
	end := time.After(limit)
	for {
		select {
		case line, ok := <-p.lines:
			fmt.Fprintln(&p.log, line)
			if strings.Contains(line, text) {
				return
			}
			if !ok {
				t.Fatalf("ended without %q:\n%s", text, p.log.String())
			}
		case <-end:
			t.Fatalf("no %q:\n%s", text, p.log.String())
		}
	}
}

// end sends a signal and returns how the program ended.
func (p *program) end(t *testing.T, s os.Signal) error {
	t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		t.Fatal(err)
	}
	select {
	case err := <-p.done:
		return err
	case <-time.After(limit):
		t.Fatalf("does not end:\n%s", p.log.String())
	}
	return nil
}

func TestASecondSignalEndsAtOnce(t *testing.T) {
	p := startProgram(t, "stubborn", nil)
	p.until(t, "ready")
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	p.until(t, "signalled")
	// The default action of the signal comes back a moment after the context has ended, so one more
	// signal may still be taken.
	stop := make(chan struct{})
	defer close(stop)
	go func() {
		for tick := time.NewTicker(10 * time.Millisecond); ; {
			select {
			case <-tick.C:
				_ = p.cmd.Process.Signal(syscall.SIGTERM)
			case <-stop:
				return
			}
		}
	}()
	err := p.end(t, syscall.SIGTERM)
	var exit *osexec.ExitError
	if !errors.As(err, &exit) || !exit.Sys().(syscall.WaitStatus).Signaled() {
		t.Errorf("ended with %v, want the signal", err)
	}
}

// TestTheFirstSignalEndsWhatReadsAPipe ends commands that read from a pipe without a writer.
func TestTheFirstSignalEndsWhatReadsAPipe(t *testing.T) {
	for name, args := range map[string][]string{
		"daemon, configuration":  {"--hostname-override=n1", "--config"},
		"daemon, kubeconfig":     {"--hostname-override=n1", "--kubeconfig"},
		"daemon, objects":        {"--hostname-override=n1", "--objects"},
		"init container":         {"--hostname-override=n1", "--init-only", "--config"},
		"trace":                  {"trace", "10.0.0.1", "10.96.0.1:80/tcp", "--node=n1", "--objects"},
		"render, node not given": {"render", "--objects"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pipe := filepath.Join(t.TempDir(), "pipe")
			if err := syscall.Mkfifo(pipe, 0o600); err != nil {
				t.Fatal(err)
			}
			p := startProgram(t, "fairlead", nil, append(args, pipe)...)
			w, err := os.OpenFile(pipe, os.O_WRONLY, 0) // returns when the program opens it
			if err != nil {
				t.Fatal(err)
			}
			defer w.Close()
			err = p.end(t, syscall.SIGTERM)
			var exit *osexec.ExitError
			if !errors.As(err, &exit) || exit.ExitCode() != 1 {
				t.Errorf("ended with %v, want exit code 1: it did not do what it was asked for", err)
			}
			p.until(t, "fairlead: stopped by a signal")
		})
	}
}

func TestSIGHUPIsLoggedAndIgnored(t *testing.T) {
	pipe := filepath.Join(t.TempDir(), "pipe")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	p := startProgram(t, "fairlead", nil, "--hostname-override=n1", "--objects", pipe)
	w, err := os.OpenFile(pipe, os.O_WRONLY, 0) // returns when the daemon is about to read its objects
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	for range 2 {
		if err := p.cmd.Process.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		p.until(t, "SIGHUP ignored")
	}
	var exit *osexec.ExitError
	if err := p.end(t, syscall.SIGTERM); !errors.As(err, &exit) || exit.ExitCode() != 1 {
		t.Errorf("ended with %v, want it to have gone on until SIGTERM", err)
	}
}

func TestPartsThatDoNotEndAreLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		ctx, cancel := context.WithCancelCause(t.Context())
		g := group{cancel: cancel}
		stuck := make(chan struct{})
		g.run("good", func() error { <-ctx.Done(); return nil })
		g.run("stuck", func() error { <-stuck; return nil })
		begin := time.Now()
		cancel(nil)
		if err := g.wait(ctx, slog.New(slog.NewTextHandler(&log, nil))); err != nil {
			t.Error(err)
		}
		if took := time.Since(begin); took != shutdownTimeout {
			t.Errorf("ended after %v", took)
		}
		if !strings.Contains(log.String(), "parts=[stuck]") {
			t.Errorf("log: %s", log.String())
		}
		close(stuck)
	})
}

// TestEndWhileTheAPIServerHangs ends a daemon whose API server takes requests and never answers,
// and of which somebody asks for its health and never finishes the question.
func TestEndWhileTheAPIServerHangs(t *testing.T) {
	hosttest.Netns(t, "iptables")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	asked := make(chan struct{}, 100)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				_, _ = c.Read(make([]byte, 1))
				asked <- struct{}{}
				_, _ = io.Copy(io.Discard, c) // until the other side closes
				_ = c.Close()
			}()
		}
	}()
	p := startProgram(t, "fairlead", nil, "--master=http://"+l.Addr().String(), "--hostname-override=n1", "--cluster-cidr=10.0.0.0/8")
	select {
	case <-asked:
	case <-time.After(limit):
		t.Fatal("the API server is not asked")
	}
	c := dial(t, "127.0.0.1:10256")
	defer c.Close()
	if _, err := io.WriteString(c, "GET /healthz HTTP/1.1\r\n"); err != nil {
		t.Fatal(err)
	}
	if err := p.end(t, syscall.SIGTERM); err != nil {
		t.Errorf("ended with %v", err)
	}
}

// dial connects in the namespace of the calling goroutine, as soon as somebody listens.
func dial(t *testing.T, address string) net.Conn {
	t.Helper()
	for end := time.Now().Add(limit); ; {
		c, err := net.Dial("tcp", address)
		if err == nil {
			return c
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// TestEndWhileIPTablesHangs ends a daemon that waits for iptables-restore, as it does while others
// hold the lock.
func TestEndWhileIPTablesHangs(t *testing.T) {
	hosttest.Netns(t, "iptables")
	tools, dir := t.TempDir(), t.TempDir()
	hang, objects := filepath.Join(dir, "hang"), filepath.Join(dir, "objects.yaml")
	for _, family := range []string{"iptables", "ip6tables"} {
		for _, suffix := range []string{"", "-save", "-restore"} {
			real, err := osexec.LookPath(family + "-nft" + suffix)
			if err != nil {
				t.Fatal(err)
			}
			script := fmt.Sprintf("#!/bin/sh\nexec %s \"$@\"\n", real)
			if suffix == "-restore" { // others may still look around
				script = fmt.Sprintf("#!/bin/sh\nif [ -p %s ]; then echo $$ >%s; exec sleep 1000; fi\nexec %s \"$@\"\n", hang, hang, real)
			}
			for _, name := range []string{family + "-nft" + suffix, family + suffix} {
				if err := os.WriteFile(filepath.Join(tools, name), []byte(script), 0o755); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	put := func(ip string) {
		t.Helper()
		text := strings.ReplaceAll(oneService, "10.96.0.1", ip)
		if err := os.WriteFile(objects, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	put("10.96.0.1")
	p := startProgram(t, "fairlead", []string{"PATH=" + tools + ":" + os.Getenv("PATH")}, "--objects="+objects, "--hostname-override=n1",
		"--cluster-cidr=10.0.0.0/8", "--healthz-bind-address=", "--metrics-bind-address=")
	p.until(t, "msg=synced")
	rules := hosttest.Run(t, "iptables-nft-save")
	if !strings.Contains(rules, "10.96.0.1") {
		t.Fatalf("not written:\n%s", rules)
	}
	if err := syscall.Mkfifo(hang, 0o600); err != nil {
		t.Fatal(err)
	}
	put("10.96.0.2")
	running, err := os.Open(hang) // returns when a tool writes to it
	if err != nil {
		t.Fatal(err)
	}
	defer running.Close()
	var pid int
	if _, err := fmt.Fscan(running, &pid); err != nil {
		t.Fatal(err)
	}
	if err := p.end(t, syscall.SIGTERM); err != nil {
		t.Errorf("ended with %v", err)
	}
	if err := os.Remove(hang); err != nil {
		t.Fatal(err)
	}
	if now := hosttest.Run(t, "iptables-nft-save"); !strings.Contains(now, "10.96.0.1") || strings.Contains(now, "10.96.0.2") {
		t.Errorf("rules are not what they were:\n%s", now)
	}
	waitForEnd(t, pid)
}

// TestEndWhileTheDataplaneOpens ends a daemon whose first look at iptables does not come back. That
// is no failure.
func TestEndWhileTheDataplaneOpens(t *testing.T) {
	hosttest.Netns(t, "iptables")
	tools, objects := t.TempDir(), filepath.Join(t.TempDir(), "objects.yaml")
	hang := filepath.Join(tools, "hang")
	if err := errors.Join(syscall.Mkfifo(hang, 0o600), os.WriteFile(objects, []byte(oneService), 0o644)); err != nil {
		t.Fatal(err)
	}
	script := fmt.Sprintf("#!/bin/sh\necho $$ >%s; exec sleep 1000\n", hang)
	for _, name := range []string{"iptables", "ip6tables"} {
		for _, flavour := range []string{"", "-nft", "-legacy"} {
			for _, suffix := range []string{"", "-save", "-restore"} {
				if err := os.WriteFile(filepath.Join(tools, name+flavour+suffix), []byte(script), 0o755); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	p := startProgram(t, "fairlead", []string{"PATH=" + tools + ":" + os.Getenv("PATH")}, "--objects="+objects, "--hostname-override=n1", "--cluster-cidr=10.0.0.0/8")
	running, err := os.Open(hang) // returns when a tool writes to it
	if err != nil {
		t.Fatal(err)
	}
	defer running.Close()
	var pid int
	if _, err := fmt.Fscan(running, &pid); err != nil {
		t.Fatal(err)
	}
	if err := p.end(t, syscall.SIGTERM); err != nil {
		t.Errorf("ended with %v", err)
	}
	p.until(t, "stops before its dataplane is open")
	waitForEnd(t, pid)
}

// waitForEnd waits until a process of somebody else's is gone.
func waitForEnd(t *testing.T, pid int) {
	t.Helper()
	for end := time.Now().Add(limit); ; time.Sleep(10 * time.Millisecond) {
		state, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil || bytes.Contains(state, []byte(") Z ")) {
			return
		}
		if time.Now().After(end) {
			_ = syscall.Kill(pid, syscall.SIGKILL)
			t.Fatalf("the tool goes on: %s", state)
		}
	}
}

// TestCleanupNamesRouteLocalnet: what kube-proxy has opened is named, unless it is open, and
// guarded, for Fairlead.
func TestCleanupNamesRouteLocalnet(t *testing.T) {
	hosttest.Netns(t, "iptables")
	says := func(args ...string) string {
		t.Helper()
		p := startProgram(t, "fairlead", nil, args...)
		for line := range p.lines {
			fmt.Fprintln(&p.log, line)
		}
		if err := <-p.done; err != nil {
			t.Fatalf("%v: %v\n%s", args, err, p.log.String())
		}
		return p.log.String()
	}
	value := func() string { return strings.TrimSpace(hosttest.Run(t, "cat", "/proc/sys/"+localnet)) }
	const kept = "kept net.ipv4.conf.all.route_localnet, "
	if text := says("cleanup", "--kube-proxy"); strings.Contains(text, kept) {
		t.Errorf("it is %s, and cleanup says\n%s", value(), text)
	}
	hosttest.Run(t, "sysctl", "-w", "net.ipv4.conf.all.route_localnet=1")
	for _, args := range [][]string{{"cleanup", "--kube-proxy", "--dry-run"}, {"cleanup", "--kube-proxy"}} {
		if text := says(args...); !strings.Contains(text, kept) || value() != "1" {
			t.Errorf("it is %s, and %v says\n%s", value(), args, text)
		}
	}
	says("--init-only", "--hostname-override=n1", "--cluster-cidr=10.0.0.0/8", "--proxy-mode=iptables", "--master=http://127.0.0.1:1")
	if text := says("cleanup", "--kube-proxy"); strings.Contains(text, kept) || value() != "1" {
		t.Errorf("Fairlead needs it, it is %s, and cleanup says\n%s", value(), text)
	}
}

// TestInitOnly prepares a node for a daemon that may not set kernel parameters, without an API
// server.
func TestInitOnly(t *testing.T) {
	hosttest.Netns(t, "iptables")
	p := startProgram(t, "fairlead", nil, "--init-only", "--hostname-override=n1", "--cluster-cidr=10.0.0.0/8", "--proxy-mode=iptables", "--master=http://127.0.0.1:1")
	select {
	case err := <-p.done:
		if err != nil {
			p.until(t, "\x00")
		}
	case <-time.After(limit):
		t.Fatal("does not end")
	}
	p.until(t, "the node is prepared")
	if v := strings.TrimSpace(hosttest.Run(t, "cat", "/proc/sys/net/ipv4/conf/all/route_localnet")); v != "1" {
		t.Errorf("route_localnet is %q", v)
	}
	if rules := hosttest.Run(t, "iptables-nft-save") + hosttest.Run(t, "iptables-legacy-save"); !strings.Contains(rules, "-d 127.0.0.0/8") {
		t.Errorf("nothing guards loopback addresses:\n%s", rules)
	}
	if v := strings.TrimSpace(hosttest.Run(t, "cat", "/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_close_wait")); v != "3600" {
		t.Errorf("the timeout of CLOSE_WAIT is %q", v)
	}
}

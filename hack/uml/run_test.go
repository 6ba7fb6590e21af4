package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/hack/guest"
)

// TestMain is process 1 of the guests that the tests boot, for they take this binary.
func TestMain(m *testing.M) {
	guest.Init()
	os.Exit(m.Run())
}

// closed is a reader that went away.
type closed struct{}

var errClosed = errors.New("closed")

func (closed) Write([]byte) (int, error) { return 0, errClosed }

// withModules lets the goroutine and the processes that it starts see a directory in /lib/modules for each of those in
// versions, as on a machine that boots a kernel of that version. They are files of layer. The thread ends with the goroutine.
func withModules(t *testing.T, layer, versions string) {
	t.Helper()
	entries, err := os.ReadDir(versions)
	if err != nil || len(entries) == 0 {
		t.Fatalf("no modules in %s: %v", versions, err)
	}
	for _, e := range entries {
		dir := filepath.Join(layer, "modules", e.Name())
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "ours"), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		t.Fatalf("unshare: %v", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		t.Fatalf("make mounts private: %v", err)
	}
	if err := unix.Mount("overlay", "/lib", "overlay", 0, "lowerdir="+layer+":/lib"); err != nil {
		t.Fatalf("mount: %v", err)
	}
}

// TestGuest boots guests. It is for make test-ipvs on a machine whose own kernel lacks IPVS.
func TestGuest(t *testing.T) {
	if os.Getenv("FAIRLEAD_UML_TESTS") != "1" {
		t.Skip("boots user-mode Linux: needs FAIRLEAD_UML_TESTS=1; make test-ipvs sets it where it uses that")
	}
	t.Setenv("TMPDIR", t.TempDir())
	shared := t.TempDir()
	other := t.TempDir()
	layer := t.TempDir()
	boot := func(t *testing.T, limit time.Duration, script string) (code int, stdout, stderr string, err error) {
		t.Helper()
		ctx, cancel := context.WithTimeoutCause(t.Context(), limit, guest.ErrTime)
		defer cancel()
		j, err := guest.NewJob([]string{"bash", "-c", script, "name", shared, other}, []string{"COLOUR=red and blue"}, []string{shared})
		if err != nil {
			t.Fatal(err)
		}
		var out, errs bytes.Buffer
		code, err = uml.Run(ctx, "512M", j, &out, &errs)
		if left, _ := os.ReadDir(os.Getenv("TMPDIR")); len(left) != 0 {
			t.Errorf("left behind: %v", left)
		}
		return code, out.String(), errs.String(), err
	}

	t.Run("a command", func(t *testing.T) {
		code, stdout, stderr, err := boot(t, 5*time.Minute, `
			printf 'one\n\ttwo'; echo three >/dev/stderr; cat <(echo "$COLOUR $PWD")
			modprobe ip_vs && head -c 17 /proc/net/ip_vs
			echo mine >"$1/file"; echo gone >"$2/file"; cat "$2/file"
			seq 50000 | tail -n 1
			echo "<4>odd" >/dev/kmsg; echo "<6>usual" >/dev/kmsg
			exit 7`)
		dir, _ := os.Getwd()
		if want := "one\n\ttwored and blue " + dir + "\nIP Virtual Servergone\n50000\n"; code != 7 || err != nil || stdout != want {
			t.Errorf("got %d, %v, output %q, want %q", code, err, stdout, want)
		}
		if stderr != "three\nkernel: odd\n" {
			t.Errorf("standard error:\n%s", stderr)
		}
		if text, err := os.ReadFile(filepath.Join(shared, "file")); string(text) != "mine\n" {
			t.Errorf("got %q, %v", text, err)
		}
		if _, err := os.Stat(filepath.Join(other, "file")); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("written outside: %v", err)
		}
	})
	t.Run("the preloaded library stays outside", func(t *testing.T) {
		script := "tr '\\0' '\\n' </proc/1/environ; env; cat /proc/1/maps /proc/self/maps"
		code, stdout, _, err := boot(t, 5*time.Minute, script)
		if code != 0 || err != nil || !strings.Contains(stdout, guest.EnvJob) || !strings.Contains(stdout, "[stack]") {
			t.Errorf("got %d, %v, output %q", code, err, stdout)
		}
		if strings.Contains(stdout, "LD_PRELOAD") || strings.Contains(stdout, "xstate") {
			t.Errorf("programs of the guest have the library:\n%s", stdout)
		}
	})
	t.Run("a machine with modules of the guest's version", func(t *testing.T) {
		if os.Getuid() != 0 {
			t.Skip("*** SKIPPED: needs root, to give a kernel other files than the machine's")
		}
		withModules(t, layer, "/usr/lib/uml/modules")
		if _, err := os.Stat("/lib/modules"); err != nil {
			t.Fatal(err)
		}
		script := "test ! -e /lib/modules/*/ours && modprobe ip_vs && head -c 17 /proc/net/ip_vs"
		if code, stdout, stderr, err := boot(t, 5*time.Minute, script); code != 0 || err != nil || stdout != "IP Virtual Server" {
			t.Errorf("got %d, %v, output %q\n%s", code, err, stdout, stderr)
		}
	})
	t.Run("success is quiet", func(t *testing.T) {
		if code, stdout, stderr, err := boot(t, 5*time.Minute, `echo "<4>odd" >/dev/kmsg`); code != 0 || err != nil || stdout+stderr != "" {
			t.Errorf("got %d, %v, output %q, %q", code, err, stdout, stderr)
		}
	})
	t.Run("a signal", func(t *testing.T) {
		if code, _, _, err := boot(t, 5*time.Minute, "kill -9 $$"); code != 137 || err != nil {
			t.Errorf("got %d, %v", code, err)
		}
	})
	t.Run("a panic", func(t *testing.T) {
		_, stdout, stderr, err := boot(t, 5*time.Minute, "echo before; echo c >/proc/sysrq-trigger")
		if err == nil || stdout != "before\n" || !strings.Contains(stderr, "kernel: Kernel panic - not syncing") {
			t.Errorf("got %v, output %q\n%s", err, stdout, stderr)
		}
	})
	t.Run("a hang", func(t *testing.T) {
		if _, _, _, err := boot(t, 5*time.Second, "sleep 1000 & sleep 1000"); !errors.Is(err, guest.ErrTime) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("a reader that goes away", func(t *testing.T) {
		j, err := guest.NewJob([]string{"yes"}, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := uml.Run(t.Context(), "512M", j, closed{}, os.Stderr); !errors.Is(err, errClosed) {
			t.Errorf("got %v", err)
		}
	})
}

package main

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/hack/guest"
	"github.com/fairlead/fairlead/hack/guest/guesttest"
)

// TestMain also runs as process 1 of the guests that the tests boot: they use this binary.
func TestMain(m *testing.M) {
	guest.Init()
	os.Exit(m.Run())
}

// closed is the write end of a pipe whose reader is gone.
type closed struct{}

var errClosed = errors.New("closed")

func (closed) Write([]byte) (int, error) { return 0, errClosed }

// withModules shows to the goroutine, and to processes that it starts, a directory in /lib/modules
// for each one in versions, as on a machine that boots a kernel of that version. The directories
// are in layer. The thread ends with the goroutine.
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

// TestGuest boots guests. make test-ipvs runs it on a machine whose own kernel has no IPVS.
func TestGuest(t *testing.T) {
	if os.Getenv("FAIRLEAD_UML_TESTS") != "1" {
		t.Skip("boots user-mode Linux: needs FAIRLEAD_UML_TESTS=1; make test-ipvs sets it if it uses user-mode Linux")
	}
	b := guesttest.New(t, uml, "512M")
	layer := t.TempDir()

	t.Run("a command", func(t *testing.T) {
		if stderr := b.Command(t, ""); stderr != "three\nkernel: odd\n" {
			t.Errorf("standard error:\n%s", stderr)
		}
	})
	t.Run("the guest does not see the preloaded library", func(t *testing.T) {
		script := "tr '\\0' '\\n' </proc/1/environ; env; cat /proc/1/maps /proc/self/maps"
		code, stdout, _, err := b.Boot(t, 5*time.Minute, script)
		if code != 0 || err != nil || !strings.Contains(stdout, guest.EnvJob) || !strings.Contains(stdout, "[stack]") {
			t.Errorf("got %d, %v, output %q", code, err, stdout)
		}
		if strings.Contains(stdout, "LD_PRELOAD") || strings.Contains(stdout, "xstate") {
			t.Errorf("programs of the guest see the library:\n%s", stdout)
		}
	})
	t.Run("a machine with modules of the guest's version", func(t *testing.T) {
		if os.Getuid() != 0 {
			t.Skip("*** SKIPPED: needs root, to hide files of the machine from the kernel")
		}
		withModules(t, layer, "/usr/lib/uml/modules")
		if _, err := os.Stat("/lib/modules"); err != nil {
			t.Fatal(err)
		}
		script := "test ! -e /lib/modules/*/ours && modprobe ip_vs && head -c 17 /proc/net/ip_vs"
		if code, stdout, stderr, err := b.Boot(t, 5*time.Minute, script); code != 0 || err != nil || stdout != "IP Virtual Server" {
			t.Errorf("got %d, %v, output %q\n%s", code, err, stdout, stderr)
		}
	})
	t.Run("success is quiet", func(t *testing.T) {
		if code, stdout, stderr, err := b.Boot(t, 5*time.Minute, `echo "<4>odd" >/dev/kmsg`); code != 0 || err != nil || stdout+stderr != "" {
			t.Errorf("got %d, %v, output %q, %q", code, err, stdout, stderr)
		}
	})
	t.Run("a signal", func(t *testing.T) {
		if code, _, _, err := b.Boot(t, 5*time.Minute, "kill -9 $$"); code != 137 || err != nil {
			t.Errorf("got %d, %v", code, err)
		}
	})
	t.Run("a panic", func(t *testing.T) {
		_, stdout, stderr, err := b.Boot(t, 5*time.Minute, "echo before; echo c >/proc/sysrq-trigger")
		if err == nil || stdout != "before\n" || !strings.Contains(stderr, "kernel: Kernel panic - not syncing") {
			t.Errorf("got %v, output %q\n%s", err, stdout, stderr)
		}
	})
	t.Run("a hang", func(t *testing.T) {
		b.Hang(t, 5*time.Second, "sleep 1000 & sleep 1000")
	})
	t.Run("a reader that closes its end", func(t *testing.T) {
		j, err := guest.NewJob([]string{"yes"}, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := uml.Run(t.Context(), "512M", j, closed{}, os.Stderr); !errors.Is(err, errClosed) {
			t.Errorf("got %v", err)
		}
	})
}

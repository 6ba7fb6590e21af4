package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

// needGCC skips on other architectures, and without the compiler, except in CI.
func needGCC(t *testing.T) {
	t.Helper()
	if runtime.GOARCH != "amd64" {
		t.Skip("the library is only for amd64")
	}
	if _, err := exec.LookPath("gcc"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
}

// TestPreloadCompletesShortXSTATE sets a register as user-mode Linux does, on this machine's
// processor, with buffers of several sizes, without and with the library.
func TestPreloadCompletesShortXSTATE(t *testing.T) {
	needGCC(t)
	library, err := compile(t.Context(), t.TempDir(), xstateSource)
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(t.TempDir(), "setxstate")
	if out, err := exec.Command("gcc", "-Wall", "-Werror", "-o", program, "testdata/setxstate.c").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	set := func(t *testing.T, bytes int, env ...string) (size int, result string) {
		t.Helper()
		c := exec.Command(program, fmt.Sprint(bytes))
		c.Env = env
		out, err := c.CombinedOutput()
		if err == nil {
			_, err = fmt.Sscanf(string(out), "size %d", &size)
		}
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		_, result, _ = strings.Cut(strings.TrimSpace(string(out)), "\n")
		return size, result
	}
	size, _ := set(t, 0)

	const efault = "errno 14"
	for _, tt := range []struct {
		name  string
		bytes int
	}{
		{"up to AVX", 576 + 256},
		{"of Debian's user-mode Linux", 2696},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if size <= tt.bytes {
				t.Skipf("*** SKIPPED: this processor's area has %d bytes, so a buffer of %d is not short", size, tt.bytes)
			}
			if _, got := set(t, tt.bytes); got != efault {
				t.Errorf("without the library: got %q, want %q", got, efault)
			}
			if _, got := set(t, tt.bytes, "LD_PRELOAD="+library); got != "set" {
				t.Errorf("with the library: got %q", got)
			}
		})
	}
	t.Run("nothing changes for", func(t *testing.T) {
		for name, bytes := range map[string]int{"the whole area": size, "more than the area": size + 64, "less than a header": 512} {
			t.Run(name, func(t *testing.T) {
				_, without := set(t, bytes)
				if _, with := set(t, bytes, "LD_PRELOAD="+library); with != without {
					t.Errorf("got %q without the library, %q with it", without, with)
				}
			})
		}
	})
}

func TestPreloadIsCompiledOnce(t *testing.T) {
	needGCC(t)
	cache := t.TempDir()
	first, err := compile(t.Context(), cache, xstateSource)
	if err != nil {
		t.Fatal(err)
	}
	// The cached library is used without a compiler.
	t.Setenv("PATH", "")
	if again, err := compile(t.Context(), cache, xstateSource); err != nil || again != first {
		t.Errorf("got %q, %v, want %q", again, err, first)
	}
	changed := append([]byte("/* changed */\n"), xstateSource...)
	if _, err := compile(t.Context(), cache, changed); err == nil || !strings.Contains(err.Error(), "hack/deps.sh uml") {
		t.Errorf("without a compiler: got %v", err)
	}
}

func TestPreloadFailsWithTheCompilersMessage(t *testing.T) {
	needGCC(t)
	cache := t.TempDir()
	_, err := compile(t.Context(), cache, []byte("int ptrace(void) { return nonsense; }\n"))
	if err == nil || !strings.Contains(err.Error(), "xstate.c") || !strings.Contains(err.Error(), "nonsense") {
		t.Errorf("got %v", err)
	}
	if left, _ := filepath.Glob(filepath.Join(cache, "fairlead", "*", "*")); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

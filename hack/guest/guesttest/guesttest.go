// Package guesttest boots guests in the tests of the programs that are built on package guest.
package guesttest

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/fairlead/fairlead/hack/guest"
)

// Booter boots guests with one kernel.
type Booter struct {
	Kernel guest.Kernel
	Memory string
	// shared is a directory in which the guest's writes persist; in other they do not.
	shared, other string
}

// New returns a Booter. It sets TMPDIR for the test.
func New(t *testing.T, k guest.Kernel, memory string) *Booter {
	t.Helper()
	t.Setenv("TMPDIR", t.TempDir())
	return &Booter{Kernel: k, Memory: memory, shared: t.TempDir(), other: t.TempDir()}
}

// Boot runs a script in a guest. Its arguments are the shared directory and one that is not shared.
// It checks that no files are left behind.
func (b *Booter) Boot(t *testing.T, limit time.Duration, script string) (code int, stdout, stderr string, err error) {
	t.Helper()
	ctx, cancel := context.WithTimeoutCause(t.Context(), limit, guest.ErrTime)
	defer cancel()
	j, err := guest.NewJob([]string{"bash", "-c", script, "name", b.shared, b.other}, []string{"COLOUR=red and blue"}, []string{b.shared})
	if err != nil {
		t.Fatal(err)
	}
	var out, errs bytes.Buffer
	code, err = b.Kernel.Run(ctx, b.Memory, j, &out, &errs)
	if left, _ := os.ReadDir(os.Getenv("TMPDIR")); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
	return code, out.String(), errs.String(), err
}

// Command tests what a command sees and what the caller gets, after the script ran more, which may
// exit with an error. It returns the guest's standard error.
func (b *Booter) Command(t *testing.T, more string) (stderr string) {
	t.Helper()
	code, stdout, stderr, err := b.Boot(t, 5*time.Minute, `
		printf 'one\n\ttwo'; echo three >/dev/stderr; cat <(echo "$COLOUR $PWD")
		modprobe ip_vs && head -c 17 /proc/net/ip_vs
		echo mine >"$1/file"; echo gone >"$2/file"; cat "$2/file"
		seq 50000 | tail -n 1
		`+more+`
		echo "<4>odd" >/dev/kmsg; echo "<6>usual" >/dev/kmsg
		exit 7`)
	dir, _ := os.Getwd()
	if want := "one\n\ttwored and blue " + dir + "\nIP Virtual Servergone\n50000\n"; code != 7 || err != nil || stdout != want {
		t.Errorf("got %d, %v, output %q, want %q", code, err, stdout, want)
	}
	if text, err := os.ReadFile(filepath.Join(b.shared, "file")); string(text) != "mine\n" {
		t.Errorf("got %q, %v", text, err)
	}
	if _, err := os.Stat(filepath.Join(b.other, "file")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("written outside: %v", err)
	}
	return stderr
}

// Hang tests that the time limit ends a guest.
func (b *Booter) Hang(t *testing.T, limit time.Duration, script string) {
	t.Helper()
	if _, _, _, err := b.Boot(t, limit, script); !errors.Is(err, guest.ErrTime) {
		t.Errorf("got %v", err)
	}
}

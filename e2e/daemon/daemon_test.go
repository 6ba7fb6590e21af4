package daemon

import (
	"context"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// here runs commands as they are.
type here struct{}

func (here) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, name, args...)
}

func (here) Run(context.Context, string, ...string) (string, error) { return "", nil }

func TestAwaitLogAndStop(t *testing.T) {
	d, err := Start(here{}, "sh", "-c", "trap 'echo bye; exit 0' TERM; echo hello; while :; do sleep 0.01; done")
	if err != nil {
		t.Fatal(err)
	}
	if err := d.AwaitLog(t.Context(), "hello"); err != nil {
		t.Error(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := d.AwaitLog(ctx, "never"); err == nil {
		t.Error("waited for what was never written, without an error")
	}
	if err := d.Stop(); err != nil {
		t.Error(err)
	}
	if !strings.Contains(d.Log(), "bye") {
		t.Errorf("log %q, want bye in it", d.Log())
	}
}

func TestDaemonThatFails(t *testing.T) {
	d, err := Start(here{}, "sh", "-c", "echo broken; exit 3")
	if err != nil {
		t.Fatal(err)
	}
	err = d.AwaitLog(t.Context(), "synced")
	if err == nil || !strings.Contains(err.Error(), "broken") {
		t.Errorf("AwaitLog: %v, want an error with the log", err)
	}
	if err := d.Stop(); err == nil {
		t.Error("Stop: no error for exit code 3")
	}
	if err := d.Kill(); err != nil {
		t.Errorf("Kill after the end: %v", err)
	}
}

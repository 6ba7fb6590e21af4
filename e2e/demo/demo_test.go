package main

import (
	"testing"

	"github.com/fairlead/fairlead/e2e/daemon"
	"github.com/fairlead/fairlead/e2e/lab"
)

// The demo checks what it shows, so it is a test.
func TestDemo(t *testing.T) {
	lab.RequireKernel(t)
	binary, err := daemon.Build(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if err := run(t.Context(), binary, "iptables"); err != nil {
		t.Fatal(err)
	}
}

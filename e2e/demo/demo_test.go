package main

import (
	"testing"

	"github.com/fairlead/fairlead/e2e/daemon"
	"github.com/fairlead/fairlead/e2e/lab"
	"github.com/fairlead/fairlead/internal/host/hosttest"
)

// TestDemo runs the demo, which checks its own results.
func TestDemo(t *testing.T) {
	lab.RequireKernel(t)
	binary, err := daemon.Build(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	mode := "iptables"
	if hosttest.Current() == hosttest.WithIPVS {
		hosttest.Need(t, hosttest.IPVS, hosttest.Dummy)
		mode = "ipvs"
	}
	if err := run(t.Context(), binary, mode); err != nil {
		t.Fatal(err)
	}
}

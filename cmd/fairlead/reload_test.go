package main

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/fairlead/fairlead/internal/config"
)

const configHead = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n"

func TestWriteConfig(t *testing.T) {
	dir := t.TempDir()
	in, out, again := filepath.Join(dir, "in.conf"), filepath.Join(dir, "out.conf"), filepath.Join(dir, "again.conf")
	text := configHead + "mode: nftables\nresourceContainer: /kube-proxy\nclusterCIDR: 10.0.0.0/8\nnodePortAddresses: null\nconntrack: {maxPerCore: 0}\n"
	if err := os.WriteFile(in, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	got := exec(t, "--config "+in+" --write-config-to "+out+" --proxy-mode=iptables --metrics-auth --hostname-override=n1")
	lines := strings.Split(strings.TrimSpace(got), "\n")
	want := []string{"resourceContainer", "--proxy-mode iptables overrides the file's mode, which is nftables", "--metrics-auth=true: keep the flag"}
	if len(lines) != len(want) {
		t.Fatalf("output:\n%s", got)
	}
	for i, w := range want {
		if !strings.Contains(lines[i], w) || !strings.Contains(lines[i], "level=WARN") {
			t.Errorf("line %q does not say %q", lines[i], w)
		}
	}
	data, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range []string{"\nmode: iptables\n", "\nclusterCIDR: 10.0.0.0/8\n", "\nhostnameOverride: n1\n", "  maxPerCore: 0\n", "  min: 131072\n"} {
		if !strings.Contains(string(data), w) {
			t.Errorf("%q is not in what is written:\n%s", w, data)
		}
	}
	if got := exec(t, "--config "+out+" --write-config-to "+again); got != "" {
		t.Errorf("output %s", got)
	}
	if second, err := os.ReadFile(again); err != nil || !bytes.Equal(data, second) {
		t.Errorf("%v: the second time it is\n%s", err, second)
	}
	if got := exec(t, "--config "+out+" --write-config-to "+dir); !strings.Contains(got, "fairlead: --write-config-to: ") || !strings.Contains(got, "exit code 1") {
		t.Errorf("output %s", got)
	}
	if err := os.WriteFile(in, []byte(configHead+"mode: userspace\noomScoreAdj: 5000\nresourceContainer: x\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := exec(t, "--config "+in); !strings.Contains(got, `mode "userspace"`) || !strings.Contains(got, `oomScoreAdj "5000"`) || strings.Count(got, "\n") != 3 ||
		!strings.HasPrefix(got, "stderr: note: ignoring a field in the file: unknown field \"resourceContainer\"\n") || !strings.Contains(got, "exit code 1") {
		t.Errorf("output %s", got)
	}
}

func TestWatchConfig(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config.conf")
	put := func(text string) {
		t.Helper()
		if err := os.WriteFile(path+".new", []byte(configHead+text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			t.Fatal(err)
		}
	}
	score, err := os.ReadFile("/proc/self/oom_score_adj")
	if err != nil {
		t.Skip(err)
	}
	same := "oomScoreAdj: " + strings.TrimSpace(string(score)) + "\n"
	put(same)
	cfg, err := config.Parse([]string{"--config", path, "--hostname-override=n1"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	lines, level, configs := make(lineWriter, 100), new(slog.LevelVar), make(chan *config.Config)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		watchConfig(ctx, cfg, level, slog.New(slog.NewTextHandler(lines, nil)), func(c *config.Config) { configs <- c })
	}()
	next := func(parts ...string) {
		t.Helper()
		line := <-lines
		for _, p := range parts {
			if !strings.Contains(line, p) {
				t.Errorf("line %q does not say %q", line, p)
			}
		}
	}
	put(same + "logging: {verbosity: 3}\nmode: ipvs\nclusterCIDR: 10.0.0.0/8\nold: 1\n")
	next("level=INFO", "has changed", path, "applied=2", "restart=1")
	next("level=WARN", "old")
	next("level=INFO", "applied", "clusterCIDR", "new=10.0.0.0/8")
	next("level=INFO", "applied", "logging.verbosity", "old=0", "new=3")
	next("level=WARN", "needs a restart", "setting=mode", "old=iptables", "new=ipvs")
	got := <-configs
	if got.Mode != config.ModeIPTables || len(got.ClusterCIDRs) != 1 || got.NodeName != "n1" || level.Level() != -3 {
		t.Errorf("got mode %s, CIDRs %v, node %s, level %v", got.Mode, got.ClusterCIDRs, got.NodeName, level)
	}
	level.Set(-7)
	put(same + "logging: {verbosity: 3}\n")
	next("has changed", "applied=1", "restart=0")
	next("applied", "clusterCIDR", `new=""`)
	if <-configs; level.Level() != -7 {
		t.Errorf("level %v, want what was set by another way", level.Level())
	}
	put(same + "mode: userspace\n")
	next("level=ERROR", "is invalid", "keeping the running configuration", `mode \"userspace\"`)
	put(same + "clusterCIDR: 10.0.0.0/8\n")
	next("has changed", "applied=2", "restart=0")
	next("applied", "clusterCIDR")
	next("applied", "logging.verbosity", "old=3", "new=0")
	if got := <-configs; level.Level() != 0 || len(got.ClusterCIDRs) != 1 {
		t.Errorf("got level %v, CIDRs %v", level, got.ClusterCIDRs)
	}
	cancel()
	<-done
	if len(lines) > 0 {
		t.Errorf("one line more: %s", <-lines)
	}
}

// lineWriter hands on what is written, one line at a time.
type lineWriter chan string

func (w lineWriter) Write(p []byte) (int, error) {
	w <- string(p)
	return len(p), nil
}

package xtables

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"
)

func script(t *testing.T, path, body string) {
	t.Helper()
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+body+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
}

// scripted installs a userland of shell scripts.
func scripted(t *testing.T, version, save, restore string) {
	t.Helper()
	dir := t.TempDir()
	t.Setenv("PATH", dir+":/usr/bin:/bin")
	script(t, filepath.Join(dir, "iptables-nft"), "echo '"+version+"'")
	script(t, filepath.Join(dir, "iptables-nft-save"), save)
	script(t, filepath.Join(dir, "iptables-nft-restore"), restore)
}

func TestNew(t *testing.T) {
	scripted(t, "iptables v1.8.9 (nf_tables)", "", "")
	x, err := New(NFT, false)
	if err != nil {
		t.Fatal(err)
	}
	if x.Version() != "1.8.9" || !x.RandomFully() || x.Flavour() != NFT {
		t.Errorf("version %s, random fully %v, flavour %s", x.Version(), x.RandomFully(), x.Flavour())
	}
	if _, err := New(NFT, true); err == nil {
		t.Error("ip6tables-nft was found")
	}
	scripted(t, "iptables v1.6.1", "", "")
	if _, err := New(NFT, false); err == nil || !strings.Contains(err.Error(), "1.6.2") {
		t.Errorf("an old version is accepted: %v", err)
	}
}

func TestRestore(t *testing.T) {
	got := filepath.Join(t.TempDir(), "got")
	t.Setenv("GOT", got)
	scripted(t, "iptables v1.8.9 (nf_tables)", "", `(echo "$@ $LC_ALL"; cat) > "$GOT"`)
	x, err := New(NFT, false)
	if err != nil {
		t.Fatal(err)
	}
	if err := x.Restore(t.Context(), []byte("*nat\nCOMMIT\n")); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(got)
	if err != nil {
		t.Fatal(err)
	}
	if want := "--noflush --wait=5 C\n*nat\nCOMMIT\n"; string(text) != want {
		t.Errorf("the program got %q, want %q", text, want)
	}
}

func TestRestoreError(t *testing.T) {
	const input = "*nat\n:A - [0:0]\n-A A -j X\nCOMMIT\n"
	tests := []struct {
		name, script string
		line         int
		text         string
		transient    bool
	}{
		{"legacy syntax", `echo "iptables-restore v1.8.9 (legacy): Couldn't load target 'X':No such file or directory

Error occurred at line: 3
Try 'iptables-restore -h' or 'iptables-restore --help' for more information." >&2; exit 2`, 3, "-A A -j X", false},
		{"legacy kernel", `echo "iptables-restore: line 4 failed" >&2; exit 1`, 4, "COMMIT", false},
		{"nft kernel", `echo "iptables-nft-restore v1.8.9 (nf_tables):
line 3: RULE_APPEND failed (Invalid argument): rule in chain A" >&2; exit 4`, 3, "-A A -j X", false},
		{"nft reason", `echo "iptables-nft-restore: line 3 failed: No chain/target/match by that name." >&2; exit 1`, 3, "-A A -j X", false},
		{"lock", `echo "Another app is currently holding the xtables lock. Stopped waiting after 5s." >&2; exit 4`, 0, "", true},
		{"EAGAIN", `echo "line 3: RULE_APPEND failed (Resource temporarily unavailable): rule in chain A" >&2; exit 4`, 3, "-A A -j X", true},
		{"killed", `kill -9 $$`, 0, "", true},
		{"line out of range", `echo "line 99 failed" >&2; exit 1`, 0, "", false},
		{"much output", `yes "line 3 failed" | head -c 1000000 >&2; exit 1`, 3, "-A A -j X", false},
		{"silent", `exit 1`, 0, "", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			scripted(t, "iptables v1.8.9 (nf_tables)", "", tt.script)
			x, err := New(NFT, false)
			if err != nil {
				t.Fatal(err)
			}
			var re *RestoreError
			if err := x.Restore(t.Context(), []byte(input)); !errors.As(err, &re) {
				t.Fatalf("got %v", err)
			}
			if re.Line != tt.line || re.LineText != tt.text || re.Transient != tt.transient || len(re.Stderr) > maxStderr {
				t.Errorf("got line %d %q, transient %v, %d bytes; want line %d %q, transient %v",
					re.Line, re.LineText, re.Transient, len(re.Stderr), tt.line, tt.text, tt.transient)
			}
		})
	}
}

func TestRestoreIsKilledWithTheContext(t *testing.T) {
	started := filepath.Join(t.TempDir(), "started")
	if err := syscall.Mkfifo(started, 0o600); err != nil {
		t.Fatal(err)
	}
	scripted(t, "iptables v1.8.9 (nf_tables)", "", "echo >"+started+"; exec sleep 1000")
	x, err := New(NFT, false)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		_, _ = os.ReadFile(started) // ends when the program has written to it
		cancel()
	}()
	err = x.Restore(ctx, []byte("*nat\nCOMMIT\n"))
	var re *RestoreError
	if !errors.As(err, &re) || !re.Transient || !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestRead(t *testing.T) {
	scripted(t, "iptables v1.8.9 (nf_tables)", `echo "*$2"; echo ":A - [0:0]"; echo COMMIT`, "")
	x, err := New(NFT, false)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := x.Read(t.Context(), "nat"); err != nil || !reflect.DeepEqual(got, Table{"A": {}}) {
		t.Errorf("got %v, %v", got, err)
	}
	for _, tt := range []struct{ name, script, want string }{
		{"the program fails", `echo "bad thing" >&2; exit 1`, "bad thing"},
		{"it fails in the middle", `echo "*nat"; echo "bad thing" >&2; exit 1`, "bad thing"},
		{"it ends in the middle", `echo "*nat"`, "ends without COMMIT"},
		{"its output is nothing that is known, and goes on", `while echo nonsense; do :; done`, "outside of a table"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			scripted(t, "iptables v1.8.9 (nf_tables)", tt.script, "")
			x, err := New(NFT, false)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := x.Read(t.Context(), "nat"); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v", err)
			}
		})
	}
}

// TestUsableOutlastsALock checks that a lock that another program holds at startup for a moment
// does not disable a family: Usable is only called once.
func TestUsableOutlastsALock(t *testing.T) {
	scripted(t, "iptables v1.8.9 (nf_tables)", "", "")
	x, err := New(NFT, false)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	runs := func() int {
		text, err := os.ReadFile(filepath.Join(dir, "runs"))
		if err != nil {
			t.Fatal(err)
		}
		return strings.Count(string(text), "\n")
	}
	script(t, x.main, `echo >> `+dir+`/runs; [ $(wc -l < `+dir+`/runs) -gt 1 ] || { echo "Another app is currently holding the xtables lock" >&2; exit 4; }`)
	if err := x.Usable(t.Context()); err != nil || runs() != 2 {
		t.Errorf("after %d runs: %v", runs(), err)
	}
	script(t, x.main, `echo >> `+dir+`/runs; echo "iptables: No chain/target/match by that name." >&2; exit 1`)
	if err := x.Usable(t.Context()); err == nil || runs() != 3 {
		t.Errorf("what does not pass was tried again, %d runs in all: %v", runs(), err)
	}
}

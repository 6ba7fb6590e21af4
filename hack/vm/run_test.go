package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/fairlead/fairlead/hack/guest"
)

// TestMain is process 1 of the guests that the tests boot, for they take this binary.
func TestMain(m *testing.M) {
	guest.Init()
	os.Exit(m.Run())
}

// TestArchive compares an initramfs, byte by byte, with what the format asks for.
func TestArchive(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{"a": "hello", "b": ""} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	archive := filepath.Join(dir, "archive")
	if err := writeArchive(archive, []file{{"/init", filepath.Join(dir, "a")}, {"/lib/x", filepath.Join(dir, "b")}, {"/lib/y", filepath.Join(dir, "a")}}); err != nil {
		t.Fatal(err)
	}
	const zero = "00000000"
	entry := func(inode, mode, links, size, length, name string) string {
		return "070701" + inode + mode + zero + zero + links + zero + size + strings.Repeat(zero, 4) + length + zero + name
	}
	want := entry("00000001", "000081ed", "00000001", "00000005", "00000005", "init\x00\x00") + "hello\x00\x00\x00" +
		entry("00000002", "000041ed", "00000001", zero, "00000004", "lib\x00\x00\x00") +
		entry("00000003", "000081ed", "00000001", zero, "00000006", "lib/x\x00") +
		entry("00000004", "000081ed", "00000001", "00000005", "00000006", "lib/y\x00") + "hello\x00\x00\x00" +
		entry("00000005", zero, "00000001", zero, "0000000b", "TRAILER!!!\x00\x00\x00\x00")
	got, err := os.ReadFile(archive)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestShare(t *testing.T) {
	m, args := share("share0", "/a, b", "cache=mmap", "")
	if want := (guest.Mount{Kind: "9p", Source: "share0", Dir: "/a, b", Options: "trans=virtio,version=9p2000.L,msize=512000,cache=mmap"}); m != want {
		t.Errorf("got %+v", m)
	}
	if want := "local,id=share0,path=/a,, b,security_model=none,multidevs=remap"; args[1] != want {
		t.Errorf("got %q", args[1])
	}
}

// TestGuest boots a guest. It is for make test-vm, which has fetched the kernel.
func TestGuest(t *testing.T) {
	if os.Getenv("FAIRLEAD_VM_TESTS") != "1" {
		t.Skip("boots an emulated machine: needs FAIRLEAD_VM_TESTS=1; make test-vm sets it")
	}
	// The kernel is in the user's own cache.
	t.Setenv("TMPDIR", t.TempDir())
	shared, other := t.TempDir(), t.TempDir()
	vm := (&machine{release: defaultRelease, accel: defaultAccel}).kernel()
	boot := func(t *testing.T, limit time.Duration, script string) (code int, stdout, stderr string, err error) {
		t.Helper()
		ctx, cancel := context.WithTimeoutCause(t.Context(), limit, guest.ErrTime)
		defer cancel()
		j, err := guest.NewJob([]string{"bash", "-c", script, "name", shared, other}, []string{"COLOUR=red and blue"}, []string{shared})
		if err != nil {
			t.Fatal(err)
		}
		var out, errs bytes.Buffer
		code, err = vm.Run(ctx, "1G", j, &out, &errs)
		if left, _ := os.ReadDir(os.Getenv("TMPDIR")); len(left) != 0 {
			t.Errorf("left behind: %v", left)
		}
		return code, out.String(), errs.String(), err
	}

	t.Run("a command", func(t *testing.T) {
		// What is used loads its module by itself, except IPVS, which nothing asks for.
		code, stdout, stderr, err := boot(t, 5*time.Minute, `
			printf 'one\n\ttwo'; echo three >/dev/stderr; cat <(echo "$COLOUR $PWD")
			modprobe ip_vs && head -c 17 /proc/net/ip_vs
			echo mine >"$1/file"; echo gone >"$2/file"; cat "$2/file"
			seq 50000 | tail -n 1
			nft add table inet x && nft add flowtable inet x f '{ hook ingress priority 0; devices = { lo }; }' || exit 1
			for userland in legacy nft; do
				for tool in iptables ip6tables; do
					$tool-$userland -t nat -A PREROUTING -m addrtype --dst-type LOCAL -j MARK --set-mark 1 || exit 2
				done
			done
			ip link add tunnel type ipip local 10.0.0.1 remote 10.0.0.2 && ip link add kube-ipvs0 type dummy || exit 3
			echo "<4>odd" >/dev/kmsg; echo "<6>usual" >/dev/kmsg
			exit 7`)
		dir, _ := os.Getwd()
		if want := "one\n\ttwored and blue " + dir + "\nIP Virtual Servergone\n50000\n"; code != 7 || err != nil || stdout != want {
			t.Errorf("got %d, %v, output %q, want %q", code, err, stdout, want)
		}
		if !strings.HasPrefix(stderr, "three\n") || !strings.Contains(stderr, "odd\n") || strings.Contains(stderr, "usual") {
			t.Errorf("standard error:\n%s", stderr)
		}
		if text, err := os.ReadFile(filepath.Join(shared, "file")); string(text) != "mine\n" {
			t.Errorf("got %q, %v", text, err)
		}
		if _, err := os.Stat(filepath.Join(other, "file")); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("written outside: %v", err)
		}
	})
	t.Run("a hang", func(t *testing.T) {
		if _, _, _, err := boot(t, 3*time.Second, "sleep 1000"); !errors.Is(err, guest.ErrTime) {
			t.Errorf("got %v", err)
		}
	})
}

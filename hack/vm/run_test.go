package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/fairlead/fairlead/hack/guest"
	"github.com/fairlead/fairlead/hack/guest/guesttest"
)

// TestMain also runs as process 1 of the guests that the tests boot: they use this binary.
func TestMain(m *testing.M) {
	guest.Init()
	os.Exit(m.Run())
}

// TestArchive compares an initramfs, byte by byte, with what the format requires.
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

// TestGuest boots a guest. make test-vm runs it after fetching the kernel.
func TestGuest(t *testing.T) {
	if os.Getenv("FAIRLEAD_VM_TESTS") != "1" {
		t.Skip("boots an emulated machine: needs FAIRLEAD_VM_TESTS=1; make test-vm sets it")
	}
	b := guesttest.New(t, (&machine{release: defaultRelease, accel: defaultAccel}).kernel(), "1G")

	t.Run("a command", func(t *testing.T) {
		// Modules are loaded on first use, except IPVS, which nothing requests.
		stderr := b.Command(t, `
			nft add table inet x && nft add flowtable inet x f '{ hook ingress priority 0; devices = { lo }; }' || exit 1
			for userland in legacy nft; do
				for tool in iptables ip6tables; do
					$tool-$userland -t nat -A PREROUTING -m addrtype --dst-type LOCAL -j MARK --set-mark 1 || exit 2
				done
			done
			ip link add tunnel type ipip local 10.0.0.1 remote 10.0.0.2 && ip link add kube-ipvs0 type dummy || exit 3`)
		if !strings.HasPrefix(stderr, "three\n") || !strings.Contains(stderr, "odd\n") || strings.Contains(stderr, "usual") {
			t.Errorf("standard error:\n%s", stderr)
		}
	})
	t.Run("a hang", func(t *testing.T) { b.Hang(t, 3*time.Second, "sleep 1000") })
}

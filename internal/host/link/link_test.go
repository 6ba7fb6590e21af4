package link_test

import (
	"context"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/fairlead/fairlead/internal/host/hosttest"
	. "github.com/fairlead/fairlead/internal/host/link"
)

func addrs(s ...string) []netip.Addr {
	var out []netip.Addr
	for _, a := range s {
		out = append(out, netip.MustParseAddr(a))
	}
	return out
}

// TestLocalAddrs needs no rights: every machine has its loopback address.
func TestLocalAddrs(t *testing.T) {
	got, err := LocalAddrs(func(string) bool { return false })
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(got, netip.MustParseAddr("127.0.0.1")) || !slices.IsSortedFunc(got, netip.Addr.Compare) {
		t.Errorf("got %v", got)
	}
}

func TestKernelAddrs(t *testing.T) {
	hosttest.Netns(t, "ip")
	hosttest.Run(t, "ip", "link", "add", "fl-a", "type", "veth", "peer", "name", "fl-b")
	hosttest.Run(t, "ip", "addr", "add", "192.0.2.1/24", "dev", "fl-a")
	hosttest.Run(t, "ip", "addr", "add", "192.0.2.9/32", "peer", "192.0.2.10/32", "dev", "fl-a")
	hosttest.Run(t, "ip", "addr", "add", "2001:db8::1/64", "dev", "fl-a", "nodad")
	hosttest.Run(t, "ip", "addr", "add", "198.51.100.1/32", "dev", "fl-b")
	hosttest.Run(t, "ip", "addr", "add", "192.0.2.1/32", "dev", "fl-b")
	for _, tt := range []struct {
		except []string
		want   []netip.Addr
	}{
		{nil, addrs("127.0.0.1", "192.0.2.1", "192.0.2.9", "198.51.100.1", "::1", "2001:db8::1")},
		{[]string{"fl-b", "fl-none"}, addrs("127.0.0.1", "192.0.2.1", "192.0.2.9", "::1", "2001:db8::1")},
	} {
		got, err := LocalAddrs(func(name string) bool { return slices.Contains(tt.except, name) })
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(tt.want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
			t.Errorf("except %v (-want +got):\n%s", tt.except, diff)
		}
	}
	if !HasIPv6() {
		t.Error("no IPv6")
	}
}

func TestKernelWatch(t *testing.T) {
	hosttest.Netns(t, "ip")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	w, err := Watch(ctx)
	if err != nil {
		t.Fatal(err)
	}
	wait := func(what string) {
		t.Helper()
		select {
		case _, ok := <-w:
			if !ok {
				t.Fatalf("%s: closed", what)
			}
		case <-time.After(hosttest.Patience):
			t.Fatalf("%s: no signal", what)
		}
	}
	hosttest.Run(t, "ip", "addr", "add", "192.0.2.1/32", "dev", "lo")
	wait("added")
	hosttest.Run(t, "ip", "addr", "del", "192.0.2.1/32", "dev", "lo")
	wait("removed")
	hosttest.Run(t, "ip", "addr", "add", "2001:db8::1/128", "dev", "lo")
	wait("IPv6")
	cancel()
	for range w { // ends when the watch has
	}
}

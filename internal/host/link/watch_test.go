package link_test

import (
	"context"
	"net/netip"
	"strings"
	"testing"
	"time"

	library "github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/internal/host/hosttest"
	. "github.com/fairlead/fairlead/internal/host/link"
)

// TestKernelWatchLoss removes one object after the other, and makes changes in between that are no
// loss.
func TestKernelWatchLoss(t *testing.T) {
	k := open(t)
	rule := Rule{Priority: 100, Mark: 1, Mask: 1, Table: 71}
	rule6 := rule
	rule6.IPv6 = true
	objects := []Object{vip("10.96.0.1"), vip("fd00:96::1"), route("10.97.0.0/16", Loopback, ""), route("fd00:97::/112", Loopback, ""), rule, rule6}
	if got := apply(t, k, add(objects...)); len(got) > 0 {
		t.Fatal(got)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	w, err := k.WatchLoss(ctx, vipDev)
	if err != nil {
		t.Fatal(err)
	}
	run := func(args string) { hosttest.Run(t, "ip", strings.Fields(args)...) }
	for _, quiet := range []string{
		"addr add 10.96.0.2/32 dev fl-vip", "route add 198.51.100.0/24 dev fl-node", "route del 198.51.100.0/24 dev fl-node",
		"rule add fwmark 5 lookup 5", "rule del fwmark 5 lookup 5", "link add fl-pod type veth peer name fl-pod-peer", "link set fl-pod up",
		"link set fl-pod-peer up", "link del fl-pod", // a pod that comes and goes, with its link-local address
	} {
		run(quiet)
	}
	if !silent(t, k, w) {
		t.Error("a signal without a loss")
	}
	for _, loss := range []string{
		"addr del 10.96.0.1/32 dev fl-vip", "addr del fd00:96::1/128 dev fl-vip", "route del local 10.97.0.0/16 dev lo proto 102",
		"-6 route del local fd00:97::/112 dev lo proto 102", "rule del pref 100", "-6 rule del pref 100",
		"link set fl-vip up", "link set lo down", "link set lo up", "addr del 192.0.2.1/24 dev fl-node", "link del fl-vip",
	} {
		run(loss)
		select {
		case <-w:
		case <-time.After(hosttest.Patience):
			t.Fatalf("%s: no signal", loss)
		}
		for !silent(t, k, w) { // one command may make several
		}
	}
	cancel()
	for range w {
	}
}

// silent says whether nothing comes until a change that does make a signal was heard, after which
// all before was.
func silent(t *testing.T, k *Kernel, w <-chan struct{}) bool {
	t.Helper()
	marker := Rule{Priority: 9999, Mark: 1, Mask: 1, Table: 99}
	select {
	case <-w:
		return false
	default:
	}
	if got := apply(t, k, append(add(marker), remove(marker)...)); len(got) > 0 {
		t.Fatal(got)
	}
	select {
	case <-w:
	case <-time.After(hosttest.Patience):
		t.Fatal("no signal")
	}
	return true
}

// BenchmarkVIPs adds and removes 500 addresses: as kube-proxy does, with a lookup of the device and
// a socket for each; with one handle of the library; in batches. And the same number of local
// routes in batches. Compare the four.
func BenchmarkVIPs(b *testing.B) {
	const n = 500
	var vips, routes []Object
	var list []*library.Addr
	a := netip.MustParseAddr("10.96.0.1")
	for range n {
		vips = append(vips, VIP(vipDev, a))
		routes = append(routes, Route{Dst: netip.PrefixFrom(a, 32), Dev: Loopback, Table: LocalTable})
		list = append(list, &library.Addr{IPNet: library.NewIPNet(a.AsSlice()), Scope: unix.RT_SCOPE_LINK})
		a = a.Next()
	}
	run := func(name string, do func(b *testing.B, k *Kernel)) {
		b.Run(name, func(b *testing.B) {
			k := open(b)
			for b.Loop() {
				do(b, k)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/2/n, "ns/change")
		})
	}
	each := func(b *testing.B, do func(a *library.Addr) error) {
		for _, a := range list {
			if err := do(a); err != nil {
				b.Fatal(err)
			}
		}
	}
	run("lookup and socket each", func(b *testing.B, _ *Kernel) {
		with := func(do func(library.Link, *library.Addr) error) func(*library.Addr) error {
			return func(a *library.Addr) error {
				l, err := library.LinkByName(vipDev)
				if err != nil {
					return err
				}
				return do(l, a)
			}
		}
		each(b, with(library.AddrAdd))
		each(b, with(library.AddrDel))
	})
	run("one handle", func(b *testing.B, k *Kernel) {
		l, err := library.LinkByName(vipDev)
		if err != nil {
			b.Fatal(err)
		}
		each(b, func(a *library.Addr) error { return library.AddrAdd(l, a) })
		each(b, func(a *library.Addr) error { return library.AddrDel(l, a) })
	})
	batch := func(objects []Object) func(b *testing.B, k *Kernel) {
		there, back := add(objects...), remove(objects...)
		return func(b *testing.B, k *Kernel) {
			if got := apply(b, k, there); len(got) > 0 {
				b.Fatal(got)
			}
			if got := apply(b, k, back); len(got) > 0 {
				b.Fatal(got)
			}
		}
	}
	run("batch", batch(vips))
	run("batch of routes", batch(routes))
}

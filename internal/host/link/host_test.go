package link_test

import (
	"context"
	"errors"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/internal/host/hosttest"
	. "github.com/fairlead/fairlead/internal/host/link"
	"github.com/fairlead/fairlead/internal/host/link/linkfake"
)

// nodeIP is the node's own address in these tests, nodeDev the device that has it, vipDev one that
// is down.
const (
	nodeDev = "fl-node"
	vipDev  = "fl-vip"
)

var nodeIP = netip.MustParseAddr("192.0.2.1")

// forEach runs a test on package linkfake and, where kernel tests are asked for, on the kernel: a
// node with an address in each family. What both do is the contract. In the kernel vipDev is one
// end of a pair that is down, which works as a dummy device does and is everywhere.
func forEach(t *testing.T, test func(t *testing.T, h Host)) {
	t.Run("fake", func(t *testing.T) {
		var f linkfake.Host
		f.AddDevice(nodeDev, Device{Up: true})
		f.AddDevice(vipDev, Device{})
		for _, a := range []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback()} {
			f.AddForeign(Addr{Dev: Loopback, Prefix: netip.PrefixFrom(a, a.BitLen())})
		}
		for _, p := range []string{"192.0.2.1/24", "2001:db8::1/64"} {
			f.AddForeign(Addr{Dev: nodeDev, Prefix: netip.MustParsePrefix(p), Global: strings.Contains(p, ".")})
		}
		test(t, &f)
	})
	t.Run("kernel", func(t *testing.T) { test(t, open(t)) })
}

// open returns a Kernel in a new network namespace with such a node.
func open(tb testing.TB) *Kernel {
	tb.Helper()
	hosttest.Netns(tb, "ip")
	for _, dev := range []string{nodeDev, vipDev} {
		hosttest.Run(tb, "ip", "link", "add", dev, "type", "veth", "peer", "name", dev+"-peer")
	}
	// A device without a link-local address, as in package linkfake.
	hosttest.Run(tb, "ip", "link", "set", nodeDev, "addrgenmode", "none", "up")
	hosttest.Run(tb, "ip", "addr", "add", "192.0.2.1/24", "dev", nodeDev)
	hosttest.Run(tb, "ip", "addr", "add", "2001:db8::1/64", "dev", nodeDev, "nodad")
	return openHere(tb)
}

func openHere(tb testing.TB) *Kernel {
	tb.Helper()
	k, err := Open(0)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := k.Close(); err != nil {
			tb.Error(err)
		}
	})
	return k
}

// VIP is a single address on a device.
func VIP(dev string, a netip.Addr) Addr {
	return Addr{Dev: dev, Prefix: netip.PrefixFrom(a, a.BitLen())}
}

func vip(s string) Addr { return VIP(vipDev, netip.MustParseAddr(s)) }

func route(dst, dev, src string) Route {
	r := Route{Dst: netip.MustParsePrefix(dst), Dev: dev, Table: LocalTable}
	if src != "" {
		r.Src = netip.MustParseAddr(src)
	}
	return r
}

// apply carries out changes and returns the errors by index.
func apply(tb testing.TB, h Host, changes []Change) map[int]error {
	tb.Helper()
	failed, err := h.Apply(tb.Context(), changes)
	if err != nil {
		tb.Fatal(err)
	}
	out := make(map[int]error)
	for i, f := range failed {
		if i > 0 && f.Index <= failed[i-1].Index {
			tb.Errorf("failures are not in order: %v", failed)
		}
		out[f.Index] = f.Err
	}
	return out
}

func add(objects ...Object) (out []Change) {
	for _, o := range objects {
		out = append(out, Change{Object: o})
	}
	return out
}

func remove(objects ...Object) []Change {
	out := add(objects...)
	for i := range out {
		out[i].Del = true
	}
	return out
}

// state is all of ours, a line each.
func state(tb testing.TB, h Host) string {
	tb.Helper()
	on, others, err := h.Addrs(tb.Context(), vipDev)
	if err != nil {
		tb.Fatal(err)
	}
	if want := addrs("127.0.0.1", "192.0.2.1", "::1", "2001:db8::1"); !slices.Equal(others, want) {
		tb.Errorf("others: %v, want %v", others, want)
	}
	var lines []string
	for _, a := range on {
		lines = append(lines, a.String())
	}
	routes, err := h.Routes(tb.Context())
	if err != nil {
		tb.Fatal(err)
	}
	for _, r := range routes {
		lines = append(lines, r.String())
	}
	rules, err := h.Rules(tb.Context())
	if err != nil {
		tb.Fatal(err)
	}
	for _, r := range rules {
		lines = append(lines, r.String())
	}
	return strings.Join(lines, "\n")
}

// TestApply makes and removes one of each, and some of each that fail, in one list.
func TestApply(t *testing.T) {
	rule := Rule{Priority: 100, Mark: 0x8000, Mask: 0x8000, Table: 71}
	rule6 := rule
	rule6.IPv6 = true
	wrong := errors.New("any")
	tests := []struct {
		change Change
		want   error
	}{
		{Change{Object: vip("10.96.0.1")}, nil},
		{Change{Object: vip("10.96.0.1")}, unix.EEXIST},
		{Change{Object: vip("10.96.0.2")}, nil},
		{Change{Object: vip("fd00:96::1")}, nil},
		{Change{Object: vip("fd00:96::1")}, unix.EEXIST},
		{Change{Object: vip("10.96.0.9"), Del: true}, unix.EADDRNOTAVAIL},
		{Change{Object: vip("fd00:96::9"), Del: true}, unix.EADDRNOTAVAIL},
		{Change{Object: VIP("fl-none", nodeIP)}, ErrNoDevice},
		{Change{Object: VIP("fl-none", nodeIP), Del: true}, ErrNoDevice},
		{Change{Object: route("10.97.0.0/16", vipDev, "192.0.2.1")}, nil},
		{Change{Object: route("10.97.0.0/16", vipDev, "192.0.2.1")}, unix.EEXIST},
		{Change{Object: route("10.97.0.0/16", vipDev, "")}, unix.EEXIST},
		{Change{Object: route("10.98.0.0/16", vipDev, "192.0.2.77")}, unix.EINVAL},
		{Change{Object: route("10.98.0.1/32", vipDev, "")}, nil},
		{Change{Object: route("10.96.0.1/32", vipDev, "")}, unix.EEXIST},
		{Change{Object: route("10.99.0.0/16", vipDev, ""), Del: true}, unix.ESRCH},
		{Change{Object: route("10.98.0.1/32", "fl-none", "")}, ErrNoDevice},
		{Change{Object: route("fd00:97::/112", Loopback, "2001:db8::1")}, nil},
		{Change{Object: route("fd00:97::/112", Loopback, "2001:db8::1")}, unix.EEXIST},
		{Change{Object: route("fd00:98::/112", Loopback, "2001:db8::77")}, unix.EINVAL},
		{Change{Object: route("fd00:98::/112", vipDev, "")}, unix.ENETDOWN},
		{Change{Object: route("fd00:99::/112", Loopback, ""), Del: true}, unix.ESRCH},
		{Change{Object: rule}, nil},
		{Change{Object: rule}, unix.EEXIST},
		{Change{Object: rule6}, nil},
		{Change{Object: rule6}, unix.EEXIST},
		{Change{Object: Rule{Priority: 101, Mark: 1, Mask: 1, Table: 71}, Del: true}, unix.ENOENT},
		{Change{Object: Rule{IPv6: true, Priority: 101, Mark: 1, Mask: 1, Table: 71}, Del: true}, unix.ENOENT},
		{Change{Object: MarkRoute(false, 71)}, nil},
		{Change{Object: MarkRoute(true, 71)}, nil},
		{Change{Object: MarkRoute(true, 100000)}, nil},
		{Change{Object: vip("10.96.0.2"), Del: true}, nil},
		{Change{Object: Addr{Dev: vipDev, Prefix: netip.MustParsePrefix("10.96.0.0/16")}}, ErrInvalid},
		{Change{Object: Addr{Dev: vipDev, Prefix: netip.MustParsePrefix("10.96.0.1/32"), Global: true}}, ErrInvalid},
		{Change{Object: VIP("", nodeIP)}, ErrInvalid},
		{Change{Object: VIP(vipDev, netip.MustParseAddr("::ffff:10.0.0.1"))}, ErrInvalid},
		{Change{Object: route("10.97.0.1/16", vipDev, "")}, ErrInvalid},
		{Change{Object: route("10.98.0.0/16", vipDev, "2001:db8::1")}, ErrInvalid},
		{Change{Object: Route{Dst: netip.MustParsePrefix("10.98.0.0/16"), Dev: vipDev}}, ErrInvalid},
		{Change{Object: Rule{Priority: 1, Mark: 3, Mask: 1, Table: 1}}, ErrInvalid},
		{Change{}, ErrInvalid},
	}
	const want = `address 10.96.0.1/32 dev fl-vip
address fd00:96::1/128 dev fl-vip
route local 0.0.0.0/0 dev lo table 71
route local ::/0 dev lo table 71
route local 10.97.0.0/16 dev fl-vip table 255 src 192.0.2.1
route local 10.98.0.1/32 dev fl-vip table 255
route local fd00:97::/112 dev lo table 255 src 2001:db8::1
route local ::/0 dev lo table 100000
IPv4 rule 100 fwmark 0x8000/0x8000 lookup 71
IPv6 rule 100 fwmark 0x8000/0x8000 lookup 71`
	forEach(t, func(t *testing.T, h Host) {
		var changes []Change
		for _, tt := range tests {
			changes = append(changes, tt.change)
		}
		got := apply(t, h, changes)
		var made []Object
		for i, tt := range tests {
			if (got[i] == nil) != (tt.want == nil) || !errors.Is(got[i], tt.want) && tt.want != wrong {
				t.Errorf("change %d, %v: got %v, want %v", i, tt.change.Object, got[i], tt.want)
			}
			if o := tt.change.Object; o != nil && got[i] != nil && !strings.Contains(got[i].Error(), o.String()) {
				t.Errorf("change %d: %q does not name %v", i, got[i], o)
			}
			if tt.change.Del && tt.want != nil && !Missing(got[i]) {
				t.Errorf("change %d: Missing(%v) is false", i, got[i])
			}
			if tt.want == nil && !tt.change.Del && tt.change.Object != vip("10.96.0.2") {
				made = append(made, tt.change.Object)
			}
		}
		if diff := cmp.Diff(want, state(t, h)); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
		slices.Reverse(made) // see TestLastAddress
		if got := apply(t, h, remove(made...)); len(got) > 0 {
			t.Errorf("remove: %v", got)
		}
		if got := state(t, h); got != "" {
			t.Errorf("left:\n%s", got)
		}
	})
}

// TestLastAddress shows why routes are better on the loopback device.
func TestLastAddress(t *testing.T) {
	forEach(t, func(t *testing.T, h Host) {
		onVIP, onLo := route("10.97.0.0/16", vipDev, ""), route("10.98.0.0/16", Loopback, "")
		if got := apply(t, h, add(onVIP, onLo, vip("10.96.0.1"), vip("10.96.0.2"), vip("fd00:96::1"))); len(got) > 0 {
			t.Fatal(got)
		}
		routes := func(want ...Route) {
			t.Helper()
			if got, err := h.Routes(t.Context()); err != nil || !slices.Equal(got, want) {
				t.Errorf("got %v, %v, want %v", got, err, want)
			}
		}
		if got := apply(t, h, remove(vip("10.96.0.1"))); len(got) > 0 {
			t.Fatal(got)
		}
		routes(onVIP, onLo)
		if got := apply(t, h, remove(vip("10.96.0.2"))); len(got) > 0 {
			t.Fatal(got)
		}
		routes(onLo)
		if got := apply(t, h, add(onVIP)); len(got) > 0 { // but without any address it can be made
			t.Fatal(got)
		}
		routes(onVIP, onLo)
	})
}

// TestSourceGoes removes the node's addresses, which are the source of routes.
func TestSourceGoes(t *testing.T) {
	forEach(t, func(t *testing.T, h Host) {
		if got := apply(t, h, add(route("10.97.0.0/16", Loopback, "192.0.2.1"), route("fd00:97::/112", Loopback, "2001:db8::1"))); len(got) > 0 {
			t.Fatal(got)
		}
		for _, p := range []string{"192.0.2.1/24", "2001:db8::1/64"} {
			if got := apply(t, h, remove(Addr{Dev: nodeDev, Prefix: netip.MustParsePrefix(p)})); len(got) > 0 {
				t.Fatal(got)
			}
		}
		got, err := h.Routes(t.Context())
		if err != nil || len(got) != 2 || got[0] != route("10.97.0.0/16", Loopback, "192.0.2.1") || got[1].Dst.String() != "fd00:97::/112" {
			t.Errorf("got %v, %v", got, err)
		}
	})
}

// TestDevices needs no dummy device.
func TestDevices(t *testing.T) {
	forEach(t, func(t *testing.T, h Host) {
		if d, err := h.Device(t.Context(), vipDev); err != nil || d.Up || d.Dummy || d.Index == 0 {
			t.Errorf("%+v, %v", d, err)
		}
		if d, err := h.Device(t.Context(), Loopback); err != nil || !d.Up || d.Index != 1 {
			t.Errorf("%+v, %v", d, err)
		}
		if _, err := h.Device(t.Context(), "fl-none"); !errors.Is(err, ErrNoDevice) {
			t.Error(err)
		}
		if _, err := h.EnsureDummy(t.Context(), vipDev); !errors.Is(err, ErrNotDummy) {
			t.Error(err)
		}
		if err := h.RemoveDummy(t.Context(), vipDev); !errors.Is(err, ErrNotDummy) {
			t.Error(err)
		}
		if err := h.RemoveDummy(t.Context(), "fl-none"); !errors.Is(err, ErrNoDevice) {
			t.Error(err)
		}
		if on, others, err := h.Addrs(t.Context(), "fl-none"); err != nil || on != nil || len(others) != 4 {
			t.Error(on, others, err)
		}
	})
}

// testDummy is the life of a dummy device.
func testDummy(t *testing.T, h Host) {
	const dev = "kube-ipvs0"
	first, err := h.EnsureDummy(t.Context(), dev)
	if err != nil || first.Up || !first.Dummy {
		t.Fatalf("%+v, %v", first, err)
	}
	if again, err := h.EnsureDummy(t.Context(), dev); err != nil || again != first {
		t.Errorf("%+v, %v", again, err)
	}
	objects := []Object{VIP(dev, netip.MustParseAddr("10.96.0.1")), VIP(dev, netip.MustParseAddr("fd00:96::1")), route("10.97.0.0/16", dev, "")}
	if got := apply(t, h, add(objects...)); len(got) > 0 {
		t.Fatal(got)
	}
	on, _, err := h.Addrs(t.Context(), dev)
	if err != nil || len(on) != 2 || on[0] != objects[0] || on[1] != objects[1] {
		t.Errorf("%v, %v", on, err)
	}
	if err := h.RemoveDummy(t.Context(), dev); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Device(t.Context(), dev); !errors.Is(err, ErrNoDevice) {
		t.Error(err)
	}
	routes, err := h.Routes(t.Context())
	if err != nil || len(routes) > 0 {
		t.Errorf("the device took no routes along: %v, %v", routes, err)
	}
	for i, err := range apply(t, h, remove(objects...)) {
		if !Missing(err) {
			t.Errorf("%v: %v", objects[i], err)
		}
	}
}

func TestDummy(t *testing.T) {
	t.Run("fake", func(t *testing.T) { testDummy(t, &linkfake.Host{}) })
	t.Run("kernel", func(t *testing.T) {
		hosttest.Need(t, hosttest.Dummy)
		k := openHere(t)
		testDummy(t, k)
		// What only the kernel's tools show.
		if _, err := k.EnsureDummy(t.Context(), "kube-ipvs0"); err != nil {
			t.Fatal(err)
		}
		if got := apply(t, k, add(VIP("kube-ipvs0", netip.MustParseAddr("10.96.0.1")), VIP("kube-ipvs0", netip.MustParseAddr("fd00:96::1")))); len(got) > 0 {
			t.Fatal(got)
		}
		for _, tt := range []struct {
			args []string
			want []string
			not  string
		}{
			{[]string{"link", "show", "kube-ipvs0"}, []string{"NOARP"}, "UP"},
			{[]string{"-4", "addr", "show", "kube-ipvs0"}, []string{"10.96.0.1/32 scope link"}, "global"},
			{[]string{"-6", "addr", "show", "kube-ipvs0"}, []string{"fd00:96::1/128", "nodad", "noprefixroute"}, "tentative"},
			{[]string{"-4", "route", "show", "table", "local", "dev", "kube-ipvs0"}, []string{"local 10.96.0.1"}, "broadcast"},
			{[]string{"-6", "route", "show", "table", "main"}, nil, "fd00:96::1"},
		} {
			out := hosttest.Run(t, "ip", tt.args...)
			for _, w := range tt.want {
				if !strings.Contains(out, w) {
					t.Errorf("ip %v has no %q:\n%s", tt.args, w, out)
				}
			}
			if tt.not != "" && strings.Contains(out, tt.not) {
				t.Errorf("ip %v has %q:\n%s", tt.args, tt.not, out)
			}
		}
	})
}

// TestManyAddresses needs several sends.
func TestManyAddresses(t *testing.T) {
	forEach(t, func(t *testing.T, h Host) {
		const n = 1200
		var objects []Object
		a, a6 := netip.MustParseAddr("10.96.0.1"), netip.MustParseAddr("fd00:96::1")
		for range n {
			objects = append(objects, VIP(vipDev, a), VIP(vipDev, a6))
			a, a6 = a.Next(), a6.Next()
		}
		twice := add(objects...)
		got := apply(t, h, append(twice, twice...))
		if len(got) != 2*n {
			t.Fatalf("%d failed, want %d", len(got), 2*n)
		}
		for i, err := range got {
			if i < 2*n || !errors.Is(err, unix.EEXIST) {
				t.Fatalf("change %d: %v", i, err)
			}
		}
		on, _, err := h.Addrs(t.Context(), vipDev)
		if err != nil || len(on) != 2*n {
			t.Fatalf("%d addresses, %v", len(on), err)
		}
		for _, a := range on {
			if !slices.Contains(objects[:], Object(a)) {
				t.Fatalf("%v is none of ours", a)
			}
		}
		if got := apply(t, h, remove(objects...)); len(got) > 0 {
			t.Fatalf("%d not removed", len(got))
		}
		if got := state(t, h); got != "" {
			t.Errorf("left:\n%s", got)
		}
	})
}

// TestKernelForeign makes things that are not ours: they are not listed, except addresses on our
// device, which can be removed.
func TestKernelForeign(t *testing.T) {
	k := open(t)
	for _, args := range []string{
		"addr add 10.96.0.1/32 dev fl-vip", "addr add 10.50.0.1/24 dev fl-vip", "addr add fd00:96::1/128 dev fl-vip",
		"route add local 10.97.0.0/16 dev lo", "-6 route add local fd00:97::/112 dev lo",
		"route add 10.98.0.0/16 dev fl-node proto 102", "rule add fwmark 1 lookup 71", "-6 rule add fwmark 1 lookup 71",
	} {
		hosttest.Run(t, "ip", strings.Fields(args)...)
	}
	const want = `address 10.50.0.1/24 dev fl-vip scope global
address 10.96.0.1/32 dev fl-vip scope global
address fd00:96::1/128 dev fl-vip scope global`
	if diff := cmp.Diff(want, state(t, k)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	on, _, err := k.Addrs(t.Context(), vipDev)
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range on {
		if got := apply(t, k, remove(a)); len(got) > 0 {
			t.Error(got)
		}
	}
	// Only ours is removed.
	ours := Rule{Priority: 100, Mark: 1, Mask: 1, Table: 71}
	if got := apply(t, k, append(add(ours), remove(ours)...)); len(got) > 0 {
		t.Error(got)
	}
	if out := hosttest.Run(t, "ip", "rule"); !strings.Contains(out, "lookup 71") {
		t.Errorf("the rule of others is gone:\n%s", out)
	}
}

// TestKernelMarkRoute checks what the kernel makes of route and rule: an address that is none of
// the node's becomes local for packets with the mark, and the source of the node's own packets is
// the one that a route says.
func TestKernelMarkRoute(t *testing.T) {
	k := open(t)
	if got := apply(t, k, add(MarkRoute(false, 71), MarkRoute(true, 71), Rule{Priority: 100, Mark: 0x8000, Mask: 0x8000, Table: 71},
		Rule{IPv6: true, Priority: 100, Mark: 0x8000, Mask: 0x8000, Table: 71},
		route("10.97.0.0/16", vipDev, "192.0.2.1"), route("fd00:97::/112", Loopback, "2001:db8::1"))); len(got) > 0 {
		t.Fatal(got)
	}
	for _, tt := range []struct{ args, want string }{
		{"route get 192.0.2.200 mark 0x8001", "local 192.0.2.200 dev lo table 71"},
		{"-6 route get 2001:db8::200 mark 0x8001", "dev lo table 71"},
		{"route get 192.0.2.200", "dev fl-node"},
		{"route get 10.97.3.4", "src 192.0.2.1"},
		{"-6 route get fd00:97::3", "src 2001:db8::1"},
	} {
		if out := hosttest.Run(t, "ip", strings.Fields(tt.args)...); !strings.Contains(out, tt.want) {
			t.Errorf("ip %s: no %q in %s", tt.args, tt.want, out)
		}
	}
}

// TestKernelSource asks for the source towards a destination behind a device without addresses, as
// those of pods often are, while the node's only address is on a device that is younger than the
// VIPs': no VIP is it.
func TestKernelSource(t *testing.T) {
	k := open(t)
	if got := apply(t, k, add(VIP(vipDev, netip.MustParseAddr("10.96.0.1")), VIP(vipDev, netip.MustParseAddr("fd00:10:96::1")))); len(got) > 0 {
		t.Fatal(got)
	}
	for _, args := range []string{
		"addr flush dev fl-node", "link add fl-young type veth peer name fl-pod", "link set fl-young addrgenmode none up", "link set fl-pod addrgenmode none up",
		"addr add 192.0.2.1/24 dev fl-young", "addr add 2001:db8::1/64 dev fl-young nodad",
		"route add 10.244.0.0/16 dev fl-pod", "-6 route add fd00:10:244::/48 dev fl-pod",
	} {
		hosttest.Run(t, "ip", strings.Fields(args)...)
	}
	for _, tt := range []struct{ args, want string }{
		{"route get 10.244.0.1", "src 192.0.2.1 "},
		{"-6 route get fd00:10:244::1", "src 2001:db8::1 "},
		// To a VIP itself it is: the mode's rules masquerade such packets.
		{"route get 10.96.0.1", "src 10.96.0.1 "},
		{"-6 route get fd00:10:96::1", "src fd00:10:96::1 "},
	} {
		if out := hosttest.Run(t, "ip", strings.Fields(tt.args)...); !strings.Contains(out, tt.want) {
			t.Errorf("ip %s: no %q in %s", tt.args, tt.want, out)
		}
	}
}

func TestFake(t *testing.T) {
	var f linkfake.Host
	if _, err := f.EnsureDummy(t.Context(), vipDev); err != nil {
		t.Fatal(err)
	}
	broken := errors.New("broken")
	f.FailChange = func(c Change) error {
		if c.Object == vip("10.96.0.2") {
			return broken
		}
		return nil
	}
	got := apply(t, &f, append(add(vip("10.96.0.1"), vip("10.96.0.2"), MarkRoute(false, 71)), remove(vip("10.96.0.1"))...))
	if len(got) != 1 || !errors.Is(got[1], broken) {
		t.Errorf("got %v", got)
	}
	f.AddForeign(Addr{Dev: vipDev, Prefix: netip.MustParsePrefix("10.96.0.3/32"), Global: true})
	const want = `address 10.96.0.3/32 dev fl-vip scope global
device fl-vip down
device lo up
route local 0.0.0.0/0 dev lo table 71
`
	if diff := cmp.Diff(want, f.Dump()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(map[string]int{"ensure": 1, "apply": 1, "added": 2, "removed": 1}, f.Counts()); diff != "" {
		t.Errorf("counts (-want +got):\n%s", diff)
	}
	// One that kube-proxy made is the same address.
	if got := apply(t, &f, append(add(vip("10.96.0.3")), remove(vip("10.96.0.3"))...)); len(got) != 1 || !errors.Is(got[0], unix.EEXIST) {
		t.Errorf("got %v", got)
	}
	f.Lose(MarkRoute(false, 71))
	if r, err := f.Routes(t.Context()); err != nil || len(r) > 0 {
		t.Error(r, err)
	}
	f.Fail = func(string) error { return broken }
	ctx := context.Background()
	_, device := f.Device(ctx, vipDev)
	_, ensure := f.EnsureDummy(ctx, vipDev)
	_, _, addrs := f.Addrs(ctx, vipDev)
	_, routes := f.Routes(ctx)
	_, rules := f.Rules(ctx)
	_, apply := f.Apply(ctx, nil)
	for op, err := range map[string]error{"device": device, "ensure": ensure, "remove": f.RemoveDummy(ctx, vipDev), "addrs": addrs, "routes": routes,
		"rules": rules, "apply": apply} {
		if !errors.Is(err, broken) {
			t.Errorf("%s: %v", op, err)
		}
	}
}

// TestKernelOwnersDoNotMeet makes the same routes and rules for three owners: each sees its own,
// and what one removes, also twice, the others keep.
func TestKernelOwnersDoNotMeet(t *testing.T) {
	open(t)
	numbers := []uint32{0, 1<<25 | 7, 1<<26 - 1}
	owned := func(n uint32) []Object {
		table := max(n, 71)
		return []Object{
			route("10.97.0.0/16", Loopback, ""), route("fd00:97::/112", Loopback, ""), route("10.98.0.1/32", Loopback, "192.0.2.1"),
			MarkRoute(false, table), MarkRoute(true, table),
			Rule{Priority: 100, Mark: 1, Mask: 1, Table: table}, Rule{IPv6: true, Priority: 100, Mark: 1, Mask: 1, Table: table},
		}
	}
	kernels := make(map[uint32]*Kernel)
	for _, n := range numbers {
		k, err := Open(n)
		if err != nil {
			t.Fatal(err)
		}
		defer k.Close()
		kernels[n] = k
		if failed := apply(t, k, add(owned(n)...)); len(failed) > 0 {
			t.Fatalf("owner %d: %v", n, failed)
		}
	}
	check := func(gone ...uint32) {
		t.Helper()
		for _, n := range numbers {
			routes, err := kernels[n].Routes(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			rules, err := kernels[n].Rules(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			want := make(map[Object]bool)
			if !slices.Contains(gone, n) {
				for _, o := range owned(n) {
					want[o] = true
				}
			}
			got := make(map[Object]bool)
			for _, r := range routes {
				got[r] = true
			}
			for _, r := range rules {
				got[r] = true
			}
			if !maps.Equal(got, want) {
				t.Errorf("with %v gone, owner %d has\n%v\nwant\n%v", gone, n, got, want)
			}
		}
	}
	check()
	for i, n := range numbers {
		apply(t, kernels[n], remove(owned(n)...))
		for j, err := range apply(t, kernels[n], remove(owned(n)[:3]...)) {
			if !Missing(err) {
				t.Errorf("owner %d, removed again, change %d: %v", n, j, err)
			}
		}
		check(numbers[:i+1]...)
	}
}

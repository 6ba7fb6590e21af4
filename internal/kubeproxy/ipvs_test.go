package kubeproxy

import (
	"context"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/internal/host/ipset"
	"github.com/fairlead/fairlead/internal/host/ipset/ipsetfake"
	"github.com/fairlead/fairlead/internal/host/ipvs"
	"github.com/fairlead/fairlead/internal/host/ipvs/ipvsfake"
	"github.com/fairlead/fairlead/internal/host/link"
	"github.com/fairlead/fairlead/internal/host/link/linkfake"
)

func server(proto uint8, addr string) ipvs.VirtualServer {
	return ipvs.VirtualServer{Protocol: proto, Addr: netip.MustParseAddrPort(addr)}
}

func vip(addr string, global bool) link.Addr {
	a := netip.MustParseAddr(addr)
	return link.Addr{Dev: Device, Prefix: netip.PrefixFrom(a, a.BitLen()), Global: global}
}

// node is a node with the objects of kube-proxy in mode ipvs and of other programs.
func node(t *testing.T) (*ipvsfake.Table, *ipsetfake.Sets, *linkfake.Host) {
	t.Helper()
	ctx := context.Background()
	servers := &ipvsfake.Table{}
	rr := ipvs.Settings{Scheduler: "rr"}
	ours := ipvs.Settings{Scheduler: "rr", Flags: tag}
	for v, s := range map[ipvs.VirtualServer]ipvs.Settings{
		server(unix.IPPROTO_TCP, "10.96.0.1:443"):     rr,   // cluster IP
		server(unix.IPPROTO_UDP, "10.96.0.10:53"):     rr,   // cluster IP
		server(unix.IPPROTO_TCP, "192.168.0.2:30080"): rr,   // node port
		server(unix.IPPROTO_TCP, "[fd00:96::1]:443"):  rr,   // cluster IP
		server(unix.IPPROTO_TCP, "192.168.0.2:8080"):  rr,   // somebody's, on a node address
		server(unix.IPPROTO_UDP, "192.168.0.2:30080"): rr,   // somebody's: the node port is of another protocol
		server(unix.IPPROTO_TCP, "198.51.100.5:80"):   rr,   // keepalived's
		server(unix.IPPROTO_TCP, "10.96.0.20:80"):     ours, // Fairlead's
		server(unix.IPPROTO_TCP, "10.96.200.1:80"):    rr,   // excluded
		server(unix.IPPROTO_TCP, "10.96.0.30:80"):     ours, // one address, two owners
		server(unix.IPPROTO_TCP, "10.96.0.30:81"):     rr,
	} {
		servers.Put(v, s)
	}
	sets := &ipsetfake.Sets{}
	sets.Load(`create KUBE-CLUSTER-IP hash:ip,port family inet hashsize 1024 maxelem 65536
add KUBE-CLUSTER-IP 10.96.0.1,tcp:443
create KUBE-6-CLUSTER-IP hash:ip,port family inet6 hashsize 1024 maxelem 65536
create KUBE-6-LOAD-BALANCER-SOURCE-CID hash:ip,port,net family inet6 hashsize 1024 maxelem 65536
create KUBE-NODE-PORT-TCP bitmap:port range 0-65535
add KUBE-NODE-PORT-TCP 30080
create KUBE-ROUTER-SVIP hash:ip family inet hashsize 1024 maxelem 65536
create FAIRLEAD-4-FRONTENDS hash:ip,port family inet hashsize 1024 maxelem 65536
`)
	links := &linkfake.Host{}
	if _, err := links.EnsureDummy(ctx, Device); err != nil {
		t.Fatal(err)
	}
	links.AddDevice("eth0", link.Device{Up: true})
	for _, a := range []link.Addr{
		vip("10.96.0.1", true), vip("10.96.0.10", true), vip("fd00:96::1", false), vip("10.96.0.20", false), vip("10.96.0.30", true),
		vip("10.96.200.1", true), vip("10.96.0.99", true), // the last has no virtual server
		{Dev: "eth0", Prefix: netip.MustParsePrefix("192.168.0.2/24"), Global: true},
	} {
		links.AddForeign(a)
	}
	return servers, sets, links
}

func TestVirtual(t *testing.T) {
	ctx := context.Background()
	servers, sets, links := node(t)
	exclude := []netip.Prefix{netip.MustParsePrefix("10.96.200.0/24")}
	v, err := findVirtual(ctx, servers, sets, links, exclude)
	if err != nil {
		t.Fatal(err)
	}
	before := servers.Dump()
	if err := v.removeServers(ctx); err != nil {
		t.Fatal(err)
	}
	if err := v.removeSets(ctx); err != nil {
		t.Fatal(err)
	}
	gone := []string{"-t 10.96.0.1:443", "-u 10.96.0.10:53", "-t 192.168.0.2:30080", "-t [fd00:96::1]:443", "-t 10.96.0.30:81"}
	after := servers.Dump()
	for line := range strings.Lines(before) {
		want := true
		for _, g := range gone {
			want = want && !strings.Contains(line, g+" ")
		}
		if strings.Contains(after, line) != want {
			t.Errorf("there is %q: %v, want %v", line, !want, want)
		}
	}
	on, _, err := links.Addrs(ctx, Device)
	if err != nil {
		t.Fatal(err)
	}
	var left []string
	for _, a := range on {
		left = append(left, a.Prefix.Addr().String())
	}
	if got, want := strings.Join(left, " "), "10.96.0.20 10.96.0.30 10.96.200.1"; got != want {
		t.Errorf("addresses left %q, want %q", got, want)
	}
	if dump := sets.Dump(); strings.Contains(dump, "CLUSTER-IP") || strings.Contains(dump, "NODE-PORT") || strings.Contains(dump, "SOURCE-CID") ||
		!strings.Contains(dump, "KUBE-ROUTER-SVIP") || !strings.Contains(dump, "FAIRLEAD-4-FRONTENDS") {
		t.Errorf("sets left:\n%s", dump)
	}
	again, err := findVirtual(ctx, servers, sets, links, exclude)
	if err != nil || !nothing(again) {
		t.Errorf("the second time: %v %v %v, %v", again.delServers, again.delAddrs, again.delSets, err)
	}
	if err := v.removeServers(ctx); err != nil { // the same again
		t.Error(err)
	}
	if err := v.removeSets(ctx); err != nil {
		t.Error(err)
	}
}

// nothing returns whether there is nothing to remove.
func nothing(v *virtual) bool { return len(v.delServers)+len(v.delAddrs)+len(v.delSets) == 0 }

func TestTheDeviceGoesWhenNothingIsLeftOnIt(t *testing.T) {
	ctx := context.Background()
	links := &linkfake.Host{}
	if _, err := links.EnsureDummy(ctx, Device); err != nil {
		t.Fatal(err)
	}
	links.AddForeign(vip("10.96.0.1", true))
	v, err := findVirtual(ctx, nil, nil, links, nil)
	if err != nil || !v.delDevice {
		t.Fatalf("the device stays: %v", err)
	}
	if err := v.removeServers(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := links.Device(ctx, Device); err == nil {
		t.Error("the device is there")
	}
}

func TestFairleadsOwnDeviceStays(t *testing.T) {
	ctx := context.Background()
	links := &linkfake.Host{}
	if _, err := links.EnsureDummy(ctx, Device); err != nil {
		t.Fatal(err)
	}
	if v, err := findVirtual(ctx, nil, &ipsetfake.Sets{}, links, nil); err != nil || !nothing(v) || v.delDevice {
		t.Errorf("an empty device is to be removed: %v, %v", v, err)
	}
}

func TestNamesOfSetsFit(t *testing.T) {
	seen := make(map[string]bool)
	for _, name := range allSetNames() {
		if len(name) > ipset.MaxName || seen[name] {
			t.Errorf("%q: %d bytes, seen before: %v", name, len(name), seen[name])
		}
		seen[name] = true
	}
	for _, name := range []string{"KUBE-6-LOAD-BALANCER-SOURCE-CID", "KUBE-6-NODE-PORT-LOCAL-SCTP-HAS"} {
		if !seen[name] {
			t.Errorf("%s is missing", name)
		}
	}
}

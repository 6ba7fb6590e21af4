package ipvs

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/internal/fwd"
	"github.com/fairlead/fairlead/internal/host/hosttest"
	"github.com/fairlead/fairlead/internal/host/ipset"
	"github.com/fairlead/fairlead/internal/host/xtables/rulesim"
)

// The simulation of sets matches the same packets as the kernel.
func TestKernelSetMatches(t *testing.T) {
	hosttest.Netns(t, "iptables-legacy-restore", "ip")
	for _, a := range []string{"192.0.2.1/32", "192.0.2.2/32"} {
		hosttest.Run(t, "ip", "address", "add", a, "dev", "lo")
	}
	packet := fwd.Packet{Src: netip.MustParseAddr("192.0.2.1"), Dst: netip.MustParseAddrPort("192.0.2.2:9"), Proto: fwd.UDP}

	ctx := context.Background()
	kernel, err := ipset.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer kernel.Close()
	host := rulesim.Host{Local: []netip.Addr{packet.Src, packet.Dst.Addr()}, Sets: make(map[string]*rulesim.Set)}
	entry := func(addr string, proto fwd.Proto, port uint16, third string) ipset.Entry {
		e := ipset.Entry{Addr: netip.MustParseAddr(addr), Proto: uint8(proto), Port: port}
		if third != "" {
			e.Net = netip.MustParsePrefix(third)
		}
		return e
	}
	for name, entries := range map[string][]ipset.Entry{
		"A hash:ip":          {entry("192.0.2.2", 0, 0, "")},
		"B hash:ip":          {entry("192.0.2.1", 0, 0, "")},
		"C hash:ip,port":     {entry("192.0.2.2", fwd.UDP, 9, "")},
		"D hash:ip,port":     {entry("192.0.2.2", fwd.TCP, 9, ""), entry("192.0.2.2", fwd.UDP, 10, "")},
		"E hash:ip,port,net": {entry("192.0.2.2", fwd.UDP, 9, "192.0.2.0/31"), entry("192.0.2.2", fwd.UDP, 9, "10.0.0.0/8")},
		"F hash:ip,port,net": {entry("192.0.2.2", fwd.UDP, 9, "192.0.2.2/32"), entry("192.0.2.2", fwd.UDP, 10, "128.0.0.0/1")},
		"G hash:ip,port,ip":  {entry("192.0.2.2", fwd.UDP, 9, "192.0.2.1/32")},
		"H hash:ip,port,ip":  {entry("192.0.2.2", fwd.UDP, 9, "192.0.2.2/32")},
		"I hash:ip":          nil,
		"J hash:ip,port,net": {entry("192.0.2.2", fwd.UDP, 9, "0.0.0.0/1"), entry("192.0.2.2", fwd.UDP, 9, "128.0.0.0/1")},
	} {
		name, typ, _ := strings.Cut(name, " ")
		set := ipset.Set{Name: name, Type: ipset.Type(typ), MaxElem: ipset.DefaultMaxElem}
		if err := kernel.Create(ctx, set); err != nil {
			t.Fatal(err)
		}
		sim, err := rulesim.NewSet(typ, fwd.IPv4)
		if err != nil {
			t.Fatal(err)
		}
		host.Sets[name] = sim
		for _, e := range entries {
			if failed, err := kernel.Apply(ctx, []ipset.Change{{Set: set, Entry: e}}); err != nil || len(failed) > 0 {
				t.Fatal(err, failed)
			}
			if err := sim.Add(rulesim.Element{Addr: e.Addr, Proto: fwd.Proto(e.Proto), Port: e.Port, Third: e.Net}); err != nil {
				t.Fatal(err)
			}
		}
	}

	// The kernel accepts the two halves of /0 in IPv6 as well.
	six := ipset.Set{Name: "SIX", Type: ipset.HashIPPortNet, IPv6: true, MaxElem: ipset.DefaultMaxElem}
	if err := kernel.Create(ctx, six); err != nil {
		t.Fatal(err)
	}
	all := program{sources: []netip.Prefix{netip.MustParsePrefix("::/0")}}
	halves := all.elements(spot{fwd.TCP, netip.MustParseAddrPort("[2001:db8::1]:80")}, six.Name)
	for _, k := range halves {
		if failed, err := kernel.Apply(ctx, []ipset.Change{{Set: six, Entry: entry("2001:db8::1", k.Proto, k.Addr.Port(), k.Prefix.String())}}); err != nil || len(failed) > 0 {
			t.Errorf("%v: %v %v", k, failed, err)
		}
	}
	if len(halves) != 2 {
		t.Errorf("::/0 is split into %v", halves)
	}

	var matches []string
	for name := range host.Sets {
		for _, dims := range []string{"dst", "src", "dst,dst", "src,dst", "dst,dst,src", "dst,dst,dst", "src,dst,dst"} {
			matches = append(matches, fmt.Sprintf("-m set --match-set %s %s", name, dims), fmt.Sprintf("-m set ! --match-set %s %s", name, dims))
		}
	}
	var text strings.Builder
	text.WriteString("*mangle\n")
	for _, m := range matches {
		fmt.Fprintf(&text, "-A OUTPUT -p udp %s\n", m)
	}
	text.WriteString("COMMIT\n")
	cmd := fmt.Sprintf("iptables-legacy-restore <<'END'\n%sEND\n", text.String())
	hosttest.Run(t, "sh", "-ec", cmd)
	send(t, packet)
	saved := strings.Split(hosttest.Run(t, "iptables-legacy-save", "-c", "-t", "mangle"), "\n")

	seen := make(map[bool]int)
	for _, m := range matches {
		var counted, found bool
		for _, line := range saved {
			if counters, rule, ok := strings.Cut(line, " "); ok && rule == "-A OUTPUT -p udp "+m {
				found, counted = true, !strings.HasPrefix(counters, "[0:")
			}
		}
		if !found {
			t.Errorf("%s is saved otherwise", m)
			continue
		}
		rs, err := rulesim.Parse(fwd.IPv4, "*mangle\n-A OUTPUT -p udp "+m+" -j DROP\nCOMMIT\n")
		if err != nil {
			t.Errorf("%s: %v", m, err)
			continue
		}
		got, err := rs.Run(host, packet)
		if err != nil {
			t.Errorf("%s: %v", m, err)
			continue
		}
		seen[counted]++
		if (got[0].Verdict == fwd.VerdictDrop) != counted {
			t.Errorf("%s: the kernel says %v, the simulation %v", m, counted, !counted)
		}
	}
	if seen[true] < 20 || seen[false] < 20 {
		t.Errorf("the counters tell little: %v", seen)
	}
}

// send sends a datagram without a receiver.
func send(t *testing.T, p fwd.Packet) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: p.Src.As4()}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Sendto(fd, []byte("x"), 0, &unix.SockaddrInet4{Addr: p.Dst.Addr().As4(), Port: int(p.Dst.Port())}); err != nil {
		t.Fatal(err)
	}
}

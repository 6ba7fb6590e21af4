package hosttest

import (
	"net"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/moby/ipvs"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// features are what tests of make test-ipvs use, each tried in a new network namespace.
var features = []struct {
	name string
	try  func(*testing.T)
}{
	{"ip_vs and its schedulers", func(t *testing.T) {
		h, err := ipvs.New("")
		if err != nil {
			t.Fatal(err)
		}
		defer h.Close()
		for i, scheduler := range []string{"rr", "wrr", "lc", "wlc", "sh", "mh", "sed", "nq", "fo"} {
			for _, ip := range []string{"10.96.0.1", "fd00::1"} {
				svc := &ipvs.Service{Address: net.ParseIP(ip), Port: uint16(i + 1), Protocol: unix.IPPROTO_TCP, SchedName: scheduler, AddressFamily: unix.AF_INET, Netmask: 0xffffffff}
				dst := &ipvs.Destination{Address: net.IPv4(10, 0, 0, 1), Port: 80, Weight: 1, AddressFamily: unix.AF_INET}
				if svc.Address.To4() == nil {
					svc.AddressFamily, svc.Netmask = unix.AF_INET6, 128
					dst.AddressFamily, dst.Address = unix.AF_INET6, net.ParseIP("fd00::2")
				}
				if err := h.NewService(svc); err != nil {
					t.Errorf("%s: service %s: %v", scheduler, ip, err)
				} else if err := h.NewDestination(svc, dst); err != nil {
					t.Errorf("%s: destination of %s: %v", scheduler, ip, err)
				}
			}
		}
	}},
	{"links", func(t *testing.T) {
		attrs := func(name string) netlink.LinkAttrs { return netlink.LinkAttrs{Name: name} }
		for _, l := range []netlink.Link{
			&netlink.Dummy{LinkAttrs: attrs("fl-dummy")},
			&netlink.Veth{LinkAttrs: attrs("fl-a"), PeerName: "fl-b"},
			&netlink.Bridge{LinkAttrs: attrs("fl-bridge")},
			&netlink.Iptun{LinkAttrs: attrs("fl-ipip"), Local: net.IPv4(10, 0, 0, 1), Remote: net.IPv4(10, 0, 0, 2)},
			&netlink.Vxlan{LinkAttrs: attrs("fl-vxlan"), VxlanId: 1},
		} {
			if err := netlink.LinkAdd(l); err != nil {
				t.Errorf("%s: %v", l.Type(), err)
			}
		}
	}},
	{"sets", func(t *testing.T) {
		for _, kind := range []string{"hash:ip", "hash:net", "hash:ip,port", "hash:ip,port,ip", "hash:ip,port,net", "hash:net,net", "bitmap:port", "list:set"} {
			name := "fl-" + kind
			if err := netlink.IpsetCreate(name, kind, netlink.IpsetCreateOptions{Family: unix.AF_INET, PortTo: 65535}); err != nil {
				t.Errorf("%s: %v", kind, err)
			}
		}
		match(t, "nat", "PREROUTING", "-m set --match-set fl-hash:ip,port dst,dst -j MARK --set-xmark 0x4000/0x4000")
	}},
	{"matches and targets", func(t *testing.T) {
		for _, rule := range []string{
			"-m ipvs --ipvs --vdir ORIGINAL", "-m mark --mark 0x1/0x1", "-m conntrack --ctstate NEW", "-m addrtype --dst-type LOCAL",
			"-m comment --comment x", "-m statistic --mode random --probability 0.5", "-m recent --name x --rcheck --seconds 10800 --reap",
			"-m multiport -p tcp --dports 1,2", "-p sctp --dport 5", "-m physdev --physdev-is-in", "-m bpf --bytecode 1,6_0_0_65535",
		} {
			match(t, "filter", "FORWARD", rule+" -j ACCEPT")
		}
		match(t, "filter", "FORWARD", "-p udp -j REJECT")
		match(t, "mangle", "PREROUTING", "-j MARK --set-xmark 0x1/0x1")
		match(t, "raw", "PREROUTING", "-p udp -j CT --notrack")
		match(t, "nat", "POSTROUTING", "-j MASQUERADE --random-fully")
	}},
	{"accounting objects", func(t *testing.T) {
		const subsystem, newObject, name = 7, 0, 1 // NFNL_SUBSYS_ACCT, NFNL_MSG_ACCT_NEW, NFACCT_NAME
		req := nl.NewNetlinkRequest(subsystem<<8|newObject, unix.NLM_F_ACK|unix.NLM_F_CREATE)
		req.AddData(&nl.Nfgenmsg{NfgenFamily: unix.AF_UNSPEC, Version: nl.NFNETLINK_V0})
		req.AddData(nl.NewRtAttr(name, nl.ZeroTerminated("fl-acct")))
		if _, err := req.Execute(unix.NETLINK_NETFILTER, 0); err != nil {
			t.Fatal(err)
		}
		match(t, "filter", "FORWARD", "-m nfacct --nfacct-name fl-acct")
	}},
	{"SCTP on loopback", func(t *testing.T) {
		if got := echo(t, unix.IPPROTO_SCTP, [4]byte{127, 0, 0, 1}, [4]byte{127, 0, 0, 1}); got != "hello" {
			t.Errorf("got %q", got)
		}
	}},
	{"conntrack over netlink", func(t *testing.T) {
		Run(t, "conntrack", "-I", "-p", "udp", "-t", "100", "-s", "10.0.0.1", "-d", "10.96.0.10", "--sport", "1000", "--dport", "53")
		if flows, err := netlink.ConntrackTableList(netlink.ConntrackTable, unix.AF_INET); err != nil || len(flows) != 1 {
			t.Errorf("got %v, %v", flows, err)
		}
	}},
	{"forwarding and masquerading", forwarding},
	{"virtual server", func(t *testing.T) {
		Run(t, "ip", "link", "add", "kube-ipvs0", "type", "dummy")
		Run(t, "ip", "addr", "add", "10.96.0.1/32", "dev", "kube-ipvs0")
		Run(t, "ip", "addr", "add", "10.0.0.1/32", "dev", "lo")
		h, err := ipvs.New("")
		if err != nil {
			t.Fatal(err)
		}
		defer h.Close()
		for _, protocol := range []uint16{unix.IPPROTO_TCP, unix.IPPROTO_SCTP} {
			svc := &ipvs.Service{Address: net.IPv4(10, 96, 0, 1).To4(), Port: echoPort, Protocol: protocol, SchedName: "rr", AddressFamily: unix.AF_INET, Netmask: 0xffffffff}
			if err := h.NewService(svc); err != nil {
				t.Fatal(err)
			}
			if err := h.NewDestination(svc, &ipvs.Destination{Address: net.IPv4(10, 0, 0, 1).To4(), Port: echoPort, Weight: 1, AddressFamily: unix.AF_INET}); err != nil {
				t.Fatal(err)
			}
			if got := echo(t, int(protocol), [4]byte{10, 0, 0, 1}, [4]byte{10, 96, 0, 1}); got != "hello" {
				t.Errorf("protocol %d: got %q", protocol, got)
			}
		}
	}},
}

// TestFeatures: the kernel of make test-ipvs has the features that its tests use.
func TestFeatures(t *testing.T) {
	Need(t, IPVS, Dummy, SCTP)
	for _, f := range features {
		t.Run(f.name, func(t *testing.T) {
			Netns(t, "ip", "iptables-legacy", "ip6tables-legacy", "conntrack")
			f.try(t)
		})
	}
}

// match adds a rule in both families. An underscore is a space inside a word.
func match(t *testing.T, table, chain, rule string) {
	t.Helper()
	for _, command := range []string{"iptables-legacy", "ip6tables-legacy"} {
		if strings.Contains(rule, "--match-set") && command == "ip6tables-legacy" {
			continue // a set has one family
		}
		args := []string{"-t", table, "-A", chain}
		for _, word := range strings.Fields(rule) {
			args = append(args, strings.ReplaceAll(word, "_", " "))
		}
		if err := run(command, args...); err != nil {
			t.Error(err)
		}
	}
}

// echoPort is the port of echo.
const echoPort = 7

// echo connects to an address, and returns what a listener on another address received.
func echo(t *testing.T, protocol int, on, to [4]byte) string {
	t.Helper()
	socket := func() int {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, protocol)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Close(fd) })
		for _, option := range []int{unix.SO_RCVTIMEO, unix.SO_SNDTIMEO} {
			if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, option, &unix.Timeval{Sec: 10}); err != nil {
				t.Fatal(err)
			}
		}
		return fd
	}
	listener, client := socket(), socket()
	if err := unix.Bind(listener, &unix.SockaddrInet4{Addr: on, Port: echoPort}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(listener, 1); err != nil {
		t.Fatal(err)
	}
	if err := unix.Connect(client, &unix.SockaddrInet4{Addr: to, Port: echoPort}); err != nil {
		t.Fatalf("connect to %v: %v", to, err)
	}
	if _, err := unix.Write(client, []byte("hello")); err != nil {
		t.Fatal(err)
	}
	server, _, err := unix.Accept4(listener, unix.SOCK_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(server)
	buf := make([]byte, 16)
	n, err := unix.Read(server, buf)
	if err != nil {
		t.Fatal(err)
	}
	return string(buf[:n])
}

// forwarding sends packets from one namespace through that of the test to another, with
// masquerading, in both families.
func forwarding(t *testing.T) {
	for _, name := range []string{"/proc/sys/net/ipv4/ip_forward", "/proc/sys/net/ipv6/conf/all/forwarding"} {
		if err := os.WriteFile(name, []byte("1"), 0); err != nil {
			t.Fatal(err)
		}
	}
	var in [2]func(func() error) // the client's namespace and the server's
	for i, n := range []string{"1", "2"} {
		var file *os.File
		in[i], file = neighbor(t)
		link := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "fl-" + n}, PeerName: "eth0", PeerNamespace: netlink.NsFd(file.Fd())}
		if err := netlink.LinkAdd(link); err != nil {
			t.Fatal(err)
		}
		Run(t, "ip", "addr", "add", "10.0."+n+".1/24", "dev", "fl-"+n)
		Run(t, "ip", "addr", "add", "fd00:"+n+"::1/64", "dev", "fl-"+n, "nodad")
		Run(t, "ip", "link", "set", "fl-"+n, "up")
		in[i](func() error {
			for _, args := range []string{
				"addr add 10.0." + n + ".2/24 dev eth0", "addr add fd00:" + n + "::2/64 dev eth0 nodad", "link set eth0 up",
				"route add default via 10.0." + n + ".1", "route add default via fd00:" + n + "::1",
			} {
				if err := run("ip", strings.Fields(args)...); err != nil {
					return err
				}
			}
			return nil
		})
	}
	match(t, "nat", "POSTROUTING", "-o fl-2 -j MASQUERADE --random-fully")
	for _, tt := range []struct{ server, router string }{{"10.0.2.2", "10.0.2.1"}, {"fd00:2::2", "fd00:2::1"}} {
		var listener net.Listener
		in[1](func() (err error) {
			listener, err = net.Listen("tcp", net.JoinHostPort(tt.server, "80"))
			return err
		})
		defer listener.Close()
		in[0](func() error {
			c, err := net.DialTimeout("tcp", listener.Addr().String(), 10*time.Second)
			if err == nil {
				defer c.Close()
			}
			return err
		})
		c, err := listener.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if host, _, _ := net.SplitHostPort(c.RemoteAddr().String()); host != tt.router {
			t.Errorf("the server saw %s, want %s", host, tt.router)
		}
	}
}

// neighbor creates another network namespace until the end of the test, and returns a function that
// runs others in it.
func neighbor(t *testing.T) (in func(func() error), namespace *os.File) {
	t.Helper()
	in = func(f func() error) {
		t.Helper()
		done := make(chan error)
		go func() {
			runtime.LockOSThread()
			err := unix.Unshare(unix.CLONE_NEWNET)
			if namespace != nil {
				err = unix.Setns(int(namespace.Fd()), unix.CLONE_NEWNET)
			}
			if err == nil {
				err = f()
			}
			done <- err
		}()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	in(func() (err error) {
		namespace, err = os.Open("/proc/thread-self/ns/net")
		return err
	})
	t.Cleanup(func() { namespace.Close() })
	return in, namespace
}

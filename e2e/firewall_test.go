package e2e

import (
	"bufio"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/fairlead/fairlead/e2e/lab"
	"github.com/fairlead/fairlead/e2e/probe"
	"github.com/fairlead/fairlead/internal/host/hosttest"
)

// TestForwardPolicyDrop: on a host that drops forwarded packets, packets of a flow without a reply
// are accepted after the first one: all datagrams of a flow in one direction, and the second SYN of
// a connection whose first one was lost. What other programs translate is not accepted. Mode
// nftables leaves FORWARD to the host.
func TestForwardPolicyDrop(t *testing.T) {
	onPlanes(t, "iptables ipvs", func(t *testing.T, s *stage) {
		client, pod := s.lab.Client, s.lab.Nodes[1].Pods[0].Host
		syslog, web := service{number: 14, proto: "UDP", endpoints: []lab.Host{pod}}, service{number: 15, endpoints: []lab.Host{pod}}
		s.write(t, nil, syslog, web)
		s.start(t)
		s.serve(t, pod, "tcp")
		s.iptables(t, "-P FORWARD DROP")
		const foreign = 7777
		for f, tool := range []string{"iptables-", "ip6tables-"} {
			at := netip.AddrPortFrom(pod.Addrs[f], podPorts[0])
			s.onNode(t, fmt.Sprintf("%s%s -w -t nat -A PREROUTING -p tcp --dport %d -j DNAT --to-destination %s", tool, s.userland, foreign, at))
			s.onNode(t, fmt.Sprintf("%s%s -w -t nat -A POSTROUTING -p tcp -d %s -j MASQUERADE", tool, s.userland, at.Addr()))
			for _, svc := range []netip.Addr{syslog.balancer(f), syslog.clusterIP(f), s.lab.Nodes[0].Addrs[f]} {
				checkOneWay(t, client, pod, at, syslog.target(svc).Dst)
			}
			lose := strings.Fields(fmt.Sprintf("%s%s -w -I INPUT -p tcp --syn --dport %d -m statistic --mode nth --every 1000000 --packet 0 -j DROP", tool, s.userland, podPorts[0]))
			_, err := pod.Run(t.Context(), lose[0], lose[1:]...)
			must(t, err)
			if r := probe.NewDialer(client).Dial(t.Context(), web.target(web.balancer(f))); r.Verdict != probe.Answered {
				t.Errorf("a connection whose first SYN was lost: %s", r)
			}
			to := probe.Target{Proto: "tcp", Dst: netip.AddrPortFrom(s.lab.Nodes[0].Addrs[f], foreign)}
			if r := probe.NewDialer(client).Dial(t.Context(), to.Briefly()); r.Verdict != probe.Lost {
				t.Errorf("what another program translates is let through: %s", r)
			}
		}
	})
}

// checkOneWay sends datagrams without replies. All of them have to arrive.
func checkOneWay(t *testing.T, from, pod lab.Host, at, to netip.AddrPort) {
	t.Helper()
	var in, out *net.UDPConn
	must(t, pod.Do(func() (err error) {
		in, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
		return err
	}))
	defer in.Close()
	must(t, from.Do(func() (err error) {
		out, err = net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to))
		return err
	}))
	defer out.Close()
	const all = 4
	for i := range all {
		_, err := out.Write([]byte{byte(i)})
		must(t, err)
	}
	must(t, in.SetReadDeadline(time.Now().Add(hosttest.Patience)))
	for i := range all {
		if _, err := in.Read(make([]byte, 1)); err != nil {
			t.Errorf("to %s: %d of %d datagrams arrive: %v", to, i, all, err)
			return
		}
	}
}

// TestForeignMarks: WireGuard's wg-quick marks packets with its port, 51820, which contains the
// masquerade bit. Such packets that are not for a Service keep source address and port, and a host
// that drops forwarded packets drops them.
func TestForeignMarks(t *testing.T) {
	onPlanes(t, "iptables nftables ipvs", func(t *testing.T, s *stage) {
		node := s.lab.Nodes[0]
		pod := node.Pods[0].Host
		web := service{number: 10, endpoints: []lab.Host{pod}}
		s.write(t, nil, web)
		s.start(t)
		s.serve(t, pod, "tcp")
		for _, chain := range []string{"PREROUTING", "OUTPUT"} {
			s.iptables(t, fmt.Sprintf("-t mangle -A %s -p tcp --dport %d -j MARK --set-xmark 51820", chain, podPorts[0]))
		}
		keeps := func(from lab.Host, source netip.AddrPort, to netip.AddrPort) {
			t.Helper()
			r := probe.NewDialer(from).Dial(t.Context(), probe.Target{Proto: "tcp", Src: source, Dst: to})
			if r.Verdict != probe.Answered || r.Saw != source {
				t.Errorf("from %s, marked: %s, saw %s", source, r, r.Saw)
			}
		}
		for f := range families {
			to := netip.AddrPortFrom(pod.Addrs[f], podPorts[0])
			keeps(s.lab.Client, netip.AddrPortFrom(s.lab.Client.Addrs[f], 12345), to)
			keeps(node.Host, netip.AddrPortFrom(node.Addrs[f], 12345), to)
			r := probe.NewDialer(s.lab.Client).Dial(t.Context(), web.target(web.balancer(f)))
			if r.Verdict != probe.Answered || r.Saw.Addr() == s.lab.Client.Addrs[f] {
				t.Errorf("to the Service: %s, saw %s; want it masqueraded", r, r.Saw)
			}
		}
		if s.mode == "nftables" {
			return
		}
		s.iptables(t, "-P FORWARD DROP")
		for f := range families {
			to := probe.Target{Proto: "tcp", Dst: netip.AddrPortFrom(pod.Addrs[f], podPorts[0])}
			if r := probe.NewDialer(s.lab.Client).Dial(t.Context(), to.Briefly()); r.Verdict != probe.Lost {
				t.Errorf("marked and for no Service, on a host that forwards nothing: %s", r)
			}
		}
	})
}

// TestHealthChecksPastAFirewall: on a host that drops incoming and outgoing packets, a health-check
// node port is reachable, including all packets after the first. Mode nftables leaves this to the
// host.
func TestHealthChecksPastAFirewall(t *testing.T) {
	onPlanes(t, "iptables ipvs", func(t *testing.T, s *stage) {
		node := s.lab.Nodes[0]
		web := service{number: 11, local: true, endpoints: []lab.Host{node.Pods[0].Host}}
		s.write(t, nil, web)
		s.start(t)
		s.iptables(t, "-P INPUT DROP")
		s.iptables(t, "-P OUTPUT DROP")
		for f := range families {
			at := netip.AddrPortFrom(node.Addrs[f], web.healthPort())
			var c net.Conn
			err := s.lab.Client.Do(func() (err error) {
				c, err = net.DialTimeout("tcp", at.String(), hosttest.Patience)
				return err
			})
			if err != nil {
				t.Errorf("%s: %v", at, err)
				continue
			}
			defer c.Close()
			must(t, c.SetDeadline(time.Now().Add(hosttest.Patience)))
			_, err = fmt.Fprintf(c, "GET / HTTP/1.0\r\n\r\n")
			must(t, err)
			if line, err := bufio.NewReader(c).ReadString('\n'); !strings.Contains(line, " 200 ") {
				t.Errorf("%s: %q, %v", at, line, err)
			}
		}
		// Nothing else is accepted.
		to := probe.Target{Proto: "tcp", Dst: netip.AddrPortFrom(node.Addrs[0], web.healthPort()+1)}
		if r := probe.NewDialer(s.lab.Client).Dial(t.Context(), to.Briefly()); r.Verdict != probe.Lost {
			t.Errorf("another port: %s", r)
		}
	})
}

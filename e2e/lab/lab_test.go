package lab_test

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/fairlead/fairlead/e2e/lab"
	"github.com/fairlead/fairlead/e2e/probe"
)

func TestReachability(t *testing.T) {
	start := time.Now()
	l := lab.ForTest(t, 2, 3)
	t.Logf("made in %v", time.Since(start))

	hosts := []lab.Host{l.Client, l.Nodes[0].Host, l.Nodes[1].Host}
	for _, p := range l.Pods() {
		hosts = append(hosts, p.Host)
	}
	protos := []string{"tcp", "udp", "sctp"}
	for _, h := range hosts {
		s, err := probe.Serve(h, h.Label, h.Addrs[:], protos, []uint16{80})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = s.Close() })
	}

	for _, from := range hosts {
		d := probe.NewDialer(from)
		for f := range 2 {
			var targets []probe.Target
			var want []string
			for _, to := range hosts {
				for _, proto := range protos {
					targets = append(targets, probe.Target{Proto: proto, Dst: netip.AddrPortFrom(to.Addrs[f], 80)})
					// A host dials from its first address; the kernel dials a host's own address
					// from that.
					want = append(want, fmt.Sprintf("answered by %s at %s:80, which saw %s", to.Label, bracket(to.Addrs[f]), bracket(from.Addrs[f])))
				}
			}
			for i, r := range d.DialAll(t.Context(), targets, 8) {
				if got := r.String(); !strings.HasPrefix(got, want[i]+":") {
					t.Errorf("from %s: %s: got %q, want %q", from.Label, targets[i], got, want[i])
				}
			}
		}
	}
}

func bracket(a netip.Addr) string {
	if a.Is6() {
		return "[" + a.String() + "]"
	}
	return a.String()
}

func TestUnansweredAndRefused(t *testing.T) {
	l := lab.ForTest(t, 2, 1)
	for _, from := range []lab.Host{l.Client, l.Nodes[0].Host, l.Nodes[1].Pods[0].Host} {
		var targets []probe.Target
		var want []probe.Verdict
		for f := range 2 {
			for _, proto := range []string{"tcp", "udp"} {
				add := func(a netip.Addr, v probe.Verdict) {
					to := probe.Target{Proto: proto, Dst: netip.AddrPortFrom(a, 81)}
					if v == probe.Lost {
						to = to.Briefly()
					}
					targets = append(targets, to)
					want = append(want, v)
				}
				add(lab.ServiceCIDRs[f].Addr().Next(), probe.Lost)
				add(lab.BalancerCIDRs[f].Addr().Next(), probe.Lost)
				// Nobody serves this port of the pod.
				add(l.Nodes[0].Pods[0].Addrs[f], probe.Refused)
			}
		}
		for i, r := range probe.NewDialer(from).DialAll(t.Context(), targets, len(targets)) {
			if r.Verdict != want[i] {
				t.Errorf("from %s: %s: %s, want %s", from.Label, targets[i], r, want[i])
			}
		}
	}
}

// Several rejects in one moment are all seen, for every protocol.
func TestRejectsAreNotLimited(t *testing.T) {
	l := lab.ForTest(t, 1, 1)
	vip := [2]netip.Addr{lab.ServiceCIDRs[0].Addr().Next(), lab.ServiceCIDRs[1].Addr().Next()}
	for f, tool := range []string{"iptables-nft", "ip6tables-nft"} {
		if _, err := l.Nodes[0].Run(t.Context(), tool, "-A", "FORWARD", "-d", vip[f].String(), "-j", "REJECT"); err != nil {
			t.Fatal(err)
		}
		var targets []probe.Target
		for range 40 {
			for _, proto := range []string{"tcp", "udp", "sctp"} {
				targets = append(targets, probe.Target{Proto: proto, Dst: netip.AddrPortFrom(vip[f], 80)})
			}
		}
		if _, err := l.Nodes[0].Run(t.Context(), tool, "-A", "OUTPUT", "-d", vip[f].String(), "-j", "REJECT"); err != nil {
			t.Fatal(err)
		}
		for i, r := range probe.NewDialer(l.Nodes[0]).DialAll(t.Context(), targets[:3], 1) {
			if r.Verdict != probe.Refused {
				t.Errorf("from the node itself: %s: %s, want refused", targets[i], r)
			}
		}
		d := probe.NewDialer(l.Nodes[0].Pods[0])
		for i, r := range d.DialAll(t.Context(), targets, 16) {
			if r.Verdict != probe.Refused {
				t.Errorf("%s: %s, want refused", targets[i], r)
			}
		}
	}
}

func TestCommandRunsInsideAndCloseRemovesAll(t *testing.T) {
	lab.RequireKernel(t)
	l, err := lab.New(1, 1)
	if err != nil {
		t.Fatal(err)
	}
	name := l.Nodes[0].Name
	out, err := l.Nodes[0].Run(context.Background(), "ip", "-o", "addr", "show", "dev", "eth0")
	if err != nil || !strings.Contains(out, l.Nodes[0].Addrs[0].String()) {
		t.Errorf("ip addr: %v, %q", err, out)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat("/run/netns/" + name); !os.IsNotExist(err) {
		t.Errorf("after Close: %s: %v", name, err)
	}
}

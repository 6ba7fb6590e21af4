package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/fairlead/fairlead/e2e/daemon"
	"github.com/fairlead/fairlead/e2e/lab"
	"github.com/fairlead/fairlead/e2e/probe"
	"github.com/fairlead/fairlead/internal/host/hosttest"
	"github.com/fairlead/fairlead/internal/host/ipvs"
)

// TestDriftIsNoticed: changes by other programs to rules, sets, virtual servers and addresses are
// repaired although the next verification is an hour away. The log says what was changed and, where
// the kernel reports it, by which process.
func TestDriftIsNoticed(t *testing.T) {
	onPlanes(t, "iptables nftables ipvs", func(t *testing.T, s *stage) {
		pod := s.lab.Nodes[1].Pods[0]
		svc := service{number: 41, endpoints: []lab.Host{pod.Host}}
		s.serve(t, pod.Host, "tcp")
		s.write(t, nil, svc)
		s.start(t, "--iptables-sync-period=1h", "--ipvs-sync-period=1h", "--healthz-bind-address=127.0.0.1:10256")
		d := s.nodes[0]
		awaitReady(t, s.lab.Nodes[0])
		for _, damage := range s.damages(svc) {
			t.Run(damage.name, func(t *testing.T) {
				before := len(repairs(d))
				damage.do(t)
				done := time.Now()
				line := awaitRepair(t, d, before)
				if damage.by != "" && !strings.Contains(line, `by="`+damage.by) {
					t.Errorf("the log does not name %s: %s", damage.by, line)
				}
				t.Logf("repaired after %v", time.Since(done).Round(time.Millisecond))
				for f := range families {
					to := svc.target(svc.clusterIP(f))
					deadline := time.Now().Add(hosttest.Patience)
					for {
						r := probe.NewDialer(s.lab.Nodes[0].Pods[0]).Dial(t.Context(), to)
						if r.Verdict == probe.Answered {
							break
						}
						if time.Now().After(deadline) {
							t.Fatalf("%s is not served again: %s", to, r)
						}
					}
				}
			})
		}
	})
}

// damage is a change by another program on the first node.
type damage struct {
	name string
	do   func(*testing.T)
	// by is a prefix of the name of the process that made the change, empty if the kernel does not
	// report it.
	by string
}

func (s *stage) damages(svc service) []damage {
	run := func(by string, lines ...string) damage {
		return damage{strings.Join(lines, "; "), func(t *testing.T) {
			for _, line := range lines {
				s.onNode(t, line)
			}
		}, by}
	}
	var out []damage
	by := ""
	if s.userland == "nft" {
		by = "iptables"
	}
	if s.mode != "nftables" {
		tool := "iptables-" + s.userland + " -w "
		out = append(out,
			run(by, tool+"-t nat -F"),
			run(by, tool+"-t nat -F FAIRLEAD-SERVICES"),
			run(by, tool+"-t nat -D PREROUTING -j FAIRLEAD-SERVICES"),
			run(by, tool+"-t filter -F FAIRLEAD-FORWARD"))
	}
	if s.userland == "nft" {
		out = append(out, run("nft", "nft flush ruleset"))
	}
	if s.mode == "nftables" {
		out = append(out, run("nft", "nft flush map ip fairlead endpoints"), run("nft", "nft delete table ip6 fairlead"))
	}
	if s.mode == "ipvs" {
		out = append(out,
			run("", "ipset flush FAIRLEAD-4-FRONTENDS"),
			damage{"delete a virtual server", func(t *testing.T) {
				s.ipvs(t, ipvs.Op{Verb: ipvs.DelServer, Server: ipvs.VirtualServer{Protocol: 6, Addr: netip.AddrPortFrom(svc.clusterIP(0), 80)}})
			}, ""})
		if s.name == "ipvs-address" {
			out = append(out, run("", fmt.Sprintf("ip addr del %s/32 dev kube-ipvs0", svc.clusterIP(0))))
		}
	}
	return out
}

// ipvs changes virtual servers of the first node.
func (s *stage) ipvs(t *testing.T, ops ...ipvs.Op) {
	t.Helper()
	must(t, s.lab.Nodes[0].Do(func() error {
		k, err := ipvs.Open(context.Background())
		if err != nil {
			return err
		}
		defer k.Close()
		for _, err := range k.Apply(context.Background(), ops) {
			if err != nil {
				return err
			}
		}
		return nil
	}))
}

// awaitReady returns when a daemon has verified what it wrote.
func awaitReady(t *testing.T, n *lab.Node) {
	t.Helper()
	at := netip.MustParseAddrPort("127.0.0.1:10256")
	for deadline := time.Now().Add(hosttest.Patience); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if r, err := fetch(t.Context(), n.Host, at, "/readyz", ""); err == nil && r.code == 200 {
			return
		}
	}
	t.Fatal("never ready")
}

// repairs returns the log lines about drift.
func repairs(d *daemon.Daemon) (out []string) {
	for line := range strings.Lines(d.Log()) {
		if strings.Contains(line, `msg="repaired drift"`) {
			out = append(out, line)
		}
	}
	return out
}

// awaitRepair returns the first log line about drift after the given number of lines.
func awaitRepair(t *testing.T, d *daemon.Daemon, after int) string {
	t.Helper()
	for deadline := time.Now().Add(hosttest.Patience); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if lines := repairs(d); len(lines) > after {
			return lines[after]
		}
	}
	t.Fatal("nothing was repaired")
	return ""
}

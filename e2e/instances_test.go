package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/fairlead/fairlead/e2e/daemon"
	"github.com/fairlead/fairlead/e2e/probe"
	"github.com/fairlead/fairlead/internal/host/hosttest"
	"github.com/fairlead/fairlead/internal/instance"
)

// secondName is the --service-proxy-name of the second instance.
const secondName = "two"

// instancePorts are the ports of the health and metrics servers, without and with a name.
var instancePorts = [2][2]int{{10256, 10249}, {10266, 10259}}

// pair are the flags of two instances, the second of which has a name.
type pair [2][]string

func mode(m string, more ...string) []string { return append([]string{"--proxy-mode=" + m}, more...) }

func (p pair) String() string {
	name := func(flags []string) string {
		var words []string
		for _, f := range flags {
			_, value, _ := strings.Cut(f, "=")
			words = append(words, value)
		}
		return strings.Join(words, "-")
	}
	return name(p[0]) + " and " + name(p[1])
}

func TestInstances(t *testing.T) {
	s := newStartup(t, hosttest.NFTables)
	for _, first := range []string{"iptables", "nftables"} {
		for _, second := range []string{"iptables", "nftables"} {
			s.twoInstances(t, pair{mode(first), mode(second)})
		}
	}
	t.Run("one waits for the other of its name", s.standby)
}

func TestInstancesIPVS(t *testing.T) {
	s := newStartup(t, hosttest.IPVS, hosttest.Dummy)
	must(t, daemon.Hint(t.Context(), s.node, "legacy")) // user-mode Linux has no other userland
	for _, p := range []pair{
		{mode("ipvs"), mode("ipvs")}, {mode("ipvs", "--ipvs-vip=route"), mode("ipvs", "--ipvs-vip=route")}, {mode("ipvs", "--ipvs-vip=mark"), mode("ipvs", "--ipvs-vip=mark")},
		{mode("ipvs", "--ipvs-vip=mark"), mode("ipvs")}, {mode("iptables"), mode("ipvs")}, {mode("ipvs", "--ipvs-vip=route"), mode("iptables")},
	} {
		s.twoInstances(t, p)
	}
}

// TestInstancesNFTablesAndIPVS needs a kernel with both.
func TestInstancesNFTablesAndIPVS(t *testing.T) {
	s := newStartup(t, hosttest.IPVS, hosttest.Dummy, hosttest.NFTables)
	s.twoInstances(t, pair{mode("nftables"), mode("ipvs")})
	s.twoInstances(t, pair{mode("ipvs", "--ipvs-vip=route"), mode("nftables")})
}

// instance starts a daemon, 0 for the one without a name.
func (s *startup) instance(t *testing.T, i int, flags ...string) *daemon.Daemon {
	t.Helper()
	flags = append(slices.Clone(flags), "--cluster-cidr="+s.node.PodCIDRs[0].String()+","+s.node.PodCIDRs[1].String(), "--iptables-sync-period=300ms", "--ipvs-sync-period=300ms",
		fmt.Sprintf("--healthz-bind-address=127.0.0.1:%d", instancePorts[i][0]), fmt.Sprintf("--metrics-bind-address=127.0.0.1:%d", instancePorts[i][1]))
	if i > 0 {
		flags = append(flags, "--service-proxy-name="+secondName)
	}
	return s.run(t, flags...)
}

// scrape returns a metric of an instance, summed over its labels.
func (s *startup) scrape(t *testing.T, i int, metric string) float64 {
	t.Helper()
	_, text := get(t, s.node.Host, netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(instancePorts[i][1])), "/metrics")
	sum := 0.0
	for _, m := range regexp.MustCompile(`(?m)^`+metric+`(?:\{.*\})? (.*)$`).FindAllStringSubmatch(text, -1) {
		n, err := strconv.ParseFloat(m[1], 64)
		must(t, err)
		sum += n
	}
	return sum
}

// looks is how often each check for a Service is repeated.
const looks = 30

// twoInstances runs two daemons that serve their Services all the time, and removes one after the
// other.
func (s *startup) twoInstances(t *testing.T, p pair) {
	t.Run(p.String(), func(t *testing.T) {
		labelled := func(svc *corev1.Service) {
			metav1.SetMetaDataLabel(&svc.ObjectMeta, "service.kubernetes.io/service-proxy-name", secondName)
		}
		nodePort := balanced(90, corev1.ServiceExternalTrafficPolicyCluster)
		served := [2]*corev1.Service{s.service(t, "plain", nodePort), s.service(t, "labelled", balanced(91, corev1.ServiceExternalTrafficPolicyCluster), labelled)}
		empty := [2]*corev1.Service{s.service(t, "plain-empty"), s.service(t, "labelled-empty", labelled)}
		for _, svc := range served {
			s.endpoints(t, svc, ready("node1-p1"))
		}
		var d [2]*daemon.Daemon
		start := func(i int) {
			d[i] = s.instance(t, i, p[i]...)
			said(t, d[i], "msg=synced")
		}
		// answered checks the Services of one instance.
		answered := func(i, times int, when string) {
			t.Helper()
			for _, from := range []path{{from: "node1-p2", to: "cluster"}, {from: "client", to: "node1"}, {from: "node1", to: "cluster"}} {
				for f := range families {
					targets := slices.Repeat([]probe.Target{s.target(served[i], from, f)}, times)
					for n := range targets {
						if from.from != "node1" {
							targets[n].Src = s.freshPort(f)
						}
					}
					for _, r := range s.dialers[from.from].DialAll(t.Context(), targets, 1) {
						if r.Verdict != probe.Answered || r.Server != "node1-p1" {
							t.Errorf("%s: Service %s from %s to %s: %s, want an answer of node1-p1", when, served[i].Name, from.from, from.to, r)
						}
					}
				}
			}
			for f := range families {
				to := s.target(empty[i], path{to: "cluster"}, f)
				if r := s.dialers["node1-p2"].Dial(t.Context(), to); r.Verdict != probe.Refused {
					t.Errorf("%s: Service %s without endpoints: %s, want it refused", when, empty[i].Name, r)
				}
			}
		}
		settled := func(i int) {
			t.Helper()
			for f := range families {
				ctx, cancel := context.WithTimeout(t.Context(), settleTimeout)
				_, err := s.await(ctx, "node1-p2", s.target(served[i], path{to: "cluster"}, f).Briefly(), func(r probe.Result) bool { return r.Verdict == probe.Answered })
				cancel()
				if err != nil {
					t.Fatalf("%v\n%s", err, d[i].Log())
				}
			}
		}

		start(0)
		settled(0)
		if slices.Equal(p[0], mode("nftables")) { // alone it drops what is no Service's for it, so that it must stop to
			for f := range families {
				ctx, cancel := context.WithTimeout(t.Context(), settleTimeout)
				_, err := s.await(ctx, "node1-p2", s.target(served[1], path{to: "cluster"}, f).Briefly(), func(r probe.Result) bool { return r.Verdict == probe.Lost })
				cancel()
				must(t, err)
			}
		}
		start(1)
		settled(1)
		said(t, d[0], "another instance of fairlead works on this node")
		settled(0)
		// Both write and verify all the time.
		for n := range 3 {
			for i := range d {
				answered(i, looks/3, fmt.Sprintf("look %d", n))
			}
			for i := range d {
				must(t, s.restartEndpoint(t, served[i]))
			}
		}
		mark := time.Now()
		for i := range d {
			for end := mark.Add(hosttest.Patience); s.scrape(t, i, "fairlead_last_verified_timestamp_seconds") < float64(mark.UnixNano())/1e9 && time.Now().Before(end); {
				time.Sleep(20 * time.Millisecond)
			}
			if n := s.scrape(t, i, "fairlead_drifted_objects_total"); n != 0 || strings.Contains(d[i].Log(), "repaired drift") {
				t.Errorf("instance %d repaired %v objects, which the other wrote:\n%s", i, n, d[i].Log())
			}
		}

		// A restart keeps the Services of both.
		for i := range d {
			must(t, d[i].Stop())
			answered(0, 2, "while one does not run")
			answered(1, 2, "while one does not run")
			start(i)
			settled(i)
			answered(0, 2, "after a restart")
			answered(1, 2, "after a restart")
		}

		// The clean-up removes what no running daemon owns, and names what it keeps.
		said, err := s.node.Run(t.Context(), s.binary, "cleanup")
		if err == nil || !strings.Contains(fmt.Sprint(said, err), "stop it first") {
			t.Errorf("cleanup while both run: %v\n%s", err, said)
		}
		must(t, d[1].Stop())
		if _, err := s.node.Run(t.Context(), s.binary, "cleanup", "--service-proxy-name="+secondName); err != nil {
			t.Error(err)
		}
		answered(0, looks/3, "after clean-up of the other")
		if n := s.scrape(t, 0, "fairlead_drifted_objects_total"); n != 0 {
			t.Errorf("clean-up of the other took %v objects away:\n%s", n, d[0].Log())
		}
		s.nothingOf(t, instance.Of(secondName))

		start(1)
		settled(1)
		must(t, d[0].Stop())
		if said, err := s.node.Run(t.Context(), s.binary, "cleanup"); err == nil || !strings.Contains(fmt.Sprint(said, err), instance.Of(secondName).Table()) {
			t.Errorf("cleanup while the second runs: %v\n%s", err, said)
		}
		s.nothingOf(t, 0)
		answered(1, looks/3, "after clean-up of the one without a name")
		must(t, d[1].Stop())
		if said, err := s.node.Run(t.Context(), s.binary, "cleanup"); err != nil {
			t.Errorf("cleanup of all: %v\n%s", err, said)
		}
		s.nothingOf(t, instance.Of(secondName))
	})
}

// restartEndpoint removes the endpoint of a Service, adds it again, and waits until it is served.
func (s *startup) restartEndpoint(t *testing.T, svc *corev1.Service) error {
	t.Helper()
	for _, by := range []string{"node1-p2", "node1-p1"} {
		s.endpoints(t, svc, ready(by))
		for f := range families {
			ctx, cancel := context.WithTimeout(t.Context(), settleTimeout)
			_, err := s.await(ctx, "client", s.target(svc, path{to: "node1"}, f).Briefly(), func(r probe.Result) bool { return r.Server == by })
			cancel()
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// nothingOf checks that the node has nothing of an instance.
func (s *startup) nothingOf(t *testing.T, id instance.ID) {
	t.Helper()
	commands := [][]string{{"ip", "link"}, {"ip", "route", "show", "table", "all"}, {"ip", "-6", "route", "show", "table", "all"}, {"ip", "rule"}, {"ip", "-6", "rule"}, {"ipset", "list", "-name"}}
	for _, f := range []string{"iptables", "ip6tables"} {
		for _, userland := range []string{"legacy", "nft"} {
			commands = append(commands, []string{f + "-" + userland + "-save"})
		}
	}
	commands = append(commands, []string{"nft", "list", "tables"})
	number := fmt.Sprint(id.Routing())
	if id == 0 {
		number = "proto 102"
	}
	for _, command := range commands {
		out, err := s.node.Run(t.Context(), command[0], command[1:]...)
		if err != nil {
			continue // the kernel has none of it
		}
		for line := range strings.Lines(out) {
			words := strings.Fields(line)
			if strings.Contains(line, id.Prefix()) || slices.Contains(words, id.Table()) || strings.Contains(line, " "+id.Device()+":") || strings.Contains(line, number) {
				t.Errorf("%s has of instance %s: %s", command[0], id, line)
			}
		}
	}
}

// standby starts a second daemon of the same instance: it waits, reports this, and takes over.
func (s *startup) standby(t *testing.T) {
	svc := s.service(t, "guarded")
	s.endpoints(t, svc, ready("node1-p1"))
	by := func(server string) {
		t.Helper()
		for f := range families {
			ctx, cancel := context.WithTimeout(t.Context(), settleTimeout)
			_, err := s.await(ctx, "node1-p2", s.target(svc, path{to: "cluster"}, f).Briefly(), func(r probe.Result) bool { return r.Server == server })
			cancel()
			must(t, err)
		}
	}
	cidrs := "--cluster-cidr=" + s.node.PodCIDRs[0].String() + "," + s.node.PodCIDRs[1].String()
	first := s.run(t, cidrs, "--proxy-mode=iptables")
	by("node1-p1")
	// With the same ports, as in a rolling update, and with others, where its own health can be
	// requested.
	other := []string{cidrs, "--proxy-mode=nftables", "--healthz-bind-address=127.0.0.1:10266", "--metrics-bind-address=127.0.0.1:10259"}
	second := s.run(t, other...)
	said(t, second, "another fairlead of this instance works on this node")
	said(t, first, "another fairlead of this instance waits for this one to stop")
	s.event(t, "Warning", "Standby")
	health := netip.MustParseAddrPort("127.0.0.1:10266")
	var code int
	var body string
	for end := time.Now().Add(hosttest.Patience); time.Now().Before(end) && code == 0; time.Sleep(10 * time.Millisecond) {
		if r, err := fetch(t.Context(), s.node.Host, health, "/readyz", ""); err == nil {
			code, body = r.code, string(r.body)
		}
	}
	if code != 200 || !strings.Contains(body, "on standby: another fairlead") {
		t.Errorf("/readyz on standby: %d %s", code, body)
	}
	if out, err := s.node.Run(t.Context(), "nft", "list", "tables"); err != nil || strings.Contains(out, "fairlead") {
		t.Errorf("the one on standby wrote: %v\n%s", err, out)
	}
	s.endpoints(t, svc, ready("node1-p2"))
	by("node1-p2") // the first still works
	must(t, first.Kill())
	said(t, second, "the other fairlead has stopped, taking over")
	s.endpoints(t, svc, ready("node1-p1"))
	by("node1-p1")
	if out, err := s.node.Run(t.Context(), "nft", "list", "tables"); err != nil || !strings.Contains(out, "table ip fairlead\n") {
		t.Errorf("the second wrote nothing: %v\n%s", err, out)
	}
	gone := func() bool {
		out, err := s.node.Run(t.Context(), "iptables-save")
		return err == nil && !strings.Contains(out, "FAIRLEAD-")
	}
	for end := time.Now().Add(settleTimeout); !gone(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("the rules of the first one's mode are still there:\n%s", second.Log())
		}
	}
	// A waiting daemon stops on SIGTERM.
	third := s.run(t, cidrs, "--proxy-mode=iptables")
	said(t, third, "another fairlead of this instance works on this node")
	must(t, third.Stop())
	must(t, second.Stop())
	_, err := s.node.Run(t.Context(), s.binary, "cleanup")
	must(t, err)
}

package e2e

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/fairlead/fairlead/e2e/daemon"
	"github.com/fairlead/fairlead/e2e/lab"
	"github.com/fairlead/fairlead/e2e/probe"
	"github.com/fairlead/fairlead/internal/host/hosttest"
)

// plane is a dataplane of a stage.
type plane struct {
	name, mode, userland string
	flags                []string
	needs                []hosttest.Feature
}

// planes are all dataplanes, with both iptables userlands and each --ipvs-vip.
var planes = []plane{
	{"nft", "iptables", "nft", nil, []hosttest.Feature{hosttest.NFTables}},
	{"legacy", "iptables", "legacy", nil, nil},
	{"nftables", "nftables", "nft", nil, []hosttest.Feature{hosttest.NFTables}},
	{"ipvs-address", "ipvs", "legacy", []string{"--ipvs-vip=address"}, []hosttest.Feature{hosttest.IPVS, hosttest.Dummy}},
	{"ipvs-route", "ipvs", "legacy", []string{"--ipvs-vip=route"}, []hosttest.Feature{hosttest.IPVS, hosttest.Dummy}},
	{"ipvs-mark", "ipvs", "legacy", []string{"--ipvs-vip=mark"}, []hosttest.Feature{hosttest.IPVS, hosttest.Dummy}},
}

// onPlanes runs a test on a stage of each dataplane that the kernel supports.
func onPlanes(t *testing.T, modes string, run func(*testing.T, *stage)) {
	lab.RequireKernel(t)
	binary, err := daemon.Build(t.Context(), t.TempDir())
	must(t, err)
	for _, p := range planes {
		if !strings.Contains(modes, p.mode) {
			continue
		}
		t.Run(p.name, func(t *testing.T) {
			if p.mode != "ipvs" && hosttest.Current() == hosttest.WithIPVS {
				t.Skip("runs in make test-kernel")
			}
			hosttest.Need(t, p.needs...)
			l := lab.ForTest(t, 2, 2)
			s := &stage{plane: p, lab: l, binary: binary, file: filepath.Join(t.TempDir(), "objects.yaml")}
			for _, n := range l.Nodes {
				must(t, daemon.Hint(t.Context(), n, p.userland))
			}
			run(t, s)
		})
	}
}

// stage is a lab without an API server: the daemons read their objects from a file.
type stage struct {
	plane
	lab    *lab.Lab
	binary string
	file   string
	nodes  []*daemon.Daemon
}

// service is a Service with a cluster IP, a load-balancer IP and a node port in each family.
type service struct {
	// number is the last part of its addresses; its node port is 30000 plus number.
	number    int
	proto     string
	local     bool // externalTrafficPolicy
	endpoints []lab.Host
}

func (s service) clusterIP(family int) netip.Addr {
	return stageAddr(lab.ServiceCIDRs[family], s.number)
}
func (s service) balancer(family int) netip.Addr {
	return stageAddr(lab.BalancerCIDRs[family], s.number)
}
func (s service) nodePort() uint16 { return uint16(30000 + s.number) }

// healthPort is the health-check node port of a Service with only local endpoints.
func (s service) healthPort() uint16 { return uint16(31000 + s.number) }

// target returns the frontend at that address.
func (s service) target(a netip.Addr) probe.Target {
	port := uint16(80)
	if !lab.ServiceCIDRs[0].Contains(a) && !lab.ServiceCIDRs[1].Contains(a) && !lab.BalancerCIDRs[0].Contains(a) && !lab.BalancerCIDRs[1].Contains(a) {
		port = s.nodePort()
	}
	return probe.Target{Proto: strings.ToLower(cmp.Or(s.proto, "TCP")), Dst: netip.AddrPortFrom(a, port)}
}

func stageAddr(p netip.Prefix, n int) netip.Addr {
	b := p.Addr().AsSlice()
	b[len(b)-1] = byte(n)
	a, _ := netip.AddrFromSlice(b)
	return a
}

// text returns the Service with its slices as YAML.
func (s service) text() string {
	var b strings.Builder
	proto, policy := cmp.Or(s.proto, "TCP"), "Cluster"
	if s.local {
		policy = fmt.Sprintf("Local\n  healthCheckNodePort: %d", s.healthPort())
	}
	fmt.Fprintf(&b, `---
apiVersion: v1
kind: Service
metadata: {name: s%d, namespace: default}
spec:
  type: LoadBalancer
  clusterIP: %[2]q
  clusterIPs: [%[2]q, %[3]q]
  ipFamilies: [IPv4, IPv6]
  externalTrafficPolicy: %[4]s
  ports: [{protocol: %[5]s, port: 80, nodePort: %[6]d}]
status: {loadBalancer: {ingress: [{ip: %[7]q}, {ip: %[8]q}]}}
`, s.number, s.clusterIP(0), s.clusterIP(1), policy, proto, s.nodePort(), s.balancer(0), s.balancer(1))
	for f, family := range families {
		fmt.Fprintf(&b, `---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: s%d-%d, namespace: default, labels: {kubernetes.io/service-name: s%[1]d}}
addressType: %[3]s
ports: [{name: "", protocol: %[4]s, port: %[5]d}]
endpoints:
`, s.number, f, family, proto, podPorts[0])
		for _, e := range s.endpoints {
			node, _, _ := strings.Cut(e.Label, "-")
			fmt.Fprintf(&b, "- {addresses: [%q], nodeName: %s, conditions: {ready: true, serving: true, terminating: false}}\n", e.Addrs[f], node)
		}
	}
	return b.String()
}

// write writes Services, and Nodes with these addresses by family; nil means their first ones.
func (s *stage) write(t *testing.T, nodeAddrs func(*lab.Node) []netip.Addr, services ...service) {
	t.Helper()
	var b strings.Builder
	for _, n := range s.lab.Nodes {
		addrs := n.Addrs[:]
		if nodeAddrs != nil {
			addrs = nodeAddrs(n)
		}
		fmt.Fprintf(&b, "---\napiVersion: v1\nkind: Node\nmetadata: {name: %s}\nstatus:\n  addresses:\n", n.Label)
		for _, a := range addrs {
			fmt.Fprintf(&b, "  - {type: InternalIP, address: %q}\n", a)
		}
	}
	for _, v := range services {
		b.WriteString(v.text())
	}
	next := s.file + ".new"
	must(t, os.WriteFile(next, []byte(b.String()), 0o644))
	must(t, os.Rename(next, s.file))
}

// start starts a daemon on each node and returns when all have written the content of the file.
func (s *stage) start(t *testing.T, flags ...string) {
	t.Helper()
	for _, n := range s.lab.Nodes {
		d, err := daemon.Start(n, s.binary, append(append([]string{"--mode=" + s.mode, "--objects=" + s.file, "--hostname-override=" + n.Label,
			"--nodeport-addresses=primary", "--cluster-cidr=" + lab.PodCIDRs[0].String() + "," + lab.PodCIDRs[1].String()}, s.flags...), flags...)...)
		must(t, err)
		s.nodes = append(s.nodes, d)
		t.Cleanup(func() {
			check(t, d.Stop())
			if t.Failed() {
				t.Logf("%s:\n%s", n.Label, d.Log())
			}
		})
	}
	for _, d := range s.nodes {
		must(t, d.AwaitLog(t.Context(), "msg=synced"))
	}
}

// serve starts a server on a host's first addresses.
func (s *stage) serve(t *testing.T, h lab.Host, protos ...string) {
	t.Helper()
	srv, err := probe.Serve(h, h.Label, h.Addrs[:], protos, podPorts[:1])
	must(t, err)
	t.Cleanup(func() { check(t, srv.Close()) })
}

// onNode runs a command on the first node, which has to succeed.
func (s *stage) onNode(t *testing.T, line string) string {
	t.Helper()
	words := strings.Fields(line)
	out, err := s.lab.Nodes[0].Run(t.Context(), words[0], words[1:]...)
	must(t, err)
	return out
}

// iptables runs the userland's program of both families on the first node.
func (s *stage) iptables(t *testing.T, rule string) {
	t.Helper()
	for _, tool := range []string{"iptables-", "ip6tables-"} {
		s.onNode(t, tool+s.userland+" -w "+rule)
	}
}

// await connects until the result is right.
func (s *stage) await(t *testing.T, from lab.Host, to probe.Target, right func(probe.Result) bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), settleTimeout)
	defer cancel()
	to.Timeout = 2 * time.Second // one that gets lost is only one of many
	for {
		r := probe.NewDialer(from).Dial(ctx, to)
		if right(r) {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("from %s to %s: still %s, saw %s", from.Label, to, r, r.Saw)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

package main

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/fairlead/fairlead/internal/backend/iptables"
	"github.com/fairlead/fairlead/internal/backend/ipvs"
	"github.com/fairlead/fairlead/internal/backend/nftables"
	"github.com/fairlead/fairlead/internal/cluster"
	"github.com/fairlead/fairlead/internal/compile"
	"github.com/fairlead/fairlead/internal/fwd"
)

// costKinds are the kinds of Services that the table of costs has, each made of a Service with a
// cluster IP. All have endpoints on this node, half of them.
var costKinds = []struct {
	name string
	edit func(*cluster.Service, int)
}{
	{"cluster IP", func(*cluster.Service, int) {}},
	{"session affinity", func(s *cluster.Service, _ int) { s.AffinitySec = 600 }},
	{"weights that differ", func(s *cluster.Service, _ int) {
		s.Weights = []cluster.Weight{{Selector: cluster.SelectLocal, Weight: 9}}
	}},
	{"internal policy Local", func(s *cluster.Service, _ int) { s.InternalLocal = true }},
	{"node port", func(s *cluster.Service, i int) { s.Type, s.Ports[0].NodePort = cluster.TypeNodePort, uint16(30000+i) }},
	{"load balancer, Local", func(s *cluster.Service, i int) {
		s.Type, s.Ports[0].NodePort, s.ExternalLocal, s.HealthCheckNodePort = cluster.TypeLoadBalancer, uint16(30000+i), true, uint16(32000+i)
		s.LoadBalancerIPs = []netip.Addr{netip.AddrFrom4([4]byte{203, 0, 113, byte(i)})}
		s.SourceRanges = []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24"), netip.MustParsePrefix("192.0.2.0/24")}
	}},
}

// costs counts what the backends make of a table.
func costs(t *testing.T, table *fwd.Table) map[string]int {
	t.Helper()
	n := make(map[string]int)
	var ipt, nft, vs bytes.Buffer
	for _, err := range []error{
		iptables.Render(&ipt, fwd.IPv4, iptables.FamilyOptions{HairpinBPF: true, RandomFully: true}, table),
		nftables.Render(&nft, fwd.IPv4, 0, table),
		ipvs.Render(&vs, fwd.IPv4, ipvs.RenderOptions{VIPs: ipvs.VIPRoute, HairpinBPF: true, Scheduler: "rr"}, table),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for l := range strings.Lines(ipt.String()) {
		switch {
		case strings.HasPrefix(l, "-A "), strings.HasPrefix(l, "-I "):
			n["iptables rules"]++
		case strings.HasPrefix(l, ":"):
			n["iptables chains"]++
		}
	}
	inside := ""
	for l := range strings.Lines(nft.String()) {
		l = strings.TrimSpace(l)
		switch {
		case strings.HasPrefix(l, "chain "):
			n["nft chains"]++
			inside = "nft rules"
		case strings.HasPrefix(l, "elements = {"):
			inside = "nft elements"
		case l == "}":
			inside = ""
		case inside != "":
			n[inside]++
		}
	}
	for l := range strings.Lines(vs.String()) {
		switch {
		case strings.HasPrefix(l, "-A FAIRLEAD-"), strings.HasPrefix(l, "-I "):
			n["ipvs rules"]++
		case strings.HasPrefix(l, "-A -"):
			n["ipvs servers"]++
		case strings.HasPrefix(l, "-a -"):
			n["ipvs destinations"]++
		case strings.HasPrefix(l, "add "):
			n["ipvs set entries"]++
		case strings.HasPrefix(l, "route add"), strings.HasPrefix(l, "addr add"):
			n["ipvs addresses"]++
		}
	}
	return n
}

// TestCosts pins how many objects of the kernel a Service takes, for each backend, beyond those
// that every node has.
func TestCosts(t *testing.T) {
	columns := []string{"iptables rules", "iptables chains", "nft elements", "nft chains", "nft rules",
		"ipvs servers", "ipvs destinations", "ipvs set entries", "ipvs addresses", "ipvs rules"}
	node := netip.MustParseAddr("192.168.0.2")
	header := fwd.Header{MasqueradeBit: 14, LocalAddrs: []netip.Addr{node}, ServiceCIDRs: [2][]netip.Prefix{{netip.MustParsePrefix("10.96.0.0/12")}}}
	header.Detector[0].Prefix, header.NodePorts[0].All = netip.MustParsePrefix("10.128.0.0/9"), true
	facts := compile.Facts{NodeName: "node-0", DetectsPods: [2]bool{true, true}}

	var empty fwd.Table
	empty.SetHeader(header)
	base := costs(t, &empty)
	var out strings.Builder
	out.WriteString("What Services take of the kernel, beyond what every node has. services x endpoints of each.\n\n")
	fmt.Fprintf(&out, "%-22s %9s", "", "")
	for _, c := range columns {
		fmt.Fprintf(&out, " %17s", c)
	}
	for _, kind := range costKinds {
		out.WriteString("\n")
		for _, size := range [][2]int{{1, 0}, {1, 1}, {1, 10}, {1, 100}, {100, 10}} {
			var table fwd.Table
			table.SetHeader(header)
			for i := range size[0] {
				s := &cluster.Service{Name: fwd.Service{Namespace: "ns", Name: fmt.Sprint(i)}, Ports: []cluster.ServicePort{{Protocol: fwd.TCP, Port: 80}}}
				s.ClusterIPs[0] = netip.AddrFrom4([4]byte{10, 96, 0, byte(i)})
				kind.edit(s, i)
				sl := &cluster.Slice{Name: cluster.SliceName(s.Name), Service: s.Name, Family: fwd.IPv4, Ports: []cluster.SlicePort{{Protocol: fwd.TCP, Port: 8080}}}
				for e := range size[1] {
					n := i*size[1] + e
					sl.Endpoints = append(sl.Endpoints, cluster.Endpoint{Addr: netip.AddrFrom4([4]byte{10, 128, byte(n >> 8), byte(n)}), Ready: true, Serving: true,
						Place: &cluster.Place{Node: fmt.Sprintf("node-%d", e%2)}})
				}
				f, problems := compile.Compile(s, []*cluster.Slice{sl}, &facts)
				if len(problems) > 0 {
					t.Fatal(problems)
				}
				table.Put(f)
			}
			n := costs(t, &table)
			fmt.Fprintf(&out, "%-22s %9s", kind.name, fmt.Sprintf("%dx%d", size[0], size[1]))
			for _, c := range columns {
				fmt.Fprintf(&out, " %17d", n[c]-base[c])
			}
			out.WriteString("\n")
		}
	}
	const golden = "testdata/costs.txt"
	if *update {
		if err := os.WriteFile(golden, []byte(out.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), out.String()); d != "" {
		t.Errorf("Services cost more or less than they did (-want +got):\n%s", d)
	}
}

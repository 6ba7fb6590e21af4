package e2e

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/fairlead/fairlead/e2e/lab"
	"github.com/fairlead/fairlead/e2e/probe"
	"github.com/fairlead/fairlead/internal/backend"
	"github.com/fairlead/fairlead/internal/backend/iptables"
	"github.com/fairlead/fairlead/internal/backend/nftables"
	"github.com/fairlead/fairlead/internal/fwd"
	"github.com/fairlead/fairlead/internal/host/nft"
	"github.com/fairlead/fairlead/internal/host/xtables"
)

// BenchmarkNewConnections compares the rate of new TCP connections between two pods of a node:
// without any rule, where connections are not even tracked; with a single masquerade rule that they
// do not match, as every pod network has, so that they are tracked; with one more rule, for DNAT,
// which they use, the minimum cost of a Service; with Fairlead's rules for no Services; and with
// those of 10,000 Services (or FAIRLEAD_BENCH_SERVICES) of 10 endpoints, directly and through the
// last one. The rounds alternate, so that other load affects all cases alike. The figures are
// medians, and ratios to the node that tracks connections.
func BenchmarkNewConnections(b *testing.B) {
	many, err := strconv.Atoi(cmp.Or(os.Getenv("FAIRLEAD_BENCH_SERVICES"), "10000"))
	if err != nil || many < 1 || many > 65536 {
		b.Fatalf("FAIRLEAD_BENCH_SERVICES: %q, want a number from 1 to 65536", os.Getenv("FAIRLEAD_BENCH_SERVICES"))
	}
	for _, plane := range []string{"legacy", "nft", "nftables"} {
		b.Run(plane, func(b *testing.B) {
			flavour := "nft"
			if plane == "legacy" {
				flavour = plane
			}
			l := lab.ForTest(b, 5, 2)
			vip := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 96, byte((many - 1) >> 8), byte(many - 1)}), 80)
			rule := func(node int, words ...string) {
				if _, err := l.Nodes[node].Run(b.Context(), "iptables-"+flavour, append([]string{"-t", "nat", "-A"}, words...)...); err != nil {
					b.Fatal(err)
				}
			}
			for _, node := range []int{3, 4} {
				rule(node, "POSTROUTING", "-s", "192.0.2.1", "-j", "MASQUERADE")
			}
			rule(4, "PREROUTING", "-d", vip.Addr().String(), "-p", "tcp", "--dport", "80", "-j", "DNAT", "--to", l.Nodes[4].Pods[0].Addrs[0].String()+":8080")
			for i, services := range map[int]int{1: 0, 2: many} {
				n := l.Nodes[i]
				if err := n.Do(func() error { return loadServices(b.Context(), plane, services, vip, n.Pods[0].Addrs[0]) }); err != nil {
					b.Fatal(err)
				}
			}
			cases := []struct {
				name string
				node *lab.Node
				dst  netip.AddrPort
			}{
				{"tracked", l.Nodes[3], netip.AddrPortFrom(l.Nodes[3].Pods[0].Addrs[0], 8080)},
				{"one-DNAT", l.Nodes[4], vip},
				{"no-rules", l.Nodes[0], netip.AddrPortFrom(l.Nodes[0].Pods[0].Addrs[0], 8080)},
				{"no-Service", l.Nodes[1], netip.AddrPortFrom(l.Nodes[1].Pods[0].Addrs[0], 8080)},
				{fmt.Sprintf("%d-direct", many), l.Nodes[2], netip.AddrPortFrom(l.Nodes[2].Pods[0].Addrs[0], 8080)},
				{fmt.Sprintf("%d-through", many), l.Nodes[2], vip},
			}
			for _, n := range l.Nodes {
				stop, err := probe.AcceptAll(n.Pods[0], 8080)
				if err != nil {
					b.Fatal(err)
				}
				b.Cleanup(stop)
			}
			rates := make([][]float64, len(cases))
			for b.Loop() {
				for range 15 {
					for i, c := range cases {
						rate, err := probe.Rate(c.node.Pods[1], c.dst, 200*time.Millisecond)
						if err != nil {
							b.Fatalf("%s: %v", c.name, err)
						}
						rates[i] = append(rates[i], rate)
					}
				}
			}
			b.ReportMetric(0, "ns/op")
			for i, c := range cases {
				slices.Sort(rates[i])
				median := rates[i][len(rates[i])/2]
				if i == 0 {
					b.ReportMetric(median, "tracked-conn/s")
					continue
				}
				b.ReportMetric(median/rates[0][len(rates[0])/2], c.name+"-ratio")
			}
		})
	}
}

// loadServices writes rules of Services, the last of them with the virtual IP and one endpoint.
func loadServices(ctx context.Context, plane string, services int, vip netip.AddrPort, endpoint netip.Addr) error {
	be, err := openPlane(plane)
	if err != nil {
		return err
	}
	var table fwd.Table
	h := fwd.Header{
		Detector:      [2]fwd.Detector{{Prefix: netip.MustParsePrefix("10.244.0.0/16")}},
		NodePorts:     [2]fwd.NodePortAddrs{{All: true, Loopback: true}},
		MasqueradeBit: 14,
	}
	if plane == "nftables" { // what the daemon sets in this mode
		h.NodePorts[0].Loopback, h.RejectOtherPorts, h.DropUnallocated = false, true, true
		h.ServiceCIDRs[0] = []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16")}
	}
	be.Update(table.SetHeader(h))
	for i := range services {
		key := fwd.Key{Family: fwd.IPv4, Addr: netip.AddrFrom4([4]byte{10, 96, byte(i >> 8), byte(i)}), Proto: fwd.TCP, Port: 80}
		owner := fwd.ServicePort{Service: fwd.Service{Namespace: "default", Name: fmt.Sprintf("svc-%d", i)}, Proto: fwd.TCP}
		pool := fwd.Pool{Key: fwd.PoolKey{Port: owner, Family: fwd.IPv4}}
		for e := range 10 {
			a := netip.AddrFrom4([4]byte{10, 245 + byte(e), byte(i >> 8), byte(i)})
			pool.Endpoints = append(pool.Endpoints, fwd.Endpoint{Addr: netip.AddrPortFrom(a, 8080), Weight: 1})
		}
		if key.Addr == vip.Addr() {
			pool.Endpoints = []fwd.Endpoint{{Addr: netip.AddrPortFrom(endpoint, 8080), Weight: 1, Local: true}}
		}
		masquerade := fwd.Route{Action: fwd.Forward, Masquerade: true}
		be.Update(table.Put(&fwd.Fragment{
			Owner:     owner.Service,
			Frontends: []fwd.Frontend{{Key: key, Owner: owner, Routes: [fwd.NumClasses]fwd.Route{fwd.Outside: masquerade, fwd.Pod: {Action: fwd.Forward}, fwd.Host: masquerade}}},
			Pools:     []fwd.Pool{pool},
		}))
	}
	_, err = be.Apply(ctx)
	return err
}

// openPlane returns the backend of a dataplane on the kernel of the thread's namespace, for IPv4.
func openPlane(plane string) (backend.Backend, error) {
	if plane == "nftables" {
		c, err := nft.Open(fwd.IPv4, nftables.TableName)
		if err != nil {
			return nil, err
		}
		return nftables.New(map[fwd.Family]nft.Interface{fwd.IPv4: c}, slog.New(slog.DiscardHandler)), nil
	}
	tables, err := xtables.New(xtables.Flavour(plane), false)
	if err != nil {
		return nil, err
	}
	o := iptables.FamilyOptions{Tables: tables, HairpinBPF: true, RandomFully: true, DropInvalid: true}
	if plane == "nft" {
		o.MaxChains = 1000
	}
	return iptables.New(map[fwd.Family]iptables.FamilyOptions{fwd.IPv4: o}), nil
}

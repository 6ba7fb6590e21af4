package main

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"runtime"
	"runtime/pprof"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/fairlead/fairlead/internal/backend"
	"github.com/fairlead/fairlead/internal/backend/iptables"
	"github.com/fairlead/fairlead/internal/backend/nftables"
	"github.com/fairlead/fairlead/internal/cluster"
	"github.com/fairlead/fairlead/internal/config"
	"github.com/fairlead/fairlead/internal/fwd"
	"github.com/fairlead/fairlead/internal/host/nft"
	"github.com/fairlead/fairlead/internal/host/xtables"
	"github.com/fairlead/fairlead/internal/kube"
	"github.com/fairlead/fairlead/internal/reconcile"
	"github.com/fairlead/fairlead/internal/staleflow"
)

// bigService and bigSlice are objects as an API server of a big cluster sends them, with strings of their own each time.

func bigService(i int) *v1.Service {
	s := &v1.Service{}
	s.Namespace, s.Name, s.UID = fmt.Sprintf("namespace-%d", i/20), fmt.Sprintf("service-%d", i), types.UID(fmt.Sprintf("5b7b6ac1-8dd3-4a9e-9e0a-%012d", i))
	s.CreationTimestamp.Time = time.Unix(int64(i), 0)
	ip := netip.AddrFrom4([4]byte{10, byte(96 + i>>16), byte(i >> 8), byte(i)}).String()
	s.Spec.ClusterIP, s.Spec.ClusterIPs, s.Spec.IPFamilies = ip, []string{ip}, []v1.IPFamily{v1.IPv4Protocol}
	s.Spec.Type = v1.ServiceTypeClusterIP
	s.Spec.Ports = []v1.ServicePort{{Name: "http", Protocol: v1.ProtocolTCP, Port: 80}}
	return s
}

func bigSlice(i, endpoints int) *discoveryv1.EndpointSlice {
	s := &discoveryv1.EndpointSlice{AddressType: discoveryv1.AddressTypeIPv4}
	s.Namespace, s.Name = fmt.Sprintf("namespace-%d", i/20), fmt.Sprintf("service-%d-x7k2p", i)
	s.Labels = map[string]string{discoveryv1.LabelServiceName: fmt.Sprintf("service-%d", i)}
	name, proto, port, yes, no := "http", v1.ProtocolTCP, int32(8080), true, false
	s.Ports = []discoveryv1.EndpointPort{{Name: &name, Protocol: &proto, Port: &port}}
	for e := range endpoints {
		n := i*endpoints + e
		node, zone := fmt.Sprintf("node-%d", n%500), fmt.Sprintf("zone-%d", n%500%3)
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{
			Addresses:  []string{netip.AddrFrom4([4]byte{10, byte(128 + n>>16), byte(n >> 8), byte(n)}).String()},
			Conditions: discoveryv1.EndpointConditions{Ready: &yes, Serving: &yes, Terminating: &no},
			NodeName:   &node, Zone: &zone,
			TargetRef: &v1.ObjectReference{Kind: "Pod", Namespace: s.Namespace, Name: fmt.Sprintf("service-%d-6d4cf56db6-%05d", i, e), UID: types.UID(fmt.Sprintf("0aa3-%d", n))},
		})
	}
	return s
}

// nothing is a kernel that takes everything and holds nothing.
type nothing struct{}

func (nothing) Read(context.Context) (nft.Content, error)            { return nft.Content{}, nil }
func (nothing) Commit(context.Context, []nft.Op) error               { return nil }
func (nothing) Check(context.Context, []nft.Op) error                { return nil }
func (nothing) Save(_ context.Context, table string) ([]byte, error) { return nil, nil }
func (nothing) Restore(context.Context, []byte) error                { return nil }

var (
	_ nft.Interface     = nothing{}
	_ xtables.Interface = nothing{}
)

func planeOnNothing(mode config.Mode) backend.Backend {
	if mode == config.ModeIPTables {
		o := iptables.FamilyOptions{Tables: nothing{}, HairpinBPF: true, RandomFully: true}
		return iptables.New(map[fwd.Family]iptables.FamilyOptions{fwd.IPv4: o, fwd.IPv6: o})
	}
	return nftables.New(map[fwd.Family]nft.Interface{fwd.IPv4: nothing{}, fwd.IPv6: nothing{}}, 0)
}

// wholeProgram is a loop with what holds memory around it.
type wholeProgram struct {
	feed *kube.Feed
	loop *reconcile.Loop
	// builder follows as flowAdapter does.
	builder staleflow.Builder
	synced  chan reconcile.Sync
}

func (p *wholeProgram) Update(ch fwd.Changes) { p.builder.Update(ch) }
func (p *wholeProgram) Submit(all bool)       { p.builder.Snapshot(all) }
func (p *wholeProgram) Queued(time.Time)      {}

// Synced keeps the first report; the kernel that holds nothing is repaired after that.
func (p *wholeProgram) Synced(s reconcile.Sync) {
	select {
	case p.synced <- s:
	default:
	}
}

func (p *wholeProgram) Verified(time.Time)        {}
func (p *wholeProgram) Node(cluster.Node)         {}
func (p *wholeProgram) Configured(*config.Config) {}

// runProgram takes a whole cluster from the objects of the API to what is sent to the kernel.
func runProgram(tb testing.TB, mode config.Mode, services, endpoints int) *wholeProgram {
	tb.Helper()
	cfg, err := config.Parse([]string{"--proxy-mode=" + string(mode), "--hostname-override=node-1", "--cluster-cidr=10.128.0.0/9", "--nodeport-addresses=all"}, os.Hostname)
	if err != nil {
		tb.Fatal(err)
	}
	p := &wholeProgram{feed: kube.NewFeed(), synced: make(chan reconcile.Sync, 1)}
	places := make(map[string]*cluster.Place)
	for i := range services {
		s, _ := kube.ConvertService(bigService(i), kube.ConvertOptions{})
		p.feed.SetService(s)
		sl, _ := kube.ConvertSlice(bigSlice(i, endpoints))
		for e := range sl.Endpoints { // as an APISource does
			w := sl.Endpoints[e].Place
			if places[w.Node] == nil {
				places[w.Node] = w
			}
			sl.Endpoints[e].Place = places[w.Node]
		}
		p.feed.SetSlice(sl)
	}
	p.feed.SetNode(cluster.Node{Name: "node-1"})
	p.feed.MarkSynced()
	p.loop = reconcile.New(reconcile.Options{Config: cfg, Feed: feedAdapter{p.feed}, Backend: planeOnNothing(mode), Flows: p, Monitor: p, Logger: slog.New(slog.DiscardHandler)})
	ctx, cancel := context.WithCancel(tb.Context())
	done := make(chan error)
	go func() { done <- p.loop.Run(ctx) }()
	s := <-p.synced
	cancel()
	if err := <-done; err != nil || s.Failed != [2]bool{} || s.Services != services || s.Endpoints != services*endpoints {
		tb.Fatalf("%+v %v", s, err)
	}
	return p
}

// BenchmarkProgram takes a whole cluster from decoded objects of the API, through the Feed and the loop, to what would be
// sent to the kernel. held is the memory that is still in use then.
func BenchmarkProgram(b *testing.B) {
	for _, mode := range []config.Mode{config.ModeNFTables, config.ModeIPTables} {
		for _, size := range [][2]int{{1000, 10}, {10000, 10}, {50000, 5}} {
			b.Run(fmt.Sprintf("%s/%dx%d", mode, size[0], size[1]), func(b *testing.B) {
				b.ReportAllocs()
				var before, start, end, after runtime.MemStats
				runtime.GC()
				runtime.ReadMemStats(&before)
				start = before
				var p *wholeProgram
				for b.Loop() {
					p = nil
					p = runProgram(b, mode, size[0], size[1])
				}
				runtime.ReadMemStats(&end)
				runtime.GC()
				runtime.GC()
				runtime.ReadMemStats(&after)
				if path := os.Getenv("FAIRLEAD_HEAP_PROFILE"); path != "" {
					f, err := os.Create(path)
					if err != nil {
						b.Fatal(err)
					}
					if err := pprof.WriteHeapProfile(f); err != nil {
						b.Fatal(err)
					}
					if err := f.Close(); err != nil {
						b.Fatal(err)
					}
				}
				n := float64(size[0])
				b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/n, "held-B/Service")
				b.ReportMetric(float64(after.HeapObjects-before.HeapObjects)/n, "held-objects/Service")
				b.ReportMetric(float64(end.Mallocs-start.Mallocs)/n/float64(b.N), "allocs/Service")
				b.ReportMetric(float64(end.TotalAlloc-start.TotalAlloc)/n/float64(b.N), "B/Service")
				runtime.KeepAlive(p)
			})
		}
	}
}

package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"runtime/pprof"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/fairlead/fairlead/internal/backend"
	"github.com/fairlead/fairlead/internal/backend/iptables"
	"github.com/fairlead/fairlead/internal/backend/nftables"
	"github.com/fairlead/fairlead/internal/benchtest"
	"github.com/fairlead/fairlead/internal/cluster"
	"github.com/fairlead/fairlead/internal/config"
	"github.com/fairlead/fairlead/internal/fwd"
	"github.com/fairlead/fairlead/internal/host/nft"
	"github.com/fairlead/fairlead/internal/host/xtables"
	"github.com/fairlead/fairlead/internal/kube"
	"github.com/fairlead/fairlead/internal/reconcile"
	"github.com/fairlead/fairlead/internal/staleflow"
)

// apiService and apiSlice are objects as an API server sends them: full, and with strings of their
// own each time.

func apiService(i int) *v1.Service {
	from := benchtest.Service(i)
	s := &v1.Service{}
	s.Namespace, s.Name, s.UID = from.Name.Namespace, from.Name.Name, types.UID(fmt.Sprintf("5b7b6ac1-8dd3-4a9e-9e0a-%012d", i))
	s.CreationTimestamp.Time = time.Unix(from.CreatedUnix, 0)
	ip := from.ClusterIPs[fwd.IPv4.Index()].String()
	s.Spec.ClusterIP, s.Spec.ClusterIPs, s.Spec.IPFamilies = ip, []string{ip}, []v1.IPFamily{v1.IPv4Protocol}
	s.Spec.Type = v1.ServiceTypeClusterIP
	for _, p := range from.Ports {
		s.Spec.Ports = append(s.Spec.Ports, v1.ServicePort{Name: p.Name, Protocol: v1.ProtocolTCP, Port: int32(p.Port)})
	}
	return s
}

func apiSlice(i, endpoints int) *discoveryv1.EndpointSlice {
	from := benchtest.Slice(i, endpoints)
	s := &discoveryv1.EndpointSlice{AddressType: discoveryv1.AddressTypeIPv4}
	s.Namespace, s.Name = from.Name.Namespace, from.Name.Name
	s.Labels = map[string]string{discoveryv1.LabelServiceName: from.Service.Name}
	for _, p := range from.Ports {
		name, proto, port := p.Name, v1.ProtocolTCP, int32(p.Port)
		s.Ports = append(s.Ports, discoveryv1.EndpointPort{Name: &name, Protocol: &proto, Port: &port})
	}
	yes, no := true, false
	for _, e := range from.Endpoints {
		node, zone := strings.Clone(e.Place.Node), strings.Clone(e.Place.Zone)
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{
			Addresses:  []string{e.Addr.String()},
			Conditions: discoveryv1.EndpointConditions{Ready: &yes, Serving: &yes, Terminating: &no},
			NodeName:   &node, Zone: &zone,
			TargetRef: &v1.ObjectReference{Kind: "Pod", Namespace: s.Namespace, Name: e.Pod, UID: types.UID(fmt.Sprintf("0aa3-%d", e.Instance))},
		})
	}
	return s
}

// nothing is a kernel that takes everything and holds nothing.
type nothing struct{}

func (nothing) Read(context.Context) (nft.Content, error) { return nft.Content{}, nil }
func (nothing) Commit(context.Context, []nft.Op) error    { return nil }
func (nothing) Check(context.Context, []nft.Op) error     { return nil }

// noTables is the same of iptables.
type noTables struct{}

func (noTables) Read(context.Context, string) (xtables.Table, error) { return nil, nil }
func (noTables) Restore(context.Context, []byte) error               { return nil }

func planeOnNothing(mode config.Mode) backend.Families {
	if mode == config.ModeIPTables {
		o := iptables.FamilyOptions{Tables: noTables{}, HairpinBPF: true, RandomFully: true}
		return iptables.New(map[fwd.Family]iptables.FamilyOptions{fwd.IPv4: o, fwd.IPv6: o}).Families
	}
	return nftables.New(map[fwd.Family]nft.Interface{fwd.IPv4: nothing{}, fwd.IPv6: nothing{}}, slog.New(slog.DiscardHandler)).Families
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
func (p *wholeProgram) Submit(written [2]bool, all bool) {
	p.builder.Snapshot(written, all)
}
func (p *wholeProgram) Queued(time.Time) {}

// Synced keeps the first report; the kernel that holds nothing is repaired after that.
func (p *wholeProgram) Synced(s reconcile.Sync) {
	select {
	case p.synced <- s:
	default:
	}
}

func (p *wholeProgram) Verified(fwd.Family, time.Time) {}
func (p *wholeProgram) Node(cluster.Node)              {}
func (p *wholeProgram) Configured(*config.Config)      {}

// runProgram takes a whole cluster from the objects of the API to what is sent to the kernel.
func runProgram(tb testing.TB, mode config.Mode, size benchtest.Size) *wholeProgram {
	tb.Helper()
	cfg, err := config.Parse([]string{"--proxy-mode=" + string(mode), "--hostname-override=" + benchtest.NodeName,
		"--cluster-cidr=" + benchtest.PodCIDR.String(), "--nodeport-addresses=all"}, os.Hostname)
	if err != nil {
		tb.Fatal(err)
	}
	p := &wholeProgram{feed: kube.NewFeed(), synced: make(chan reconcile.Sync, 1)}
	places := make(map[string]*cluster.Place)
	for i := range size.Services {
		s, _ := kube.Converter{}.Service(apiService(i))
		p.feed.SetService(s)
		sl, _ := kube.Converter{}.Slice(apiSlice(i, size.Endpoints))
		for e := range sl.Endpoints { // as an APISource does
			w := sl.Endpoints[e].Place
			if places[w.Node] == nil {
				places[w.Node] = w
			}
			sl.Endpoints[e].Place = places[w.Node]
		}
		p.feed.SetSlice(sl)
	}
	p.feed.SetNode(cluster.Node{Name: benchtest.NodeName})
	p.feed.MarkSynced()
	p.loop = reconcile.New(reconcile.Options{Config: cfg, Feed: p.feed, Backends: planeOnNothing(mode), Flows: p, Monitor: p, Logger: slog.New(slog.DiscardHandler)})
	ctx, cancel := context.WithCancel(tb.Context())
	done := make(chan error)
	go func() { done <- p.loop.Run(ctx) }()
	s := <-p.synced
	cancel()
	if err := <-done; err != nil || s.Families[0].Failed || s.Families[1].Failed || s.Services != size.Services || s.Endpoints != size.Services*size.Endpoints {
		tb.Fatalf("%+v %v", s, err)
	}
	return p
}

// BenchmarkProgram takes a whole cluster from decoded objects of the API, through the Feed and the
// loop, to what would be sent to the kernel. held is the memory that is still in use then.
func BenchmarkProgram(b *testing.B) {
	for _, mode := range []config.Mode{config.ModeNFTables, config.ModeIPTables} {
		for _, size := range benchtest.Sizes {
			b.Run(fmt.Sprintf("%s/%s", mode, size), func(b *testing.B) {
				b.ReportAllocs()
				var before, start, end, after runtime.MemStats
				runtime.GC()
				runtime.ReadMemStats(&before)
				start = before
				var p *wholeProgram
				for b.Loop() {
					p = nil
					p = runProgram(b, mode, size)
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
				n := float64(size.Services)
				b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/n, "held-B/Service")
				b.ReportMetric(float64(after.HeapObjects-before.HeapObjects)/n, "held-objects/Service")
				b.ReportMetric(float64(end.Mallocs-start.Mallocs)/n/float64(b.N), "allocs/Service")
				b.ReportMetric(float64(end.TotalAlloc-start.TotalAlloc)/n/float64(b.N), "B/Service")
				runtime.KeepAlive(p)
			})
		}
	}
}

package ipvs

import (
	"context"
	"fmt"
	"net/netip"
	"testing"

	"github.com/fairlead/fairlead/internal/backend"
	"github.com/fairlead/fairlead/internal/fwd"
)

// discard takes every plan and holds nothing.
type discard struct{}

func (discard) Read(context.Context) (map[Key]Value, error) { return nil, nil }

func (discard) Write(_ context.Context, p plan, done func(Key)) error {
	for k := range p.Upserts {
		done(k)
	}
	for k := range p.Deletes {
		done(k)
	}
	return nil
}

// plainFragment is Service i with a cluster IP and TCP endpoints of equal weight.
func plainFragment(i, endpoints int) *fwd.Fragment {
	f := &fwd.Fragment{Owner: fwd.Service{Namespace: "default", Name: fmt.Sprintf("svc-%d", i)}, CreatedUnix: int64(i)}
	port := fwd.ServicePort{Service: f.Owner, Port: "http", Proto: fwd.TCP}
	masq := fwd.Route{Action: fwd.Forward, Masquerade: true}
	f.Frontends = []fwd.Frontend{{
		Key:   fwd.Key{Family: fwd.IPv4, Addr: netip.AddrFrom4([4]byte{10, 96 + byte(i>>16), byte(i >> 8), byte(i)}), Proto: fwd.TCP, Port: 80},
		Owner: port, Routes: [fwd.NumClasses]fwd.Route{fwd.Outside: masq, fwd.Pod: {Action: fwd.Forward}, fwd.Host: masq},
	}}
	p := fwd.Pool{Key: fwd.PoolKey{Port: port, Family: fwd.IPv4}}
	for e := range endpoints {
		n := i*10 + e
		p.Endpoints = append(p.Endpoints, fwd.Endpoint{Addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 128 + byte(n>>16), byte(n >> 8), byte(n)}), 8080), Weight: 1})
	}
	f.Pools = []fwd.Pool{p}
	return f
}

func loaded(b *testing.B, services int) (*backend.Engine[Key, Value], *fwd.Table) {
	e := backend.NewEngine(fwd.IPv4, newRenderer(fwd.IPv4, RenderOptions{VIPs: VIPRoute, Scheduler: "rr", HairpinBPF: true}), discard{}, same)
	t := &fwd.Table{}
	e.Update(t.SetHeader(fwd.Header{MasqueradeBit: 14, ServiceCIDRs: [2][]netip.Prefix{{netip.MustParsePrefix("10.96.0.0/12")}}}))
	for i := range services {
		e.Update(t.Put(plainFragment(i, 10)))
	}
	if _, err := e.Apply(context.Background()); err != nil {
		b.Fatal(err)
	}
	return e, t
}

// BenchmarkLoad renders all of Services of 10 endpoints in one family, without a kernel.
func BenchmarkLoad(b *testing.B) {
	for _, n := range []int{1000, 10000, 50000} {
		b.Run(fmt.Sprintf("%dServices", n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				loaded(b, n)
			}
			b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N)/float64(n), "µs/Service")
		})
	}
}

// BenchmarkChange renders one changed Service among many, without a kernel.
func BenchmarkChange(b *testing.B) {
	for _, n := range []int{1000, 10000, 50000} {
		b.Run(fmt.Sprintf("%dServices", n), func(b *testing.B) {
			e, t := loaded(b, n)
			versions := []*fwd.Fragment{plainFragment(n/2, 9), plainFragment(n/2, 10)}
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				e.Update(t.Put(versions[i%2]))
				if _, err := e.Apply(context.Background()); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

package nftables

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/fairlead/fairlead/internal/backend"
	"github.com/fairlead/fairlead/internal/fwd"
	"github.com/fairlead/fairlead/internal/host/hosttest"
	"github.com/fairlead/fairlead/internal/host/nft"
)

// kernel opens the tables of the goroutine's network namespace.
func kernel(t testing.TB) map[fwd.Family]nft.Interface {
	t.Helper()
	out := make(map[fwd.Family]nft.Interface)
	for _, f := range fwd.Families {
		c, err := nft.Open(f, TableName)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := c.Close(); err != nil {
				t.Error(err)
			}
		})
		if err := c.Usable(context.Background()); err != nil {
			t.Fatal(err)
		}
		out[f] = c
	}
	return out
}

// values are what is compared of objects.
func values(m map[ID]Object) map[ID]string {
	out := make(map[ID]string)
	for id, o := range m {
		out[id] = o.Value
	}
	return out
}

func readAll(t testing.TB, f fwd.Family, table nft.Interface) map[ID]string {
	t.Helper()
	m, err := (&target{family: f, table: table}).Read(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return values(m)
}

// give tells a backend of a whole table.
func give(b backend.Backend, t *fwd.Table) {
	h := t.Header()
	ch := fwd.Changes{Header: &h}
	for f := range t.Services() {
		ch.Services = append(ch.Services, fwd.ServiceChange{Owner: f.Owner, New: f})
	}
	for _, v := range t.VIPs() {
		ch.VIPs = append(ch.VIPs, fwd.VIPChange{VIP: v})
	}
	b.Update(ch)
}

// everyShape is a table with every kind of rule that the renderer knows.
func everyShape() *fwd.Table {
	t := &fwd.Table{}
	t.SetHeader(fwd.Header{
		Detector: [2]fwd.Detector{{Prefix: netip.MustParsePrefix("10.244.0.0/14")}, {InterfacePrefix: "veth"}},
		NodePorts: [2]fwd.NodePortAddrs{
			{All: true, Loopback: true},
			{Prefixes: []netip.Prefix{netip.MustParsePrefix("fd00:1::/64"), netip.MustParsePrefix("fd00:2::5/128")}},
		},
		MasqueradeBit: 14, RejectOtherPorts: true, DropUnallocated: true,
		ServiceCIDRs: [2][]netip.Prefix{
			{netip.MustParsePrefix("10.96.0.0/16"), netip.MustParsePrefix("10.97.0.0/16")}, {netip.MustParsePrefix("fd00::/112")}},
	})
	for i := range 40 {
		t.Put(sampleFragment(i, 1+i%3))
	}
	for i := 40; i < 50; i++ {
		f := sampleFragment(i, 3)
		for j := range f.Frontends {
			special(i, &f.Frontends[j])
		}
		for k := range f.Pools {
			switch i {
			case 44:
				f.Pools[k].AffinitySec = 10800
			case 46:
				local := f.Pools[k]
				local.Key.Scope = fwd.Local
				local.Endpoints = local.Endpoints[:1]
				f.Pools = append(f.Pools, local)
			case 47:
				f.Pools[k] = samplePool(f.Pools[k].Key, i, 100)
				f.Pools[k].AffinitySec = 10
			case 48:
				f.Pools[k] = samplePool(f.Pools[k].Key, i, 300)
			case 49:
				f.Pools[k].Endpoints[0].Weight = 40000
				f.Pools[k].Endpoints[1].Weight = 1001
			}
		}
		slices.SortFunc(f.Pools, func(a, b fwd.Pool) int { return a.Key.Compare(b.Key) })
		t.Put(f)
	}
	return t
}

// special gives a frontend routes of a kind of their own.
func special(i int, fe *fwd.Frontend) {
	drop := fwd.Route{Action: fwd.Drop}
	reject := fwd.Route{Action: fwd.Reject}
	pod := fwd.Route{Action: fwd.Forward}
	host := fwd.Route{Action: fwd.Forward, Masquerade: true}
	src := []netip.Prefix{netip.MustParsePrefix("0.0.0.0/3"), netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("192.0.3.0/25"), netip.MustParsePrefix("255.255.255.255/32")}
	if fe.Key.Family == fwd.IPv6 {
		src = []netip.Prefix{netip.MustParsePrefix("2001:db8::/33"), netip.MustParsePrefix("fd00::7/128")}
	}
	switch i {
	case 40:
		fe.Routes = [fwd.NumClasses]fwd.Route{drop, pod, host}
	case 41:
		fe.Routes = [fwd.NumClasses]fwd.Route{drop, drop, drop}
	case 42:
		fe.Routes = [fwd.NumClasses]fwd.Route{reject, reject, reject}
	case 43:
		fe.Routes = [fwd.NumClasses]fwd.Route{reject, reject, reject}
		fe.Sources = src
	case 44:
		fe.Routes = [fwd.NumClasses]fwd.Route{host, host, host}
		fe.Sources = src
	case 45:
		fe.Routes = [fwd.NumClasses]fwd.Route{drop, reject, host}
		fe.Sources = src[:1]
	case 46:
		fe.Routes = [fwd.NumClasses]fwd.Route{{Action: fwd.Forward, Scope: fwd.Local}, pod, host}
	}
}

// sampleFragment is a Service with a ClusterIP in both families and, for every fourth, a node port.
func sampleFragment(i, endpoints int) *fwd.Fragment {
	proto := []fwd.Proto{fwd.TCP, fwd.UDP, fwd.SCTP}[i%3]
	f := &fwd.Fragment{Owner: fwd.Service{Namespace: "default", Name: fmt.Sprintf("svc-%d", i)}, CreatedUnix: int64(i)}
	port := fwd.ServicePort{Service: f.Owner, Port: "http", Proto: proto}
	for _, fam := range fwd.Families {
		vip := netip.AddrFrom4([4]byte{10, 96, byte(i >> 8), byte(i)})
		if fam == fwd.IPv6 {
			vip = netip.AddrFrom16([16]byte{0xfd, 0, 14: byte(i >> 8), 15: byte(i)})
		}
		pod := fwd.Route{Action: fwd.Forward}
		masq := fwd.Route{Action: fwd.Forward, Masquerade: true}
		f.Frontends = append(f.Frontends, fwd.Frontend{Key: fwd.Key{Family: fam, Addr: vip, Proto: proto, Port: 80},
			Owner: port, Routes: [fwd.NumClasses]fwd.Route{fwd.Outside: masq, fwd.Pod: pod, fwd.Host: masq}})
		if i%4 == 0 {
			f.Frontends = append(f.Frontends, fwd.Frontend{Key: fwd.Key{Family: fam, Proto: proto, Port: uint16(30000 + i%2700)},
				Kind: fwd.NodePort, Owner: port, Routes: [fwd.NumClasses]fwd.Route{masq, masq, masq}})
		}
		f.Pools = append(f.Pools, samplePool(fwd.PoolKey{Port: port, Family: fam}, i, endpoints))
	}
	slices.SortFunc(f.Frontends, func(a, b fwd.Frontend) int { return a.Key.Compare(b.Key) })
	return f
}

func samplePool(k fwd.PoolKey, i, endpoints int) fwd.Pool {
	p := fwd.Pool{Key: k}
	for e := range endpoints {
		n := i*endpoints + e
		a := netip.AddrFrom4([4]byte{10, byte(244 + n>>16), byte(n >> 8), byte(n)})
		if k.Family == fwd.IPv6 {
			a = netip.AddrFrom16([16]byte{0xfd, 1, 13: byte(n >> 16), 14: byte(n >> 8), 15: byte(n)})
		}
		p.Endpoints = append(p.Endpoints, fwd.Endpoint{Addr: netip.AddrPortFrom(a, 8080), Weight: 1, Local: e == 0})
	}
	return p
}

// What is in the kernel compares equal to what was wanted, and what nft makes of the text that is rendered is the same;
// otherwise a restart would write again what is there, and every check would see drift. nft can list all of it.
func TestKernelRoundTrip(t *testing.T) {
	hosttest.Netns(t, "nft")
	ctx := context.Background()
	tables := kernel(t)
	b := New(tables, 100)
	table := everyShape()
	give(b, table)
	if _, err := b.Apply(ctx); err != nil {
		t.Fatal(err)
	}
	for _, fam := range fwd.Families {
		want := values(objectsOf(fam, table))
		if diff := cmp.Diff(want, readAll(t, fam, tables[fam])); diff != "" {
			t.Errorf("%s: in the kernel is not what was wanted (-want +got):\n%s", fam, diff)
		}
	}
	if drifted, err := b.Observe(ctx); err != nil || drifted != 0 {
		t.Errorf("Observe after Apply: %d drifted, %v", drifted, err)
	}
	listed := filepath.Join(t.TempDir(), "listed.nft")
	if err := os.WriteFile(listed, []byte(hosttest.Run(t, "nft", "list", "ruleset")), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := b.Cleanup(ctx); err != nil {
		t.Fatal(err)
	}
	if left := hosttest.Run(t, "nft", "list", "ruleset"); left != "" {
		t.Errorf("left after clean-up:\n%s", left)
	}

	for _, how := range []string{"listed", "rendered"} {
		for _, fam := range fwd.Families {
			file := listed
			if how == "rendered" {
				var text bytes.Buffer
				if err := Render(&text, fam, table); err != nil {
					t.Fatal(err)
				}
				file = filepath.Join(t.TempDir(), "rendered.nft")
				if err := os.WriteFile(file, text.Bytes(), 0o600); err != nil {
					t.Fatal(err)
				}
				hosttest.Run(t, "nft", "-c", "-f", file)
				hosttest.Run(t, "nft", "-f", file)
			} else if fam == fwd.IPv4 {
				hosttest.Run(t, "nft", "-f", file)
			}
			want := values(objectsOf(fam, table))
			if diff := cmp.Diff(want, readAll(t, fam, tables[fam])); diff != "" {
				t.Errorf("%s: nft makes something else of what is %s (-want +got):\n%s", fam, how, diff)
			}
		}
		hosttest.Run(t, "nft", "flush", "ruleset")
	}
}

// BenchmarkKernel loads Services of 10 endpoints each into the kernel, then changes one of them. It prints the times of
// both; with FAIRLEAD_KERNEL_TESTS=1 as root.
func BenchmarkKernel(b *testing.B) {
	for _, n := range []int{1000, 10000} {
		b.Run(fmt.Sprintf("%dServices", n), func(b *testing.B) {
			hosttest.Netns(b, "nft")
			ctx := context.Background()
			var load, change, grow, read time.Duration
			for range b.N {
				be := New(map[fwd.Family]nft.Interface{fwd.IPv4: kernel(b)[fwd.IPv4]}, 0)
				table := &fwd.Table{}
				start := time.Now()
				be.Update(table.SetHeader(fwd.Header{Detector: [2]fwd.Detector{{Prefix: netip.MustParsePrefix("10.244.0.0/16")}},
					NodePorts: [2]fwd.NodePortAddrs{{All: true}}, MasqueradeBit: 14}))
				for i := range n {
					be.Update(table.Put(sampleFragment(i, 10)))
				}
				if _, err := be.Apply(ctx); err != nil {
					b.Fatal(err)
				}
				load += time.Since(start)

				f := sampleFragment(n/2, 10)
				f.Pools[0].Endpoints[3].Addr = netip.MustParseAddrPort("10.245.1.1:8080")
				slices.SortFunc(f.Pools[0].Endpoints, func(a, b fwd.Endpoint) int { return a.Addr.Compare(b.Addr) })
				for what, frag := range map[*time.Duration]*fwd.Fragment{&change: f, &grow: sampleFragment(n/3, 9)} {
					start = time.Now()
					be.Update(table.Put(frag))
					if res, err := be.Apply(ctx); err != nil || res.Written == 0 {
						b.Fatal(res, err)
					}
					*what += time.Since(start)
				}

				start = time.Now()
				if drifted, err := be.Observe(ctx); err != nil || drifted != 0 {
					b.Fatal(drifted, err)
				}
				read += time.Since(start)
				if err := be.Cleanup(ctx); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(load.Seconds()/float64(b.N), "load-s")
			b.ReportMetric(change.Seconds()/float64(b.N), "change-s")
			b.ReportMetric(grow.Seconds()/float64(b.N), "resize-s")
			b.ReportMetric(read.Seconds()/float64(b.N), "observe-s")
		})
	}
}

package nftables

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

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

// values returns the values of objects, which are compared.
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

// give updates a backend with a whole table.
func give(b backend.Backend, t *fwd.Table) { b.Update(wholeTable(t)) }

// everyShape is a table with every kind of rule that the renderer knows.
func everyShape() *fwd.Table {
	t := &fwd.Table{}
	t.SetHeader(fwd.Header{
		Detector: [2]fwd.Detector{{Prefix: netip.MustParsePrefix("10.244.0.0/14")}, {InterfacePrefix: "veth"}},
		NodePorts: [2]fwd.NodePortAddrs{
			{All: true, Loopback: true},
			{Prefixes: []netip.Prefix{netip.MustParsePrefix("fd00:1::/64"), netip.MustParsePrefix("fd00:2::5/128")}},
		},
		MasqueradeSource: [2]netip.Addr{{}, netip.MustParseAddr("fd00:1::2")},
		MasqueradeBit:    14, RejectOtherPorts: true, DropUnallocated: true,
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
	t.Put(unmovedFragment())
	return t
}

// unmovedFragment is a Service that has an endpoint with the address and port of its frontend.
func unmovedFragment() *fwd.Fragment {
	f := sampleFragment(60, 2)
	f.Frontends = slices.DeleteFunc(f.Frontends, func(f fwd.Frontend) bool { return f.Key.IsNodePort() })
	for i, k := range f.Frontends {
		p := &f.Pools[i]
		p.Endpoints[0].Addr = netip.AddrPortFrom(k.Key.Addr, k.Key.Port)
		slices.SortFunc(p.Endpoints, func(a, b fwd.Endpoint) int { return a.Addr.Compare(b.Addr) })
	}
	return f
}

// special gives a frontend unusual routes.
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

// TestKernelRoundTrip: what is read from the kernel compares equal to what was wanted, and so does
// what nft makes from the rendered text. Otherwise a restart would write everything again, and
// every verification would find drift. nft can list all of it.
func TestKernelRoundTrip(t *testing.T) {
	hosttest.Netns(t, "nft")
	ctx := context.Background()
	tables := kernel(t)
	b := newBackend(tables, 100, nil)
	table := everyShape()
	give(b, table)
	if _, err := b.Apply(ctx); err != nil {
		t.Fatal(err)
	}
	for _, fam := range fwd.Families {
		want := values(objectsOf(fam, table))
		if diff := gocmp.Diff(want, readAll(t, fam, tables[fam])); diff != "" {
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
		t.Errorf("left after cleanup:\n%s", left)
	}

	for _, how := range []string{"listed", "rendered"} {
		for _, fam := range fwd.Families {
			file := listed
			if how == "rendered" {
				var text bytes.Buffer
				if err := Render(&text, fam, 0, table); err != nil {
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
			if diff := gocmp.Diff(want, readAll(t, fam, tables[fam])); diff != "" {
				t.Errorf("%s: nft makes something else of the %s table (-want +got):\n%s", fam, how, diff)
			}
		}
		hosttest.Run(t, "nft", "flush", "ruleset")
	}
}

// benchServices returns the numbers of Services to measure with: FAIRLEAD_BENCH_SERVICES, such as
// "1000,10000,50000".
func benchServices(b *testing.B) (out []int) {
	b.Helper()
	for _, text := range strings.Split(cmp.Or(os.Getenv("FAIRLEAD_BENCH_SERVICES"), "1000,10000"), ",") {
		n, err := strconv.Atoi(text)
		if err != nil || n < 100 || n > 65536 {
			b.Fatalf("FAIRLEAD_BENCH_SERVICES: %q, want numbers from 100 to 65536", text)
		}
		out = append(out, n)
	}
	return out
}

// cpu returns the processor time of this process, including time in the kernel.
func cpu(b *testing.B) time.Duration {
	b.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkKernel loads Services of 10 endpoints each into the kernel, then changes some of them,
// one at a time: an endpoint is replaced, a pool loses one, the Service is deleted, it is added. It
// prints the mean times of the changes, the processor time of one, and how long it takes to read
// everything back; with FAIRLEAD_KERNEL_TESTS=1 as root.
func BenchmarkKernel(b *testing.B) {
	for _, n := range benchServices(b) {
		b.Run(fmt.Sprintf("%dServices", n), func(b *testing.B) {
			hosttest.Netns(b, "nft")
			ctx := context.Background()
			const changed = 20
			times := make(map[string]time.Duration)
			var changes int
			for range b.N {
				be := New(map[fwd.Family]nft.Interface{fwd.IPv4: kernel(b)[fwd.IPv4]}, nil)
				table := &fwd.Table{}
				apply := func(what string, ch ...fwd.Changes) {
					start := time.Now()
					for _, c := range ch {
						be.Update(c)
					}
					if res, err := be.Apply(ctx); err != nil || res.Written+res.Deleted == 0 {
						b.Fatal(what, res, err)
					}
					times[what] += time.Since(start)
				}
				all := []fwd.Changes{table.SetHeader(fwd.Header{Detector: [2]fwd.Detector{{Prefix: netip.MustParsePrefix("10.244.0.0/16")}},
					NodePorts: [2]fwd.NodePortAddrs{{All: true}}, MasqueradeBit: 14})}
				for i := range n {
					all = append(all, table.Put(sampleFragment(i, 10)))
				}
				apply("load-s", all...)

				before := cpu(b)
				for i := range changed {
					i = (i*2 + 1) * n / (2*changed + 1)
					other := sampleFragment(i, 10)
					other.Pools[0].Endpoints[3].Addr = netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 253, byte(i >> 8), byte(i)}), 8080)
					slices.SortFunc(other.Pools[0].Endpoints, func(a, b fwd.Endpoint) int { return a.Addr.Compare(b.Addr) })
					apply("replace-ms", table.Put(other))
					apply("resize-ms", table.Put(sampleFragment(i, 9)))
					apply("remove-ms", table.Remove(other.Owner))
					apply("add-ms", table.Put(sampleFragment(i, 10)))
					changes += 4
				}
				times["cpu-ms/change"] += cpu(b) - before

				start := time.Now()
				if drifted, err := be.Observe(ctx); err != nil || drifted != 0 {
					b.Fatal(drifted, err)
				}
				times["observe-s"] += time.Since(start)
				if err := be.Cleanup(ctx); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(0, "ns/op")
			for what, t := range times {
				switch {
				case what == "cpu-ms/change":
					b.ReportMetric(t.Seconds()*1000/float64(changes), what)
				case strings.HasSuffix(what, "-ms"):
					b.ReportMetric(t.Seconds()*1000/float64(b.N*changed), what)
				default:
					b.ReportMetric(t.Seconds()/float64(b.N), what)
				}
			}
		})
	}
}

// TestKernelCatchAll: an element for all other keys, which somebody else added, has no key by which
// it could be deleted.
func TestKernelCatchAll(t *testing.T) {
	hosttest.Netns(t, "nft")
	ctx := context.Background()
	tables := kernel(t)
	b := New(tables, nil)
	table := everyShape()
	give(b, table)
	if _, err := b.Apply(ctx); err != nil {
		t.Fatal(err)
	}
	for _, element := range []string{"vips { * : drop }", "endpoints { * : 192.0.2.1 . 80 }", "equal-bytes { * }"} {
		hosttest.Run(t, "nft", "add element ip "+TableName+" "+element)
		if drifted, err := b.Observe(ctx); err != nil || drifted == 0 {
			t.Errorf("%s: %d drifted, %v", element, drifted, err)
		}
		if _, err := b.Apply(ctx); err != nil {
			t.Errorf("%s: %v", element, err)
		}
		if diff := gocmp.Diff(values(objectsOf(fwd.IPv4, table)), readAll(t, fwd.IPv4, tables[fwd.IPv4])); diff != "" {
			t.Errorf("%s (-want +got):\n%s", element, diff)
		}
	}
}

// TestKernelRedirection: a connection that somebody else redirects to the host's loopback address
// keeps its source.
func TestKernelRedirection(t *testing.T) {
	hosttest.Netns(t, "nft")
	b := New(kernel(t), nil)
	give(b, everyShape())
	if _, err := b.Apply(t.Context()); err != nil {
		t.Fatal(err)
	}
	for family, a := range map[string]string{"ip": "127.0.0.1", "ip6": "::1"} {
		server := hosttest.Listen(t, netip.MustParseAddr(a))
		hosttest.Run(t, "nft", fmt.Sprintf("table %s foreign { chain output { type nat hook output priority -100; tcp dport 81 redirect to :%d; }; }",
			family, server.Addr().(*net.TCPAddr).Port))
		client, err := net.DialTimeout("tcp", net.JoinHostPort(a, "81"), hosttest.Patience)
		if err != nil {
			t.Errorf("%s: %v", a, err)
			continue
		}
		defer client.Close()
		seen, err := server.AcceptTCP()
		if err != nil {
			t.Fatal(err)
		}
		defer seen.Close()
		if got := seen.RemoteAddr().(*net.TCPAddr).IP.String(); got != a {
			t.Errorf("the server sees %s, want %s", got, a)
		}
	}
}

// TestKernelListen: changes by others are reported after Listen, or after Open if an earlier
// process left a table.
func TestKernelListen(t *testing.T) {
	hosttest.Netns(t)
	other := kernel(t)
	remove := func(f fwd.Family) {
		t.Helper()
		if err := other[f].Commit(t.Context(), []nft.Op{{Kind: nft.DelTable}}); err != nil {
			t.Fatal(err)
		}
	}
	open := func() *Plane {
		t.Helper()
		p, err := Open(t.Context(), slog.New(slog.DiscardHandler), 0)
		if err != nil {
			t.Fatal(err)
		}
		give(p, &fwd.Table{})
		if _, err := p.Observe(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, err := p.Apply(t.Context()); err != nil {
			t.Fatal(err)
		}
		return p
	}
	expectHint := func(p *Plane, what string) {
		t.Helper()
		select {
		case <-p.Drift:
		case <-time.After(hosttest.Patience):
			t.Errorf("%s is not reported", what)
		}
	}

	p := open()
	p.Listen()
	remove(fwd.IPv6)
	expectHint(p, "a change after Listen")
	open()
	p = open()
	remove(fwd.IPv4)
	expectHint(p, "a change of the table of an earlier process")
}

// TestKernelInterfaceNames: the kernel and nft accept every name that the configuration accepts: a
// prefix, a name of the maximum length, a bridge.
func TestKernelInterfaceNames(t *testing.T) {
	hosttest.Netns(t, "nft")
	tables := kernel(t)
	for _, d := range []fwd.Detector{{InterfacePrefix: "cali2345678901"}, {InterfacePrefix: "cali23456789012"}, {Bridge: "br-234567890123"}} {
		table := everyShape()
		h := table.Header()
		h.Detector = [2]fwd.Detector{d, d}
		table.SetHeader(h)
		b := New(tables, nil)
		give(b, table)
		if _, err := b.Observe(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, err := b.Apply(t.Context()); err != nil {
			t.Fatalf("%+v: %v", d, err)
		}
		var text bytes.Buffer
		if err := Render(&text, fwd.IPv4, 0, table); err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(t.TempDir(), "rendered.nft")
		if err := os.WriteFile(file, text.Bytes(), 0o600); err != nil {
			t.Fatal(err)
		}
		hosttest.Run(t, "nft", "-f", file)
		if diff := gocmp.Diff(values(objectsOf(fwd.IPv4, table)), readAll(t, fwd.IPv4, tables[fwd.IPv4])); diff != "" {
			t.Errorf("%+v: nft makes something else of the rendered table (-want +got):\n%s", d, diff)
		}
	}
}

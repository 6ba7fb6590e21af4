package ipvs

import (
	"bytes"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/fairlead/fairlead/internal/backend/ipvs/ipvssim"
	"github.com/fairlead/fairlead/internal/fwd"
)

func pick[T any](r *rand.Rand, s ...T) T { return s[r.IntN(len(s))] }

func subset[T any](r *rand.Rand, s ...T) (out []T) {
	for _, v := range s {
		if r.IntN(2) == 0 {
			out = append(out, v)
		}
	}
	return out
}

func prefixes(s ...string) (out []netip.Prefix) {
	for _, p := range s {
		out = append(out, netip.MustParsePrefix(p))
	}
	return out
}

// A small set of addresses with many collisions: some addresses of Services are, at times, the
// node's.
var (
	someVIPs  = []netip.Addr{netip.MustParseAddr("10.96.0.1"), netip.MustParseAddr("10.96.0.2"), netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("203.0.113.2")}
	someNodes = []netip.Addr{netip.MustParseAddr("192.168.0.1"), netip.MustParseAddr("192.168.0.2"), netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("10.96.0.2")}
	someCIDRs = prefixes("10.96.0.0/28", "10.97.0.0/16", "203.0.113.2/32")
)

func smallHeader(r *rand.Rand) fwd.Header {
	h := fwd.Header{MasqueradeBit: uint8(12 + r.IntN(3)), LocalAddrs: subset(r, someNodes...)}
	slices.SortFunc(h.LocalAddrs, netip.Addr.Compare)
	h.Detector[0] = pick(r, fwd.Detector{}, fwd.Detector{Prefix: netip.MustParsePrefix("10.244.0.0/16")})
	h.NodePorts[0] = pick(r, fwd.NodePortAddrs{All: true}, fwd.NodePortAddrs{Prefixes: prefixes("192.168.0.0/24")}, fwd.NodePortAddrs{})
	h.ServiceCIDRs[0] = subset(r, someCIDRs...)
	return h
}

// smallFragment is Service i; taken are ports that another frontend may use.
func smallFragment(r *rand.Rand, i int, taken []uint16) *fwd.Fragment {
	frag := &fwd.Fragment{Owner: fwd.Service{Namespace: "ns", Name: fmt.Sprint(i)}, CreatedUnix: int64(r.IntN(2))}
	if r.IntN(4) == 0 {
		frag.HealthCheck.Port = uint16(32000 + r.IntN(2))
	}
	used := make(map[fwd.PoolKey]bool)
	have := make(map[fwd.Key]bool)
	for p := range 1 + r.IntN(2) {
		port := fwd.ServicePort{Service: frag.Owner, Port: fmt.Sprint(p), Proto: pick(r, fwd.TCP, fwd.UDP)}
		for kind := range fwd.NodePort + 1 {
			k := fwd.Key{Family: fwd.IPv4, Addr: pick(r, someVIPs...), Proto: port.Proto, Port: pick(r, append(taken, 80, 81)...)}
			if kind == fwd.NodePort {
				k.Addr, k.Port = netip.Addr{}, pick(r, append(taken, 80, 30000)...)
			}
			if have[k] || r.IntN(3) == 0 {
				continue
			}
			have[k] = true
			f := fwd.Frontend{Key: k, Kind: kind, Owner: port}
			for c := range f.Routes {
				f.Routes[c] = pick(r, fwd.Route{Action: fwd.Drop}, fwd.Route{Action: fwd.Reject}, fwd.Route{Action: fwd.Forward}, fwd.Route{Action: fwd.Forward},
					fwd.Route{Action: fwd.Forward, Scope: fwd.Local}, fwd.Route{Action: fwd.Forward, Scope: fwd.Local, Masquerade: true})
				if f.Routes[c].Action == fwd.Forward {
					used[f.Pool(f.Routes[c])] = true
				}
			}
			if r.IntN(3) == 0 {
				f.Sources = pick(r, prefixes("192.168.0.2/32"), prefixes("0.0.0.0/0"), prefixes("10.96.0.1/32", "198.51.100.0/24"))
			}
			frag.Frontends = append(frag.Frontends, f)
		}
	}
	for k := range used {
		p := fwd.Pool{Key: k, AffinitySec: uint32(r.IntN(2) * 10)}
		for n := range 1 + r.IntN(3) {
			p.Endpoints = append(p.Endpoints, fwd.Endpoint{Addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 244, byte(k.Scope), byte(n)}), 8080), Weight: uint32(1 + r.IntN(2)), Local: n == 0})
		}
		frag.Pools = append(frag.Pools, p)
	}
	slices.SortFunc(frag.Frontends, func(a, b fwd.Frontend) int { return a.Key.Compare(b.Key) })
	slices.SortFunc(frag.Pools, func(a, b fwd.Pool) int { return a.Key.Compare(b.Key) })
	return frag
}

// follower is a renderer with all wanted objects.
type follower struct {
	*renderer
	objects map[Key]Value
}

func (f *follower) take(ch fwd.Changes) (edits int) {
	all := f.Render(ch)
	for _, e := range all {
		if e.Delete {
			delete(f.objects, e.Key)
		} else {
			f.objects[e.Key] = e.Value
		}
	}
	return len(all)
}

func newFollower(o RenderOptions) *follower {
	return &follower{newRenderer(fwd.IPv4, o), make(map[Key]Value)}
}

// differences returns the names of objects that differ between two maps.
func differences(got, want map[Key]Value) (out []string) {
	for k, v := range want {
		if g, ok := got[k]; !ok || !same(g, v) {
			out = append(out, fmt.Sprintf("want %v = %+v, got %+v", k, v, g))
		}
	}
	for k := range got {
		if _, ok := want[k]; !ok {
			out = append(out, fmt.Sprintf("not wanted: %v", k))
		}
	}
	slices.Sort(out)
	return out
}

// The wanted objects depend on the table alone, not on earlier Services, addresses of the node or
// service CIDRs, nor on how changes were batched.
func TestRenderDependsOnTheTableAlone(t *testing.T) {
	alternates, moved := 0, 0
	for seed := range uint64(60) {
		r := rand.New(rand.NewPCG(seed, 1))
		o := RenderOptions{VIPs: VIPMode(r.IntN(3)), HairpinBPF: r.IntN(2) == 0, NodeIP: someNodes[0]}
		if r.IntN(3) == 0 {
			o.Exclude = prefixes("203.0.113.0/31")
		}
		table := &fwd.Table{}
		f := newFollower(o)
		places := make(map[fwd.PoolKey]netip.AddrPort)
		var queue fwd.Changes
		for step := range 150 {
			var taken []uint16
			for _, a := range f.alternateOf {
				taken = append(taken, a.Port())
			}
			slices.Sort(taken)
			var ch fwd.Changes
			switch n := r.IntN(12); {
			case n == 0:
				ch = table.SetHeader(smallHeader(r))
			case n < 4:
				ch = table.Remove(fwd.Service{Namespace: "ns", Name: fmt.Sprint(r.IntN(6))})
			default:
				ch = table.Put(smallFragment(r, r.IntN(6), taken))
			}
			if ch.Header != nil {
				queue.Header = ch.Header
			}
			queue.Services, queue.VIPs = append(queue.Services, ch.Services...), append(queue.VIPs, ch.VIPs...)
			if r.IntN(3) == 0 {
				continue
			}
			f.take(queue)
			queue = fwd.Changes{}
			if diff := differences(f.objects, objectsOf(fwd.IPv4, o, table)); diff != nil {
				t.Fatalf("seed %d, step %d, %s:\n%s", seed, step, o.VIPs, strings.Join(diff, "\n"))
			}
			alternates += len(f.alternateAt)
			for pool, a := range f.alternateOf {
				if was, ok := places[pool]; ok && was.Addr() == a.Addr() && was != a {
					moved++
				}
				places[pool] = a
			}
		}
	}
	if alternates < 100 || moved < 10 {
		t.Errorf("%d alternates, %d of which made room for frontends: too few to tell", alternates, moved)
	}
}

// Two alternates with the same preferred port get the same ports in any order of arrival.
func TestAlternatesThatCollide(t *testing.T) {
	// localOnly is a Service on a shared address whose external IP needs an alternate.
	localOnly := func(i int) *fwd.Fragment {
		f := &fwd.Fragment{Owner: fwd.Service{Namespace: "default", Name: fmt.Sprint(i * i * i)}}
		port := fwd.ServicePort{Service: f.Owner, Proto: fwd.TCP}
		f.Frontends = []fwd.Frontend{{Key: fwd.Key{Family: fwd.IPv4, Addr: someVIPs[2], Proto: fwd.TCP, Port: uint16(1 + i)}, Kind: fwd.ExternalIP, Owner: port,
			Routes: [fwd.NumClasses]fwd.Route{{Action: fwd.Forward, Scope: fwd.Local}, {Action: fwd.Forward}, {Action: fwd.Forward}}}}
		for _, s := range []fwd.Scope{fwd.Cluster, fwd.Local} {
			f.Pools = append(f.Pools, fwd.Pool{Key: fwd.PoolKey{Port: port, Family: fwd.IPv4, Scope: s}, Endpoints: []fwd.Endpoint{{Addr: netip.MustParseAddrPort("10.244.0.1:80"), Weight: 1}}})
		}
		return f
	}
	place := func(numbers ...int) map[fwd.PoolKey]netip.AddrPort {
		table, f := &fwd.Table{}, newFollower(RenderOptions{})
		for _, i := range numbers {
			f.take(table.Put(localOnly(i)))
		}
		return f.alternateOf
	}
	byPort := make(map[netip.AddrPort]int)
	for i := range 3000 {
		for _, at := range place(i) {
			other, taken := byPort[at]
			if !taken {
				byPort[at] = i
				continue
			}
			one, two := place(i, other), place(other, i)
			if !maps.Equal(one, two) {
				t.Errorf("alternates are at %v, or at %v if they come in another order", one, two)
			}
			if ports := slices.Compact(slices.SortedFunc(maps.Values(one), netip.AddrPort.Compare)); len(ports) != 2 {
				t.Errorf("two alternates are at %v", ports)
			}
			return
		}
	}
	t.Error("no two Services want the same port")
}

// plain is Service i with a cluster IP, a node port and a load balancer IP with source ranges.
func plain(i int) *fwd.Fragment {
	f := &fwd.Fragment{Owner: fwd.Service{Namespace: "default", Name: fmt.Sprint(i)}}
	port := fwd.ServicePort{Service: f.Owner, Proto: fwd.TCP}
	all := fwd.Route{Action: fwd.Forward, Masquerade: true}
	routes := [fwd.NumClasses]fwd.Route{all, {Action: fwd.Forward}, all}
	low, high := byte(i), byte(i>>8)
	f.Frontends = []fwd.Frontend{
		{Key: fwd.Key{Family: fwd.IPv4, Proto: fwd.TCP, Port: uint16(30000 + i)}, Kind: fwd.NodePort, Owner: port, Routes: routes},
		{Key: fwd.Key{Family: fwd.IPv4, Addr: netip.AddrFrom4([4]byte{10, 96, high, low}), Proto: fwd.TCP, Port: 80}, Owner: port, Routes: routes},
		{Key: fwd.Key{Family: fwd.IPv4, Addr: netip.AddrFrom4([4]byte{100, 64, high, low}), Proto: fwd.TCP, Port: 80}, Kind: fwd.LoadBalancer, Owner: port,
			Routes: routes, Sources: prefixes("192.168.0.0/24")},
	}
	f.Pools = []fwd.Pool{{Key: fwd.PoolKey{Port: port, Family: fwd.IPv4}, Endpoints: []fwd.Endpoint{
		{Addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 244, high, low}), 8080), Weight: 1}}}}
	return f
}

// split gives pods and the node another pool than other sources at the load balancer's IP. Its rule
// is the only one per Service.
func split(f *fwd.Fragment) *fwd.Fragment {
	f.Frontends[2].Routes[fwd.Outside] = fwd.Route{Action: fwd.Forward, Scope: fwd.Local}
	local := f.Pools[0]
	local.Key.Scope = fwd.Local
	f.Pools = append(f.Pools, local)
	return f
}

func smallNode() fwd.Header {
	h := fwd.Header{MasqueradeBit: 14, LocalAddrs: []netip.Addr{netip.MustParseAddr("192.168.0.1"), netip.MustParseAddr("192.168.0.2")}}
	h.NodePorts[0].All = true
	h.Detector[0].Prefix = netip.MustParsePrefix("10.244.0.0/16")
	return h
}

// The number of rules and sets is the same for 10 and 1,000 Services, except for one rule for each
// frontend with two pools.
func TestRulesAndSetsDoNotGrow(t *testing.T) {
	type counts struct{ sets, chains, rules, redirects, servers int }
	count := func(o RenderOptions, services, splits int) (c counts) {
		table := &fwd.Table{}
		table.SetHeader(smallNode())
		for i := range services {
			f := plain(i)
			if i < splits {
				split(f)
			}
			table.Put(f)
		}
		for k, v := range objectsOf(fwd.IPv4, o, table) {
			switch k.Kind {
			case KindSet:
				c.sets++
			case KindServer:
				c.servers++
			case KindChain:
				c.chains++
				rules := len(strings.Split(v.Rules, "\n"))
				if k.Name == chainRedirect {
					c.redirects = rules - 1 // the last one is always there
				} else {
					c.rules += rules
				}
			}
		}
		return c
	}
	for _, mode := range []VIPMode{VIPAddress, VIPRoute, VIPMark} {
		for _, bpf := range []bool{true, false} {
			o := RenderOptions{VIPs: mode, HairpinBPF: bpf}
			few, many := count(o, 10, 3), count(o, 1000, 200)
			if few.redirects != 3 || many.redirects != 200 || few.servers != 40 || many.servers != 4000 {
				t.Errorf("%s: %+v and %+v, want 3 and 200 rules that redirect, 40 and 4000 virtual servers", mode, few, many)
			}
			few.redirects, few.servers, many.redirects, many.servers = 0, 0, 0, 0
			if few != many || few.rules > 60 || few.sets > 17 {
				t.Errorf("%s: %+v for 10 Services and %+v for 1,000", mode, few, many)
			}
		}
	}
}

// A change of the header renders only what depends on it.
func TestHeaderChangeCostsWhatDependsOnIt(t *testing.T) {
	table := &fwd.Table{}
	f := newFollower(RenderOptions{HairpinBPF: true})
	f.take(table.SetHeader(smallNode()))
	const services = 300
	for i := range services {
		frag := plain(i)
		if i >= 3 {
			frag.Frontends = frag.Frontends[1:2] // a cluster IP alone
		}
		f.take(table.Put(frag))
	}
	byKind := func(edit func(*fwd.Header)) map[Kind]int {
		before := make(map[Key]Value)
		for k, v := range f.objects {
			before[k] = v
		}
		h := table.Header()
		h.LocalAddrs = slices.Clone(h.LocalAddrs)
		edit(&h)
		if n := f.take(table.SetHeader(h)); n > 700 {
			t.Errorf("%d edits", n)
		}
		out := make(map[Kind]int)
		for k, v := range f.objects {
			if w, ok := before[k]; !ok || !same(v, w) {
				out[k.Kind]++
			}
			delete(before, k)
		}
		for k := range before {
			out[k.Kind]++
		}
		return out
	}
	for _, tc := range []struct {
		name string
		edit func(*fwd.Header)
		want map[Kind]int
	}{
		{"another mark", func(h *fwd.Header) { h.MasqueradeBit = 15 }, map[Kind]int{KindChain: 6}},
		{"no detector", func(h *fwd.Header) { h.Detector[0] = fwd.Detector{} }, map[Kind]int{KindChain: 2}},
		// The spot in FRONTENDS, MASQ-OUT and MASQ-HOST.
		{"another address", func(h *fwd.Header) { h.LocalAddrs = append(h.LocalAddrs, netip.MustParseAddr("192.168.0.3")) }, map[Kind]int{KindServer: 3, KindEntry: 9}},
		{"no node ports", func(h *fwd.Header) { h.NodePorts[0].All = false }, map[Kind]int{KindServer: 9, KindEntry: 27}},
		// The address is no longer bound or in VIPS, and no longer an allowed source.
		{"the node gets the address of a Service", func(h *fwd.Header) {
			h.LocalAddrs = []netip.Addr{netip.MustParseAddr("100.64.0.1"), h.LocalAddrs[0], h.LocalAddrs[1], h.LocalAddrs[2]}
		},
			map[Kind]int{KindVIP: 1, KindEntry: 2}},
	} {
		if got := byKind(tc.edit); fmt.Sprint(got) != fmt.Sprint(tc.want) {
			t.Errorf("%s: changed %v, want %v", tc.name, got, tc.want)
		}
	}
}

// Packets to a service CIDR that are not to a frontend are rejected where this is intended, and
// only there.
func TestServiceCIDRs(t *testing.T) {
	h := smallNode()
	h.ServiceCIDRs[0] = prefixes("10.96.0.0/16", "192.168.0.0/16")
	table := &fwd.Table{}
	table.SetHeader(h)
	table.Put(plain(5))
	for _, o := range []RenderOptions{
		{VIPs: VIPAddress, HairpinBPF: true}, {VIPs: VIPRoute, HairpinBPF: true, NodeIP: h.LocalAddrs[0]}, {VIPs: VIPMark, HairpinBPF: true},
		{VIPs: VIPRoute, HairpinBPF: true, Exclude: prefixes("10.96.0.7/32")}, {VIPs: VIPMark, HairpinBPF: true, Exclude: prefixes("10.96.0.7/32")},
	} {
		m := machineOf(t, o, table)
		for dst, rejected := range map[string][3]bool{ // by VIPMode
			"10.96.0.5:81":     {true, true, true},    // other port
			"10.96.0.6:80":     {false, true, true},   // unallocated
			"100.64.0.5:81":    {true, true, false},   // other port outside of the CIDRs
			"192.168.0.1:22":   {false, false, false}, // the node's own
			"192.168.0.77:22":  {false, false, false}, // its neighbour's, in a CIDR that has an address of the node
			"198.51.100.77:22": {false, false, false},
		} {
			want := rejected[o.VIPs]
			if o.Exclude != nil && (dst == "10.96.0.6:80" || o.VIPs == VIPMark) {
				want = false // there is no CIDR that can be treated as a whole
			}
			for _, p := range []fwd.Packet{
				{Src: netip.MustParseAddr("198.51.100.7"), Dst: netip.MustParseAddrPort(dst), Proto: fwd.TCP, InInterface: "eth0"},
				{Src: h.LocalAddrs[1], Dst: netip.MustParseAddrPort(dst), Proto: fwd.TCP},
			} {
				got, err := m.Rules.Run(m.Host, p)
				if err != nil {
					t.Fatal(err)
				}
				if (got[0].Verdict == fwd.VerdictReject) != want || got[0].Verdict != fwd.VerdictReject && got[0].Verdict != fwd.VerdictPass {
					t.Errorf("%s, excluding %v: %v from %v to %s, want it rejected: %v", o.VIPs, o.Exclude, got, p.Src, dst, want)
				}
				if said := simOptions(o).Expect(table, p, got[:1]); said[0].Verdict != got[0].Verdict {
					t.Errorf("%s: Expect says %v of %v to %s, which is %v", o.VIPs, said[0].Verdict, p.Src, dst, got[0].Verdict)
				}
			}
		}
	}
}

// machineOf renders a table and returns a host programmed with it.
func machineOf(t *testing.T, o RenderOptions, table *fwd.Table) *ipvssim.Machine {
	t.Helper()
	var text bytes.Buffer
	if err := Render(&text, fwd.IPv4, o, table); err != nil {
		t.Fatal(err)
	}
	h := table.Header()
	m, err := ipvssim.Parse(fwd.IPv4, text.String(), h.LocalAddrs)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// Packets of the node with the address of the Service as source are treated as the node's:
// masqueraded, and admitted if the node is.
func TestNodeDialsWithTheServicesAddress(t *testing.T) {
	for _, mode := range []VIPMode{VIPAddress, VIPRoute} {
		for _, tc := range []struct {
			name    string
			sources []netip.Prefix
			want    fwd.Verdict
		}{
			{"everybody may", nil, fwd.VerdictForward},
			{"one of the node's addresses may", prefixes("192.168.0.2/32", "198.51.100.0/24"), fwd.VerdictForward},
			{"the node may not", prefixes("198.51.100.0/24"), fwd.VerdictDrop},
		} {
			frag := plain(5)
			frag.Frontends[2].Sources = tc.sources
			for i := range frag.Frontends[2].Routes {
				frag.Frontends[2].Routes[i].Masquerade = false
			}
			vip := frag.Frontends[2].Key.Addr
			table := &fwd.Table{}
			table.SetHeader(smallNode())
			table.Put(frag)
			m := machineOf(t, RenderOptions{VIPs: mode, HairpinBPF: true}, table)
			got, err := m.Rules.Run(m.Host, fwd.Packet{Src: vip, Dst: netip.AddrPortFrom(vip, 80), Proto: fwd.TCP})
			if err != nil {
				t.Fatal(err)
			}
			if len(got) != 1 || got[0].Verdict != tc.want || got[0].Masquerade != (tc.want == fwd.VerdictForward) {
				t.Errorf("%s, %s: %+v, want %v, masqueraded if forwarded", mode, tc.name, got, tc.want)
			}
		}
	}
}

// A firewall with a drop policy needs no rules for Services.
func TestPolicyDrop(t *testing.T) {
	frag := split(plain(5))
	frag.Frontends[1].Routes = frag.Frontends[2].Routes // the cluster IP has the same pools as the load balancer, so there is an alternate
	frag.Frontends[2].Sources = nil
	frag.HealthCheck.Port = 32001
	table := &fwd.Table{}
	table.SetHeader(smallNode())
	table.Put(frag)
	for _, mode := range []VIPMode{VIPAddress, VIPRoute, VIPMark} {
		m := machineOf(t, RenderOptions{VIPs: mode, HairpinBPF: true}, table)
		if err := m.Rules.Restore("*filter\n-P INPUT DROP\n-P FORWARD DROP\n-P OUTPUT DROP\n-A OUTPUT -d 192.168.0.1 -j ACCEPT\nCOMMIT\n"); err != nil {
			t.Fatal(err)
		}
		for dst, want := range map[string]fwd.Verdict{
			"100.64.0.5:80":     fwd.VerdictForward, // redirected, for all but those outside
			"10.96.0.5:80":      fwd.VerdictForward,
			"192.168.0.1:30005": fwd.VerdictForward,
			"192.168.0.1:32001": fwd.VerdictPass, // let in
			"192.168.0.1:22":    fwd.VerdictDrop,
		} {
			for _, p := range []fwd.Packet{
				{Src: netip.MustParseAddr("198.51.100.7"), InInterface: "eth0"},
				{Src: netip.MustParseAddr("10.244.0.9"), InInterface: "veth1"},
				{Src: netip.MustParseAddr("192.168.0.2")},
			} {
				p.Dst, p.Proto = netip.MustParseAddrPort(dst), fwd.TCP
				got, err := m.Rules.Run(m.Host, p)
				if err != nil {
					t.Fatal(err)
				}
				if len(got) != 1 || got[0].Verdict != want {
					t.Errorf("%s: %v to %s: %+v, want %v", mode, p.Src, dst, got, want)
				}
			}
		}
		if len(m.Host.Servers) != 5 {
			t.Errorf("%s: %d virtual servers, want those of four frontends and an alternate", mode, len(m.Host.Servers))
		}
	}
}

// Names have to fit the kernel's limits.
func TestNamesFit(t *testing.T) {
	everyRule(func(fam fwd.Family, name string, _ RenderOptions, objects map[Key]Value) {
		for k := range objects {
			if k.Kind == KindSet && (len(k.Name) > 31 || !strings.HasPrefix(k.Name, setPrefix(fam))) || k.Kind == KindChain && len(k.Name) > 28 {
				t.Errorf("%s: %v", name, k)
			}
		}
	})
}

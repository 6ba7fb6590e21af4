package localport

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/fairlead/fairlead/internal/cluster"
	"github.com/fairlead/fairlead/internal/compile"
	"github.com/fairlead/fairlead/internal/fwd"
	"github.com/fairlead/fairlead/internal/fwdtext"
)

// table reads the text form of a table and returns all of it as changes.
func table(tb testing.TB, lines ...string) fwd.Changes {
	tb.Helper()
	t, err := fwdtext.Read(strings.NewReader("header masqueradebit=14\n" + strings.Join(lines, "\n") + "\n"))
	if err != nil {
		tb.Fatal(err)
	}
	var ch fwd.Changes
	for f := range t.Services() {
		ch.Services = append(ch.Services, fwd.ServiceChange{Owner: f.Owner, New: f})
	}
	return ch
}

// changesOf lists what the next Sync passes on, one line for each key, sorted.
func changesOf(f *Forwarder) []string {
	var out []string
	for k, t := range f.changed {
		s := k.String() + " -> "
		if t.empty() {
			out = append(out, s+"no listener")
			continue
		}
		for _, e := range t.endpoints {
			s += fmt.Sprintf("%s*%d ", e.Addr, e.Weight)
		}
		out = append(out, fmt.Sprintf("%sof %d for %s affinity %s", s, t.total, t.owner, t.affinity))
	}
	slices.Sort(out)
	return out
}

func TestUpdate(t *testing.T) {
	const (
		service = "service d/s created=1"
		local   = "pool d/s:p/tcp family=IPv4 scope=local endpoints=10.0.0.1:80/local"
		cluster = "pool d/s:p/tcp family=IPv4 scope=cluster affinity=60 endpoints=10.0.0.1:80/local,10.0.0.2:80/weight:3"
	)
	both := [2]bool{true, true}
	tests := []struct {
		name     string
		families [2]bool
		table    []string
		want     []string
	}{
		{"policy Cluster", both, []string{service,
			"frontend node4:30080/tcp kind=NodePort owner=d/s:p/tcp all=forward,cluster,masquerade,policy-cluster", cluster},
			[]string{"node4:30080/tcp -> 10.0.0.1:80*1 10.0.0.2:80*3 of 4 for d/s:p affinity 1m0s"}},
		{"policy Local with a local endpoint: not the host's short circuit", both, []string{service,
			"frontend node4:30080/tcp kind=NodePort owner=d/s:p/tcp outside=forward,local,external-local pod=forward,cluster,short-circuit host=forward,cluster,masquerade,short-circuit",
			local, cluster},
			[]string{"node4:30080/tcp -> 10.0.0.1:80*1 of 1 for d/s:p affinity 0s"}},
		{"a local pool with strangers in it", both, []string{service,
			"frontend node4:30080/tcp kind=NodePort owner=d/s:p/tcp all=forward,local,external-local",
			"pool d/s:p/tcp family=IPv4 scope=local endpoints=10.0.0.1:80,10.0.0.2:80/local/weight:5,10.0.0.3:80"},
			[]string{"node4:30080/tcp -> 10.0.0.2:80*5 of 5 for d/s:p affinity 0s"}},
		{"a local pool of strangers alone", both, []string{service,
			"frontend node4:30080/tcp kind=NodePort owner=d/s:p/tcp all=forward,local,external-local",
			"pool d/s:p/tcp family=IPv4 scope=local endpoints=10.0.0.1:80"},
			[]string{"node4:30080/tcp -> no listener"}},
		{"policy Local without a local endpoint", both, []string{service,
			"frontend node4:30080/tcp kind=NodePort owner=d/s:p/tcp outside=drop,external-local-empty pod=forward,cluster,short-circuit host=forward,cluster,masquerade,short-circuit", cluster},
			[]string{"node4:30080/tcp -> no listener"}},
		{"no endpoints", both, []string{service, "frontend node4:30080/tcp kind=NodePort owner=d/s:p/tcp all=reject,no-endpoints"},
			[]string{"node4:30080/tcp -> no listener"}},
		{"sources that leave out loopback", both, []string{service,
			"frontend node4:30080/tcp kind=NodePort owner=d/s:p/tcp all=forward,cluster,masquerade,policy-cluster sources=10.0.0.0/8", cluster},
			[]string{"node4:30080/tcp -> no listener"}},
		{"other protocols and frontends", both, []string{service,
			"frontend node4:30080/udp kind=NodePort owner=d/s:p/udp all=reject,no-endpoints",
			"frontend node4:30080/sctp kind=NodePort owner=d/s:p/sctp all=reject,no-endpoints",
			"frontend 10.96.0.1:80/tcp kind=ClusterIP owner=d/s:p/tcp all=forward,cluster,policy-cluster", cluster},
			nil},
		{"a family that is not enabled", [2]bool{false, true}, []string{service,
			"frontend node4:30080/tcp kind=NodePort owner=d/s:p/tcp all=forward,cluster,masquerade,policy-cluster",
			"frontend node6:30080/tcp kind=NodePort owner=d/s:p/tcp all=forward,cluster,masquerade,policy-cluster", cluster,
			"pool d/s:p/tcp family=IPv6 scope=cluster endpoints=[fd00::1]:80"},
			[]string{"node6:30080/tcp -> [fd00::1]:80*1 of 1 for d/s:p affinity 0s"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := New(Options{Families: tt.families})
			changes := table(t, tt.table...)
			f.Update(changes)
			if diff := cmp.Diff(tt.want, changesOf(f)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			lookupAgrees(t, changes, tt.families, f.changed)
		})
	}
}

// lookupAgrees compares what Lookup says with where the forwarder sends connections.
func lookupAgrees(t *testing.T, changes fwd.Changes, families [2]bool, served map[fwd.Key]target) {
	t.Helper()
	var tab fwd.Table
	for _, sc := range changes.Services {
		tab.Put(sc.New)
	}
	for i, fam := range fwd.Families {
		for _, proto := range []fwd.Proto{fwd.TCP, fwd.UDP, fwd.SCTP} {
			p := fwd.Packet{Src: loopback[i], Dst: netip.AddrPortFrom(loopback[i], 30080), Proto: proto}
			to, ours := served[fwd.Key{Family: fam, Proto: proto, Port: 30080}]
			out, ok := Lookup(&tab, families, p)
			if ok != ours || ok && (out.Verdict == fwd.VerdictForward) == to.empty() {
				t.Errorf("%s to %s: %v, %s; the forwarder has %v", proto, p.Dst, ok, out.Verdict, to)
			}
			if diff := cmp.Diff(to.endpoints, out.Endpoints, cmp.Comparer(func(a, b fwd.Endpoint) bool { return a == b })); diff != "" {
				t.Errorf("%s to %s: endpoints (-forwarder +Lookup):\n%s", proto, p.Dst, diff)
			}
			p.Src = netip.MustParseAddr([]string{"192.0.2.1", "2001:db8::1"}[i])
			if _, ok := Lookup(&tab, families, p); ok {
				t.Errorf("%s to %s from %s: served", proto, p.Dst, p.Src)
			}
		}
	}
}

// TestUpdatePassesKey lets a key go from one Service to another, in both orders of the Services in
// the changes.
func TestUpdatePassesKey(t *testing.T) {
	one := table(t, "service d/a created=1", "frontend node4:30080/tcp kind=NodePort owner=d/a:p/tcp all=forward,cluster,policy-cluster",
		"pool d/a:p/tcp family=IPv4 scope=cluster endpoints=10.0.0.1:80").Services[0].New
	two := table(t, "service d/b created=2", "frontend node4:30080/tcp kind=NodePort owner=d/b:p/tcp all=forward,cluster,policy-cluster",
		"pool d/b:p/tcp family=IPv4 scope=cluster endpoints=10.0.0.2:80").Services[0].New
	goes, comes := fwd.ServiceChange{Owner: one.Owner, Old: one}, fwd.ServiceChange{Owner: two.Owner, New: two}
	for _, services := range [][]fwd.ServiceChange{{goes, comes}, {comes, goes}} {
		f := New(Options{Families: [2]bool{true, true}})
		f.Update(fwd.Changes{Services: services})
		if diff := cmp.Diff([]string{"node4:30080/tcp -> 10.0.0.2:80*1 of 1 for d/b:p affinity 0s"}, changesOf(f)); diff != "" {
			t.Errorf("%s first (-want +got):\n%s", services[0].Owner, diff)
		}
	}
	f := New(Options{Families: [2]bool{true, true}})
	f.Update(fwd.Changes{Services: []fwd.ServiceChange{comes}})
	f.Update(fwd.Changes{Services: []fwd.ServiceChange{{Owner: two.Owner, Old: two}}})
	if diff := cmp.Diff([]string{"node4:30080/tcp -> no listener"}, changesOf(f)); diff != "" {
		t.Errorf("a key that went (-want +got):\n%s", diff)
	}
}

// TestCompiled asks the compiler, so that the rule by which endpoints are taken is that of the
// routes it makes.
func TestCompiled(t *testing.T) {
	endpoint := func(addr, node string) cluster.Endpoint {
		return cluster.Endpoint{Addr: netip.MustParseAddr(addr), Place: &cluster.Place{Node: node}, Ready: true, Serving: true}
	}
	here, there := endpoint("10.0.0.1", "n1"), endpoint("10.0.0.2", "n2")
	tests := []struct {
		name  string
		local bool
		eps   []cluster.Endpoint
		want  string
	}{
		{"Cluster", false, []cluster.Endpoint{here, there}, "10.0.0.1:80*1 10.0.0.2:80*1 of 2 for d/s:p affinity 0s"},
		{"Cluster, none", false, nil, "no listener"},
		{"Local", true, []cluster.Endpoint{here, there}, "10.0.0.1:80*1 of 1 for d/s:p affinity 0s"},
		{"Local, remote ones alone", true, []cluster.Endpoint{there}, "no listener"},
		{"Local, none", true, nil, "no listener"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			name := fwd.Service{Namespace: "d", Name: "s"}
			svc := &cluster.Service{
				Name: name, Type: cluster.TypeNodePort, ExternalLocal: tt.local,
				ClusterIPs: [2]netip.Addr{netip.MustParseAddr("10.96.0.1")},
				Ports:      []cluster.ServicePort{{Name: "p", Protocol: fwd.TCP, Port: 80, NodePort: 30080}},
			}
			slice := &cluster.Slice{Service: name, Family: fwd.IPv4, Ports: []cluster.SlicePort{{Name: "p", Protocol: fwd.TCP, Port: 80}}, Endpoints: tt.eps}
			fragment, problems := compile.Compile(svc, []*cluster.Slice{slice}, &compile.Facts{NodeName: "n1", DetectsPods: [2]bool{true, true}})
			if len(problems) > 0 {
				t.Fatal(problems)
			}
			f := New(Options{Families: [2]bool{true, true}})
			f.Update(fwd.Changes{Services: []fwd.ServiceChange{{New: fragment}}})
			if diff := cmp.Diff([]string{"node4:30080/tcp -> " + tt.want}, changesOf(f)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func makeTarget(owner string, affinity time.Duration, weights ...uint32) target {
	out := target{owner: fwd.ServicePort{Port: owner}, affinity: affinity}
	for i, w := range weights {
		if w > 0 {
			out.endpoints = append(out.endpoints, fwd.Endpoint{Addr: endpointAddr(i), Weight: w})
			out.total += uint64(w)
		}
	}
	return out
}

func endpointAddr(i int) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}), 80)
}

func TestChooseByWeight(t *testing.T) {
	var c chooser
	c.set(makeTarget("p", 0, 1, 4, 2))
	got := make(map[netip.AddrPort]int)
	for n := range uint64(7) {
		got[c.choose(time.Time{}, func(limit uint64) uint64 {
			if limit != 7 {
				t.Errorf("a number below %d was asked for, want 7", limit)
			}
			return n
		})]++
	}
	want := map[netip.AddrPort]int{endpointAddr(0): 1, endpointAddr(1): 4, endpointAddr(2): 2}
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestChooseWithAffinity(t *testing.T) {
	type step struct {
		at   time.Duration
		set  *target // before the choice
		draw uint64  // what chance would choose
		want int     // -1 for no connection
	}
	minute := makeTarget("p", time.Minute, 1, 1, 1)
	to := func(t target) *target { return &t }
	tests := []struct {
		name  string
		steps []step
	}{
		{"the first choice stays", []step{{0, &minute, 2, 2}, {time.Second, nil, 0, 2}, {2 * time.Second, nil, 1, 2}}},
		{"each connection prolongs", []step{{0, &minute, 1, 1}, {59 * time.Second, nil, 0, 1}, {118 * time.Second, nil, 0, 1}}},
		{"it ends with the timeout", []step{{0, &minute, 1, 1}, {time.Minute, nil, 0, 0}, {61 * time.Second, nil, 2, 0}}},
		{"other endpoints come and go", []step{{0, &minute, 2, 2}, {1, to(makeTarget("p", time.Minute, 0, 0, 1, 1)), 1, 2}}},
		{"its endpoint goes and comes back", []step{
			{0, &minute, 2, 2}, {1, to(makeTarget("p", time.Minute, 1, 1)), 0, 0},
			{2, &minute, 1, 0}}},
		{"its endpoint goes and comes back, unnoticed by clients", []step{
			{0, &minute, 2, 2}, {1, to(makeTarget("p", time.Minute, 1, 1)), 0, -1}, {2, &minute, 0, 0}}},
		{"it is switched off and on", []step{
			{0, &minute, 2, 2}, {1, to(makeTarget("p", 0, 1, 1, 1)), 0, 0}, {2, &minute, 1, 1}}},
		{"a shorter timeout applies at once", []step{{0, &minute, 2, 2}, {30 * time.Second, to(makeTarget("p", 10*time.Second, 1, 1, 1)), 0, 0}}},
		{"another service port", []step{{0, &minute, 2, 2}, {1, to(makeTarget("q", time.Minute, 1, 1, 1)), 0, 0}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var c chooser
			for i, s := range tt.steps {
				if s.set != nil {
					c.set(*s.set)
				}
				if s.want < 0 {
					continue
				}
				got := c.choose(time.Unix(1000, 0).Add(s.at), func(uint64) uint64 { return s.draw })
				if got != endpointAddr(s.want) {
					t.Errorf("step %d: got %s, want %s", i, got, endpointAddr(s.want))
				}
			}
		})
	}
}

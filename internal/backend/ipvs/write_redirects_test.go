package ipvs

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/internal/fwd"
	hostipvs "github.com/fairlead/fairlead/internal/host/ipvs"
	"github.com/fairlead/fairlead/internal/host/xtables"
)

// twoPools is a Service with a cluster IP and a load balancer IP. With a local endpoint the
// external traffic policy is Local, and clients outside get that one; all others get the endpoint
// of the cluster. So it is where the only endpoint on the node shuts down and another one is ready.
func twoPools(local, cluster string) *fwd.Fragment {
	f := &fwd.Fragment{Owner: fwd.Service{Namespace: "ns", Name: "split"}}
	port := fwd.ServicePort{Service: f.Owner, Port: "p", Proto: fwd.TCP}
	everybody := fwd.Route{Action: fwd.Forward, Reason: fwd.ReasonCluster}
	outside := everybody
	f.Pools = []fwd.Pool{{Key: fwd.PoolKey{Port: port, Family: fwd.IPv4}, Endpoints: []fwd.Endpoint{ep(cluster, 0)}}}
	if local != "" {
		outside = fwd.Route{Action: fwd.Forward, Scope: fwd.Local, Reason: fwd.ReasonExternalLocal}
		f.Pools = append(f.Pools, fwd.Pool{Key: fwd.PoolKey{Port: port, Family: fwd.IPv4, Scope: fwd.Local}, Endpoints: []fwd.Endpoint{ep(local, 0)}})
	}
	add := func(addr string, kind fwd.Kind, outside fwd.Route) {
		f.Frontends = append(f.Frontends, fwd.Frontend{
			Key: fwd.Key{Family: fwd.IPv4, Addr: netip.MustParseAddr(addr), Proto: fwd.TCP, Port: 80}, Kind: kind, Owner: port,
			Routes: [fwd.NumClasses]fwd.Route{fwd.Outside: outside, fwd.Pod: everybody, fwd.Host: everybody},
		})
	}
	add("10.96.0.10", fwd.ClusterIP, everybody)
	add("203.0.113.5", fwd.LoadBalancer, outside)
	return f
}

// After a failure no source reaches endpoints that are not meant for it: redirecting rules change
// only when both virtual servers are ready.
func TestFailureWhileRedirectionsChange(t *testing.T) {
	const local, cluster, redirects = "10.0.0.2:8080", "10.0.0.3:8080", "203.0.113.5/32 -p tcp -m tcp --dport 80 -j DNAT"
	v := vs(fwd.TCP, "203.0.113.5:80")
	busy := func(verb hostipvs.Verb) func(*bench) {
		return func(b *bench) {
			b.servers.Fail = func(op hostipvs.Op) error {
				if op.Verb == verb && op.Server == v {
					return unix.EBUSY
				}
				return nil
			}
		}
	}
	locked := func(b *bench) {
		b.tables.Hook = func([]byte) error { return &xtables.RestoreError{Transient: true, Err: errors.New("lock held")} }
	}
	for _, tt := range []struct {
		name     string
		from, to *fwd.Fragment
		fail     func(*bench)
		// redirected means that pods and the node are redirected; real is the endpoint of the other
		// sources, or of all.
		redirected bool
		real       []string
	}{
		{"no endpoint can be added to what all are to share", twoPools(local, cluster), twoPools("", cluster), busy(hostipvs.AddReal), true, []string{local + " 1"}},
		{"what only some may have cannot be taken from it", twoPools(local, cluster), twoPools("", cluster), busy(hostipvs.SetReal), true,
			[]string{local + " 1", cluster + " 1"}},
		{"the rules stay that make a difference", twoPools(local, cluster), twoPools("", cluster), locked, true, []string{cluster + " 1"}},
		{"no rules yet to make a difference", twoPools("", cluster), twoPools(local, cluster), locked, false, []string{cluster + " 1"}},
		{"what others had cannot be taken from outside", twoPools("", cluster), twoPools(local, cluster), busy(hostipvs.SetReal), true,
			[]string{local + " 1", cluster + " 1"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newBench(t)
			b.update(b.table.Put(tt.from))
			b.apply()
			tt.fail(b)
			b.update(b.table.Put(tt.to))
			if _, err := b.backend.Apply(t.Context()); err == nil {
				t.Fatal("nothing failed")
			}
			b.has(v, tt.real...)
			rules := b.tables.Save(tableNAT)
			if got := strings.Contains(rules, redirects); got != tt.redirected {
				t.Errorf("redirected: %v, want %v; the rules are\n%s", got, tt.redirected, rules)
			}

			b.servers.Fail, b.tables.Hook = nil, nil
			b.apply()
			b.idle()
			want := local + " 1"
			if len(tt.to.Pools) == 1 {
				want = cluster + " 1"
			}
			b.has(v, want)
		})
	}
}

// byClass is a Service with a cluster IP where all classes get the endpoint except those that are
// dropped.
func byClass(endpoint string, drop ...fwd.Class) *fwd.Fragment {
	f := &fwd.Fragment{Owner: fwd.Service{Namespace: "ns", Name: "classes"}}
	port := fwd.ServicePort{Service: f.Owner, Port: "p", Proto: fwd.TCP}
	f.Pools = []fwd.Pool{{Key: fwd.PoolKey{Port: port, Family: fwd.IPv4}, Endpoints: []fwd.Endpoint{ep(endpoint, 0)}}}
	fe := fwd.Frontend{Key: fwd.Key{Family: fwd.IPv4, Addr: netip.MustParseAddr("10.96.0.10"), Proto: fwd.TCP, Port: 80}, Kind: fwd.ClusterIP, Owner: port}
	for c := range fe.Routes {
		fe.Routes[c] = fwd.Route{Action: fwd.Forward, Reason: fwd.ReasonCluster, Masquerade: fwd.Class(c) == fwd.Outside}
	}
	for _, c := range drop {
		fe.Routes[c] = fwd.Route{Action: fwd.Drop, Reason: fwd.ReasonExternalLocal}
	}
	f.Frontends = []fwd.Frontend{fe}
	return f
}

// After a failure no source reaches endpoints that are not meant for it while the detection of pods
// changes: a source that was outside, and dropped, does not reach as a pod the endpoints that were
// for the former pods.
func TestFailureWhileClassesChange(t *testing.T) {
	const old, fresh = "10.0.0.2:8080", "10.0.0.3:8080"
	busy := func(verb hostipvs.Verb) func(*bench) {
		return func(b *bench) {
			b.servers.Fail = func(op hostipvs.Op) error {
				if op.Verb == verb {
					return unix.EBUSY
				}
				return nil
			}
		}
	}
	noEntries := func(b *bench) {
		b.sets.Fail = func(op string) error {
			if op == "apply" {
				return unix.EBUSY
			}
			return nil
		}
	}
	locked := func(b *bench) {
		b.tables.Hook = func([]byte) error { return &xtables.RestoreError{Transient: true, Err: errors.New("lock held")} }
	}
	for _, tt := range []struct {
		name string
		to   *fwd.Fragment
		fail func(*bench)
		// turned means that the new classification of sources is in force; real is the endpoint of
		// the virtual server.
		turned bool
		real   []string
	}{
		{"nothing fails", byClass(fresh), func(*bench) {}, true, []string{fresh + " 1"}},
		{"sets cannot be written", byClass(fresh), noEntries, false, []string{old + " 1"}},
		{"what was for the pods of before cannot be taken away", byClass(fresh), busy(hostipvs.SetReal), false, []string{old + " 1"}},
		{"what is for the pods of now cannot be added", byClass(fresh), busy(hostipvs.AddReal), true, nil},
		{"no rules", byClass(fresh), locked, false, nil},
		{"the endpoint stays, but sets do not say from whom to drop", byClass(old, fwd.Pod), noEntries, false, []string{old + " 1"}},
		{"a Service that goes keeps its endpoint", nil, busy(hostipvs.SetReal), false, []string{old + " 1"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newBench(t)
			from := byClass(old, fwd.Outside)
			b.update(b.table.Put(from))
			b.apply()
			tt.fail(b)
			h := b.table.Header()
			h.Detector[0].Prefix = netip.MustParsePrefix("10.0.0.0/16")
			b.update(b.table.SetHeader(h))
			if tt.to != nil {
				b.update(b.table.Put(tt.to))
			} else {
				b.update(b.table.Remove(from.Owner))
			}
			if _, err := b.backend.Apply(t.Context()); (err == nil) != (tt.name == "nothing fails") {
				t.Fatal(err)
			}
			b.has(webV, tt.real...)
			for _, table := range []string{tableMangle, tableNAT} {
				rules := b.tables.Save(table)
				if got := strings.Contains(rules, matchPod(h.Detector[0])); got != tt.turned {
					t.Errorf("table %s knows the new pods: %v, want %v; the rules are\n%s", table, got, tt.turned, rules)
				}
			}

			b.servers.Fail, b.sets.Fail, b.tables.Hook = nil, nil, nil
			b.apply()
			b.idle()
			want := "gone"
			if tt.to != nil {
				want = tt.to.Pools[0].Endpoints[0].Addr.String() + " 1"
			}
			b.has(webV, want)
		})
	}
}

// A virtual server that treats all sources alike always has endpoints while the classification
// changes. So has every virtual server if the existing rules are those of mode iptables, which do
// not use virtual servers.
func TestEndpointsWhileRulesChange(t *testing.T) {
	const old, fresh, local = "10.0.0.2:8080", "10.0.0.3:8080", "10.0.0.4:8080"
	pods := func(b *bench) {
		h := b.table.Header()
		h.Detector[0].Prefix = netip.MustParsePrefix("10.0.0.0/16")
		b.update(b.table.SetHeader(h))
	}
	afterIPTables := func(b *bench) {
		err := b.tables.Restore(b.t.Context(), []byte("*nat\n:FAIRLEAD-SERVICES - [0:0]\n-A PREROUTING -j FAIRLEAD-SERVICES\nCOMMIT\n"))
		if err != nil {
			b.t.Fatal(err)
		}
		b.restart()
	}
	for _, tt := range []struct {
		name  string
		begin func(*bench)
		to    *fwd.Fragment
		want  map[hostipvs.VirtualServer][]string
	}{
		{
			"who is a pod",
			func(b *bench) { b.update(b.table.Put(byClass(old))); b.apply(); pods(b) },
			byClass(fresh), map[hostipvs.VirtualServer][]string{webV: {old + " 0", fresh + " 1"}},
		},
		{"first endpoints after mode iptables", afterIPTables, byClass(fresh, fwd.Outside), map[hostipvs.VirtualServer][]string{webV: {fresh + " 1"}}},
		{
			"redirections after mode iptables", afterIPTables, twoPools(local, fresh),
			map[hostipvs.VirtualServer][]string{webV: {fresh + " 1"}, vs(fwd.TCP, "203.0.113.5:80"): {local + " 1"}},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newBench(t)
			tt.begin(b)
			b.update(b.table.Put(tt.to))
			written := 0
			b.tables.Hook = func([]byte) error {
				written++
				for v, want := range tt.want {
					b.has(v, want...)
				}
				return nil
			}
			b.apply()
			if written == 0 {
				t.Error("no rules were written")
			}
			b.tables.Hook = nil
			b.idle()
		})
	}
}

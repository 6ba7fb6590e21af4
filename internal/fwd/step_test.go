package fwd

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
)

// portsFragment is a Service with a pool and some frontends for each of the ports, by name; the
// port number is the index.
func portsFragment(frontends, endpoint int, names ...string) *Fragment {
	f := &Fragment{Owner: Service{"ns", "svc"}}
	all := Route{Action: Forward}
	for i, name := range names {
		if name == "" {
			continue
		}
		owner := ServicePort{Service: f.Owner, Port: name, Proto: TCP}
		f.Pools = append(f.Pools, Pool{Key: PoolKey{Port: owner}, Endpoints: []Endpoint{{Addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 1, 0, byte(endpoint)}), 80), Weight: 1}}})
		for a := range frontends {
			f.Frontends = append(f.Frontends, Frontend{Key: Key{Addr: netip.AddrFrom4([4]byte{10, 96, 0, byte(a)}), Proto: TCP, Port: uint16(i + 1)}, Owner: owner, Routes: [NumClasses]Route{all, all, all}})
		}
	}
	slices.SortFunc(f.Frontends, func(a, b Frontend) int { return a.Key.Compare(b.Key) })
	slices.SortFunc(f.Pools, func(a, b Pool) int { return a.Key.Compare(b.Key) })
	return f
}

// TestStep: steps lead from one fragment to another, each is bounded, has whole service ports, and
// loses no frontend that both have.
func TestStep(t *testing.T) {
	empty := &Fragment{Owner: Service{"ns", "svc"}}
	for _, tc := range []struct {
		name     string
		from, to *Fragment
		steps    int
	}{
		{"small", empty, portsFragment(2, 1, "a", "b"), 1},
		{"new", empty, portsFragment(4, 1, "a", "b", "c", "d", "e", "f"), 6},
		{"deleted", portsFragment(4, 1, "a", "b", "c", "d", "e", "f"), empty, 6},
		{"another endpoint", portsFragment(4, 1, "a", "b", "c", "d", "e", "f"), portsFragment(4, 2, "a", "b", "c", "d", "e", "f"), 6},
		{"one port", portsFragment(4, 1, "a", "b", "c", "d", "e"), portsFragment(4, 1, "a", "b", "c", "d", "e", "f"), 1},
		{"renamed", portsFragment(4, 1, "a", "b", "c", "d"), portsFragment(4, 1, "A", "B", "C", "D"), 4},
		{"one large port", portsFragment(200, 1, "a"), portsFragment(200, 2, "a"), 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			steps, done := 0, false
			for at := tc.from; !done; steps++ {
				if steps > tc.steps {
					t.Fatalf("not done after %d steps", steps)
				}
				at, done = Step(at, tc.to, 8)
				checkStep(t, at, tc.from, tc.to)
				if done && !at.Equal(tc.to) {
					t.Error("the last step is not what was asked for")
				}
			}
			if steps != tc.steps {
				t.Errorf("%d steps, want %d", steps, tc.steps)
			}
		})
	}
}

func checkStep(t *testing.T, at, from, to *Fragment) {
	t.Helper()
	if !slices.IsSortedFunc(at.Frontends, func(a, b Frontend) int { return a.Key.Compare(b.Key) }) || !slices.IsSortedFunc(at.Pools, func(a, b Pool) int { return a.Key.Compare(b.Key) }) {
		t.Error("not sorted")
	}
	pools := make(map[PoolKey]bool)
	count := make(map[string]int)
	for _, f := range at.Frontends {
		k := f.Pool(f.Routes[0])
		if at.Pool(k) == nil {
			t.Errorf("%v leads to a pool that is not there", f.Key)
		}
		pools[k] = true
		count[f.Owner.Port]++
	}
	if len(pools) != len(at.Pools) {
		t.Errorf("%d pools, of which %d are used", len(at.Pools), len(pools))
	}
	for name, n := range count {
		for _, f := range []*Fragment{from, to} {
			owned := 0
			for _, fe := range f.Frontends {
				if fe.Owner.Port == name {
					owned++
				}
			}
			if owned > 0 && owned != n {
				t.Errorf("port %s has %d of %d frontends", name, n, owned)
			}
		}
	}
	for _, f := range from.Frontends {
		if to.has(f.Key) && !at.has(f.Key) {
			t.Errorf("%v is missing on the way", f.Key)
		}
	}
}

func TestUnchanged(t *testing.T) {
	a, b := portsFragment(2, 1, "a", "b", "c"), portsFragment(2, 1, "a", "b", "c")
	b.Pools[1].Endpoints = slices.Concat(b.Pools[1].Endpoints, portsFragment(1, 9, "b").Pools[0].Endpoints)
	b.Frontends[2].Kind = ExternalIP
	port := func(name string) ServicePort { return ServicePort{Service: a.Owner, Port: name, Proto: TCP} }
	var got []string
	for _, sc := range []ServiceChange{{Old: a, New: b}, {Old: a}, {New: b}} {
		unchanged := sc.Unchanged()
		got = append(got, fmt.Sprint(unchanged(port("a")), unchanged(port("b")), unchanged(port("c"))))
	}
	if want := []string{"true false false", "false false false", "false false false"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

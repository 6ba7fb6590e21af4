package fwd

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// follower keeps what somebody knows who sees nothing but Changes.
type follower struct {
	header   Header
	services map[Service]*Fragment
	vips     map[netip.Addr]VIP
}

func (f *follower) follow(t *testing.T, ch Changes) {
	t.Helper()
	if ch.Header != nil {
		f.header = *ch.Header
	}
	for _, s := range ch.Services {
		was := f.services[s.Owner]
		if (was == nil) != (s.Old == nil) || was != nil && !was.Equal(s.Old) {
			t.Errorf("change of %s: Old is not what was told last", s.Owner)
		}
		if s.Old == nil && s.New == nil || s.Old != nil && s.New != nil && s.Old.Equal(s.New) {
			t.Errorf("change of %s: nothing changed", s.Owner)
		}
		if s.New == nil {
			delete(f.services, s.Owner)
		} else {
			f.services[s.Owner] = s.New
		}
	}
	for _, v := range ch.VIPs {
		was, there := f.vips[v.VIP.Addr]
		switch {
		case v.Gone && !there:
			t.Errorf("%s is gone, but never came", v.VIP.Addr)
		case v.Gone:
			delete(f.vips, v.VIP.Addr)
		case there && was == v.VIP:
			t.Errorf("%s: nothing changed", v.VIP.Addr)
		default:
			f.vips[v.VIP.Addr] = v.VIP
		}
	}
}

// compare checks what was followed against the table.
func (f *follower) compare(t *testing.T, table *Table) {
	t.Helper()
	if h := table.Header(); !h.Equal(&f.header) {
		t.Error("header differs from the changes")
	}
	n := 0
	for frag := range table.Services() {
		n++
		if got := f.services[frag.Owner]; got == nil || !got.Equal(frag) {
			t.Errorf("%s differs from the changes", frag.Owner)
		}
	}
	if n != len(f.services) {
		t.Errorf("the changes leave %d services, the table has %d", len(f.services), n)
	}
	var vips []VIP
	for _, v := range f.vips {
		vips = append(vips, v)
	}
	slices.SortFunc(vips, func(a, b VIP) int { return a.Addr.Compare(b.Addr) })
	if d := cmp.Diff(vips, slices.Clip(table.VIPs()), equalAddrs, equateEmpty); d != "" {
		t.Errorf("VIPs by the changes (-) and in the table (+):\n%s", d)
	}
}

var (
	equalAddrs  = cmp.Comparer(func(a, b netip.Addr) bool { return a == b })
	equateEmpty = cmp.FilterValues(func(a, b []VIP) bool { return len(a)+len(b) == 0 }, cmp.Ignore())
)

// naive is the table as one would write it who cares for nothing but the rules.
type naive map[Service]*Fragment

func (n naive) before(a, b *Fragment) bool {
	if a.CreatedUnix != b.CreatedUnix {
		return a.CreatedUnix < b.CreatedUnix
	}
	return a.Owner.Compare(b.Owner) < 0
}

// claims lists who wants each key, best first.
func (n naive) claims() map[Key][]*Fragment {
	out := make(map[Key][]*Fragment)
	for _, f := range n {
		for _, fe := range f.Frontends {
			out[fe.Key] = append(out[fe.Key], f)
		}
	}
	for _, c := range out {
		slices.SortFunc(c, func(a, b *Fragment) int {
			if n.before(a, b) {
				return -1
			}
			return 1
		})
	}
	return out
}

func (n naive) check(t *testing.T, table *Table) {
	t.Helper()
	var conflicts []Conflict
	vips := make(map[netip.Addr]VIP)
	claims := n.claims()
	for k, cs := range claims {
		fe := table.Frontend(k)
		if fe == nil || fe.Owner.Service != cs[0].Owner {
			t.Errorf("%s: want owner %s, got %v", k, cs[0].Owner, fe)
			continue
		}
		for _, r := range fe.Routes {
			if r.Action == Forward && table.Pool(fe.Pool(r)) == nil {
				t.Errorf("%s: a route has no pool", k)
			}
		}
		if !k.IsNodePort() {
			v := vips[k.Addr]
			vips[k.Addr] = VIP{k.Addr, v.ClusterIP || fe.Kind == ClusterIP}
		}
		for _, c := range cs[1:] {
			conflicts = append(conflicts, Conflict{k, cs[0].Owner, c.Owner})
		}
	}
	for f := range table.Services() {
		used := make(map[PoolKey]bool)
		for _, fe := range f.Frontends {
			for _, r := range fe.Routes {
				used[fe.Pool(r)] = used[fe.Pool(r)] || r.Action == Forward
			}
		}
		for _, p := range f.Pools {
			if !used[p.Key] {
				t.Errorf("%s: the effective fragment has an unused pool %v", f.Owner, p.Key)
			}
		}
	}
	effective := 0
	for range table.Services() {
		effective++
	}
	if services, frontends := table.Len(); frontends != len(claims) || services != effective {
		t.Errorf("table has %d frontends, want %d", frontends, len(claims))
	}
	slices.SortFunc(conflicts, compareConflicts)
	got := table.Conflicts()
	slices.SortStableFunc(got, compareConflicts)
	if d := cmp.Diff(conflicts, got, equalAddrs); d != "" {
		t.Errorf("conflicts (-want +got):\n%s", d)
	}
	for _, v := range table.VIPs() {
		if vips[v.Addr] != v {
			t.Errorf("VIP %v: want %v", v, vips[v.Addr])
		}
		delete(vips, v.Addr)
	}
	if len(vips) > 0 {
		t.Errorf("missing VIPs: %v", vips)
	}
}

func compareConflicts(a, b Conflict) int {
	if d := a.Key.Compare(b.Key); d != 0 {
		return d
	}
	return a.Loser.Compare(b.Loser)
}

// TestTableRandom runs random operations and checks after each that the table is what its Services
// ask for: by a naive reading of the rules, by a table built from scratch, and by whoever followed
// the changes.
func TestTableRandom(t *testing.T) {
	for seed := range uint64(15) {
		g := newGenerator(seed)
		var table Table
		model := naive{}
		f := follower{services: map[Service]*Fragment{}, vips: map[netip.Addr]VIP{}}
		for step := range 120 {
			owner := g.owner()
			switch g.IntN(8) {
			case 0:
				f.follow(t, table.SetHeader(g.header()))
			case 1, 2:
				f.follow(t, table.Remove(owner))
				delete(model, owner)
			default:
				frag := g.fragment(owner)
				f.follow(t, table.Put(frag))
				delete(model, owner)
				if !frag.Empty() {
					model[owner] = frag
				}
				again := *frag
				if ch2 := table.Put(&again); !ch2.Empty() {
					t.Errorf("the same fragment put twice: %+v", ch2)
				}
			}
			model.check(t, &table)
			f.compare(t, &table)
			if step%10 == 9 {
				compareScratch(t, g, model, &table)
			}
			if t.Failed() {
				t.Fatalf("seed %d, step %d", seed, step)
			}
		}
	}
}

// valuesOf prints the header, and each fragment as it was put and as it is effective.
func valuesOf(table *Table) []string {
	out := []string{fmt.Sprintf("%+v", table.Header())}
	for f := range table.Fragments() {
		out = append(out, fmt.Sprintf("put %+v", *f))
	}
	for f := range table.Services() {
		out = append(out, fmt.Sprintf("effective %+v", *f))
	}
	return out
}

func compareScratch(t *testing.T, g generator, model naive, table *Table) {
	t.Helper()
	frags := make([]*Fragment, 0, len(model))
	for _, f := range model {
		frags = append(frags, f)
	}
	slices.SortFunc(frags, func(a, b *Fragment) int { return a.Owner.Compare(b.Owner) })
	g.Shuffle(len(frags), func(i, j int) { frags[i], frags[j] = frags[j], frags[i] })
	var scratch Table
	scratch.SetHeader(table.Header())
	for _, f := range frags {
		scratch.Put(f)
	}
	if d := cmp.Diff(valuesOf(&scratch), valuesOf(table)); d != "" {
		t.Errorf("from scratch (-) and by increments (+):\n%s", d)
	}
	if !slices.Equal(scratch.VIPs(), table.VIPs()) || !slices.Equal(scratch.Conflicts(), table.Conflicts()) {
		t.Error("VIPs or conflicts differ from those of a table built from scratch")
	}
}

func vipFragment(name string, created int64, kind Kind, addr string, ports ...uint16) *Fragment {
	f := &Fragment{Owner: Service{"ns", name}, CreatedUnix: created}
	for _, p := range ports {
		fe := Frontend{
			Key: Key{Family: IPv4, Addr: netip.MustParseAddr(addr), Proto: TCP, Port: p}, Kind: kind,
			Owner: ServicePort{Service: f.Owner, Proto: TCP},
		}
		for c := range fe.Routes {
			fe.Routes[c] = Route{Action: Reject, Reason: ReasonNoEndpoints}
		}
		f.Frontends = append(f.Frontends, fe)
	}
	return f
}

// owners names, in order, the Services of changes, with + where one came, - where one went, ~ where
// one changed.
func owners(ch Changes) (out []string) {
	for _, s := range ch.Services {
		mark := "~"
		switch {
		case s.Old == nil:
			mark = "+"
		case s.New == nil:
			mark = "-"
		}
		out = append(out, mark+s.Owner.Name)
	}
	return out
}

func TestTableConflicts(t *testing.T) {
	var table Table
	steps := []struct {
		name string
		do   func() Changes
		want []string
	}{
		{"the first claimant gets the key", func() Changes { return table.Put(vipFragment("young", 30, ExternalIP, "1.2.3.4", 80, 81)) }, []string{"+young"}},
		{"an older one takes it over", func() Changes { return table.Put(vipFragment("old", 10, ExternalIP, "1.2.3.4", 80)) }, []string{"+old", "~young"}},
		{"one in between changes nothing", func() Changes { return table.Put(vipFragment("mid", 20, ExternalIP, "1.2.3.4", 80)) }, nil},
		{"a loser that leaves changes nothing", func() Changes { return table.Remove(Service{"ns", "mid"}) }, nil},
		{"and comes back", func() Changes { return table.Put(vipFragment("mid", 20, ExternalIP, "1.2.3.4", 80)) }, nil},
		{"the next surfaces as the owner leaves", func() Changes { return table.Remove(Service{"ns", "old"}) }, []string{"-old", "+mid"}},
		{"an owner created anew goes to the end", func() Changes { return table.Put(vipFragment("mid", 40, ExternalIP, "1.2.3.4", 80)) }, []string{"-mid", "~young"}},
		{"same age: the smaller name", func() Changes { return table.Put(vipFragment("a", 30, ExternalIP, "1.2.3.4", 80)) }, []string{"+a", "~young"}},
		{"an owner that gives up the key only", func() Changes { return table.Put(vipFragment("a", 30, ExternalIP, "1.2.3.4", 99)) }, []string{"~a", "~young"}},
	}
	for _, s := range steps {
		if d := cmp.Diff(s.want, owners(s.do())); d != "" {
			t.Fatalf("%s (-want +got):\n%s", s.name, d)
		}
	}
	want := []Conflict{{Key{IPv4, netip.MustParseAddr("1.2.3.4"), TCP, 80}, Service{"ns", "young"}, Service{"ns", "mid"}}}
	if d := cmp.Diff(want, table.Conflicts(), equalAddrs); d != "" {
		t.Errorf("conflicts at the end (-want +got):\n%s", d)
	}
}

func TestTableVIPs(t *testing.T) {
	var table Table
	addr := netip.MustParseAddr("1.2.3.4")
	came := func(clusterIP bool) []VIPChange { return []VIPChange{{VIP: VIP{addr, clusterIP}}} }
	gone := []VIPChange{{VIP: VIP{Addr: addr}, Gone: true}}
	steps := []struct {
		name string
		do   func() Changes
		want []VIPChange
	}{
		{"first frontend", func() Changes { return table.Put(vipFragment("a", 1, ExternalIP, "1.2.3.4", 80)) }, came(false)},
		{"second port", func() Changes { return table.Put(vipFragment("a", 1, ExternalIP, "1.2.3.4", 80, 81)) }, nil},
		{"second Service", func() Changes { return table.Put(vipFragment("b", 2, ExternalIP, "1.2.3.4", 82)) }, nil},
		{"becomes a cluster IP", func() Changes { return table.Put(vipFragment("c", 3, ClusterIP, "1.2.3.4", 83)) }, came(true)},
		{"one of several leaves", func() Changes { return table.Remove(Service{"ns", "a"}) }, nil},
		{"ceases to be a cluster IP", func() Changes { return table.Remove(Service{"ns", "c"}) }, came(false)},
		{"passes to another at once", func() Changes { return table.Put(vipFragment("d", 1, ExternalIP, "1.2.3.4", 82)) }, nil},
		{"the winner leaves, the loser holds it", func() Changes { return table.Remove(Service{"ns", "d"}) }, nil},
		{"last frontend", func() Changes { return table.Remove(Service{"ns", "b"}) }, gone},
		{"a stranger leaves", func() Changes { return table.Remove(Service{"ns", "b"}) }, nil},
	}
	for _, s := range steps {
		if d := cmp.Diff(s.want, s.do().VIPs, equalAddrs); d != "" {
			t.Fatalf("%s (-want +got):\n%s", s.name, d)
		}
	}
}

func TestTableZeroValue(t *testing.T) {
	var table Table
	if out := table.Lookup(Packet{}); out.Verdict != VerdictPass {
		t.Errorf("an empty packet in an empty table: %s", out.Verdict)
	}
	if ch := table.Remove(Service{"ns", "x"}); !ch.Empty() {
		t.Errorf("removing what is not there: %+v", ch)
	}
	if ch := table.Put(&Fragment{Owner: Service{"ns", "x"}}); !ch.Empty() {
		t.Errorf("putting nothing: %+v", ch)
	}
	if ch := table.SetHeader(Header{}); !ch.Empty() {
		t.Errorf("setting the header that it has: %+v", ch)
	}
}

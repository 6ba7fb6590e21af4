package fwd

import (
	"iter"
	"maps"
	"net/netip"
	"slices"
)

// Changes is what one operation did to the table, for its followers. Values in it are immutable.
type Changes struct {
	// Header is the new header, nil if it did not change.
	Header *Header
	// Services are the Services whose effective fragment changed: the one that was put or removed
	// first, then those that gained or lost a key by it, sorted.
	Services []ServiceChange
	// VIPs are the addresses that were added, changed or removed, sorted by address.
	VIPs []VIPChange
}

// Empty says that nothing changed.
func (c *Changes) Empty() bool {
	return c.Header == nil && len(c.Services) == 0 && len(c.VIPs) == 0
}

// ServiceChange is a Service's effective fragment, which is its fragment without the frontends that
// other Services own, before and after. Old or New is nil where the Service contributed nothing.
type ServiceChange struct {
	Owner    Service
	Old, New *Fragment
}

// VIPChange says that the first frontend of an address was added, that the last one was removed, or
// that the address became or ceased to be a cluster IP.
type VIPChange struct {
	VIP VIP
	// Gone says that no frontend is left on the address.
	Gone bool
}

// Conflict is a key that two Services claim.
type Conflict struct {
	Key           Key
	Winner, Loser Service
}

// claim is one Service's request to own a key.
type claim struct {
	owner   Service
	created int64
}

func (c claim) before(o claim) bool {
	if c.created != o.created {
		return c.created < o.created
	}
	return c.owner.Compare(o.owner) < 0
}

// entry is a Service in the table: what was put, and what is effective of it.
type entry struct {
	put       *Fragment
	effective *Fragment
}

// Table is the forwarding table of one node. The zero Table is empty and ready to use.
type Table struct {
	header   Header
	services map[Service]*entry
	// effective counts the services with an effective fragment.
	effective int
	// owners finds the effective frontend of a key.
	owners map[Key]*Frontend
	// waiting holds, for keys that more than one Service claims, all claims, best first. Most keys
	// have none.
	waiting map[Key][]claim
	vips    map[netip.Addr]vipCount
}

type vipCount struct{ all, clusterIP int }

func (t *Table) init() {
	if t.services == nil {
		t.services = make(map[Service]*entry)
		t.owners = make(map[Key]*Frontend)
		t.waiting = make(map[Key][]claim)
		t.vips = make(map[netip.Addr]vipCount)
	}
}

// Header returns the header.
func (t *Table) Header() Header { return t.header }

// SetHeader replaces the header.
func (t *Table) SetHeader(h Header) Changes {
	if t.header.Equal(&h) {
		return Changes{}
	}
	t.header = h
	return Changes{Header: &h}
}

// Frontend returns the frontend with that key, or nil.
func (t *Table) Frontend(k Key) *Frontend { return t.owners[k] }

// Pool returns the pool with that key, or nil.
func (t *Table) Pool(k PoolKey) *Pool {
	e := t.services[k.Port.Service]
	if e == nil || e.effective == nil {
		return nil
	}
	return e.effective.Pool(k)
}

// Fragment returns the effective fragment of a Service, or nil.
func (t *Table) Fragment(owner Service) *Fragment {
	if e := t.services[owner]; e != nil {
		return e.effective
	}
	return nil
}

// Claimed returns the fragment of a Service as it was put, with the keys that other Services own;
// an empty one if there is none.
func (t *Table) Claimed(owner Service) *Fragment {
	if e := t.services[owner]; e != nil {
		return e.put
	}
	return &Fragment{Owner: owner}
}

// Services yields the effective fragments, sorted by owner.
func (t *Table) Services() iter.Seq[*Fragment] {
	return func(yield func(*Fragment) bool) {
		for _, owner := range slices.SortedFunc(maps.Keys(t.services), Service.Compare) {
			if e := t.services[owner].effective; e != nil && !yield(e) {
				return
			}
		}
	}
}

// Fragments yields the fragments as they were put, sorted by owner.
func (t *Table) Fragments() iter.Seq[*Fragment] {
	return func(yield func(*Fragment) bool) {
		for _, owner := range slices.SortedFunc(maps.Keys(t.services), Service.Compare) {
			if !yield(t.services[owner].put) {
				return
			}
		}
	}
}

// VIPs returns all addresses on which there are frontends, sorted.
func (t *Table) VIPs() []VIP {
	out := make([]VIP, 0, len(t.vips))
	for _, a := range slices.SortedFunc(maps.Keys(t.vips), netip.Addr.Compare) {
		out = append(out, VIP{Addr: a, ClusterIP: t.vips[a].clusterIP > 0})
	}
	return out
}

// Conflicts returns the keys that are claimed by more than one Service, sorted, one entry for each
// loser.
func (t *Table) Conflicts() []Conflict {
	var out []Conflict
	for _, k := range slices.SortedFunc(maps.Keys(t.waiting), Key.Compare) {
		claims := t.waiting[k]
		for _, c := range claims[1:] {
			out = append(out, Conflict{Key: k, Winner: claims[0].owner, Loser: c.owner})
		}
	}
	return out
}

// Len returns the number of Services with an effective fragment and the number of frontends.
func (t *Table) Len() (services, frontends int) {
	return t.effective, len(t.owners)
}

// Put replaces the fragment of a Service. The table keeps the fragment; the caller must not change
// it afterwards.
func (t *Table) Put(f *Fragment) Changes {
	t.init()
	if f.Empty() {
		return t.Remove(f.Owner)
	}
	e := t.services[f.Owner]
	if e == nil {
		e = &entry{}
		t.services[f.Owner] = e
	} else if e.put.Equal(f) {
		return Changes{}
	}
	old := e.put
	e.put = f
	return t.settle(f.Owner, old, f)
}

// Remove removes a Service from the table. It changes nothing if there is none.
func (t *Table) Remove(owner Service) Changes {
	e := t.services[owner]
	if e == nil {
		return Changes{}
	}
	old := e.put
	e.put = nil
	ch := t.settle(owner, old, nil)
	delete(t.services, owner)
	return ch
}

// settle decides who owns the keys of the old and the new fragment of a Service, and recomputes the
// effective fragments of all Services that this affects.
func (t *Table) settle(owner Service, old, now *Fragment) Changes {
	touched := map[Service]struct{}{owner: {}}
	if old != nil {
		for i := range old.Frontends {
			if k := old.Frontends[i].Key; now == nil || !now.has(k) {
				t.unclaim(k, owner, touched)
			}
		}
	}
	if now != nil {
		for i := range now.Frontends {
			t.claim(now.Frontends[i].Key, claim{owner, now.CreatedUnix}, touched)
		}
	}
	delete(touched, owner)
	others := slices.SortedFunc(maps.Keys(touched), Service.Compare)

	var ch Changes
	vips := make(map[netip.Addr]vipCount)
	for _, s := range append([]Service{owner}, others...) {
		e := t.services[s]
		was, is := e.effective, t.effectiveOf(e.put)
		if was == is || was != nil && is != nil && was.Equal(is) {
			continue
		}
		e.effective = is
		if was == nil {
			t.effective++
		}
		if is == nil {
			t.effective--
		}
		t.index(was, is, vips)
		ch.Services = append(ch.Services, ServiceChange{Owner: s, Old: was, New: is})
	}
	ch.VIPs = t.vipChanges(vips)
	return ch
}

// claim records that a Service requests a key, perhaps again. Claims to a key are kept only while
// there is more than one: a single owner is found through owners.
func (t *Table) claim(k Key, c claim, touched map[Service]struct{}) {
	claims := slices.Clone(t.waiting[k])
	if len(claims) == 0 {
		holder := t.owners[k]
		if holder == nil || holder.Owner.Service == c.owner {
			return
		}
		h := holder.Owner.Service
		claims = []claim{{h, t.services[h].put.CreatedUnix}}
	}
	first := claims[0].owner
	claims = slices.DeleteFunc(claims, func(o claim) bool { return o.owner == c.owner })
	i := slices.IndexFunc(claims, c.before)
	if i < 0 {
		i = len(claims)
	}
	claims = slices.Insert(claims, i, c)
	touched[first], touched[claims[0].owner] = struct{}{}, struct{}{}
	t.waiting[k] = claims
}

// unclaim withdraws a Service's claim to a key; the next claimant, if any, is touched.
func (t *Table) unclaim(k Key, owner Service, touched map[Service]struct{}) {
	claims := slices.Clone(t.waiting[k])
	if len(claims) == 0 {
		return
	}
	claims = slices.DeleteFunc(claims, func(c claim) bool { return c.owner == owner })
	touched[claims[0].owner] = struct{}{}
	if len(claims) == 1 {
		delete(t.waiting, k)
		return
	}
	t.waiting[k] = claims
}

// effectiveOf returns what is left of a fragment without the keys that others own.
func (t *Table) effectiveOf(f *Fragment) *Fragment {
	if f == nil {
		return nil
	}
	keeps := func(fe *Frontend) bool {
		claims := t.waiting[fe.Key]
		return len(claims) == 0 || claims[0].owner == f.Owner
	}
	lost := false
	for i := range f.Frontends {
		if !keeps(&f.Frontends[i]) {
			lost = true
			break
		}
	}
	if !lost {
		return f
	}
	out := *f
	out.Frontends = nil
	used := make(map[PoolKey]bool)
	for i := range f.Frontends {
		fe := &f.Frontends[i]
		if !keeps(fe) {
			continue
		}
		out.Frontends = append(out.Frontends, *fe)
		for _, r := range fe.Routes {
			if r.Action == Forward {
				used[fe.Pool(r)] = true
			}
		}
	}
	out.Pools = nil
	for _, p := range f.Pools {
		if used[p.Key] {
			out.Pools = append(out.Pools, p)
		}
	}
	if out.Empty() {
		return nil
	}
	return &out
}

// index updates owners and vips from an old effective fragment to a new one. before collects the
// previous counts of vips, for vipChanges.
func (t *Table) index(was, is *Fragment, before map[netip.Addr]vipCount) {
	count := func(f *Frontend, by int) {
		if f.Key.IsNodePort() {
			return
		}
		c := t.vips[f.Key.Addr]
		if _, seen := before[f.Key.Addr]; !seen {
			before[f.Key.Addr] = c
		}
		c.all += by
		if f.Kind == ClusterIP {
			c.clusterIP += by
		}
		if c.all == 0 {
			delete(t.vips, f.Key.Addr)
			return
		}
		t.vips[f.Key.Addr] = c
	}
	if was != nil {
		for i := range was.Frontends {
			f := &was.Frontends[i]
			count(f, -1)
			// The key may have passed to another Service in this very operation.
			if cur := t.owners[f.Key]; cur != nil && cur.Owner.Service == was.Owner {
				delete(t.owners, f.Key)
			}
		}
	}
	if is != nil {
		for i := range is.Frontends {
			f := &is.Frontends[i]
			count(f, 1)
			t.owners[f.Key] = f
		}
	}
}

func (t *Table) vipChanges(before map[netip.Addr]vipCount) []VIPChange {
	var out []VIPChange
	for _, a := range slices.SortedFunc(maps.Keys(before), netip.Addr.Compare) {
		was, is := before[a], t.vips[a]
		if (was.all > 0) == (is.all > 0) && (was.clusterIP > 0) == (is.clusterIP > 0) {
			continue
		}
		out = append(out, VIPChange{VIP: VIP{Addr: a, ClusterIP: is.clusterIP > 0}, Gone: is.all == 0})
	}
	return out
}

// has says whether the fragment asks for the key.
func (f *Fragment) has(k Key) bool {
	_, ok := slices.BinarySearchFunc(f.Frontends, k, func(fe Frontend, k Key) int { return fe.Key.Compare(k) })
	return ok
}

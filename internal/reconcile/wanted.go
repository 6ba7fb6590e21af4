package reconcile

import (
	"net/netip"

	"github.com/fairlead/fairlead/internal/cluster"
	"github.com/fairlead/fairlead/internal/compile"
	"github.com/fairlead/fairlead/internal/fwd"
)

// wanted is what the cluster asks for: its objects and the table made from them.
type wanted struct {
	store cluster.Store
	table fwd.Table
	facts compile.Facts
	// addrs are the addresses of the node's interfaces.
	addrs []netip.Addr
	// gradual are the Services whose change is too large for one sync, in the order in which they
	// are written.
	gradual []*gradual
	// stepSkipped says that the last sync wrote changes of other Services instead of a step.
	stepSkipped bool
	// headerSent says that the backends have the header, loaded that all Services were compiled.
	headerSent, loaded bool
	// localPolicyEmpty and endpoints are sums over the table.
	localPolicyEmpty [2][2]int
	endpoints        int
}

// refresh updates the table and the backends from the store. It reports whether anything changed.
func (l *Loop) refresh() bool {
	changed := l.refreshHeader(true)
	return l.take(l.wanted.store.TakeDirty()) || changed
}

// take updates the table for some Services. It reports whether anything changed.
func (l *Loop) take(names []fwd.Service) (changed bool) {
	for _, name := range names {
		if !l.holdsBack(name) {
			changed = l.compile(name) || changed
		}
	}
	if len(names) > 0 {
		l.reportConflicts()
	}
	return changed
}

// compile updates the table for one Service. It reports whether anything changed.
func (l *Loop) compile(owner fwd.Service) bool {
	if l.wanted.postpone(owner) {
		return false
	}
	target := &fwd.Fragment{Owner: owner}
	if svc := l.wanted.store.Service(owner); svc == nil {
		l.reports.forget(owner)
	} else {
		var problems []compile.Problem
		target, problems = compile.Compile(svc, l.wanted.store.Slices(owner), &l.wanted.facts)
		l.reportProblems(owner, problems)
	}
	if _, small := fwd.Step(l.wanted.table.Claimed(owner), target, 2*stepSize); !small && l.stepwise() {
		l.wanted.gradual = append(l.wanted.gradual, &gradual{target: target})
		return false
	}
	return l.update(l.wanted.table.Put(target))
}

// refreshHeader computes the header and the facts again if the node, its addresses or the Config
// changed. all says that all Services are compiled before anything is written.
func (l *Loop) refreshHeader(all bool) bool {
	w := &l.wanted
	if l.news.addrs && l.LocalAddrs != nil {
		if addrs, err := l.LocalAddrs(); err != nil {
			l.log.Warn("cannot list the node's addresses, keeping the last known ones", "error", err)
		} else {
			w.addrs = addrs
		}
	}
	if !l.news.addrs && !l.news.header {
		return false
	}
	l.news.addrs, l.news.header = false, !all
	node := l.node()
	l.reportWarnings(l.Config.Warnings(node, w.addrs))
	if facts := l.Config.Facts(node); facts != w.facts {
		w.facts = facts
		w.store.MarkAllDirty()
	}
	h := l.Config.Header(node, w.addrs)
	l.Config.SetServiceCIDRs(&h, w.store.ServiceCIDRs())
	if !all { // a kube-proxy that this replaces may serve Services that are not in the table yet
		h.DropUnallocated = false
	}
	ch := w.table.SetHeader(h)
	if !w.headerSent { // also a header that happens to be the zero one
		w.headerSent = true
		ch.Header = &h
	}
	return l.update(ch)
}

// update passes changes of the table to the backends and others.
func (l *Loop) update(ch fwd.Changes) bool {
	if ch.Empty() {
		return false
	}
	for _, s := range ch.Services {
		l.wanted.count(s.Old, -1)
		l.wanted.count(s.New, 1)
	}
	for _, f := range l.families {
		f.backend.Update(ch)
	}
	if l.Flows != nil {
		l.Flows.Update(ch)
	}
	if l.Checks != nil {
		l.Checks.Update(ch)
	}
	return true
}

func (w *wanted) count(f *fwd.Fragment, by int) {
	if f == nil {
		return
	}
	for i, empty := range f.LocalPolicyEmpty {
		w.localPolicyEmpty[i][0] += by * empty[0]
		w.localPolicyEmpty[i][1] += by * empty[1]
	}
	for i, p := range f.Pools {
		// The local pool of a service port is a part of its cluster pool, where it has one.
		if p.Key.Scope == fwd.Cluster || f.Pool(fwd.PoolKey{Port: p.Key.Port, Family: p.Key.Family, Scope: fwd.Cluster}) == nil {
			w.endpoints += by * len(f.Pools[i].Endpoints)
		}
	}
}

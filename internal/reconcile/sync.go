package reconcile

import (
	"context"
	"errors"
	"time"

	"github.com/fairlead/fairlead/internal/backend"
	"github.com/fairlead/fairlead/internal/cluster"
	"github.com/fairlead/fairlead/internal/compile"
	"github.com/fairlead/fairlead/internal/fwd"
)

// sync takes in what the feed has and writes what is pending. An error ends Run.
func (l *Loop) sync(ctx context.Context, take bool) error {
	rep := Sync{Start: time.Now()}
	if take {
		l.woken = false
		if !l.Feed.Synced() {
			return nil
		}
		l.drain()
		if err := l.checkNode(rep.Start); err != nil || !l.ready() {
			return err
		}
	}
	read := l.unread
	if read {
		if _, err := l.Backend.Observe(ctx); err != nil {
			rep.Unread = true
			l.end(ctx, rep, false, err)
			return nil
		}
		l.unread, rep.Full = false, true
		l.verifyAt = time.Now().Add(l.Config.SyncPeriod)
	}
	l.write(ctx, rep, read)
	return nil
}

// write brings the kernel up to date. release says that it was read just now, so that what was set aside is tried again.
func (l *Loop) write(ctx context.Context, rep Sync, release bool) {
	changed := false
	var err error
	if !l.complete && rep.Full {
		changed, err = l.writeAhead(ctx, &rep)
	}
	changed = l.refresh() || changed
	if release {
		changed = l.release() || changed
	}
	if changed {
		l.queued(rep.Start)
	}
	if err == nil {
		err = l.put(ctx, &rep)
	}
	l.end(ctx, rep, changed, err)
	if rep.Full && err == nil && rep.Drifted == 0 && rep.Result == (backend.Result{}) && l.Monitor != nil {
		l.Monitor.Verified(rep.Start)
	}
}

// put writes what is pending.
func (l *Loop) put(ctx context.Context, rep *Sync) error {
	before := time.Now()
	res, err := l.apply(ctx)
	rep.Result = rep.Result.Add(res)
	rep.Applying += time.Since(before)
	l.tend(ctx)
	return err
}

// drain moves the feed's news into the store.
func (l *Loop) drain() {
	d := l.Feed.Drain(&l.store)
	l.pending.Services += d.Services
	l.pending.Slices += d.Slices
	for i, t := range d.Triggers {
		l.pending.Triggers[i] = append(l.pending.Triggers[i], t...)
	}
	if d.NodeChanged {
		l.pending.NodeChanged = true
		if l.Monitor != nil {
			l.Monitor.Node(l.store.Node())
		}
	}
}

// queued notes that something waits to be written.
func (l *Loop) queued(at time.Time) {
	if !l.queuedSince.IsZero() {
		return
	}
	l.queuedSince = at
	if l.Monitor != nil {
		l.Monitor.Queued(at)
	}
}

// refresh brings table and backend up to date with the store. It reports whether anything changed in them.
func (l *Loop) refresh() bool {
	changed := l.refreshNode()
	return l.take(l.store.TakeDirty()) || changed
}

// compile brings the table up to date with one Service. It reports whether anything changed.
func (l *Loop) compile(name cluster.ServiceName) bool {
	owner := fwd.Service(name)
	svc := l.store.Service(name)
	if svc == nil {
		l.reports.forget(owner)
		return l.update(l.table.Remove(owner))
	}
	f, problems := compile.Compile(svc, l.store.Slices(name), &l.facts)
	l.reportProblems(owner, problems)
	return l.update(l.table.Put(f))
}

// refreshNode works out the header and the facts again if what they come from changed.
func (l *Loop) refreshNode() bool {
	if l.headerSent && !l.addrsStale && !l.configStale && !l.pending.NodeChanged {
		return false
	}
	if l.addrsStale && l.LocalAddrs != nil {
		if addrs, err := l.LocalAddrs(); err != nil {
			l.log.Warn("cannot list the node's addresses, working with those known before", "error", err)
		} else {
			l.addrs = addrs
		}
	}
	l.addrsStale, l.configStale, l.pending.NodeChanged = false, l.partial, false
	node := l.node()
	l.reportWarnings(l.Config.Warnings(node))
	if facts := l.Config.Facts(node); facts != l.facts {
		l.facts = facts
		l.store.MarkAllDirty()
	}
	h := l.Config.Header(node, l.addrs)
	l.Config.SetServiceCIDRs(&h, l.store.ServiceCIDRs())
	if l.partial { // who is not in the table yet may still be served, by a kube-proxy whose place this takes
		h.DropUnallocated = false
	}
	ch := l.table.SetHeader(h)
	if !l.headerSent { // also a header that happens to be the zero one
		l.headerSent = true
		ch.Header = &h
	}
	return l.update(ch)
}

// update hands changes of the table on.
func (l *Loop) update(ch fwd.Changes) bool {
	if ch.Empty() {
		return false
	}
	for _, s := range ch.Services {
		l.count(s.Old, -1)
		l.count(s.New, 1)
	}
	l.Backend.Update(ch)
	if l.Flows != nil {
		l.Flows.Update(ch)
	}
	if l.Checks != nil {
		l.Checks.Update(ch)
	}
	return true
}

func (l *Loop) count(f *fwd.Fragment, by int) {
	if f == nil {
		return
	}
	for i, empty := range f.LocalPolicyEmpty {
		l.localPolicyEmpty[i][0] += by * empty[0]
		l.localPolicyEmpty[i][1] += by * empty[1]
	}
	for i, p := range f.Pools {
		// The local pool of a service port is a part of its cluster pool, where it has one.
		if p.Key.Scope == fwd.Cluster || f.Pool(fwd.PoolKey{Port: p.Key.Port, Family: p.Key.Family, Scope: fwd.Cluster}) == nil {
			l.endpoints += by * len(f.Pools[i].Endpoints)
		}
	}
}

// apply writes what is pending. Where the kernel refuses Services, it sets them aside and writes the rest.
func (l *Loop) apply(ctx context.Context) (backend.Result, error) {
	res, err := l.Backend.Apply(ctx)
	if len(culprits(err)) > 0 {
		// The kernel may refuse because others changed what is in it: read it before anybody is blamed.
		if n, oerr := l.Backend.Observe(ctx); oerr == nil && n > 0 {
			var more backend.Result
			more, err = l.Backend.Apply(ctx)
			res = res.Add(more)
		}
	}
	for {
		blamed := false
		for _, c := range culprits(err) {
			blamed = l.setAside(c.owner, c.err) || blamed
		}
		if !blamed {
			return res, err
		}
		var more backend.Result
		more, err = l.Backend.Apply(ctx)
		res = res.Add(more)
	}
}

// end records how a sync went: timers, log and those who follow.
func (l *Loop) end(ctx context.Context, rep Sync, changed bool, err error) {
	if err != nil && ctx.Err() != nil {
		return // the process ends, that is no failure
	}
	rep.End = time.Now()
	rep.Failed = failedFamilies(err)
	wrote := rep.Result != backend.Result{}
	rep.Services, rep.Frontends = l.table.Len()
	first := err == nil && !l.complete
	eventful := changed || wrote || err != nil || first || !l.queuedSince.IsZero()
	if !eventful {
		if l.Monitor != nil && l.pending.any() {
			l.monitor(rep) // what the events asked for was in the kernel already
		}
		return
	}
	if changed || wrote || err != nil {
		l.lastEnd = rep.End
	}
	l.tellWritten(rep, first)
	if err != nil {
		l.unread = true
		l.queued(rep.Start)
		l.logFailure(rep.End, err)
	} else {
		l.complete = true
		l.queuedSince = time.Time{}
		l.logRecovery(rep.End)
		l.quarantine.settle(l.log)
		if l.Checks != nil {
			l.Checks.Programmed()
		}
		if first && wrote {
			l.verifyAt = rep.End // readiness waits for it
		}
	}
	l.logSync(rep, first)
	if l.Monitor != nil {
		l.monitor(rep)
	}
}

// tellWritten tells those who wait for rules to be in the kernel.
func (l *Loop) tellWritten(rep Sync, first bool) {
	for _, f := range fwd.Families {
		if i := f.Index(); !rep.Failed[i] && !l.written[i] {
			l.written[i] = true
			if l.OnFirstWrite != nil {
				l.OnFirstWrite(f)
			}
		}
	}
	// While one family fails, the other's flows are removed all the same. When it works again all flows are looked at, since
	// nobody knows how long its rules were not as they should be.
	if l.Flows != nil && rep.Failed != [2]bool{true, true} {
		works := rep.Failed == [2]bool{}
		l.Flows.Submit([2]bool{!rep.Failed[0], !rep.Failed[1]}, first || works && (l.failure.failing() || rep.Drifted > 0))
	}
}

// monitor completes a report and hands it on.
func (l *Loop) monitor(rep Sync) {
	rep.Endpoints, rep.Conflicts = l.endpoints, len(l.reports.conflicts)
	rep.LocalPolicyEmpty = l.localPolicyEmpty
	rep.Quarantined = len(l.quarantine.held)
	rep.ServiceEvents, rep.SliceEvents = l.pending.Services, l.pending.Slices
	l.pending.Services, l.pending.Slices = 0, 0
	for i, failed := range rep.Failed {
		if !failed {
			rep.Triggers[i], l.pending.Triggers[i] = l.pending.Triggers[i], nil
		}
	}
	l.Monitor.Synced(rep)
}

// familyErrors finds the failures of single families in what Apply returned. whole says that there is another error too.
func familyErrors(err error) (out []*backend.FamilyError, whole bool) {
	switch e := err.(type) {
	case nil:
		return nil, false
	case *backend.FamilyError:
		return []*backend.FamilyError{e}, false
	case interface{ Unwrap() []error }:
		for _, sub := range e.Unwrap() {
			fe, w := familyErrors(sub)
			out, whole = append(out, fe...), whole || w
		}
		return out, whole
	}
	if sub := errors.Unwrap(err); sub != nil {
		return familyErrors(sub)
	}
	return nil, true
}

func failedFamilies(err error) (failed [2]bool) {
	fes, whole := familyErrors(err)
	for _, fe := range fes {
		failed[fe.Family.Index()] = true
	}
	if whole {
		return [2]bool{true, true}
	}
	return failed
}

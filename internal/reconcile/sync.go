package reconcile

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/fairlead/fairlead/internal/backend"
	"github.com/fairlead/fairlead/internal/config"
	"github.com/fairlead/fairlead/internal/fwd"
)

// sync updates the table and writes the families whose kernel is known. The others are written
// after their next reading.
func (l *Loop) sync(ctx context.Context) {
	rep := Sync{Start: time.Now()}
	changed := false
	if !l.wanted.loaded {
		changed = l.load(ctx, &rep)
	}
	changed = l.refresh() || changed
	if l.stepDue(changed && l.wanted.loaded) {
		changed = l.step() || changed
	}
	l.wanted.loaded = true
	if changed {
		l.queued(rep.Start)
	}
	l.write(ctx, &rep, l.writable(), l.writable())
	l.end(ctx, &rep, changed)
	if changed || rep.eventful() {
		l.lastEnd = rep.End
	}
}

// batchSize is how many Services are written at once on a node without rules. A batch of Services
// with 10 endpoints each takes about 30 ms, compilation included.
const batchSize = 500

// batch is the maximum number of Services that are not critical in one write; 0 means all. The cost
// of iptables-restore depends on the rules that exist already, so batches would make the whole
// slower.
func (l *Loop) batch() int {
	if l.Config.Mode == config.ModeIPTables {
		return 0
	}
	return batchSize
}

// load starts families that have no rules yet: first the rules that every node has, which include
// masquerading, with the critical Services; then the others in batches. The caller writes the last
// batch, to all families.
//
// On a kernel with rules of an earlier process load writes nothing: those rules serve until
// everything is known and the caller writes the difference.
func (l *Loop) load(ctx context.Context, rep *Sync) (changed bool) {
	changed = l.refreshHeader(false)
	bare := slices.DeleteFunc(l.writable(), func(f *family) bool { return !f.backend.Bare() })
	if len(bare) == 0 {
		return changed
	}
	names := l.wanted.store.TakeDirty()
	slices.SortStableFunc(names, func(a, b fwd.Service) int { return l.rank(a) - l.rank(b) })
	urgent, _ := slices.BinarySearchFunc(names, 1, func(n fwd.Service, rank int) int { return l.rank(n) - rank })
	left := names
	put := func(n int) {
		changed = l.take(left[:n]) || changed
		left = left[n:]
		l.write(ctx, rep, bare, bare)
		bare = slices.DeleteFunc(bare, func(f *family) bool { return !f.read })
	}
	if urgent > 0 && urgent < len(names) {
		if put(urgent); len(bare) > 0 {
			l.log.Info("critical Services are programmed", "services", urgent, "left", len(left), "duration", time.Since(rep.Start))
		}
	}
	for n := l.batch(); n > 0 && len(left) > n && len(bare) > 0 && ctx.Err() == nil; {
		put(n)
	}
	return l.take(left) || changed
}

// rank is 0 for critical Services.
func (l *Loop) rank(name fwd.Service) int {
	if s := l.wanted.store.Service(name); s != nil && s.Critical {
		return 0
	}
	return 1
}

// write writes what is pending in the families that are due. If a kernel refuses a Service, the
// Service is quarantined and what is left is written, in all writable families.
func (l *Loop) write(ctx context.Context, rep *Sync, due, writable []*family) {
	for len(due) > 0 {
		refused := false
		for _, f := range due {
			refused = f.read && l.writeFamily(ctx, f, &rep.Families[f.Index()]) || refused
		}
		if due = writable; !refused {
			return
		}
	}
}

// writeFamily writes what is pending in one family. It reports whether Services were quarantined,
// so that the rest is still to be written.
func (l *Loop) writeFamily(ctx context.Context, f *family, part *FamilySync) (refused bool) {
	start := time.Now()
	err := l.apply(ctx, f, part)
	part.Tried, part.Full = true, part.Full || !f.written
	f.tend(ctx)
	part.End = time.Now()
	part.Applying += part.End.Sub(start)
	for _, c := range culprits(err) {
		refused = l.setAside(c, f, err) || refused
	}
	if err != nil && !refused && ctx.Err() == nil {
		l.fail(f, err)
	}
	return refused
}

// apply writes what is pending in one family. A kernel may refuse something because other programs
// changed its content: it is read before a Service is blamed for the first time.
func (l *Loop) apply(ctx context.Context, f *family, part *FamilySync) error {
	res, err := f.backend.Apply(ctx)
	part.Result = part.Result.Add(res)
	blamed := culprits(err)
	if len(blamed) == 0 || !slices.ContainsFunc(blamed, func(s fwd.Service) bool { return l.quarantine.refusals[s] == nil }) {
		return err
	}
	if n, oerr := f.backend.Observe(ctx); oerr != nil || n == 0 {
		return err
	}
	res, err = f.backend.Apply(ctx)
	part.Result = part.Result.Add(res)
	return err
}

// culprits returns the Services that were refused.
func culprits(err error) []fwd.Service {
	var fe *backend.FamilyError
	if errors.As(err, &fe) && fe.Refused {
		return fe.Culprits
	}
	return nil
}

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

// sync writes what follows from news, in the families whose kernel is known. The others get it after their next reading.
func (l *Loop) sync(ctx context.Context) {
	rep := Sync{Start: time.Now()}
	changed := false
	if !l.wanted.loaded {
		changed = l.load(ctx, &rep)
	}
	changed = l.refresh() || changed
	changed = l.step() || changed
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

// pieceSize is how many Services are written at once on a node that has no rules. A piece of 10 endpoints each takes
// about 30 ms, compilation included.
const pieceSize = 500

// piece is how many Services that are not critical one write may hold; 0 stands for all. A restore of iptables costs what
// there is already, all of it in the legacy userland, so that pieces would make the whole slower.
func (l *Loop) piece() int {
	if l.Config.Mode == config.ModeIPTables {
		return 0
	}
	return pieceSize
}

// load brings up families that have no rules yet: at first what every node has, which includes masquerading, and the critical
// Services; then the others in pieces, of which the last is left to the caller, who writes to all families.
//
// Where a kernel holds rules of an earlier run nothing is written: as long as not everything is known, nobody can say which
// of them are needed, so they serve until the caller writes the difference.
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
			l.log.Info("critical Services are in force", "services", urgent, "left", len(left), "duration", time.Since(rep.Start))
		}
	}
	for n := l.piece(); n > 0 && len(left) > n && len(bare) > 0 && ctx.Err() == nil; {
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

// write writes what is pending in the families that are due. Where a kernel refuses a Service, it is set aside and what is
// left is written, in all of the others too that are writable.
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

// writeFamily writes what is pending in one family. It reports whether Services were set aside, so that not all is written.
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

// apply writes what is pending in one family. The kernel may refuse something because others changed what is in it: it is read
// before anybody is blamed who was not blamed before.
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

// culprits are the Services that were refused.
func culprits(err error) []fwd.Service {
	var fe *backend.FamilyError
	if errors.As(err, &fe) && fe.Refused {
		return fe.Culprits
	}
	return nil
}

package reconcile

import (
	"context"
	"slices"
	"time"

	"github.com/fairlead/fairlead/internal/cluster"
	"github.com/fairlead/fairlead/internal/config"
	"github.com/fairlead/fairlead/internal/fwd"
)

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

// writeAhead brings up a node that has no rules yet: at first what every node has, which includes masquerading, and the
// critical Services; then the others in pieces. The last piece is left to the
// caller, who says when all is written. The caller must not write if there is an error, but all is in the table then.
//
// Where the kernel holds rules of an earlier run nothing is done: as long as not everything is known, nobody can say which
// of them are needed, so they serve until the caller writes the difference.
func (l *Loop) writeAhead(ctx context.Context, rep *Sync) (changed bool, err error) {
	l.partial = true
	changed = l.refreshNode()
	l.partial = false
	if !l.Backend.Bare() {
		return changed, nil
	}
	names := l.store.TakeDirty()
	slices.SortStableFunc(names, func(a, b cluster.ServiceName) int { return l.rank(a) - l.rank(b) })
	urgent, _ := slices.BinarySearchFunc(names, 1, func(n cluster.ServiceName, rank int) int { return l.rank(n) - rank })
	left := names
	if urgent > 0 && urgent < len(names) {
		l.take(names[:urgent])
		left = names[urgent:]
		err = l.put(ctx, rep)
		if err == nil {
			l.log.Info("critical Services are in force", "services", urgent, "left", len(left), "duration", time.Since(rep.Start))
		}
	}
	if n := l.piece(); n > 0 && len(left) > n {
		for len(left) > n && err == nil && ctx.Err() == nil {
			l.take(left[:n])
			left = left[n:]
			err = l.put(ctx, rep)
		}
	}
	return l.take(left) || changed || len(names) > len(left), err
}

// rank is 0 for critical Services.
func (l *Loop) rank(name cluster.ServiceName) int {
	if s := l.store.Service(name); s != nil && s.Critical {
		return 0
	}
	return 1
}

// take brings the table up to date with some Services. It reports whether anything changed.
func (l *Loop) take(names []cluster.ServiceName) (changed bool) {
	for _, name := range names {
		l.quarantine.forget(fwd.Service(name))
		changed = l.compile(name) || changed
	}
	if len(names) > 0 {
		l.reportConflicts()
	}
	return changed
}

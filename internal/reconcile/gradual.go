package reconcile

import (
	"slices"

	"github.com/fairlead/fairlead/internal/fwd"
)

// stepSize is how many frontends and endpoints of one Service a sync writes at most, apart from a
// service port that has more. In mode nftables that takes 0.1 s, and for a Service of 263,000
// frontends at most half a second, since each step looks at all of them.
const stepSize = 10_000

// gradual is a Service whose change is so large that it is written in steps, each in a sync of its
// own, so that changes of other Services do not wait for it. The table holds what has been written
// so far.
type gradual struct {
	target *fwd.Fragment
	// outdated says that the Service has changed since target was compiled. It is compiled again
	// when target is complete: a Service that changes all the time would never be.
	outdated bool
}

// stepwise reports whether large changes can be written in steps. What an earlier process left must
// serve until all is known, so that its first sync writes everything at once.
func (l *Loop) stepwise() bool {
	return l.batch() > 0 && !slices.ContainsFunc(l.families, func(f *family) bool {
		return !f.written && !(f.read && f.backend.Bare())
	})
}

func (w *wanted) gradualIndex(owner fwd.Service) int {
	return slices.IndexFunc(w.gradual, func(g *gradual) bool { return g.target.Owner == owner })
}

// postpone reports whether a Service is being written in steps; if so it is compiled again after
// the last one.
func (w *wanted) postpone(owner fwd.Service) bool {
	i := w.gradualIndex(owner)
	if i >= 0 {
		w.gradual[i].outdated = true
	}
	return i >= 0
}

// stepDue reports whether this sync, which has changes of other Services or not, takes a step. A
// sync with such changes leaves it to the next one, so that they wait for one step at most; but
// never twice in a row, so that a Service that is written in steps becomes complete.
func (l *Loop) stepDue(changes bool) bool {
	w := &l.wanted
	w.stepSkipped = changes && len(w.gradual) > 0 && !w.stepSkipped
	return !w.stepSkipped
}

// step puts the next step of the first gradual Service into the table. It reports whether anything
// changed.
func (l *Loop) step() bool {
	w := &l.wanted
	if len(w.gradual) == 0 {
		return false
	}
	g := w.gradual[0]
	next, done := fwd.Step(w.table.Claimed(g.target.Owner), g.target, stepSize)
	if done {
		w.gradual = w.gradual[1:]
		if g.outdated {
			w.store.MarkDirty(g.target.Owner)
			l.news.any = true
		}
	}
	return l.update(w.table.Put(next))
}

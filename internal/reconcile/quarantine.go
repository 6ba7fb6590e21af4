package reconcile

import (
	"context"
	"slices"
	"time"

	"github.com/fairlead/fairlead/internal/backend"
	"github.com/fairlead/fairlead/internal/fwd"
)

const (
	// firstTrial is the wait before a refused Service is tried again if its objects change. It
	// doubles up to the SyncPeriod.
	firstTrial = time.Second
	// longestTrial is, in SyncPeriods, the longest wait before one is tried again that did not
	// change.
	longestTrial = 10
	// relapse is how long an accepted Service is remembered: if it is refused again within that
	// time, users are not told again.
	relapse = 10 * time.Minute
)

// standing is the state of a Service that the kernel refused.
type standing uint8

const (
	// leftOut: it is not in the table.
	leftOut standing = iota
	// onTrial: it is in the table again, and not written to all families yet.
	onTrial
	// accepted: it is in the kernel.
	accepted
)

// refusal is what is remembered of a Service that the kernel refused.
type refusal struct {
	standing standing
	// by is the family that refused it last; since is when that was, or when it was accepted.
	by    *family
	since time.Time
	// asked says that a reading was requested, after which it can be tried again.
	asked bool
	// count is the number of refusals.
	count int
	// changed says that its objects changed since it was set aside.
	changed bool
}

// trialAt is when a Service that was set aside is tried again.
func (r *refusal) trialAt(period time.Duration) time.Time {
	if r.changed {
		return r.since.Add(doubled(firstTrial, r.count, period))
	}
	return r.since.Add(doubled(period, r.count, longestTrial*period))
}

// quarantine holds the Services that the kernel refuses, so that they do not block the others. Each
// is tried again alone, at growing intervals.
type quarantine struct {
	refusals map[fwd.Service]*refusal
}

// len counts the Services that are not in the kernel.
func (q *quarantine) len() (n int) {
	for _, r := range q.refusals {
		if r.standing != accepted {
			n++
		}
	}
	return n
}

// holdsBack reports whether a Service whose objects changed stays out of the table until it is
// tried again.
func (l *Loop) holdsBack(owner fwd.Service) bool {
	r := l.quarantine.refusals[owner]
	if r != nil && l.wanted.store.Service(owner) == nil {
		delete(l.quarantine.refusals, owner)
		return false
	}
	if r == nil || r.standing != leftOut {
		return false
	}
	r.changed = true
	return true
}

// setAside takes a refused Service out of the table and reports whether it was there. Users are
// told once, however often it changes and is refused again.
func (l *Loop) setAside(owner fwd.Service, by *family, answer error) bool {
	if !l.update(l.wanted.table.Remove(owner)) {
		return false
	}
	if i := l.wanted.gradualIndex(owner); i >= 0 {
		l.wanted.gradual = slices.Delete(l.wanted.gradual, i, i+1)
	}
	r := l.quarantine.refusals[owner]
	if r == nil {
		r = &refusal{}
		l.quarantine.refusals[owner] = r
		l.log.Error("the kernel refuses a Service, it is left out", "service", owner.String(), "error", answer)
		l.warn(owner, "Quarantined", "The node's kernel refuses the rules of this Service, it is left out: "+answer.Error())
	}
	r.standing, r.by, r.since, r.changed, r.asked = leftOut, by, time.Now(), false, false
	r.count++
	return true
}

// nextTrial returns which Service is tried again next, and when; due is false for none.
func (l *Loop) nextTrial() (owner fwd.Service, at time.Time, due bool) {
	for o, r := range l.quarantine.refusals {
		if r.standing != leftOut || !r.by.read || r.asked && !r.known() {
			continue
		}
		if t := r.trialAt(l.Config.SyncPeriod); !due || t.Before(at) {
			owner, at, due = o, t, true
		}
	}
	return owner, at, due
}

// known reports whether the kernel was read since it refused the Service, of which it may have
// taken a part.
func (r *refusal) known() bool { return r.by.readAt.After(r.since) }

// try puts a refused Service into the table again and writes it. If the kernel has to be read
// first, try requests a reading.
func (l *Loop) try(ctx context.Context, owner fwd.Service) {
	rep, r := Sync{Start: time.Now()}, l.quarantine.refusals[owner]
	if !r.known() {
		r.asked = true
		r.by.plan.hint(backend.Drift{Family: r.by.Family}, rep.Start)
		return
	}
	r.standing = onTrial
	l.compile(owner)
	l.write(ctx, &rep, l.writable(), l.writable())
	l.end(ctx, &rep, false)
}

// settle ends the quarantine of those that all families have accepted.
func (l *Loop) settle(now time.Time) {
	if len(l.writable()) < len(l.families) {
		return
	}
	for owner, r := range l.quarantine.refusals {
		switch {
		case r.standing == onTrial && l.wanted.gradualIndex(owner) < 0:
			r.standing, r.since = accepted, now
			l.log.Info("the kernel accepts the Service again", "service", owner.String())
		case r.standing == accepted && now.Sub(r.since) > relapse:
			delete(l.quarantine.refusals, owner)
		}
	}
}

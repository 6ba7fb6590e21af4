package reconcile

import (
	"math/rand/v2"
	"strings"
	"time"

	"github.com/fairlead/fairlead/internal/backend"
	"github.com/fairlead/fairlead/internal/compile"
	"github.com/fairlead/fairlead/internal/fwd"
)

// failure is the state of failing again and again.
type failure struct {
	// count is the number of failures in a row.
	count   int
	since   time.Time
	retryAt time.Time
	// text and loggedAt are of the failure that was logged last.
	text     string
	loggedAt time.Time
}

func (f *failure) failing() bool { return f.count > 0 }

// backoff is the wait after the n-th failure in a row, from 1 on: twice as long each time up to the longest, and a random
// fifth less, so that nodes that failed together do not try together.
func backoff(n int, longest time.Duration) time.Duration {
	d := longest
	if n < 32 { // beyond that it would overflow
		d = min(firstBackoff<<(n-1), longest)
	}
	return d - time.Duration(rand.Int64N(int64(d)/5+1))
}

// logFailure plans the next attempt. The log tells of a failure when it is new and then once in a SyncPeriod.
func (l *Loop) logFailure(now time.Time, err error) {
	f := &l.failure
	if f.count == 0 {
		f.since = now
	}
	f.count++
	wait := backoff(f.count, l.Config.SyncPeriod)
	f.retryAt = now.Add(wait)
	if f.text == err.Error() && now.Sub(f.loggedAt) < l.Config.SyncPeriod {
		return
	}
	f.text, f.loggedAt = err.Error(), now
	l.log.Error("sync failed", "error", err, "failures", f.count, "retryIn", wait.Round(time.Millisecond))
}

// logSync logs a sync that wrote something, and the first one.
func (l *Loop) logSync(rep Sync, first bool) {
	if !first && rep.Result == (backend.Result{}) {
		return
	}
	attrs := []any{"services", rep.Services, "frontends", rep.Frontends, "written", rep.Result.Written, "deleted", rep.Result.Deleted,
		"duration", rep.End.Sub(rep.Start), "backend", string(l.Config.Mode)}
	if rep.Failed != [2]bool{} {
		attrs = append(attrs, "incomplete", familyNames(rep.Failed))
	}
	if rep.Drifted > 0 {
		l.log.Warn("repaired drift", append(attrs, "objects", rep.Drifted)...)
		return
	}
	l.log.Info("synced", attrs...)
}

func familyNames(set [2]bool) string {
	var names []string
	for _, f := range fwd.Families {
		if set[f.Index()] {
			names = append(names, f.String())
		}
	}
	return strings.Join(names, ",")
}

// logRecovery ends a series of failures.
func (l *Loop) logRecovery(now time.Time) {
	if f := l.failure; f.failing() {
		l.log.Info("sync works again", "failures", f.count, "after", now.Sub(f.since).Round(time.Millisecond))
	}
	l.failure = failure{}
}

// reports remembers what users were told, so that they are told once.
type reports struct {
	// problems are those of the last compilation of each Service that had any.
	problems  map[fwd.Service]string
	conflicts map[fwd.Conflict]struct{}
	warnings  map[string]struct{}
}

func (r *reports) forget(owner fwd.Service) { delete(r.problems, owner) }

func (l *Loop) warn(owner fwd.Service, reason, message string) {
	if l.Events != nil {
		l.Events.Warn(owner, reason, message)
	}
}

// reportProblems tells of what could not be honoured in a Service, when that changed.
func (l *Loop) reportProblems(owner fwd.Service, problems []compile.Problem) {
	if len(problems) == 0 {
		l.reports.forget(owner)
		return
	}
	texts := make([]string, 0, len(problems))
	for _, p := range problems {
		texts = append(texts, p.Field+": "+p.Message)
	}
	text := strings.Join(texts, "; ")
	if l.reports.problems[owner] == text {
		return
	}
	l.reports.problems[owner] = text
	l.log.Warn("part of a Service cannot be honoured", "service", owner.String(), "problems", text)
	l.warn(owner, "NotHonoured", text)
}

// reportConflicts tells of keys that two Services claim, when that changed.
func (l *Loop) reportConflicts() {
	now := make(map[fwd.Conflict]struct{})
	for _, c := range l.table.Conflicts() {
		now[c] = struct{}{}
		if _, known := l.reports.conflicts[c]; known {
			continue
		}
		l.log.Warn("two Services claim the same address and port", "key", c.Key.String(), "winner", c.Winner.String(), "loser", c.Loser.String())
		l.warn(c.Loser, "Conflict", c.Key.String()+" belongs to Service "+c.Winner.String())
	}
	l.reports.conflicts = now
}

// reportWarnings logs what the operator probably did not mean, when it is new.
func (l *Loop) reportWarnings(warnings []string) {
	now := make(map[string]struct{})
	for _, w := range warnings {
		now[w] = struct{}{}
		if _, known := l.reports.warnings[w]; !known {
			l.log.Warn(w)
		}
	}
	l.reports.warnings = now
}

package reconcile

import (
	"context"
	"math/rand/v2"
	"time"

	"github.com/fairlead/fairlead/internal/backend"
	"github.com/fairlead/fairlead/internal/fwd"
)

// family is one address family that the node serves: its backend, and how far its kernel is from
// the table. A failure in one family does not delay the other.
type family struct {
	fwd.Family
	backend backend.Backend
	// read says that the kernel was read and nothing has failed since. Only then it is written.
	read bool
	// written says that everything was written at least once, verified that a reading found it in
	// the kernel.
	written, verified bool
	// reading is the reading in progress, nil for none; readAt is when the last successful one
	// began; plan says when the next one is due.
	reading *reading
	readAt  time.Time
	plan    verifyPlan
	failure failure
	// tendAt is when the backend is to be tended next, the zero Time for never.
	tendAt time.Time
}

// writable returns the families whose kernel is known.
func (l *Loop) writable() (out []*family) {
	for _, f := range l.families {
		if f.read {
			out = append(out, f)
		}
	}
	return out
}

// tend lets the backend do what is due, even while writing fails.
func (f *family) tend(ctx context.Context) {
	if t, ok := f.backend.(backend.Tender); ok {
		f.tendAt = t.Tend(ctx, time.Now())
	}
}

// nextTend is when the backend is to be tended; ok is false for never.
func (f *family) nextTend() (time.Time, bool) { return f.tendAt, !f.tendAt.IsZero() }

// firstBackoff is the wait after the first failure.
const firstBackoff = 100 * time.Millisecond

// failure is a series of failures.
type failure struct {
	// count is the number of failures in a row.
	count   int
	since   time.Time
	retryAt time.Time
	// text and loggedAt describe the failure that was logged last.
	text     string
	loggedAt time.Time
}

func (f *failure) failing() bool { return f.count > 0 }

// backoff is the wait after the n-th failure in a row, n ≥ 1. It doubles up to the longest, minus
// up to a fifth at random, so that nodes that failed together do not retry together.
func backoff(n int, longest time.Duration) time.Duration {
	d := doubled(firstBackoff, n, longest)
	return d - time.Duration(rand.Int64N(int64(d)/5+1))
}

// doubled is the n-th of a series of waits that starts with first and doubles up to longest.
func doubled(first time.Duration, n int, longest time.Duration) time.Duration {
	if n >= 32 { // beyond that it would overflow
		return longest
	}
	return min(first<<(n-1), longest)
}

// fail schedules the next attempt. The kernel is read before it, since it may not be as expected. A
// reading in progress becomes void.
func (l *Loop) fail(f *family, err error) {
	now := time.Now()
	f.read = false
	if f.reading != nil {
		f.reading.void = true
	}
	fail := &f.failure
	if fail.count == 0 {
		fail.since = now
	}
	fail.count++
	wait := backoff(fail.count, l.Config.SyncPeriod)
	fail.retryAt = now.Add(wait)
	if fail.text == err.Error() && now.Sub(fail.loggedAt) < l.Config.SyncPeriod {
		return
	}
	fail.text, fail.loggedAt = err.Error(), now
	l.log.Error("sync failed", "family", f.String(), "error", err, "failures", fail.count, "retryIn", wait.Round(time.Millisecond))
}

// endFailure ends a series of failures and reports whether there was one.
func (l *Loop) endFailure(f *family) bool {
	fail := f.failure
	f.failure = failure{}
	if fail.failing() {
		l.log.Info("sync works again", "family", f.String(), "failures", fail.count, "after", time.Since(fail.since).Round(time.Millisecond))
	}
	return fail.failing()
}

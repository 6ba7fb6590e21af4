package reconcile

import (
	"context"
	"time"

	"github.com/fairlead/fairlead/internal/backend"
)

// verifyShare limits the cost of verification to one part in so many of the time. Reading the rules
// of 10,000 Services takes seconds with iptables' nft userland.
const verifyShare = 50

// verifyGrace is how much later a reading without a hint is due while a very large Service is
// written in steps: reading its rules takes longer than a step, and slows the steps down.
const verifyGrace = 2 * time.Minute

// verifyTries is how many readings in a row may fail before that counts as a failed sync. A reading
// fails now and then while other programs write.
const verifyTries = 3

// hintDelay is the time between a hint and its reading: one change of another program is often
// followed by more.
const hintDelay = 50 * time.Millisecond

// verifyPlan says when one family's kernel is read back.
type verifyPlan struct {
	// at is when a reading is due without a hint.
	at time.Time
	// drift is the first hint since the last reading began, nil for none; hintAt is when its
	// reading is due.
	drift  *backend.Drift
	hintAt time.Time
	// pause is the time between two readings for hints, and pauseEnd the end of the present pause.
	// It doubles, so that a fight with another program costs few readings, and is reset after as
	// long a time without a hint.
	pause    time.Duration
	pauseEnd time.Time
	// failed counts readings in a row that failed.
	failed int
}

// hint makes a reading due soon.
func (p *verifyPlan) hint(d backend.Drift, now time.Time) {
	if p.drift != nil {
		return
	}
	if now.After(p.pauseEnd.Add(p.pause)) {
		p.pause = 0
	}
	p.drift, p.hintAt = &d, now.Add(hintDelay)
}

// soon makes a reading due now, or at the end of the pause.
func (p *verifyPlan) soon(now time.Time) {
	p.at = later(now, p.pauseEnd)
}

// next is when the kernel is to be read again.
func (p *verifyPlan) next() time.Time {
	if p.drift == nil {
		return p.at
	}
	return earlier(p.at, later(p.hintAt, p.pauseEnd))
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// ended plans the next reading after one that took that long; hinted says that a hint caused it.
func (p *verifyPlan) ended(now time.Time, took, period time.Duration, hinted bool) {
	share := verifyShare * took
	p.at = now.Add(max(period, share))
	if hinted {
		p.pause = min(max(2*p.pause, took, hintDelay), max(share, time.Second))
		p.pauseEnd = now.Add(p.pause)
	}
}

// reading is a reading of one family's kernel, in a goroutine: no update waits for it.
type reading struct {
	backend.Reading
	family *family
	// drift is the hint that caused it, nil for none.
	drift *backend.Drift
	// void says that a write failed since it began.
	void  bool
	began time.Time
	took  time.Duration
	err   error
}

// nextReading is when a family's kernel is to be read: before the first write, before the retry
// after a failure, and to verify. ok is false for never.
func (l *Loop) nextReading(f *family) (time.Time, bool) {
	switch {
	case f.reading != nil || l.knownAt.IsZero():
		return time.Time{}, false
	case !f.read:
		return f.failure.retryAt, true
	}
	at := f.plan.next()
	if len(l.wanted.gradual) > 0 && f.verified && f.plan.drift == nil {
		at = at.Add(verifyGrace)
	}
	return at, f.written
}

// beginReading reads the kernel in the background.
func (l *Loop) beginReading(ctx context.Context, f *family) {
	r := &reading{Reading: f.backend.Begin(), family: f, drift: f.plan.drift, began: time.Now()}
	f.reading, f.plan.drift = r, nil
	l.readers.Go(func() {
		r.err = r.Read(ctx)
		r.took = time.Since(r.began)
		l.readings <- r
	})
}

// endReading accepts what was read, except what was written since the reading began, and repairs
// the differences.
func (l *Loop) endReading(ctx context.Context, r *reading) {
	f, now := r.family, time.Now()
	f.reading = nil
	f.plan.ended(now, r.took, l.Config.SyncPeriod, r.drift != nil)
	if r.void || ctx.Err() != nil {
		return
	}
	rep := Sync{Start: now}
	part := &rep.Families[f.Index()]
	if r.err != nil {
		if f.plan.failed++; f.read && f.plan.failed < verifyTries {
			l.log.Warn("cannot read the kernel back, retrying", "family", f.String(), "error", r.err, "at", f.plan.at)
			return
		}
		l.fail(f, r.err)
		part.Tried, part.Unread, part.End = true, true, now
		l.end(ctx, &rep, false)
		return
	}
	drifted, ok := r.Accept()
	if !ok {
		f.plan.soon(now) // the kernel was read meanwhile to find out whose rules it refuses
		return
	}
	f.read, f.readAt, f.plan.failed = true, r.began, 0
	if !l.wanted.loaded {
		return // the first sync follows
	}
	written := f.written
	part.Full = true
	if written {
		part.Drifted, part.Drift = drifted, r.drift
	}
	l.write(ctx, &rep, []*family{f}, l.writable())
	if written && drifted == 0 && f.read {
		part.verified = true
	}
	l.end(ctx, &rep, false)
}

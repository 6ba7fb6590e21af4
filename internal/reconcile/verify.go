package reconcile

import (
	"context"
	"time"

	"github.com/fairlead/fairlead/internal/backend"
)

// verifyShare bounds what verification costs: it takes at most one part in so many of the time. Reading back what
// 10,000 Services need takes seconds with iptables' nft userland.
const verifyShare = 50

// verifyTries is how often in a row reading back may fail before it counts as failure of a sync. A reading fails now and
// then while others write.
const verifyTries = 3

// hintDelay is the time between a hint and the reading that it asks for: whoever changes something changes more.
const hintDelay = 50 * time.Millisecond

// verifyPlan says when one family's kernel is read back.
type verifyPlan struct {
	// at is when it is due whether or not there is a hint.
	at time.Time
	// drift is the first hint since the last reading began, nil for none; hintAt is when it makes a reading due.
	drift  *backend.Drift
	hintAt time.Time
	// pause is the time between two readings that hints ask for, and rest the end of the one that goes on. It doubles, so
	// that a fight with another program ends in few readings, and is forgotten after as long a time without a hint.
	pause time.Duration
	rest  time.Time
	// failed counts readings in a row that failed.
	failed int
}

// hint makes a reading due soon.
func (p *verifyPlan) hint(d backend.Drift, now time.Time) {
	if p.drift != nil {
		return
	}
	if now.After(p.rest.Add(p.pause)) {
		p.pause = 0
	}
	p.drift, p.hintAt = &d, now.Add(hintDelay)
}

// soon makes a reading due at once, or when the pause between readings is over.
func (p *verifyPlan) soon(now time.Time) {
	p.at = later(now, p.rest)
}

// next is when the kernel is to be read back.
func (p *verifyPlan) next() time.Time {
	if p.drift == nil {
		return p.at
	}
	return earlier(p.at, later(p.hintAt, p.rest))
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

// ended plans the next reading, after one that took so long and was asked for by a hint or not.
func (p *verifyPlan) ended(now time.Time, took, period time.Duration, hinted bool) {
	share := verifyShare * took
	p.at = now.Add(max(period, share))
	if hinted {
		p.pause = min(max(2*p.pause, took, hintDelay), max(share, time.Second))
		p.rest = now.Add(p.pause)
	}
}

// reading is a reading of one family's kernel, made beside the loop's work: no update waits for it.
type reading struct {
	backend.Reading
	family *family
	// drift is the hint that asked for it, nil if none did.
	drift *backend.Drift
	// void says that a write has failed since it began.
	void  bool
	began time.Time
	took  time.Duration
	err   error
}

// nextReading is when a family's kernel is to be read, if at all: before the first write, before the retry after a failure,
// and to verify.
func (l *Loop) nextReading(f *family) (time.Time, bool) {
	switch {
	case f.reading != nil || l.knownAt.IsZero():
		return time.Time{}, false
	case !f.read:
		return f.failure.retryAt, true
	}
	return f.plan.next(), f.written
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

// endReading takes in what was read and repairs what is not as it should be. What was written since the reading began is
// left out of it.
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
			l.log.Warn("cannot read the kernel back, trying again", "family", f.String(), "error", r.err, "at", f.plan.at)
			return
		}
		l.fail(f, r.err)
		part.Tried, part.Unread, part.End = true, true, now
		l.end(ctx, &rep, false)
		return
	}
	drifted, ok := r.Accept()
	if !ok {
		f.plan.soon(now) // meanwhile the kernel was read to find out whose rules it refuses
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

package reconcile

import (
	"context"
	"time"

	"github.com/fairlead/fairlead/internal/backend"
)

// verification is a reading of the kernel that was made beside the loop's work.
type verification struct {
	reading backend.Reading
	took    time.Duration
	err     error
}

// verifyShare bounds what verification costs: it takes at most one part in so many of the time. Reading back what
// 10,000 Services need takes seconds with iptables' nft userland.
const verifyShare = 50

// verifyTries is how often in a row reading back may fail before it counts as failure of a sync. A reading fails now and
// then while others write; a sync's retry would read again at once, and updates would wait for it.
const verifyTries = 3

// nextVerify is when the kernel is to be read, if at all.
func (l *Loop) nextVerify() (time.Time, bool) {
	at := l.verifyAt
	if l.suspect {
		at = l.verifyRest
	}
	return at, l.complete && !l.failure.failing() && !l.reading
}

// beginVerify reads the kernel in the background: an update never waits for it.
func (l *Loop) beginVerify(ctx context.Context) {
	l.reading, l.suspect = true, false
	r := l.Backend.Begin()
	go func() {
		start := time.Now()
		err := r.Read(ctx)
		l.verified <- verification{reading: r, took: time.Since(start), err: err}
	}()
}

// endVerify repairs what the reading shows to be otherwise than it should be. What a sync wrote since the reading began
// is left out of it; what a failing sync left unclear is read again by that sync's retry.
func (l *Loop) endVerify(ctx context.Context, v verification) {
	l.reading = false
	now := time.Now()
	l.verifyRest = now.Add(verifyShare * v.took)
	l.verifyAt = now.Add(max(l.Config.SyncPeriod, verifyShare*v.took))
	if l.failure.failing() || ctx.Err() != nil {
		return
	}
	if v.err != nil {
		l.unverified++
		if l.unverified < verifyTries {
			l.log.Warn("cannot read the kernel back, it is tried again", "err", v.err, "at", l.verifyAt)
			return
		}
		l.end(ctx, Sync{Start: time.Now(), Unread: true}, false, v.err)
		return
	}
	l.unverified = 0
	rep := Sync{Start: time.Now(), Full: true, Drifted: v.reading.Accept()}
	l.write(ctx, rep, true)
}

// awaitVerify waits for the reading to end, which it does soon once its context has.
func (l *Loop) awaitVerify() {
	if l.reading {
		<-l.verified
	}
}

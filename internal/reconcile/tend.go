package reconcile

import (
	"context"
	"time"

	"github.com/fairlead/fairlead/internal/backend"
)

// tend lets the backend do what time makes due. It does so also while syncs fail.
func (l *Loop) tend(ctx context.Context) {
	if t, ok := l.Backend.(backend.Tender); ok {
		l.tendAt = t.Tend(ctx, time.Now())
	}
}

// nextTend is when the backend is to be tended, if at all.
func (l *Loop) nextTend() (time.Time, bool) { return l.tendAt, !l.tendAt.IsZero() }

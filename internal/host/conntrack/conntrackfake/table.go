package conntrackfake

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/fairlead/fairlead/internal/host/conntrack"
)

// Table implements conntrack.Table. It is safe for concurrent use.
type Table struct {
	// Fail, if set, is called before each Dump, with its query, and before each Delete, with nil.
	// Its error is returned and nothing else is done.
	Fail func(q *conntrack.Query) error
	// Interrupted makes Dump report that it is not complete.
	Interrupted atomic.Bool

	mu      sync.Mutex // guards the fields below
	flows   []conntrack.Flow
	lastID  uint32
	batches []int
}

// Add adds flows and numbers them.
func (t *Table) Add(flows ...conntrack.Flow) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, f := range flows {
		t.lastID++
		f.ID = t.lastID
		t.flows = append(t.flows, f)
	}
}

// Flows returns the flows in the order in which they were added.
func (t *Table) Flows() []conntrack.Flow {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.flows)
}

// Batches returns the size of each Delete since the last call.
func (t *Table) Batches() []int {
	t.mu.Lock()
	defer t.mu.Unlock()
	b := t.batches
	t.batches = nil
	return b
}

// Dump implements conntrack.Table.
func (t *Table) Dump(ctx context.Context, q conntrack.Query, yield func(conntrack.Flow) bool) (complete bool, err error) {
	if err := t.fail(ctx, &q); err != nil {
		return false, err
	}
	for _, f := range t.Flows() {
		if q.Matches(&f) && !yield(f) {
			break
		}
	}
	return !t.Interrupted.Load(), nil
}

// Delete implements conntrack.Table.
func (t *Table) Delete(ctx context.Context, flows []conntrack.Flow) (deleted int, err error) {
	if err := t.fail(ctx, nil); err != nil {
		return 0, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.batches = append(t.batches, len(flows))
	for _, f := range flows {
		i := slices.IndexFunc(t.flows, func(o conntrack.Flow) bool { return identity(o) == identity(f) })
		if i >= 0 {
			t.flows = slices.Delete(t.flows, i, i+1)
			deleted++
		}
	}
	return deleted, nil
}

func (t *Table) fail(ctx context.Context, q *conntrack.Query) error {
	if t.Fail != nil {
		if err := t.Fail(q); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// identity returns a flow with only the fields that identify it.
func identity(f conntrack.Flow) conntrack.Flow {
	f.ReplySrc, f.ReplyDst, f.Opening = f.OrigDst, f.OrigSrc, false
	return f
}

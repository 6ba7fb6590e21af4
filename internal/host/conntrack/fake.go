package conntrack

import (
	"context"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
)

// Fake is a table in memory. Like the kernel it deletes a flow only if original tuple, zone and id are those of an entry,
// and yields what is there when a Dump comes to it. It is safe for concurrent use.
type Fake struct {
	// Fail is called before each Dump, DumpTo, DumpOpening and Delete, if it is set; its error is returned and nothing is done.
	Fail func(op string) error
	// Interrupted makes Dump say that it left something out.
	Interrupted atomic.Bool

	mu      sync.Mutex // guards what follows
	flows   []Flow
	lastID  uint32
	batches []int
}

// Add adds flows and numbers them.
func (f *Fake) Add(flows ...Flow) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, fl := range flows {
		f.lastID++
		fl.ID = f.lastID
		f.flows = append(f.flows, fl)
	}
}

// Flows returns the flows in the order in which they came.
func (f *Fake) Flows() []Flow {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.flows)
}

// Batches returns the size of each Delete since the last call.
func (f *Fake) Batches() []int {
	f.mu.Lock()
	defer f.mu.Unlock()
	b := f.batches
	f.batches = nil
	return b
}

// Dump implements Table.
func (f *Fake) Dump(ctx context.Context, ipv6 bool, proto uint8, yield func(Flow) bool) (bool, error) {
	if err := f.fail(ctx, "dump"); err != nil {
		return false, err
	}
	for _, fl := range f.Flows() {
		if fl.Proto == proto && fl.IPv6() == ipv6 && !yield(fl) {
			break
		}
	}
	return !f.Interrupted.Load(), nil
}

// DumpTo implements Table.
func (f *Fake) DumpTo(ctx context.Context, proto uint8, dst netip.AddrPort, yield func(Flow) bool) error {
	if err := f.fail(ctx, "dump to"); err != nil {
		return err
	}
	for _, fl := range f.Flows() {
		if fl.Proto == proto && fl.OrigDst == dst && !yield(fl) {
			break
		}
	}
	return nil
}

// DumpOpening implements Table.
func (f *Fake) DumpOpening(ctx context.Context, ipv6 bool, yield func(Flow) bool) (bool, error) {
	if err := f.fail(ctx, "dump opening"); err != nil {
		return false, err
	}
	for _, fl := range f.Flows() {
		if fl.Opening && fl.IPv6() == ipv6 && !yield(fl) {
			break
		}
	}
	return !f.Interrupted.Load(), nil
}

// Delete implements Table.
func (f *Fake) Delete(ctx context.Context, flows []Flow) (int, error) {
	if err := f.fail(ctx, "delete"); err != nil {
		return 0, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.batches = append(f.batches, len(flows))
	n := 0
	for _, fl := range flows {
		i := slices.IndexFunc(f.flows, func(o Flow) bool { return o.key() == fl.key() })
		if i >= 0 {
			f.flows = slices.Delete(f.flows, i, i+1)
			n++
		}
	}
	return n, nil
}

func (f *Fake) fail(ctx context.Context, op string) error {
	if f.Fail != nil {
		if err := f.Fail(op); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// key is a flow without what does not identify it.
func (f Flow) key() Flow {
	return Flow{Proto: f.Proto, OrigSrc: f.OrigSrc, OrigDst: f.OrigDst, Zone: f.Zone, OrigZone: f.OrigZone, ID: f.ID}
}

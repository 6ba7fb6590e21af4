package ipvs

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"golang.org/x/sys/unix"
	"time"
)

// Kernel is the IPVS of the network namespace in which Open was called.
type Kernel struct{}

var _ Interface = (*Kernel)(nil)

// maxBatch is the most operations in one system call.
const maxBatch = 500

// Open connects to the kernel.
func Open() (*Kernel, error) { return nil, errors.ErrUnsupported }

func (k *Kernel) Close() error                              { return nil }
func (k *Kernel) Read(ctx context.Context) (Content, error) { return Content{}, errors.ErrUnsupported }
func (k *Kernel) List(ctx context.Context) (Content, error) { return Content{}, errors.ErrUnsupported }
func (k *Kernel) RealServers(context.Context, VirtualServer) ([]RealState, error) {
	return nil, errors.ErrUnsupported
}
func (k *Kernel) Apply(ctx context.Context, ops []Op) []error           { return nil }
func (k *Kernel) Timeouts(context.Context) (Timeouts, error)            { return Timeouts{}, nil }
func (k *Kernel) SetTimeouts(context.Context, Timeouts) error           { return nil }
func (k *Kernel) ConnTableSize(context.Context) (int, error)            { return 0, nil }
func (k *Kernel) ProbeScheduler(ctx context.Context, name string) error { return nil }

// results are what became of operations.
type results []error

// rest notes an error for all operations from one on.
func (r results) rest(ops []Op, from int, err error) {
	for i := from; i < len(ops); i++ {
		r[i] = &Error{Op: ops[i], Err: err}
	}
}

// orNil returns nil if no operation failed.
func (r results) orNil() []error {
	for _, err := range r {
		if err != nil {
			return r
		}
	}
	return nil
}

func compareReals(a, b RealState) int { return a.Addr.Compare(b.Addr) }

func compareMarks(a, b MarkServer) int {
	six := func(m MarkServer) int {
		if m.IPv6 {
			return 1
		}
		return 0
	}
	return cmp.Or(cmp.Compare(a.Mark, b.Mark), cmp.Compare(six(a), six(b)))
}

// or fills in what is 0.
func (t Timeouts) or(o Timeouts) Timeouts {
	return Timeouts{TCP: cmp.Or(t.TCP, o.TCP), TCPFin: cmp.Or(t.TCPFin, o.TCPFin), UDP: cmp.Or(t.UDP, o.UDP)}
}

// check refuses time-outs that the kernel cannot keep.
func (t Timeouts) check() error {
	for _, d := range []time.Duration{t.TCP, t.TCPFin, t.UDP} {
		if d < 0 || d%time.Second != 0 || d > maxTimeout {
			return fmt.Errorf("time-out of %v: %w", d, unix.EINVAL)
		}
	}
	return nil
}

// maxTimeout is what a kernel with a clock of 1000 Hz can keep.
const maxTimeout = (1<<31 - 1) / 1000 * time.Second

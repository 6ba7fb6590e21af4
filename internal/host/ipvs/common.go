package ipvs

import (
	"cmp"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// maxBatch is the most operations in one system call. More do not make it faster.
const maxBatch = 500

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

package ipvs

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	hostipvs "github.com/fairlead/fairlead/internal/host/ipvs"
)

// batch is a list of operations on virtual servers that run together.
type batch struct {
	keys []Key
	ops  []hostipvs.Op
	// done are called after operations that succeeded or were not necessary; nil for none.
	done []func()
}

// add appends an operation on the virtual server of a key.
func (b *batch) add(k Key, op hostipvs.Op, done func()) {
	op.Server = virtualServer(k)
	b.keys, b.ops, b.done = append(b.keys, k), append(b.ops, op), append(b.done, done)
}

// failures are operations that failed.
type failures []failure

type failure struct {
	key Key
	op  hostipvs.Op
	err error
}

func (f failures) join() error {
	if len(f) == 0 {
		return nil
	}
	if len(f) == 1 {
		return f[0].err
	}
	return fmt.Errorf("%d operations on virtual servers failed, first: %w", len(f), f[0].err)
}

// run runs the operations. Deleting what does not exist is not a failure.
func (b *batch) run(ctx context.Context, servers hostipvs.Interface) failures {
	if len(b.ops) == 0 {
		return nil
	}
	var out failures
	errs := servers.Apply(ctx, b.ops)
	for i, op := range b.ops {
		var err error
		if errs != nil {
			err = errs[i]
		}
		switch op.Verb {
		case hostipvs.DelServer, hostipvs.DelReal:
			if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.ENOENT) {
				err = nil
			}
		}
		if err != nil {
			out = append(out, failure{key: b.keys[i], op: op, err: err})
		} else if b.done[i] != nil {
			b.done[i]()
		}
	}
	return out
}

func setServer(s hostipvs.Settings) hostipvs.Op {
	return hostipvs.Op{Verb: hostipvs.SetServer, Settings: s}
}

func addReal(a netip.AddrPort, weight uint32) hostipvs.Op {
	return hostipvs.Op{Verb: hostipvs.AddReal, Real: hostipvs.RealServer{Addr: a, Weight: weight}}
}

func setReal(a netip.AddrPort, weight uint32) hostipvs.Op {
	return hostipvs.Op{Verb: hostipvs.SetReal, Real: hostipvs.RealServer{Addr: a, Weight: weight}}
}

func delReal(a netip.AddrPort) hostipvs.Op {
	return hostipvs.Op{Verb: hostipvs.DelReal, Real: hostipvs.RealServer{Addr: a}}
}

// temporary reports whether an operation may succeed later, after the kernel was read.
func temporary(err error) bool {
	for _, e := range []error{
		context.Canceled, context.DeadlineExceeded, unix.ESRCH, unix.ENOENT, unix.EEXIST, unix.ENOBUFS, unix.ENOMEM, unix.EAGAIN, unix.EINTR, unix.EBUSY,
		unix.EPERM,
	} {
		if errors.Is(err, e) {
			return true
		}
	}
	var errno unix.Errno
	return !errors.As(err, &errno)
}

package ipvs_test

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	. "github.com/fairlead/fairlead/internal/host/ipvs"
	"github.com/fairlead/fairlead/internal/host/ipvs/ipvsfake"
)

func errno(err error) unix.Errno {
	var e unix.Errno
	errors.As(err, &e)
	return e
}

func TestFakeRefuses(t *testing.T) {
	f := &ipvsfake.Table{Schedulers: []string{"rr"}, NoIPv6: true}
	v, w, real := TCP("10.96.0.1:443"), TCP("10.96.0.2:443"), RealServer{Addr: AP("10.0.0.1:8443"), Weight: 1}
	rr := Settings{Scheduler: "rr"}
	heavy, other := real, real
	heavy.Weight, other.Addr = MaxWeight+1, AP("10.0.0.2:8443")
	ops := []struct {
		op   Op
		want unix.Errno
	}{
		{Op{Verb: AddServer, Server: v, Settings: rr}, 0},
		{Op{Verb: AddServer, Server: v, Settings: rr}, unix.EEXIST},
		{Op{Verb: AddServer, Server: w, Settings: Settings{Scheduler: "wrr"}}, unix.ENOENT},
		{Op{Verb: SetServer, Server: v, Settings: Settings{Scheduler: "wrr"}}, unix.ENOENT},
		{Op{Verb: SetServer, Server: w, Settings: rr}, unix.ESRCH},
		{Op{Verb: DelServer, Server: w}, unix.ESRCH},
		{Op{Verb: AddServer, Server: TCP("[fd00::1]:443"), Settings: rr}, unix.EAFNOSUPPORT},
		{Op{Verb: AddReal, Server: w, Real: real}, unix.ESRCH},
		{Op{Verb: AddReal, Server: v, Real: heavy}, unix.ERANGE},
		{Op{Verb: AddReal, Server: v, Real: RealServer{Addr: AP("224.0.0.1:1")}}, unix.EINVAL},
		{Op{Verb: AddReal, Server: v, Real: RealServer{Addr: AP("[fd01::1]:1")}}, unix.EAFNOSUPPORT},
		{Op{Verb: SetReal, Server: v, Real: real}, unix.ENOENT},
		{Op{Verb: AddReal, Server: v, Real: real}, 0},
		{Op{Verb: AddReal, Server: v, Real: real}, unix.EEXIST},
		{Op{Verb: SetReal, Server: v, Real: heavy}, unix.ERANGE},
		{Op{Verb: DelReal, Server: v, Real: other}, unix.ENOENT},
		{Op{Verb: AddReal, Server: v, Real: other}, 0},
	}
	var all []Op
	for _, o := range ops {
		all = append(all, o.op)
	}
	errs := f.Apply(t.Context(), all)
	for i, o := range ops {
		if got := errno(errs[i]); got != o.want || o.want == 0 && errs[i] != nil {
			t.Errorf("%v: got %v, want %v", o.op, errs[i], o.want)
		}
	}
	if got := f.Written(); len(got) != 3 || f.Written() != nil {
		t.Errorf("written %v", got)
	}
	const want = "-A -t 10.96.0.1:443 -s rr\n-a -t 10.96.0.1:443 -r 10.0.0.1:8443 -m -w 1\n-a -t 10.96.0.1:443 -r 10.0.0.2:8443 -m -w 1\n"
	if got := f.Dump(); got != want {
		t.Errorf("got\n%s", got)
	}
}

func TestFakeConnections(t *testing.T) {
	f := &ipvsfake.Table{}
	v, real := TCP("10.96.0.1:443"), RealServer{Addr: AP("10.0.0.1:8443"), Weight: 1}
	f.Put(v, Settings{Scheduler: "rr"}, real)
	f.SetConnections(v, real.Addr, 3, 4)
	real.Weight = 0
	apply(t, f, Op{Verb: SetReal, Server: v, Real: real}, Op{Verb: SetServer, Server: v, Settings: Settings{Scheduler: "sh"}})
	want := RealState{RealServer: real, Active: 3, Inactive: 4}
	if got, err := f.RealServers(t.Context(), v); err != nil || !slices.Equal(got, []RealState{want}) {
		t.Errorf("got %v, %v", got, err)
	}
	c := read(t, f)
	if c.Servers[0].Reals[0] != want {
		t.Errorf("got %v", c)
	}
	if f.Cut() != 0 {
		t.Errorf("cut %d", f.Cut())
	}
	f.Put(v, Settings{Scheduler: "rr"}, real) // another program writes: not ours, and harmless
	apply(t, f, Op{Verb: DelReal, Server: v, Real: real}, Op{Verb: AddReal, Server: v, Real: real})
	if got, err := f.RealServers(t.Context(), v); err != nil || got[0] != (RealState{RealServer: real}) || f.Cut() != 7 {
		t.Errorf("deleted and added: %v, %v, cut %d", got, err, f.Cut())
	}
	f.SetConnections(v, real.Addr, 1, 0)
	apply(t, f, Op{Verb: DelServer, Server: v})
	if _, err := f.RealServers(t.Context(), v); !errors.Is(err, unix.ESRCH) || f.Cut() != 8 {
		t.Errorf("%v, cut %d", err, f.Cut())
	}
}

func TestFakeFails(t *testing.T) {
	f := &ipvsfake.Table{Fail: func(op Op) error {
		if op.Verb == AddReal {
			return unix.ENOMEM
		}
		return nil
	}}
	ops := Large(200)
	errs := f.Apply(t.Context(), ops)
	for i, op := range ops {
		if (op.Verb == AddReal) != errors.Is(errs[i], unix.ENOMEM) {
			t.Fatalf("%v: %v", op, errs[i])
		}
	}
	if b := f.Batches(); !slices.Equal(b, []int{MaxBatch, MaxBatch, 200}) || f.Batches() != nil {
		t.Errorf("batches of %v", b)
	}
	f.Flush()
	// An answer that got lost leaves the operation carried out.
	f.Fail = func(Op) error { return unix.ENOBUFS }
	if errs := f.Apply(t.Context(), ops[:1]); !errors.Is(errs[0], unix.ENOBUFS) || len(read(t, f).Servers) != 1 {
		t.Errorf("got %v", errs)
	}
	f.FailCall = func(method string) error { return errors.New(method) }
	calls := map[string]error{"Apply": f.Apply(t.Context(), ops[:1])[0].(*Error).Err}
	_, calls["Read"] = f.Read(t.Context())
	_, calls["List"] = f.List(t.Context())
	_, calls["RealServers"] = f.RealServers(t.Context(), ops[0].Server)
	_, calls["Timeouts"] = f.Timeouts(t.Context())
	calls["SetTimeouts"] = f.SetTimeouts(t.Context(), Timeouts{})
	_, calls["ConnTableSize"] = f.ConnTableSize(t.Context())
	calls["ProbeScheduler"] = f.ProbeScheduler(t.Context(), "rr")
	for method, err := range calls {
		if err == nil || err.Error() != method {
			t.Errorf("%s: got %v", method, err)
		}
	}
	f.FailCall = nil
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if errs := f.Apply(ctx, ops); len(errs) != len(ops) || !errors.Is(errs[0], context.Canceled) {
		t.Errorf("%d errors", len(errs))
	}
	if f.Apply(t.Context(), nil) != nil {
		t.Error("an error for nothing")
	}
}

func TestFakeTimeouts(t *testing.T) {
	f := &ipvsfake.Table{}
	if err := f.SetTimeouts(t.Context(), Timeouts{UDP: 7 * time.Second}); err != nil {
		t.Fatal(err)
	}
	if got, err := f.Timeouts(t.Context()); err != nil || got != (Timeouts{TCP: 15 * time.Minute, TCPFin: 2 * time.Minute, UDP: 7 * time.Second}) {
		t.Errorf("got %v, %v", got, err)
	}
	if err := f.SetTimeouts(t.Context(), Timeouts{TCP: time.Millisecond}); !errors.Is(err, unix.EINVAL) {
		t.Errorf("got %v", err)
	}
}

package staleflow

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/fairlead/fairlead/internal/fwd"
	"github.com/fairlead/fairlead/internal/host/conntrack"
	"github.com/fairlead/fairlead/internal/host/conntrack/conntrackfake"
	"github.com/fairlead/fairlead/internal/host/hosttest"
)

func quiet() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

func dnsPlan(tb testing.TB, eps ...string) Plan {
	tb.Helper()
	var table fwd.Table
	var b Builder
	b.Update(table.Put(fragment("dns", 1, []fwd.Key{key(tb, "10.96.0.10:53/tcp"), key(tb, "10.96.0.10:53/udp"), key(tb, "[fd00::10]:53/udp")}, aps(eps...))))
	return b.Snapshot(written, true)
}

// start runs a worker in a synctest bubble; passes are sent to the channel.
func start(t *testing.T, table conntrack.Table) (*Worker, <-chan Pass) {
	t.Helper()
	passes := make(chan Pass, 100)
	w := NewWorker(table, quiet(), func(p Pass) { passes <- p })
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { w.Run(ctx); close(done) }()
	t.Cleanup(func() { cancel(); <-done })
	return w, passes
}

func TestWorkerRemovesInBatches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := &conntrackfake.Table{}
		var live []conntrack.Flow
		for i := range 2600 {
			src := netip.AddrPortFrom(netip.MustParseAddr("10.1.0.9"), uint16(1000+i)).String()
			reply := []string{"10.1.0.5:53", "10.1.0.9:53"}[i%2]
			table.Add(flow(src, "10.96.0.10:53", reply))
			if i%2 == 0 {
				live = append(live, table.Flows()[i])
			}
		}
		table.Add(flow("10.1.0.9:1", "10.96.0.10:53", "10.96.0.10:53"))
		w, passes := start(t, table)
		w.Submit(dnsPlan(t, "10.1.0.5:53"))
		p := <-passes
		if p.Family != fwd.IPv4 || p.Deleted != [NumReasons]int{1, 1300, 0} || !p.Complete || p.Err != nil {
			t.Errorf("got %+v", p)
		}
		if !slices.Equal(table.Flows(), live) {
			t.Errorf("%d flows left, want %d", len(table.Flows()), len(live))
		}
		if diff := cmp.Diff([]int{500, 500, 1, 300}, table.Batches()); diff != "" {
			t.Errorf("batches (-want +got):\n%s", diff)
		}
		if p := <-passes; p.Family != fwd.IPv6 || p.Deleted != [NumReasons]int{} || p.Err != nil {
			t.Errorf("got %+v", p)
		}
	})
}

// slow makes each dump of UDP flows take a while.
type slow struct {
	*conntrackfake.Table
	takes time.Duration
}

func (s slow) Dump(ctx context.Context, q conntrack.Query, yield func(conntrack.Flow) bool) (bool, error) {
	if q.Proto == uint8(fwd.UDP) {
		select {
		case <-ctx.Done():
			return false, ctx.Err()
		case <-time.After(s.takes):
		}
	}
	return s.Table.Dump(ctx, q, yield)
}

func TestWorkerMergesAndRests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, passes := start(t, slow{&conntrackfake.Table{}, time.Second})
		begin := time.Now()
		w.Submit(dnsPlan(t, "10.1.0.5:53"))
		for range 10 {
			time.Sleep(200 * time.Millisecond)
			w.Submit(dnsPlan(t, "10.1.0.5:53"))
		}
		var at []time.Duration
		for range 4 {
			<-passes
			at = append(at, time.Since(begin))
		}
		// Two families of a second each, then a pause of 4 × 2 s, then all ten others as one.
		if diff := cmp.Diff([]time.Duration{2 * time.Second, 2 * time.Second, 11 * time.Second, 12 * time.Second}, at); diff != "" {
			t.Errorf("passes ended (-want +got):\n%s", diff)
		}
		time.Sleep(time.Hour)
		if len(passes) != 0 {
			t.Errorf("%d more passes", len(passes))
		}
	})
}

func TestWorkerSkipsWhatIsEmpty(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, passes := start(t, &conntrackfake.Table{Fail: func(q *conntrack.Query) error { return fmt.Errorf("called with %v", q) }})
		w.Submit(Plan{})
		w.Submit((&Builder{}).Snapshot(written, true))
		time.Sleep(time.Hour)
		if len(passes) != 0 {
			t.Errorf("got %+v", <-passes)
		}
	})
}

// TestWorkerTriesAgain proves that a pass that failed, or that the kernel interrupted, is retried
// with growing pauses, and that a new plan need not wait for the retry.
func TestWorkerTriesAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var fails atomic.Value // the operation that fails
		failure := errors.New("made to fail")
		table := &conntrackfake.Table{Fail: func(q *conntrack.Query) error {
			op := "dump"
			switch {
			case q == nil:
				op = "delete"
			case q.Opening:
				op = "dump opening"
			}
			if op == fails.Load() {
				return failure
			}
			return nil
		}}
		fails.Store("dump")
		table.Add(flow("10.1.0.9:1", "10.96.0.10:53", "10.1.0.9:53"))
		w, passes := start(t, table)
		begin := time.Now()
		next := func() (Pass, time.Duration) {
			p := <-passes
			return p, time.Since(begin)
		}
		w.Submit(dnsPlan(t, "10.1.0.5:53"))
		for _, want := range []time.Duration{0, time.Second, 3 * time.Second, 7 * time.Second} {
			for range 2 {
				if p, at := next(); !errors.Is(p.Err, failure) || at != want {
					t.Errorf("after %v: got %+v, want a failure after %v", at, p, want)
				}
			}
		}
		time.Sleep(10*time.Minute + time.Second)
		for len(passes) > 0 {
			<-passes
		}
		_, first := next()
		next()
		if _, second := next(); second-first != maxRetry {
			t.Errorf("repeated after %v, want %v", second-first, maxRetry)
		}
		next()

		time.Sleep(time.Second)
		fails.Store("delete")
		begin = time.Now()
		w.Submit(Plan{}) // nothing new, but both families wait for a retry
		if p, at := next(); !errors.Is(p.Err, failure) || at != 0 {
			t.Errorf("after %v: got %+v", at, p)
		}
		if p, _ := next(); p.Family != fwd.IPv6 || p.Err != nil {
			t.Errorf("got %+v", p)
		}
		fails.Store("nothing")
		table.Interrupted.Store(true)
		if p, _ := next(); p.Err != nil || p.Complete || p.Deleted[EndpointGone] != 1 || len(table.Flows()) != 0 {
			t.Errorf("got %+v", p)
		}
		table.Interrupted.Store(false)
		if p, _ := next(); p.Err != nil || !p.Complete || p.Family != fwd.IPv4 {
			t.Errorf("after an interruption: got %+v", p)
		}
		time.Sleep(time.Hour)
		if len(passes) != 0 {
			t.Errorf("%d more passes", len(passes))
		}
	})
}

func TestWorkerEndsWithTheContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := NewWorker(slow{&conntrackfake.Table{}, time.Hour}, quiet(), func(p Pass) { t.Errorf("a pass that the end of the context interrupted is reported: %+v", p) })
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { w.Run(ctx); close(done) }()
		w.Submit(dnsPlan(t, "10.1.0.5:53"))
		time.Sleep(time.Minute)
		cancel()
		<-done
	})
}

func TestWorkerLogsWhatItRemoved(t *testing.T) {
	for name, tt := range map[string]struct {
		reply       string
		interrupted bool
		want        []string
	}{
		"nothing":   {"10.1.0.5:53", false, nil},
		"something": {"10.1.0.9:53", false, []string{"level=INFO", "endpoint-gone=1", "family=IPv4", "complete=true"}},
		"partial":   {"10.96.0.10:53", true, []string{"level=INFO", "black-hole=1", "complete=false"}},
	} {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			table := &conntrackfake.Table{}
			table.Interrupted.Store(tt.interrupted)
			table.Add(flow("10.1.0.9:1", "10.96.0.10:53", tt.reply))
			w := NewWorker(table, slog.New(slog.NewTextHandler(&out, nil)), nil)
			w.work(t.Context(), dnsPlan(t, "10.1.0.5:53"))
			for _, want := range tt.want {
				if !strings.Contains(out.String(), want) {
					t.Errorf("no %q in %q", want, out.String())
				}
			}
			if n := strings.Count(out.String(), "\n"); n > 1 || n == 1 && tt.want == nil {
				t.Errorf("logged %q", out.String())
			}
		})
	}
}

// TestWorkerWarnsOnce proves that a lasting failure is logged once, and again after a success.
func TestWorkerWarnsOnce(t *testing.T) {
	var out bytes.Buffer
	var fail error
	table := &conntrackfake.Table{Fail: func(*conntrack.Query) error { return fail }}
	w := NewWorker(table, slog.New(slog.NewTextHandler(&out, nil)), nil)
	for i, err := range []error{errors.New("no"), errors.New("no"), nil, errors.New("no")} {
		fail = err
		if done := w.work(t.Context(), dnsPlan(t, "10.1.0.5:53")); done != (err == nil) {
			t.Errorf("pass %d: done is %v", i, done)
		}
	}
	if n := strings.Count(out.String(), "level=WARN"); n != 4 { // of two families
		t.Errorf("%d warnings:\n%s", n, out.String())
	}
}

func TestKernelWorker(t *testing.T) {
	hosttest.Netns(t, "conntrack")
	add := func(src, dst, reply string) {
		t.Helper()
		f := flow(src, dst, reply)
		port := func(a netip.AddrPort) string { return fmt.Sprint(a.Port()) }
		hosttest.Run(t, "conntrack", "-I", "-p", "udp", "-t", "100",
			"-s", f.OrigSrc.Addr().String(), "-d", f.OrigDst.Addr().String(), "--sport", port(f.OrigSrc), "--dport", port(f.OrigDst),
			"-r", f.ReplySrc.Addr().String(), "-q", f.ReplyDst.Addr().String(), "--reply-port-src", port(f.ReplySrc), "--reply-port-dst", port(f.ReplyDst))
	}
	add("10.0.0.1:1001", "10.96.0.10:53", "10.1.0.5:53")
	add("10.0.0.1:1002", "10.96.0.10:53", "10.1.0.5:54")
	add("10.0.0.1:1003", "10.96.0.10:53", "10.96.0.10:53")
	add("10.0.0.1:1004", "10.96.0.11:53", "10.96.0.11:53")
	add("[fd02::1]:1005", "[fd00::10]:53", "[fd01::9]:53")
	add("[fd02::1]:1006", "[fd00::10]:53", "[fd01::5]:53")
	for port, state := range map[string]string{"2001": "SYN_SENT", "2002": "ESTABLISHED"} {
		hosttest.Run(t, "conntrack", "-I", "-p", "tcp", "-s", "10.0.0.3", "-d", "10.96.0.10", "--sport", port, "--dport", "53", "-t", "100", "--state", state)
	}
	var deleted [2][NumReasons]int
	w := NewWorker(conntrack.Kernel{}, quiet(), func(p Pass) { deleted[p.Family.Index()] = p.Deleted })
	w.work(t.Context(), dnsPlan(t, "10.1.0.5:53", "[fd01::5]:53"))
	if tcp := hosttest.Run(t, "conntrack", "-L", "-p", "tcp"); strings.Contains(tcp, "2001") || !strings.Contains(tcp, "2002") {
		t.Errorf("TCP flows left:\n%s", tcp)
	}
	var left []int
	for _, ipv6 := range []bool{false, true} {
		if _, err := (conntrack.Kernel{}).Dump(t.Context(), conntrack.Query{IPv6: ipv6, Proto: 17}, func(f conntrack.Flow) bool {
			left = append(left, int(f.OrigSrc.Port()))
			return true
		}); err != nil {
			t.Fatal(err)
		}
	}
	slices.Sort(left)
	if diff := cmp.Diff([]int{1001, 1004, 1006}, left); diff != "" {
		t.Errorf("source ports of the flows left (-want +got):\n%s", diff)
	}
	if deleted != [2][NumReasons]int{{2, 1, 0}, {0, 1, 0}} {
		t.Errorf("deleted %v", deleted)
	}
}

package netlink

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	library "github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/internal/host/hosttest"
)

func TestAttrs(t *testing.T) {
	b := AppendNest(nil, 3, func(b []byte) []byte {
		b = AppendText(b, 1, "abc")
		b = AppendUint32(b, 2, 7)
		return AppendAttr(b, 4|unix.NLA_F_NET_BYTEORDER, 1, 2, 3, 4, 5)
	})
	b = AppendAttr(b, 9)
	if len(b)%4 != 0 {
		t.Fatalf("%d bytes", len(b))
	}
	var outer, inner []Attr
	collect := func(b []byte, to *[]Attr) {
		for a, err := range Attrs(b) {
			if err != nil {
				t.Fatal(err)
			}
			*to = append(*to, a)
		}
	}
	collect(b, &outer)
	if len(outer) != 2 || outer[0].Type != 3 || outer[1].Type != 9 || len(outer[1].Data) != 0 {
		t.Fatalf("got %v", outer)
	}
	collect(outer[0].Data, &inner)
	if len(inner) != 3 || inner[0].Text() != "abc" || inner[1].Host32() != 7 || inner[2].Type != 4 || string(inner[2].Data) != "\x01\x02\x03\x04\x05" {
		t.Errorf("got %v", inner)
	}
	for _, cut := range []int{1, 3, 5, len(b) - 1} {
		if err := walk(b[:cut]); !errors.Is(err, ErrMalformed) {
			t.Errorf("first %d bytes: %v", cut, err)
		}
	}
}

// walk reads all attributes and returns the first error.
func walk(b []byte) error {
	for _, err := range Attrs(b) {
		if err != nil {
			return err
		}
	}
	return nil
}

func TestErrors(t *testing.T) {
	failure := func(code int32, rest ...byte) []byte {
		return append(binary.NativeEndian.AppendUint32(nil, uint32(code)), rest...)
	}
	request := Request{Type: 5, Body: []byte{1, 2, 3, 4}}.append(nil, 0, 1)
	text := AppendText(nil, nlmsgerrMessage, "bad thing")
	for _, tt := range []struct {
		name string
		m    Message
		want string
	}{
		{"success", Message{Type: unix.NLMSG_ERROR, Body: failure(0)}, ""},
		{"errno", Message{Type: unix.NLMSG_ERROR, Body: failure(-int32(unix.EEXIST))}, "file exists"},
		{"with the request", Message{Type: unix.NLMSG_ERROR, Body: failure(-int32(unix.EEXIST), request...)}, "file exists"},
		{"explained, capped", Message{Type: unix.NLMSG_ERROR, Flags: unix.NLM_F_ACK_TLVS | unix.NLM_F_CAPPED,
			Body: failure(-int32(unix.EEXIST), append(request[:16:16], text...)...)}, "file exists (bad thing)"},
		{"explained, not capped", Message{Type: unix.NLMSG_ERROR, Flags: unix.NLM_F_ACK_TLVS,
			Body: failure(-int32(unix.EEXIST), append(request[:20:20], text...)...)}, "file exists (bad thing)"},
		{"too short", Message{Type: unix.NLMSG_ERROR, Body: []byte{1}}, ErrMalformed.Error()},
		{"explanation is missing", Message{Type: unix.NLMSG_ERROR, Flags: unix.NLM_F_ACK_TLVS, Body: failure(-int32(unix.EPERM), 255, 255, 255, 255)},
			"operation not permitted"},
		{"end of a dump", Message{Type: unix.NLMSG_DONE}, ""},
		{"end of a dump with a length", Message{Type: unix.NLMSG_DONE, Body: failure(52)}, ""},
		{"a dump that failed", Message{Type: unix.NLMSG_DONE, Body: failure(-int32(unix.ENOENT))}, "no such file or directory"},
	} {
		got := ""
		if e, err := tt.m.err(); err != nil {
			got = err.Error()
		} else if e != nil {
			got = e.Error()
		}
		if got != tt.want {
			t.Errorf("%s: got %q, want %q", tt.name, got, tt.want)
		}
	}
}

// FuzzMessages feeds bytes to all decoders: none may panic.
func FuzzMessages(f *testing.F) {
	f.Add(Request{Type: unix.NLMSG_ERROR, Body: append([]byte{0xef, 0xff, 0xff, 0xff}, AppendText(nil, 1, "x")...)}.append(nil, unix.NLM_F_ACK_TLVS, 1))
	f.Add(Request{Type: unix.NLMSG_DONE, Flags: unix.NLM_F_ACK_TLVS, Body: AppendUint32(nil, 1, 1)}.append(nil, 0, 1))
	f.Fuzz(func(t *testing.T, b []byte) {
		for m, err := range Messages(b) {
			if err == nil {
				_, _ = m.err()
				_ = walk(m.Body)
			}
		}
	})
}

// TestAnswer: answers are assembled from several datagrams.
func TestAnswer(t *testing.T) {
	const seq, port = 7, 9
	from := func(port byte, b []byte) []byte { b[12] = port; return b }
	m := func(typ, flags uint16, seq uint32, body ...byte) []byte {
		return from(port, Request{Type: typ, Flags: flags, Body: body}.append(nil, 0, seq))
	}
	broken := errors.New("broken")
	errno := func(e unix.Errno) []byte { return binary.NativeEndian.AppendUint32(nil, uint32(-int32(e))) }
	for _, tt := range []struct {
		name      string
		datagrams [][]byte
		messages  int
		done      bool
		want      error
	}{
		{"a list in two parts", [][]byte{append(m(20, 2, seq), m(20, 2, seq)...), m(20, 2, seq), m(unix.NLMSG_DONE, 2, seq)}, 3, true, nil},
		{"late messages of an earlier call", [][]byte{m(unix.NLMSG_ERROR, 0, seq-1, errno(unix.EPERM)...), m(20, 0, seq-1), m(unix.NLMSG_DONE, 0, seq-1),
			m(20, 0, seq), m(unix.NLMSG_DONE, 0, seq)}, 1, true, nil},
		{"messages of another socket", [][]byte{from(8, m(20, 0, seq)), from(8, m(unix.NLMSG_DONE, 0, seq)), m(unix.NLMSG_DONE, 0, seq)}, 0, true, nil},
		{"interrupted, flag in a message", [][]byte{m(20, unix.NLM_F_DUMP_INTR, seq), m(20, 0, seq), m(unix.NLMSG_DONE, 0, seq)}, 2, true, ErrInterrupted},
		{"interrupted, flag in the end", [][]byte{m(20, 0, seq), m(unix.NLMSG_DONE, unix.NLM_F_DUMP_INTR, seq)}, 1, true, ErrInterrupted},
		{"interrupted, as an error", [][]byte{m(20, 0, seq), m(unix.NLMSG_DONE, 0, seq, errno(unix.EINTR)...)}, 1, true, ErrInterrupted},
		{"refused", [][]byte{m(unix.NLMSG_ERROR, 0, seq, errno(unix.EPERM)...)}, 0, true, unix.EPERM},
		{"failed at the end", [][]byte{m(20, 0, seq), m(unix.NLMSG_DONE, 0, seq, errno(unix.ENOENT)...)}, 1, true, unix.ENOENT},
		{"an answer and its acknowledgement", [][]byte{m(20, 0, seq), m(unix.NLMSG_ERROR, 0, seq, errno(0)...)}, 1, true, nil},
		{"cut off", [][]byte{m(20, 0, seq)[:10]}, 0, false, ErrMalformed},
		{"an error without a number", [][]byte{m(unix.NLMSG_ERROR, 0, seq, 1)}, 0, false, ErrMalformed},
		{"not wanted further", [][]byte{append(m(20, 0, seq, 1), m(unix.NLMSG_DONE, 0, seq)...)}, 1, false, broken},
	} {
		a := answer{port: port, seq: seq}
		var err error
		var done bool
		messages := 0
		for i, d := range tt.datagrams {
			done, err = a.take(d, func(m Message) error {
				messages++
				if len(m.Body) > 0 {
					return broken
				}
				return nil
			})
			if last := i == len(tt.datagrams)-1; (done || err != nil) != last {
				t.Errorf("%s: after datagram %d: %v, %v", tt.name, i, done, err)
			}
		}
		if messages != tt.messages || done != tt.done || !errors.Is(err, tt.want) {
			t.Errorf("%s: %d messages, done %v, %v", tt.name, messages, done, err)
		}
	}
}

// TestPack checks which requests go into one send.
func TestPack(t *testing.T) {
	reqs := make([]Request, 10)
	for i := range reqs {
		reqs[i] = Request{Type: 20, Flags: unix.NLM_F_EXCL, Body: []byte{byte(i), 1, 2}}
	}
	for _, tt := range []struct {
		name       string
		batch, len int
		want       int
	}{
		{"all", 100, 1 << 20, 10}, {"by number", 4, 1 << 20, 4}, {"by size", 100, 3 * 20, 3}, {"at least one", 100, 1, 1},
	} {
		msg, n := pack(reqs, 41, tt.batch, tt.len)
		if n != tt.want {
			t.Errorf("%s: %d, want %d", tt.name, n, tt.want)
		}
		i := 0
		for m, err := range Messages(msg) {
			flags := uint16(unix.NLM_F_REQUEST | unix.NLM_F_EXCL)
			if i == n-1 {
				flags |= unix.NLM_F_ACK
			}
			if err != nil || m.Seq != uint32(41+i) || m.Flags != flags || m.Type != 20 || m.Body[0] != byte(i) || len(m.Body) != 3 {
				t.Errorf("%s: message %d: %v, %v", tt.name, i, m, err)
			}
			i++
		}
		if i != n {
			t.Errorf("%s: %d messages, want %d", tt.name, i, n)
		}
	}
}

// dial opens an rtnetlink socket in a new network namespace.
func dial(tb testing.TB) *Conn {
	tb.Helper()
	hosttest.Netns(tb)
	c, err := Dial(unix.NETLINK_ROUTE)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := c.Close(); err != nil {
			tb.Error(err)
		}
	})
	return c
}

// address is a request about an address on the loopback device; typ is RTM_NEWADDR or RTM_DELADDR.
func address(typ uint16, a netip.Addr) Request {
	b := []byte{unix.AF_INET, 32, 0, unix.RT_SCOPE_HOST}
	b = binary.NativeEndian.AppendUint32(b, 1) // lo
	flags := uint16(unix.NLM_F_CREATE | unix.NLM_F_EXCL)
	if typ == unix.RTM_DELADDR {
		flags = 0 // NLM_F_EXCL means something else for a deletion
	}
	return Request{Type: typ, Flags: flags, Body: AppendAttr(b, unix.IFA_LOCAL, a.AsSlice()...)}
}

func addresses(typ uint16, n int) (out []Request) {
	a := netip.MustParseAddr("10.96.0.1")
	for range n {
		out = append(out, address(typ, a))
		a = a.Next()
	}
	return out
}

func count(t *testing.T, c *Conn) int {
	t.Helper()
	msgs, err := c.List(t.Context(), Request{Type: unix.RTM_GETADDR, Body: append([]byte{unix.AF_INET}, make([]byte, 7)...)})
	if err != nil {
		t.Fatal(err)
	}
	return len(msgs)
}

// TestKernelDo fails requests in the middle, at the ends of batches, and all of them.
func TestKernelDo(t *testing.T) {
	for _, small := range []bool{false, true} {
		c := dial(t)
		if small { // as without the capability for large buffers
			shrink(t, c.socket, 16<<10)
			c.socket.receiveSize, c.socket.sendSize = 32<<10, 32<<10
		}
		const n = 1500
		reqs := addresses(unix.RTM_NEWADDR, n)
		want := map[int]bool{}
		for _, i := range []int{0, 1, 7, 24, 25, maxBatch - 1, maxBatch, n - 1} {
			want[i] = true
			if failed, err := c.Do(t.Context(), reqs[i:i+1]); failed != nil || err != nil {
				t.Fatal(failed, err)
			}
		}
		for range 2 {
			failed, err := c.Do(t.Context(), reqs)
			if err != nil || len(failed) != n {
				t.Fatalf("%v, %d", err, len(failed))
			}
			for i, e := range failed {
				if want[i] != errors.Is(e, unix.EEXIST) || (e != nil) != want[i] {
					t.Errorf("request %d: %v", i, e)
				}
			}
			// The second time all exist.
			for i := range n {
				want[i] = true
			}
		}
		if got := count(t, c); got != n+1 { // and 127.0.0.1
			t.Errorf("%d addresses, want %d", got, n+1)
		}
		if failed, err := c.Do(t.Context(), addresses(unix.RTM_DELADDR, n)); failed != nil || err != nil {
			t.Error(errors.Join(failed...), err)
		}
		if got := count(t, c); got != 1 {
			t.Errorf("%d addresses left", got)
		}
		if failed, err := c.Do(t.Context(), nil); failed != nil || err != nil {
			t.Error(failed, err)
		}
	}
}

// shrink makes the buffers of a socket small.
func shrink(t *testing.T, s *socket, size int) {
	t.Helper()
	for _, o := range []int{unix.SO_RCVBUF, unix.SO_SNDBUF} {
		var err error
		if e := s.raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, o, size) }); e != nil || err != nil {
			t.Fatal(e, err)
		}
	}
}

// TestKernelLateAnswers leaves answers of an earlier call in the socket: they are not taken for
// those of the next call.
func TestKernelLateAnswers(t *testing.T) {
	c := dial(t)
	reqs := addresses(unix.RTM_NEWADDR, 3)
	send := func() {
		stray, n := pack(append(reqs, reqs...), c.seq+1, maxBatch, bufferSize) // three fail
		c.seq += uint32(n)
		if err := c.socket.send(stray); err != nil {
			t.Fatal(err)
		}
	}
	send()
	if failed, err := c.Do(t.Context(), addresses(unix.RTM_DELADDR, 3)); failed != nil || err != nil {
		t.Error(failed, err)
	}
	send()
	if got := count(t, c); got != 4 {
		t.Errorf("%d addresses", got)
	}
}

// TestKernelOverrun loses answers of requests that the kernel carried out. Later calls get their
// own answers, on another socket in the same namespace, on whatever thread they run.
func TestKernelOverrun(t *testing.T) {
	c := dial(t)
	shrink(t, c.socket, 0)
	first := c.socket
	reqs := addresses(unix.RTM_NEWADDR, 40)
	failed, err := c.Do(t.Context(), append(reqs, reqs...)) // 40 answers
	if !errors.Is(err, ErrAnswerLost) || !errors.Is(err, unix.ENOBUFS) {
		t.Fatalf("got %v, %v", failed, err)
	}
	done := make(chan error)
	go func() { // on a thread in another namespace
		runtime.LockOSThread()
		failed, err := c.Do(t.Context(), addresses(unix.RTM_DELADDR, 40))
		done <- errors.Join(append(failed, err)...)
	}()
	if err := <-done; err != nil {
		t.Errorf("the next call: %v", err)
	}
	if c.socket == first {
		t.Error("the socket that was overrun is still in use")
	}
	if got := count(t, c); got != 1 {
		t.Errorf("%d addresses", got)
	}
}

// nftables is a request to nf_tables.
func nftables(typ, flags uint16, attrs []byte) Request {
	return Request{Type: unix.NFNL_SUBSYS_NFTABLES<<8 | typ, Flags: flags, Body: append([]byte{unix.NFPROTO_IPV4, unix.NFNETLINK_V0, 0, 0}, attrs...)}
}

// TestKernelTransactOverrun loses the answers of a transaction that the kernel committed. The error
// says so, and the answers that are left are not taken for those of the next transaction, whether
// it is refused or not.
func TestKernelTransactOverrun(t *testing.T) {
	hosttest.Need(t, hosttest.NFTables)
	hosttest.Netns(t)
	c, err := Dial(unix.NETLINK_NETFILTER)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	table := AppendText(nil, unix.NFTA_TABLE_NAME, "fl-test")
	chain := func(name string) []byte {
		return AppendText(AppendText(nil, unix.NFTA_CHAIN_TABLE, "fl-test"), unix.NFTA_CHAIN_NAME, name)
	}
	transact := func(reqs ...Request) (*Refusal, error) {
		return c.Transact(t.Context(), unix.NFNL_SUBSYS_NFTABLES, reqs, true)
	}
	make50 := []Request{nftables(unix.NFT_MSG_NEWTABLE, unix.NLM_F_CREATE, table)}
	for i := range 50 { // each has an answer, and the buffer holds one or two
		make50 = append(make50, nftables(unix.NFT_MSG_NEWCHAIN, unix.NLM_F_CREATE|unix.NLM_F_ACK, chain(fmt.Sprint("c", i))))
	}
	del := func(name string) Request { return nftables(unix.NFT_MSG_DELCHAIN, unix.NLM_F_ACK, chain(name)) }
	shrink(t, c.socket, 0)
	if refused, err := transact(make50...); refused != nil || !errors.Is(err, ErrAnswerLost) {
		t.Fatalf("a transaction whose answers are lost: %v, %v", refused, err)
	}
	if refused, err := transact(del("c1"), del("none")); err != nil || refused == nil || refused.Index != 1 || !errors.Is(refused.Err, unix.ENOENT) {
		t.Errorf("a transaction that is refused, after it: %v, %v", refused, err)
	}
	if refused, err := transact(del("c49")); refused != nil || err != nil { // exists: the first transaction was committed
		t.Errorf("a transaction that is carried out, after that: %v, %v", refused, err)
	}
	// A transaction with many errors was refused, even if some of the errors were lost.
	shrink(t, c.socket, 0)
	many := slices.Repeat([]Request{del("none")}, 50)
	if refused, err := transact(many...); err != nil || refused == nil || refused.Index != 0 || !errors.Is(refused.Err, unix.ENOENT) {
		t.Errorf("a transaction with many errors: %v, %v", refused, err)
	}
	// Late answers, as after a call that was given up, have sequence numbers that are never used
	// again.
	err = c.converse(t.Context(), func(s *socket) error {
		defer func() { s.clean = true }()
		var msgs []byte
		for _, r := range many {
			c.seq++
			msgs = r.append(msgs, 0, c.seq)
		}
		return s.send(msgs)
	})
	if err != nil {
		t.Fatal(err)
	}
	if refused, err := transact(del("c48")); refused != nil || err != nil {
		t.Errorf("after answers of a transaction that was given up: %v, %v", refused, err)
	}
	// Without a commit the requests are checked and undone.
	if refused, err := c.Transact(t.Context(), unix.NFNL_SUBSYS_NFTABLES, []Request{del("c47")}, false); refused != nil || err != nil {
		t.Errorf("a check: %v, %v", refused, err)
	}
	if refused, err := transact(del("c47")); refused != nil || err != nil {
		t.Errorf("a transaction that was checked before: %v, %v", refused, err)
	}
}

// TestKernelYieldFails ends a dump midway: the remaining messages are not taken for the next
// answer.
func TestKernelYieldFails(t *testing.T) {
	c := dial(t)
	if failed, err := c.Do(t.Context(), addresses(unix.RTM_NEWADDR, 2000)); failed != nil || err != nil {
		t.Fatal(failed, err)
	}
	all := Request{Type: unix.RTM_GETADDR, Body: append([]byte{unix.AF_INET}, make([]byte, 7)...)}
	enough := errors.New("enough")
	n := 0
	if err := c.Dump(t.Context(), all, func(Message) error { n++; return enough }); !errors.Is(err, enough) || n != 1 {
		t.Errorf("%d messages, %v", n, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	n = 0
	if err := c.Dump(ctx, all, func(Message) error { n++; cancel(); return nil }); !errors.Is(err, context.Canceled) || n == 2001 {
		t.Errorf("%d messages, %v", n, err)
	}
	if got := count(t, c); got != 2001 {
		t.Errorf("%d addresses", got)
	}
}

// TestKernelNoAnswer: waiting for an answer that does not come ends with the context, and the
// socket is closed.
func TestKernelNoAnswer(t *testing.T) {
	c := dial(t)
	ctx, cancel := context.WithCancel(t.Context())
	first := c.socket
	err := c.converse(ctx, func(s *socket) error {
		time.AfterFunc(10*time.Millisecond, cancel)
		s.clean = false // as after a send
		_, err := s.receive(ctx)
		return err
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if got := count(t, c); got != 1 || c.socket == first {
		t.Errorf("%d addresses, the socket is still in use: %v", got, c.socket == first)
	}
}

// TestClosed: a closed Conn does not open a socket again.
func TestClosed(t *testing.T) {
	c, err := Dial(unix.NETLINK_ROUTE)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if _, err := c.Get(t.Context(), Request{}); !errors.Is(err, unix.EBADF) {
		t.Errorf("got %v", err)
	}
}

// counter is a Listener that counts.
type counter struct {
	received, missed chan struct{}
	ended            chan struct{}
}

func newCounter() counter {
	return counter{make(chan struct{}, 1000), make(chan struct{}, 1000), make(chan struct{})}
}

func (e counter) listener() Listener {
	return Listener{
		Messages: func([]Message) { e.received <- struct{}{} },
		Missed:   func() { e.missed <- struct{}{} },
		Ended:    func() { close(e.ended) },
	}
}

func await(t *testing.T, c <-chan struct{}, what string) {
	t.Helper()
	select {
	case <-c:
	case <-time.After(hosttest.Patience):
		t.Fatal(what)
	}
}

// TestKernelSubscribeOverrun overruns the socket of a subscription: Missed is called, and later
// messages are received.
func TestKernelSubscribeOverrun(t *testing.T) {
	c := dial(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	sub := settings{protocol: unix.NETLINK_ROUTE, groups: []int{unix.RTNLGRP_IPV4_IFADDR}, sendSize: bufferSize, namespace: c.namespace}
	s, err := sub.open()
	if err != nil {
		t.Fatal(err)
	}
	shrink(t, s, 0)
	if failed, err := c.Do(ctx, addresses(unix.RTM_NEWADDR, 200)); failed != nil || err != nil {
		t.Fatal(failed, err)
	}
	e := newCounter()
	go listen(ctx, s, sub.open, e.listener())
	await(t, e.missed, "Missed is not called")
	for len(e.received) > 0 {
		<-e.received
	}
	if failed, err := c.Do(ctx, addresses(unix.RTM_DELADDR, 1)); failed != nil || err != nil {
		t.Fatal(failed, err)
	}
	await(t, e.received, "later messages are not received")
	cancel()
	await(t, e.ended, "the subscription does not end")
}

// TestSubscribeAgain: a subscription whose socket fails with an error other than an overrun is
// renewed, even if the first attempts fail.
func TestSubscribeAgain(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	broken := &socket{file: r, buf: make([]byte, readSize)}
	if broken.raw, err = r.SyscallConn(); err != nil {
		t.Fatal(err)
	}
	attempts := 0
	open := func() (*socket, error) {
		if attempts++; attempts < 3 {
			return nil, unix.EMFILE
		}
		ns, err := currentNamespace()
		if err != nil {
			return nil, err
		}
		defer ns.Close()
		return settings{protocol: unix.NETLINK_ROUTE, sendSize: bufferSize, namespace: ns}.open()
	}
	e := newCounter()
	go listen(ctx, broken, open, e.listener())
	await(t, e.missed, "Missed is not called")
	cancel()
	await(t, e.ended, "the subscription does not end")
	if attempts != 3 {
		t.Errorf("%d attempts", attempts)
	}
}

func TestKernelGet(t *testing.T) {
	c := dial(t)
	byName := func(name string) Request {
		return Request{Type: unix.RTM_GETLINK, Body: AppendText(make([]byte, unix.SizeofIfInfomsg), unix.IFLA_IFNAME, name)}
	}
	got, err := c.Get(t.Context(), byName("lo"))
	if err != nil || len(got) != 1 || got[0].Type != unix.RTM_NEWLINK {
		t.Errorf("%v, %v", got, err)
	}
	if _, err := c.Get(t.Context(), byName("none")); !errors.Is(err, unix.ENODEV) {
		t.Errorf("got %v", err)
	}
	// The kernel's explanation is part of the error.
	bad := Request{Type: unix.RTM_NEWROUTE, Flags: unix.NLM_F_CREATE, Body: AppendUint32([]byte{unix.AF_INET, 33, 0, 0, 254, 4, 253, 1, 0, 0, 0, 0}, unix.RTA_OIF, 1)}
	if _, err := c.Get(t.Context(), bad); !errors.Is(err, unix.EINVAL) || !strings.Contains(err.Error(), "(") {
		t.Errorf("got %v", err)
	}
	if _, err := c.List(t.Context(), Request{Type: unix.RTM_GETADDR, Body: append([]byte{unix.AF_INET, 1}, make([]byte, 6)...)}); !errors.Is(err, unix.EINVAL) {
		t.Errorf("a strict kernel says of a bad dump: %v", err)
	}
}

func TestKernelContext(t *testing.T) {
	c := dial(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.Do(ctx, addresses(unix.RTM_NEWADDR, 1)); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if _, err := c.Get(ctx, Request{}); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if _, err := c.List(ctx, Request{}); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if got := count(t, c); got != 1 {
		t.Errorf("%d addresses", got)
	}
}

// BenchmarkAddresses adds and removes 500 addresses: with the library, in single calls, in batches.
// Compare the three.
func BenchmarkAddresses(b *testing.B) {
	const n = 500
	add, del := addresses(unix.RTM_NEWADDR, n), addresses(unix.RTM_DELADDR, n)
	run := func(name string, do func(b *testing.B, c *Conn, reqs []Request)) {
		b.Run(name, func(b *testing.B) {
			c := dial(b)
			for b.Loop() {
				do(b, c, add)
				do(b, c, del)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/2/n, "ns/address")
		})
	}
	do := func(b *testing.B, c *Conn, reqs []Request) {
		if failed, err := c.Do(b.Context(), reqs); err != nil || failed != nil {
			b.Fatal(err, failed)
		}
	}
	run("library", func(b *testing.B, _ *Conn, reqs []Request) {
		h, err := library.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			b.Fatal(err)
		}
		defer h.Close()
		lo := &library.Device{LinkAttrs: library.LinkAttrs{Name: "lo", Index: 1}}
		a := netip.MustParseAddr("10.96.0.1")
		for _, r := range reqs {
			at := &library.Addr{IPNet: library.NewIPNet(a.AsSlice())}
			if r.Type == unix.RTM_NEWADDR {
				err = h.AddrAdd(lo, at)
			} else {
				err = h.AddrDel(lo, at)
			}
			if err != nil {
				b.Fatal(err)
			}
			a = a.Next()
		}
	})
	run("single", func(b *testing.B, c *Conn, reqs []Request) {
		for i := range reqs {
			do(b, c, reqs[i:i+1])
		}
	})
	run("batch", do)
}

// TestKernelOpenEndsNoThread: opening a socket in another namespace does not end a thread, which
// would kill the processes that it started with PR_SET_PDEATHSIG.
func TestKernelOpenEndsNoThread(t *testing.T) {
	c := dial(t)
	var threads sync.WaitGroup
	for range 16 { // so that there are idle threads
		threads.Go(func() { _ = unix.Nanosleep(&unix.Timespec{Nsec: 20e6}, nil) })
	}
	threads.Wait()
	before, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	for range 100 {
		s, err := c.open()
		if err != nil {
			t.Fatal(err)
		}
		if err := s.close(); err != nil {
			t.Fatal(err)
		}
	}
	for _, task := range before {
		if _, err := os.Stat("/proc/self/task/" + task.Name()); err != nil {
			t.Errorf("a thread has ended: %v", err)
		}
	}
}

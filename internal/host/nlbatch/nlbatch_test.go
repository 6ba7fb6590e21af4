package nlbatch

import (
	"context"
	"encoding/binary"
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
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
	if len(inner) != 3 || inner[0].Text() != "abc" || inner[1].Uint32() != 7 || inner[2].Type != 4 || string(inner[2].Data) != "\x01\x02\x03\x04\x05" {
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
		if err := tt.m.err(); err != nil {
			got = err.Error()
		}
		if got != tt.want {
			t.Errorf("%s: got %q, want %q", tt.name, got, tt.want)
		}
	}
}

// FuzzMessages feeds bytes to everything that reads: it must end without a panic.
func FuzzMessages(f *testing.F) {
	f.Add(Request{Type: unix.NLMSG_ERROR, Body: append([]byte{0xef, 0xff, 0xff, 0xff}, AppendText(nil, 1, "x")...)}.append(nil, unix.NLM_F_ACK_TLVS, 1))
	f.Add(Request{Type: unix.NLMSG_DONE, Flags: unix.NLM_F_ACK_TLVS, Body: AppendUint32(nil, 1, 1)}.append(nil, 0, 1))
	f.Fuzz(func(t *testing.T, b []byte) {
		for m, err := range Messages(b) {
			if err == nil {
				_ = m.err()
				_ = walk(m.Body)
			}
		}
	})
}

// TestAnswer puts together answers that come in several datagrams.
func TestAnswer(t *testing.T) {
	const seq = 7
	m := func(typ, flags uint16, seq uint32, body ...byte) []byte {
		return Request{Type: typ, Flags: flags, Body: body}.append(nil, 0, seq)
	}
	errno := func(e unix.Errno) []byte { return binary.NativeEndian.AppendUint32(nil, uint32(-int32(e))) }
	for _, tt := range []struct {
		name      string
		datagrams [][]byte
		messages  int
		complete  bool
		want      error
	}{
		{"a list in two parts", [][]byte{append(m(20, 2, seq), m(20, 2, seq)...), m(20, 2, seq), m(unix.NLMSG_DONE, 2, seq)}, 3, true, nil},
		{"late messages of an earlier call", [][]byte{m(unix.NLMSG_ERROR, 0, seq-1, errno(unix.EPERM)...), m(20, 0, seq-1), m(unix.NLMSG_DONE, 0, seq-1),
			m(20, 0, seq), m(unix.NLMSG_DONE, 0, seq)}, 1, true, nil},
		{"interrupted, said by a message", [][]byte{m(20, unix.NLM_F_DUMP_INTR, seq), m(20, 0, seq), m(unix.NLMSG_DONE, 0, seq)}, 2, false, nil},
		{"interrupted, said by the end", [][]byte{m(20, 0, seq), m(unix.NLMSG_DONE, unix.NLM_F_DUMP_INTR, seq)}, 1, false, nil},
		{"interrupted, as an error", [][]byte{m(20, 0, seq), m(unix.NLMSG_DONE, 0, seq, errno(unix.EINTR)...)}, 1, false, nil},
		{"refused", [][]byte{m(unix.NLMSG_ERROR, 0, seq, errno(unix.EPERM)...)}, 0, true, unix.EPERM},
		{"failed at the end", [][]byte{m(20, 0, seq), m(unix.NLMSG_DONE, 0, seq, errno(unix.ENOENT)...)}, 1, true, unix.ENOENT},
		{"an answer and its acknowledgement", [][]byte{m(20, 0, seq), m(unix.NLMSG_ERROR, 0, seq, errno(0)...)}, 1, true, nil},
		{"cut off", [][]byte{m(20, 0, seq)[:10]}, 0, true, ErrMalformed},
	} {
		a := answer{seq: seq, complete: true}
		var err error
		for i, d := range tt.datagrams {
			var done bool
			done, err = a.take(d)
			if last := i == len(tt.datagrams)-1; (done || err != nil) != last {
				t.Errorf("%s: after datagram %d: %v, %v", tt.name, i, done, err)
			}
		}
		if len(a.out) != tt.messages || a.complete != tt.complete || !errors.Is(err, tt.want) {
			t.Errorf("%s: %d messages, complete %v, %v", tt.name, len(a.out), a.complete, err)
		}
	}
}

// TestPack checks what goes into one send.
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
		c := &Conn{seq: 40, batch: tt.batch, batchBytes: tt.len}
		msg, n := c.pack(reqs)
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
		flags = 0 // in a removal NLM_F_EXCL has another meaning
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
	msgs, err := c.Dump(t.Context(), Request{Type: unix.RTM_GETADDR, Body: append([]byte{unix.AF_INET}, make([]byte, 7)...)})
	if err != nil {
		t.Fatal(err)
	}
	return len(msgs)
}

// TestKernelDo fails requests in the middle, at the ends of batches, and all of them.
func TestKernelDo(t *testing.T) {
	for _, small := range []bool{false, true} {
		c := dial(t)
		if small { // as without the right to large buffers
			for _, o := range []int{unix.SO_RCVBUF, unix.SO_SNDBUF} {
				if err := unix.SetsockoptInt(c.fd, unix.SOL_SOCKET, o, 16<<10); err != nil {
					t.Fatal(err)
				}
			}
			c.batch, c.batchBytes = (32<<10)/answerSize, 16<<10
		}
		const n = 1500
		reqs := addresses(unix.RTM_NEWADDR, n)
		want := map[int]bool{}
		for _, i := range []int{0, 1, 7, c.batch - 1, c.batch, n - 1} {
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
			// The second time all are there.
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

// TestKernelLateAnswers leaves answers of a call in the socket that was given up.
func TestKernelLateAnswers(t *testing.T) {
	c := dial(t)
	reqs := addresses(unix.RTM_NEWADDR, 3)
	stray, n := c.pack(append(reqs, reqs...)) // three fail
	if err := c.send(stray); err != nil {
		t.Fatal(err)
	}
	c.seq += uint32(n)
	if failed, err := c.Do(t.Context(), addresses(unix.RTM_DELADDR, 3)); failed != nil || err != nil {
		t.Error(failed, err)
	}
	if err := c.send(stray); err != nil {
		t.Fatal(err)
	}
	if got := count(t, c); got != 4 {
		t.Errorf("%d addresses", got)
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
	if _, err := c.Dump(t.Context(), Request{Type: unix.RTM_GETADDR, Body: append([]byte{unix.AF_INET, 1}, make([]byte, 6)...)}); !errors.Is(err, unix.EINVAL) {
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
	if _, err := c.Dump(ctx, Request{}); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if got := count(t, c); got != 1 {
		t.Errorf("%d addresses", got)
	}
}

// BenchmarkAddresses adds and removes 500 addresses: with the library, in single calls, in batches. Compare the three.
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
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			b.Fatal(err)
		}
		defer h.Close()
		lo := &netlink.Device{LinkAttrs: netlink.LinkAttrs{Name: "lo", Index: 1}}
		a := netip.MustParseAddr("10.96.0.1")
		for _, r := range reqs {
			at := &netlink.Addr{IPNet: netlink.NewIPNet(a.AsSlice())}
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

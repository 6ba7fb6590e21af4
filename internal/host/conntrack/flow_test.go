package conntrack

import (
	"context"
	"encoding/binary"
	"errors"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func ap(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

// appendFlow appends the attributes of an entry as the kernel does, together with some that are of no interest.
func appendFlow(b []byte, f Flow) []byte {
	b = appendTuple(b, ctaTupleOrig, f.Proto, f.OrigSrc, f.OrigDst, f.OrigZone)
	b = appendTuple(b, ctaTupleReply, f.Proto, f.ReplySrc, f.ReplyDst, 0)
	b = appendZone(b, ctaZone, f.Zone)
	status, state := byte(0x8a), byte(3) // confirmed, among others, with a reply; established
	if f.Opening {
		status, state = 0x88, tcpSynSent
	}
	b = appendAttr(b, ctaStatus, 0, 0, 1, status)
	if f.Proto == unix.IPPROTO_TCP {
		b = appendNested(b, ctaProtoInfo|unix.NLA_F_NESTED, func(b []byte) []byte {
			return appendNested(b, ctaProtoInfoTCP|unix.NLA_F_NESTED, func(b []byte) []byte {
				return appendAttr(appendAttr(b, ctaProtoInfoTCPState, state), 2, 7) // and a window scale
			})
		})
	}
	b = appendAttr(b, ctaTimeout, 0, 0, 0, 100)
	return appendAttr(b, ctaID, binary.BigEndian.AppendUint32(nil, f.ID)...)
}

var samples = []Flow{
	{Proto: 17, OrigSrc: ap("10.0.0.1:1000"), OrigDst: ap("10.96.0.10:53"), ReplySrc: ap("10.1.0.5:5353"), ReplyDst: ap("10.0.0.1:1000"), ID: 0xdeadbeef},
	{Proto: 17, OrigSrc: ap("10.0.0.1:1000"), OrigDst: ap("10.96.0.10:53"), ReplySrc: ap("10.96.0.10:53"), ReplyDst: ap("10.0.0.1:1000"), Zone: 7, ID: 1},
	{Proto: 17, OrigSrc: ap("[fd00::1]:65535"), OrigDst: ap("[fd00:96::a]:53"), ReplySrc: ap("[fd01::5]:53"), ReplyDst: ap("[fd00::1]:65535"), OrigZone: 9, ID: 2},
	{Proto: 6, OrigSrc: ap("10.0.0.1:1000"), OrigDst: ap("10.96.0.10:53"), ReplySrc: ap("10.1.0.5:5353"), ReplyDst: ap("10.0.0.9:1"), ID: 3},
	{Proto: 6, OrigSrc: ap("10.0.0.1:1000"), OrigDst: ap("10.96.0.10:53"), ReplySrc: ap("10.96.0.10:53"), ReplyDst: ap("10.0.0.1:1000"), ID: 4, Opening: true},
}

func TestDecode(t *testing.T) {
	for _, want := range samples {
		got, err := decode(appendFlow(nil, want))
		if err != nil || got != want {
			t.Errorf("got %+v, %v; want %+v", got, err, want)
		}
	}
	b := appendFlow(nil, samples[0])
	if n := testing.AllocsPerRun(100, func() {
		if _, err := decode(b); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("decode allocates %v times", n)
	}
}

func TestDecodeRefuses(t *testing.T) {
	whole := appendFlow(nil, samples[0])
	for name, b := range map[string][]byte{
		"nothing":         nil,
		"cut":             whole[:len(whole)-1],
		"one direction":   appendTuple(nil, ctaTupleOrig, 17, samples[0].OrigSrc, samples[0].OrigDst, 0),
		"short attribute": {3, 0, 1, 0},
		"long attribute":  {8, 0, 1, 0},
		"short id":        appendAttr(appendFlow(nil, samples[0]), ctaID, 1),
		"short status":    appendAttr(appendFlow(nil, samples[0]), ctaStatus, 1),
		"long TCP state": appendNested(nil, ctaProtoInfo, func(b []byte) []byte {
			return appendNested(b, ctaProtoInfoTCP, func(b []byte) []byte { return appendAttr(b, ctaProtoInfoTCPState, 1, 2) })
		}),
		"short zone": appendAttr(appendFlow(nil, samples[0]), ctaZone, 1),
		"address of 5": appendNested(nil, ctaTupleOrig, func(b []byte) []byte {
			return appendNested(b, ctaTupleIP, func(b []byte) []byte { return appendAttr(b, ctaIPv4Src, 1, 2, 3, 4, 5) })
		}),
		"protocol of 2": appendNested(nil, ctaTupleOrig, func(b []byte) []byte {
			return appendNested(b, ctaTupleProto, func(b []byte) []byte { return appendAttr(b, ctaProtoNum, 1, 2) })
		}),
		"port of one byte": appendNested(nil, ctaTupleOrig, func(b []byte) []byte {
			return appendNested(b, ctaTupleProto, func(b []byte) []byte { return appendAttr(b, ctaPortDst, 1) })
		}),
	} {
		t.Run(name, func(t *testing.T) {
			if f, err := decode(b); err == nil {
				t.Errorf("got %+v", f)
			}
		})
	}
}

// FuzzMessages feeds datagrams to the decoder. Whatever was understood must be understood again when it is written anew.
func FuzzMessages(f *testing.F) {
	var all []byte
	for _, s := range samples {
		all = appendMessage(all, msgNew, unix.NLM_F_MULTI, 1, s.IPv6(), func(b []byte) []byte { return appendFlow(b, s) })
		f.Add(all)
	}
	f.Add(appendMessage(nil, unix.NLMSG_ERROR, 0, 1, false, func(b []byte) []byte { return b }))
	f.Fuzz(func(t *testing.T, b []byte) {
		for m, err := range messages(b) {
			if err != nil {
				return
			}
			_ = m.errno()
			_, _ = m.dumpEnd(true)
			fl, err := m.flow()
			if err != nil {
				continue
			}
			if fl.OrigSrc.Addr().Is6() != fl.IPv6() || fl.ReplySrc.Addr().Is6() != fl.IPv6() || fl.ReplyDst.Addr().Is6() != fl.IPv6() {
				continue // a mixture cannot be written
			}
			again, err := decode(appendFlow(nil, fl))
			if err != nil || again.key() != fl.key() || again.ReplySrc.Addr() != fl.ReplySrc.Addr() {
				t.Fatalf("got %+v, %v; want %+v", again, err, fl)
			}
		}
	})
}

// TestOpening proves that only a TCP connection in state SYN_SENT without a reply is opening.
func TestOpening(t *testing.T) {
	entry := func(proto, state byte, status byte) []byte {
		b := appendTuple(nil, ctaTupleOrig, proto, samples[4].OrigSrc, samples[4].OrigDst, 0)
		b = appendTuple(b, ctaTupleReply, proto, samples[4].ReplySrc, samples[4].ReplyDst, 0)
		b = appendAttr(b, ctaStatus, 0, 0, 0, status)
		return appendNested(b, ctaProtoInfo, func(b []byte) []byte {
			return appendNested(b, ctaProtoInfoTCP, func(b []byte) []byte { return appendAttr(b, ctaProtoInfoTCPState, state) })
		})
	}
	for name, tt := range map[string]struct {
		b    []byte
		want bool
	}{
		"SYN_SENT":              {entry(6, tcpSynSent, 8), true},
		"SYN_SENT with a reply": {entry(6, tcpSynSent, 8|statusSeenReply), false},
		"ESTABLISHED":           {entry(6, 3, 8), false},
		"another protocol":      {entry(17, tcpSynSent, 8), false},
	} {
		if f, err := decode(tt.b); err != nil || f.Opening != tt.want {
			t.Errorf("%s: got %v, %v; want %v", name, f.Opening, err, tt.want)
		}
	}
}

func TestDumpEnd(t *testing.T) {
	code := func(n int32) []byte { return binary.NativeEndian.AppendUint32(nil, uint32(n)) }
	tests := []struct {
		name     string
		data     []byte
		before   bool
		complete bool
		err      error
	}{
		{"no code", nil, true, true, nil},
		{"zero", code(0), true, true, nil},
		{"interrupted before", code(0), false, false, nil},
		{"EINTR", code(-int32(unix.EINTR)), true, false, nil},
		{"ENOMEM", code(-int32(unix.ENOMEM)), true, false, unix.ENOMEM},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			complete, err := message{data: tt.data}.dumpEnd(tt.before)
			if complete != tt.complete || !errors.Is(err, tt.err) {
				t.Errorf("got %v, %v; want %v, %v", complete, err, tt.complete, tt.err)
			}
		})
	}
}

func TestFake(t *testing.T) {
	x := &Fake{}
	x.Add(samples...)
	list := func(ipv6 bool, proto uint8) (out []Flow) {
		if _, err := x.Dump(t.Context(), ipv6, proto, func(f Flow) bool { out = append(out, f); return true }); err != nil {
			t.Fatal(err)
		}
		return out
	}
	if a, b, c := list(false, 17), list(true, 17), list(false, 6); len(a) != 2 || len(b) != 1 || len(c) != 2 {
		t.Fatalf("got %v, %v, %v", a, b, c)
	}
	var opening []Flow
	if _, err := x.DumpOpening(t.Context(), false, func(f Flow) bool { opening = append(opening, f); return true }); err != nil || len(opening) != 1 || !opening[0].Opening {
		t.Errorf("opening: %v, %v", opening, err)
	}
	stale := list(false, 17)
	stale[1].ID = 99 // another flow took its place
	if n, err := x.Delete(t.Context(), stale); n != 1 || err != nil {
		t.Errorf("deleted %d, %v", n, err)
	}
	if diff := cmp.Diff([]int{2}, x.Batches()); diff != "" || len(x.Flows()) != 4 {
		t.Errorf("%d flows left, batches %s", len(x.Flows()), diff)
	}
	x.Fail = func(string) error { return context.Canceled }
	if _, err := x.Delete(t.Context(), stale); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

package conntrack

import (
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/internal/host/netlink"
)

func ap(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

// appendFlow appends the attributes of an entry as the kernel does, including some that are
// ignored.
func appendFlow(b []byte, f Flow) []byte {
	b = appendTuple(b, ctaTupleOrig, f.Proto, f.OrigSrc, f.OrigDst, f.OrigZone)
	b = appendTuple(b, ctaTupleReply, f.Proto, f.ReplySrc, f.ReplyDst, 0)
	b = appendZone(b, ctaZone, f.Zone)
	status, state := byte(0x8a), byte(3) // confirmed, among others, with a reply; established
	if f.Opening {
		status, state = 0x88, tcpSynSent
	}
	b = netlink.AppendAttr(b, ctaStatus, 0, 0, 1, status)
	if f.Proto == unix.IPPROTO_TCP {
		b = netlink.AppendNest(b, ctaProtoInfo, func(b []byte) []byte {
			return netlink.AppendNest(b, ctaProtoInfoTCP, func(b []byte) []byte {
				return netlink.AppendAttr(netlink.AppendAttr(b, ctaProtoInfoTCPState, state), 2, 7) // and a window scale
			})
		})
	}
	b = netlink.AppendAttr(b, ctaTimeout, 0, 0, 0, 100)
	return netlink.AppendNet32(b, ctaID, f.ID)
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
		"short id":        netlink.AppendAttr(appendFlow(nil, samples[0]), ctaID, 1),
		"short status":    netlink.AppendAttr(appendFlow(nil, samples[0]), ctaStatus, 1),
		"long TCP state": netlink.AppendNest(nil, ctaProtoInfo, func(b []byte) []byte {
			return netlink.AppendNest(b, ctaProtoInfoTCP, func(b []byte) []byte { return netlink.AppendAttr(b, ctaProtoInfoTCPState, 1, 2) })
		}),
		"short zone": netlink.AppendAttr(appendFlow(nil, samples[0]), ctaZone, 1),
		"address of 5": netlink.AppendNest(nil, ctaTupleOrig, func(b []byte) []byte {
			return netlink.AppendNest(b, ctaTupleIP, func(b []byte) []byte { return netlink.AppendAttr(b, ctaIPv4Src, 1, 2, 3, 4, 5) })
		}),
		"protocol of 2": netlink.AppendNest(nil, ctaTupleOrig, func(b []byte) []byte {
			return netlink.AppendNest(b, ctaTupleProto, func(b []byte) []byte { return netlink.AppendAttr(b, ctaProtoNum, 1, 2) })
		}),
		"port of one byte": netlink.AppendNest(nil, ctaTupleOrig, func(b []byte) []byte {
			return netlink.AppendNest(b, ctaTupleProto, func(b []byte) []byte { return netlink.AppendAttr(b, ctaPortDst, 1) })
		}),
	} {
		t.Run(name, func(t *testing.T) {
			if f, err := decode(b); err == nil {
				t.Errorf("got %+v", f)
			}
		})
	}
}

// key returns a flow with only the fields that identify it.
func key(f Flow) Flow {
	return Flow{Proto: f.Proto, OrigSrc: f.OrigSrc, OrigDst: f.OrigDst, Zone: f.Zone, OrigZone: f.OrigZone, ID: f.ID}
}

// FuzzFlow feeds messages to the decoder. A flow that it decodes must survive encoding and
// decoding.
func FuzzFlow(f *testing.F) {
	for _, s := range samples {
		f.Add(request(msgNew, 0, s.IPv6(), appendFlow(nil, s)).Body)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		attrs, err := netlink.Message{Body: b}.NetfilterAttrs()
		if err != nil {
			return
		}
		fl, err := decode(attrs)
		if err != nil {
			return
		}
		if fl.OrigSrc.Addr().Is6() != fl.IPv6() || fl.ReplySrc.Addr().Is6() != fl.IPv6() || fl.ReplyDst.Addr().Is6() != fl.IPv6() {
			return // a mixture of families cannot be encoded
		}
		again, err := decode(appendFlow(nil, fl))
		if err != nil || key(again) != key(fl) || again.ReplySrc.Addr() != fl.ReplySrc.Addr() {
			t.Fatalf("got %+v, %v; want %+v", again, err, fl)
		}
	})
}

// TestOpening proves that only a TCP connection in state SYN_SENT without a reply is opening.
func TestOpening(t *testing.T) {
	entry := func(proto, state byte, status byte) []byte {
		b := appendTuple(nil, ctaTupleOrig, proto, samples[4].OrigSrc, samples[4].OrigDst, 0)
		b = appendTuple(b, ctaTupleReply, proto, samples[4].ReplySrc, samples[4].ReplyDst, 0)
		b = netlink.AppendAttr(b, ctaStatus, 0, 0, 0, status)
		return netlink.AppendNest(b, ctaProtoInfo, func(b []byte) []byte {
			return netlink.AppendNest(b, ctaProtoInfoTCP, func(b []byte) []byte { return netlink.AppendAttr(b, ctaProtoInfoTCPState, state) })
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

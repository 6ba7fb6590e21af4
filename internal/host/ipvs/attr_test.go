package ipvs

import (
	"encoding/binary"
	"errors"
	"math"
	"net/netip"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/internal/host/netlink"
)

// The kernel sends back what it got, with addresses of 16 bytes, counters and connections.

func sent64(typ uint16, v uint64) []byte {
	return netlink.AppendAttr(nil, typ, binary.NativeEndian.AppendUint64(nil, v)...)
}

func sentStats(typ uint16, wide bool, s Stats) []byte {
	return netlink.AppendNest(nil, typ, func(b []byte) []byte {
		for i, v := range []uint64{s.Connections, s.PacketsIn, s.PacketsOut, s.BytesIn, s.BytesOut} {
			if i < 3 && !wide {
				b = netlink.AppendUint32(b, uint16(i+1), uint32(v))
			} else {
				b = append(b, sent64(uint16(i+1), v)...)
			}
		}
		return b
	})
}

// sent changes the attributes inside the one attribute of a request.
func sent(b []byte, typ uint16, change func(a netlink.Attr) []byte, more ...[]byte) []byte {
	var a attrs
	if err := a.message(b); err != nil {
		panic(err)
	}
	return netlink.AppendNest(body(0), typ, func(b []byte) []byte {
		for in, err := range netlink.Attrs(a[typ]) {
			if err != nil {
				panic(err)
			}
			b = append(b, change(in)...)
		}
		return append(b, slices.Concat(more...)...)
	})
}

// long makes addresses as long as the kernel does and sets the flag that it sets.
func long(addr, flags uint16) func(netlink.Attr) []byte {
	return func(a netlink.Attr) []byte {
		d := slices.Clone(a.Data)
		switch a.Type {
		case addr:
			d = append(d, make([]byte, 16-len(d))...)
		case flags:
			binary.NativeEndian.PutUint32(d, binary.NativeEndian.Uint32(d)|uint32(hashed))
		}
		return netlink.AppendAttr(nil, a.Type, d...)
	}
}

func sentServer(v VirtualServer, s Settings, more ...[]byte) []byte {
	return sent(Op{Verb: AddServer, Server: v, Settings: s}.encode(), attrService, long(svcAddr, svcFlags), more...)
}

func sentReal(v VirtualServer, r RealState) []byte {
	return sent(Op{Verb: AddReal, Server: v, Real: r.RealServer}.encode(), attrDest, long(destAddr, 0), netlink.AppendUint32(nil, destActive, r.Active),
		netlink.AppendUint32(nil, destInactive, r.Inactive), netlink.AppendUint32(nil, destPersistent, r.Persistent))
}

func TestServerThereAndBack(t *testing.T) {
	large := Stats{Connections: math.MaxUint32 + 1, PacketsIn: math.MaxUint64, PacketsOut: 3, BytesIn: math.MaxUint32 + 4, BytesOut: 5}
	small := Stats{Connections: math.MaxUint32, PacketsIn: 2, PacketsOut: 3, BytesIn: math.MaxUint32 + 4, BytesOut: 5}
	for _, op := range everything() {
		if op.Verb != AddServer {
			continue
		}
		for _, tt := range []struct {
			stats []byte
			want  Stats
		}{{slices.Concat(sentStats(svcStats, false, small), sentStats(svcStats64, true, large)), large}, {sentStats(svcStats, false, small), small}} {
			var c Content
			err := c.decodeServer(sentServer(op.Server, op.Settings, tt.stats))
			if err != nil || len(c.Servers) != 1 || c.Servers[0].VirtualServer != op.Server || c.Servers[0].Settings != op.Settings || c.Servers[0].Stats != tt.want {
				t.Fatalf("%v: got %+v, %v", op, c, err)
			}
		}
	}
}

func TestRealThereAndBack(t *testing.T) {
	for _, op := range everything() {
		if op.Verb != AddReal {
			continue
		}
		want := RealState{RealServer: op.Real, Active: 1, Inactive: 70000, Persistent: math.MaxUint32}
		if got, err := decodeReal(sentReal(op.Server, want), op.Server); err != nil || got != want {
			t.Fatalf("got %+v, %v; want %+v", got, err, want)
		}
	}
}

func TestPrefix(t *testing.T) {
	v4, v6 := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1")
	for n := range int8(32) {
		if got := prefix(false, netmask(v4, n)); got != n {
			t.Errorf("IPv4: got %d, want %d", got, n)
		}
	}
	for _, odd := range [][]byte{{0, 0, 0, 0}, {255, 0, 255, 0}, {255, 255, 255, 253}} {
		if got := prefix(false, odd); got != OddPrefix {
			t.Errorf("%v: got %d", odd, got)
		}
	}
	for _, odd := range []uint32{0, 129, math.MaxUint32} {
		if got := prefix(true, binary.NativeEndian.AppendUint32(nil, odd)); got != OddPrefix {
			t.Errorf("%d: got %d", odd, got)
		}
	}
	if got := prefix(true, netmask(v6, 127)); got != 127 {
		t.Errorf("got %d", got)
	}
}

func TestDecodeRefuses(t *testing.T) {
	v := tcp("10.96.0.1:443")
	whole := sentServer(v, Settings{Scheduler: "rr"}, sentStats(svcStats, false, Stats{}))
	without := func(typ uint16) []byte {
		return sent(whole, attrService, func(a netlink.Attr) []byte {
			if a.Type == typ {
				return nil
			}
			return netlink.AppendAttr(nil, a.Type, a.Data...)
		})
	}
	for name, b := range map[string][]byte{
		"nothing":      nil,
		"no attribute": body(0),
		"cut":          whole[:len(whole)-5],
		"no family":    without(svcFamily), "no protocol": without(svcProtocol), "no address": without(svcAddr), "no port": without(svcPort),
		"no scheduler": without(svcScheduler), "no flags": without(svcFlags), "no time-out": without(svcTimeout), "no mask": without(svcNetmask),
		"no counters":   without(svcStats),
		"short address": Op{Verb: AddServer, Server: v, Settings: Settings{Scheduler: "rr"}}.encode(),
		"short mark":    sentServer(v, Settings{Scheduler: "rr"}, append16(nil, svcMark, 1)),
		"short counter": sentServer(v, Settings{Scheduler: "rr"}, sentStats(svcStats64, false, Stats{})),
		"family":        sentServer(v, Settings{Scheduler: "rr"}, append16(nil, svcFamily, unix.AF_UNIX)),
	} {
		t.Run(name, func(t *testing.T) {
			var c Content
			if err := c.decodeServer(b); !errors.Is(err, netlink.ErrMalformed) {
				t.Errorf("got %v, %+v", err, c)
			}
		})
	}
	if r, err := decodeReal(whole, v); !errors.Is(err, netlink.ErrMalformed) {
		t.Errorf("got %v, %+v", err, r)
	}
}

// FuzzDecode feeds messages to the decoder. Whatever was understood and may be written must be understood again when it
// is written anew.
func FuzzDecode(f *testing.F) {
	for _, op := range everything() {
		if op.Verb == AddServer {
			f.Add(sentServer(op.Server, op.Settings, sentStats(svcStats64, true, Stats{Connections: 1})))
		} else {
			f.Add(sentReal(op.Server, RealState{RealServer: op.Real}))
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		v := tcp("10.96.0.1:443")
		if r, err := decodeReal(b, v); err == nil && (Op{Verb: SetReal, Server: v, Real: r.RealServer}).check() == nil {
			if again, err := decodeReal(sentReal(v, r), v); err != nil || again != r {
				t.Fatalf("got %+v, %v; want %+v", again, err, r)
			}
		}
		var c, again Content
		if c.decodeServer(b) != nil || len(c.Servers) == 0 {
			return
		}
		s := c.Servers[0]
		if (Op{Verb: AddServer, Server: s.VirtualServer, Settings: s.Settings}).check() != nil {
			return
		}
		err := again.decodeServer(sentServer(s.VirtualServer, s.Settings, sentStats(svcStats64, true, s.Stats)))
		if got := again.Servers[0]; err != nil || got.VirtualServer != s.VirtualServer || got.Settings != s.Settings || got.Stats != s.Stats {
			t.Fatalf("got %+v, %v; want %+v", got, err, s)
		}
	})
}

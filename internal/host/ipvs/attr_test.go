package ipvs

import (
	"encoding/binary"
	"errors"
	"math"
	"net/netip"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/internal/host/hosttest"
	"github.com/fairlead/fairlead/internal/host/netlink"
)

// The kernel sends back what it got, with addresses of 16 bytes and connections.

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
		netlink.AppendUint32(nil, destInactive, r.Inactive))
}

func TestServerThereAndBack(t *testing.T) {
	for _, op := range everything() {
		if op.Verb != AddServer {
			continue
		}
		s, ok, err := decodeServer(sentServer(op.Server, op.Settings))
		if err != nil || !ok || s.VirtualServer != op.Server || s.Settings != op.Settings {
			t.Fatalf("%v: got %+v, %v, %v", op, s, ok, err)
		}
	}
}

func TestRealThereAndBack(t *testing.T) {
	for _, op := range everything() {
		if op.Verb != AddReal {
			continue
		}
		want := RealState{RealServer: op.Real, Active: 1, Inactive: math.MaxUint32}
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
	whole := sentServer(v, Settings{Scheduler: "rr"})
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
		"no scheduler": without(svcScheduler), "no flags": without(svcFlags), "no timeout": without(svcTimeout), "no mask": without(svcNetmask),
		"short address": Op{Verb: AddServer, Server: v, Settings: Settings{Scheduler: "rr"}}.encode(),
		"family":        sentServer(v, Settings{Scheduler: "rr"}, appendUint16(nil, svcFamily, unix.AF_UNIX)),
	} {
		t.Run(name, func(t *testing.T) {
			if s, _, err := decodeServer(b); !errors.Is(err, netlink.ErrMalformed) {
				t.Errorf("got %v, %+v", err, s)
			}
		})
	}
	if r, err := decodeReal(whole, v); !errors.Is(err, netlink.ErrMalformed) {
		t.Errorf("got %v, %+v", err, r)
	}
}

// FuzzDecode feeds messages to the decoder. Whatever was understood and may be written must be
// understood again when it is written anew.
func FuzzDecode(f *testing.F) {
	for _, op := range everything() {
		if op.Verb == AddServer {
			f.Add(sentServer(op.Server, op.Settings))
		} else {
			f.Add(sentReal(op.Server, RealState{RealServer: op.Real}))
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		v := tcp("10.96.0.1:443")
		if r, err := decodeReal(b, v); err == nil && (Op{Verb: SetReal, Server: v, Real: r.RealServer}).Check() == nil {
			if again, err := decodeReal(sentReal(v, r), v); err != nil || again != r {
				t.Fatalf("got %+v, %v; want %+v", again, err, r)
			}
		}
		s, ok, err := decodeServer(b)
		if err != nil || !ok || (Op{Verb: AddServer, Server: s.VirtualServer, Settings: s.Settings}).Check() != nil {
			return
		}
		again, _, err := decodeServer(sentServer(s.VirtualServer, s.Settings))
		if err != nil || again.VirtualServer != s.VirtualServer || again.Settings != s.Settings {
			t.Fatalf("got %+v, %v; want %+v", again, err, s)
		}
	})
}

// TestKernelWouldTake proves that the checks are needed: the kernel does not make them.
func TestKernelWouldTake(t *testing.T) {
	hosttest.Need(t, hosttest.IPVS)
	hosttest.Netns(t)
	k, err := Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	for _, op := range []Op{
		{Verb: AddServer, Server: tcp("10.96.0.1:1"), Settings: Settings{Scheduler: "rr", Flags: Persistent}},
		{Verb: AddServer, Server: tcp("10.96.0.1:0"), Settings: Settings{Scheduler: "rr"}},
		{Verb: AddServer, Server: VirtualServer{Protocol: unix.IPPROTO_ICMP, Addr: ap("10.96.0.1:2")}, Settings: Settings{Scheduler: "rr"}},
		{Verb: SetServer, Server: tcp("10.96.0.1:1"), Settings: Settings{Scheduler: "rr", Flags: hashed}},
	} {
		if op.Check() == nil {
			t.Errorf("%v passes the check", op)
		}
		if failed, err := k.conn.Do(t.Context(), []netlink.Request{{Type: k.family, Body: op.encode()}}); failed != nil || err != nil {
			t.Errorf("%v: the kernel refuses: %v, %v", op, failed, err)
		}
	}
}

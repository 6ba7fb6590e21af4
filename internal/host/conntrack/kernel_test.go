package conntrack

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/internal/host/hosttest"
	"github.com/fairlead/fairlead/internal/host/netlink"
)

// insert adds entries to the kernel's table.
func insert(tb testing.TB, flows ...Flow) {
	tb.Helper()
	c, err := netlink.Dial(unix.NETLINK_NETFILTER)
	if err != nil {
		tb.Fatal(err)
	}
	defer c.Close()
	reqs := make([]netlink.Request, len(flows))
	for i, f := range flows {
		b := appendTuple(nil, ctaTupleOrig, f.Proto, f.OrigSrc, f.OrigDst, f.OrigZone)
		b = appendTuple(b, ctaTupleReply, f.Proto, f.ReplySrc, f.ReplyDst, 0)
		b = appendZone(b, ctaZone, f.Zone)
		reqs[i] = request(msgNew, unix.NLM_F_CREATE|unix.NLM_F_EXCL, f.IPv6(), netlink.AppendNet32(b, ctaTimeout, 256))
	}
	if failed, err := c.Do(tb.Context(), reqs); failed != nil || err != nil {
		tb.Fatal(errors.Join(failed...), err)
	}
}

func list(tb testing.TB, ipv6 bool, proto uint8) (out []Flow) {
	tb.Helper()
	complete, err := Kernel{}.Dump(tb.Context(), Query{IPv6: ipv6, Proto: proto}, func(f Flow) bool { out = append(out, f); return true })
	if err != nil || !complete {
		tb.Fatalf("complete %v, %v", complete, err)
	}
	slices.SortFunc(out, func(a, b Flow) int {
		return cmp.Or(a.OrigSrc.Compare(b.OrigSrc), a.OrigDst.Compare(b.OrigDst), cmp.Compare(a.Zone, b.Zone), cmp.Compare(a.OrigZone, b.OrigZone))
	})
	return out
}

func withoutID(flows []Flow) []Flow {
	out := slices.Clone(flows)
	for i := range out {
		out[i].ID = 0
	}
	return out
}

func TestKernelDumpAndDelete(t *testing.T) {
	hosttest.Need(t, hosttest.Zones)
	hosttest.Netns(t, "conntrack")
	c, v := ap("10.0.0.1:1000"), ap("10.96.0.10:53")
	udp := []Flow{
		{Proto: 17, OrigSrc: c, OrigDst: v, ReplySrc: v, ReplyDst: c},
		{Proto: 17, OrigSrc: c, OrigDst: v, ReplySrc: v, ReplyDst: ap("10.0.0.9:77"), OrigZone: 8}, // replies share zone 0
		{Proto: 17, OrigSrc: c, OrigDst: v, ReplySrc: v, ReplyDst: c, Zone: 7},
		{Proto: 17, OrigSrc: ap("10.0.0.2:1000"), OrigDst: v, ReplySrc: ap("10.1.0.5:5353"), ReplyDst: ap("10.0.0.2:1000")},
	}
	udp6 := []Flow{{Proto: 17, OrigSrc: ap("[fd00::1]:65535"), OrigDst: ap("[fd00:96::a]:53"), ReplySrc: ap("[fd01::5]:53"), ReplyDst: ap("[fd00::1]:65535")}}
	insert(t, udp...)
	insert(t, udp6...)
	hosttest.Run(t, "conntrack", "-I", "-p", "tcp", "-s", "10.0.0.3", "-d", "10.96.0.10", "--sport", "5", "--dport", "53", "--state", "ESTABLISHED", "-t", "100")

	got := list(t, false, 17)
	if diff := gocmp.Diff(udp, withoutID(got), gocmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); diff != "" {
		t.Errorf("IPv4 (-want +got):\n%s", diff)
	}
	got6 := list(t, true, 17)
	if !slices.Equal(udp6, withoutID(got6)) {
		t.Errorf("IPv6: got %v, want %v", got6, udp6)
	}
	if tcp := list(t, false, 6); len(tcp) != 1 || tcp[0].OrigDst != v {
		t.Errorf("TCP: got %v", tcp)
	}

	// Flows with another id or zone are not deleted.
	wrong := []Flow{got[0], got[2]}
	wrong[0].ID++
	wrong[1].Zone = 6
	if n, err := (Kernel{}).Delete(t.Context(), wrong); n != 0 || err != nil {
		t.Errorf("deleted %d, %v; want 0", n, err)
	}
	if n, err := (Kernel{}).Delete(t.Context(), append([]Flow{wrong[0]}, got[1:]...)); n != 3 || err != nil {
		t.Errorf("deleted %d, %v; want 3", n, err)
	}
	if left := list(t, false, 17); !slices.Equal(left, got[:1]) {
		t.Errorf("left %v, want %v", left, got[:1])
	}
	if n, err := (Kernel{}).Delete(t.Context(), got6); n != 1 || err != nil || len(list(t, true, 17)) != 0 {
		t.Errorf("IPv6: deleted %d, %v", n, err)
	}
	if out := hosttest.Run(t, "conntrack", "-L"); strings.Count(out, "src=10.0.0") != 2 {
		t.Errorf("conntrack sees:\n%s", out)
	}
}

func TestKernelFiltersByProtocol(t *testing.T) {
	hosttest.Netns(t, "conntrack")
	insert(t, samples[0])
	hosttest.Run(t, "conntrack", "-I", "-p", "tcp", "-s", "10.0.0.3", "-d", "10.96.0.10", "--sport", "5", "--dport", "53", "--state", "ESTABLISHED", "-t", "100")
	udp := Query{Proto: 17}
	for _, filter := range [][]byte{appendFilter(nil, udp), appendFilter(nil, Query{Proto: 17, Dst: samples[0].OrigDst}), nil} {
		want := 1
		if filter == nil {
			want = 2
		}
		c, err := netlink.Dial(unix.NETLINK_NETFILTER)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		n := 0
		if err := c.Dump(t.Context(), request(msgGet, 0, false, filter), func(m netlink.Message) error { n++; return nil }); err != nil {
			t.Fatal(err)
		}
		if n != want {
			t.Errorf("filter %v: the kernel sent %d flows, want %d", filter, n, want)
		}
		var out []Flow
		if err := dump(t.Context(), udp, filter, func(f Flow) bool { out = append(out, f); return true }); err != nil || len(out) != 1 {
			t.Errorf("filter %v: got %v, %v", filter, out, err)
		}
	}
}

// TestKernelDumpsOpening proves that only TCP connections that wait for their first answer are
// dumped, and that one of them can be deleted.
func TestKernelDumpsOpening(t *testing.T) {
	hosttest.Netns(t, "conntrack")
	for port, args := range map[string][]string{
		"1": {"--state", "SYN_SENT"},
		"2": {"--state", "SYN_SENT", "-u", "SEEN_REPLY"},
		"3": {"--state", "ESTABLISHED"},
	} {
		hosttest.Run(t, "conntrack", append([]string{"-I", "-p", "tcp", "-s", "10.0.0.3", "-d", "10.96.0.10", "--sport", port, "--dport", "80", "-t", "100"}, args...)...)
	}
	insert(t, samples[0])
	dumped := func() (out []Flow) {
		complete, err := Kernel{}.Dump(t.Context(), Query{Proto: 6, Opening: true}, func(f Flow) bool { out = append(out, f); return true })
		if err != nil || !complete {
			t.Fatalf("complete %v, %v", complete, err)
		}
		return out
	}
	got := dumped()
	if len(got) != 1 || got[0].OrigSrc != ap("10.0.0.3:1") || !got[0].Opening {
		t.Fatalf("got %+v", got)
	}
	if n, err := (Kernel{}).Delete(t.Context(), got); n != 1 || err != nil || len(dumped()) != 0 || len(list(t, false, 6)) != 2 {
		t.Errorf("deleted %d, %v", n, err)
	}
	if got, err := (Kernel{}).Dump(t.Context(), Query{IPv6: true, Proto: 6, Opening: true}, func(f Flow) bool { t.Errorf("IPv6: %+v", f); return true }); err != nil || !got {
		t.Errorf("IPv6: %v, %v", got, err)
	}
}

func TestKernelDumpTo(t *testing.T) {
	hosttest.Netns(t)
	c, v, w := ap("10.0.0.1:1000"), ap("10.96.0.10:53"), ap("10.96.0.10:54")
	six := Flow{Proto: 17, OrigSrc: ap("[fd00::1]:65535"), OrigDst: ap("[fd00:96::a]:53"), ReplySrc: ap("[fd00:96::a]:53"), ReplyDst: ap("[fd00::1]:65535")}
	insert(t,
		Flow{Proto: 17, OrigSrc: c, OrigDst: v, ReplySrc: ap("10.1.0.5:53"), ReplyDst: c},
		Flow{Proto: 17, OrigSrc: c, OrigDst: w, ReplySrc: w, ReplyDst: c},
		Flow{Proto: 17, OrigSrc: v, OrigDst: ap("10.0.0.2:9"), ReplySrc: ap("10.0.0.2:9"), ReplyDst: v},
		six)
	for _, tt := range []struct {
		dst   netip.AddrPort
		proto uint8
		want  int
	}{
		{v, 17, 1}, {w, 17, 1}, {v, 6, 0}, {ap("10.1.0.5:53"), 17, 0}, {six.OrigDst, 17, 1},
	} {
		n := 0
		_, err := Kernel{}.Dump(t.Context(), Query{IPv6: tt.dst.Addr().Is6(), Proto: tt.proto, Dst: tt.dst}, func(f Flow) bool {
			n++
			return f.OrigDst == tt.dst && f.Proto == tt.proto
		})
		if n != tt.want || err != nil {
			t.Errorf("protocol %d to %v: %d flows, %v; want %d", tt.proto, tt.dst, n, err, tt.want)
		}
	}
}

func TestKernelTraffic(t *testing.T) {
	hosttest.Need(t, hosttest.NFTables)
	hosttest.Netns(t, "iptables-nft")
	hosttest.Run(t, "iptables-nft", "-t", "nat", "-A", "OUTPUT", "-p", "udp", "--dport", "53", "-j", "DNAT", "--to-destination", "127.0.0.1:5353")
	server, err := net.ListenPacket("udp4", "127.0.0.1:5353")
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	client, err := net.Dial("udp4", "127.0.0.1:53")
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if _, err := client.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	got := list(t, false, 17)
	if len(got) != 1 || got[0].OrigDst != ap("127.0.0.1:53") || got[0].ReplySrc != ap("127.0.0.1:5353") {
		t.Fatalf("got %+v", got)
	}
	if n, err := (Kernel{}).Delete(t.Context(), got); n != 1 || err != nil || len(list(t, false, 17)) != 0 {
		t.Errorf("deleted %d, %v", n, err)
	}
}

func TestKernelStops(t *testing.T) {
	hosttest.Netns(t)
	insert(t, many(1000)...)
	n := 0
	if _, err := (Kernel{}).Dump(t.Context(), Query{Proto: 17}, func(Flow) bool { n++; return n < 10 }); err != nil || n != 10 {
		t.Errorf("yielded %d, %v", n, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	n = 0
	if _, err := (Kernel{}).Dump(ctx, Query{Proto: 17}, func(Flow) bool { n++; cancel(); return true }); !errors.Is(err, context.Canceled) || n == 1000 {
		t.Errorf("yielded %d, %v", n, err)
	}
}

func many(n int) []Flow {
	out := make([]Flow, n)
	for i := range out {
		c := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 16), byte(i >> 8)}), uint16(1024+i&0xff))
		out[i] = Flow{Proto: 17, OrigSrc: c, OrigDst: ap("10.96.0.10:53"), ReplySrc: ap(fmt.Sprintf("10.1.0.%d:53", i%250)), ReplyDst: c}
	}
	return out
}

func TestKernelLargeTable(t *testing.T) {
	hosttest.Netns(t)
	const total = 20000
	insert(t, many(total)...)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	n, deleted := 0, 0
	batch := make([]Flow, 0, 500)
	flush := func() {
		d, err := Kernel{}.Delete(t.Context(), batch)
		if err != nil {
			t.Fatal(err)
		}
		deleted, batch = deleted+d, batch[:0]
	}
	_, err := Kernel{}.Dump(t.Context(), Query{Proto: 17}, func(f Flow) bool {
		n++
		if n%2 == 0 {
			return true
		}
		if batch = append(batch, f); len(batch) == cap(batch) {
			flush()
		}
		return true
	})
	if err != nil {
		t.Fatal(err)
	}
	flush()
	runtime.ReadMemStats(&after)
	// Deleting while the dump runs must not make it skip flows.
	if n != total || deleted != total/2 || len(list(t, false, 17)) != total/2 {
		t.Errorf("saw %d, deleted %d, left %d", n, deleted, len(list(t, false, 17)))
	}
	t.Logf("%d flows, half deleted: %d KiB allocated in all", total, (after.TotalAlloc-before.TotalAlloc)>>10)
}

func BenchmarkDump(b *testing.B) {
	hosttest.Netns(b)
	const total = 100000
	insert(b, many(total)...)
	b.ReportAllocs()
	for b.Loop() {
		n := 0
		if _, err := (Kernel{}).Dump(b.Context(), Query{Proto: 17}, func(Flow) bool { n++; return true }); err != nil || n != total {
			b.Fatal(n, err)
		}
	}
}

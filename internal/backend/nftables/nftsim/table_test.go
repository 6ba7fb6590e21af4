package nftsim

import (
	"context"
	"errors"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/internal/fwd"
	"github.com/fairlead/fairlead/internal/host/hosttest"
	"github.com/fairlead/fairlead/internal/host/nft"
)

var (
	ports = nft.Set{Name: "ports", Key: []nft.Field{nft.DestPort}, Verdicts: true}
	addrs = nft.Set{Name: "addrs", Key: []nft.Field{nft.DestAddr}, Value: []nft.Field{nft.DestAddr, nft.DestPort}}
)

// begin adds a table to try operations on.
var begin = []nft.Op{
	{Kind: nft.AddTable},
	{Kind: nft.AddSet, Name: "ports", Set: ports},
	{Kind: nft.AddSet, Name: "addrs", Set: addrs},
	{Kind: nft.AddChain, Name: "target"},
	{Kind: nft.AddChain, Name: "base", Base: nft.Base{Type: "nat", Hook: nft.Prerouting, Priority: -100}},
	{Kind: nft.AddRules, Name: "base", Rules: []nft.Rule{{nft.Payload(unix.NFT_PAYLOAD_TRANSPORT_HEADER, 2, 2, 0), nft.VerdictMap("ports", 0)}}},
	{Kind: nft.AddElements, Name: "ports", Set: ports, Elements: []nft.Element{{Key: "\x00\x50", Value: "goto target"}}},
	{Kind: nft.AddElements, Name: "addrs", Set: addrs, Elements: []nft.Element{{Key: "\x0a\x00\x00\x01", Value: "\x0a\x01\x00\x01\x1f\x90\x00\x00"}}},
}

var refusals = []struct {
	name string
	ops  []nft.Op
	// want is the error number, or 0 if the operations are accepted.
	want unix.Errno
}{
	{"the same again", []nft.Op{{Kind: nft.AddTable}, {Kind: nft.AddChain, Name: "target"}, {Kind: nft.AddSet, Name: "ports", Set: ports}}, 0},
	{"an element that exists", []nft.Op{{Kind: nft.AddElements, Name: "ports", Set: ports, Elements: []nft.Element{{Key: "\x00\x50", Value: "goto target"}}}}, 0},
	{"an element that exists with another value", []nft.Op{{Kind: nft.AddElements, Name: "addrs", Set: addrs, Elements: []nft.Element{{Key: "\x0a\x00\x00\x01", Value: "\x0a\x01\x00\x02\x1f\x90\x00\x00"}}}}, unix.EEXIST},
	{"an element in place of another", []nft.Op{
		{Kind: nft.DelElements, Name: "addrs", Set: addrs, Elements: []nft.Element{{Key: "\x0a\x00\x00\x01"}}},
		{Kind: nft.AddElements, Name: "addrs", Set: addrs, Elements: []nft.Element{{Key: "\x0a\x00\x00\x01", Value: "\x0a\x01\x00\x02\x1f\x90\x00\x00"}}}}, 0},
	{"delete a missing element", []nft.Op{{Kind: nft.DelElements, Name: "ports", Set: ports, Elements: []nft.Element{{Key: "\x00\x51"}}}}, unix.ENOENT},
	{"an element with a missing chain", []nft.Op{{Kind: nft.AddElements, Name: "ports", Set: ports, Elements: []nft.Element{{Key: "\x00\x51", Value: "goto nowhere"}}}}, unix.ENOENT},
	{"an element of a missing set", []nft.Op{{Kind: nft.AddElements, Name: "none", Set: nft.Set{Name: "none", Key: ports.Key}, Elements: []nft.Element{{Key: "\x00\x51"}}}}, unix.ENOENT},
	{"a rule with a missing set", []nft.Op{{Kind: nft.AddRules, Name: "target", Rules: []nft.Rule{{nft.In("none", 0)}}}}, unix.ENOENT},
	{"a rule with a jump to a missing chain", []nft.Op{{Kind: nft.AddRules, Name: "target", Rules: []nft.Rule{{nft.Verdict("jump nowhere")}}}}, unix.ENOENT},
	{"a rule in a missing chain", []nft.Op{{Kind: nft.AddRules, Name: "nowhere", Rules: []nft.Rule{{nft.Verdict("drop")}}}}, unix.ENOENT},
	{"delete a chain in use", []nft.Op{{Kind: nft.DelChain, Name: "target"}}, unix.EBUSY},
	{"delete a set in use", []nft.Op{{Kind: nft.DelSet, Name: "ports"}}, unix.EBUSY},
	{"delete an unused set", []nft.Op{{Kind: nft.DelSet, Name: "addrs"}}, 0},
	{"a set that exists with another type", []nft.Op{{Kind: nft.AddSet, Name: "ports", Set: nft.Set{Name: "ports", Key: addrs.Key}}}, unix.EEXIST},
	{"masquerade where a connection begins", []nft.Op{{Kind: nft.AddRules, Name: "target", Rules: []nft.Rule{{nft.Masquerade()}}}}, unix.EOPNOTSUPP},
	{"reject after routing", []nft.Op{
		{Kind: nft.AddChain, Name: "post", Base: nft.Base{Type: "nat", Hook: nft.Postrouting, Priority: 100}},
		{Kind: nft.AddRules, Name: "post", Rules: []nft.Rule{{nft.Reject(3)}}}}, unix.EOPNOTSUPP},
	{"a later refusal", []nft.Op{{Kind: nft.AddChain, Name: "more"}, {Kind: nft.DelChain, Name: "nowhere"}}, unix.ENOENT},
}

// TestRefusals: the simulation refuses what it should refuse, and changes nothing then.
func TestRefusals(t *testing.T) {
	for _, tt := range refusals {
		t.Run(tt.name, func(t *testing.T) {
			checkRefusal(t, New(fwd.IPv4), tt.ops, tt.want)
		})
	}
}

// TestKernelRefusals: the kernel does the same.
func TestKernelRefusals(t *testing.T) {
	hosttest.Netns(t)
	for _, tt := range refusals {
		t.Log(tt.name)
		c, err := nft.Open(fwd.IPv4, "fl-sim")
		if err != nil {
			t.Fatal(err)
		}
		checkRefusal(t, c, tt.ops, tt.want)
		if err := errors.Join(c.Commit(t.Context(), []nft.Op{{Kind: nft.DelTable}}), c.Close()); err != nil {
			t.Fatal(err)
		}
	}
}

func checkRefusal(t *testing.T, table nft.Interface, ops []nft.Op, want unix.Errno) {
	t.Helper()
	ctx := context.Background()
	if err := table.Commit(ctx, begin); err != nil {
		t.Fatal(err)
	}
	before, err := table.Read(ctx)
	if err != nil {
		t.Fatal(err)
	}
	err = table.Commit(ctx, ops)
	if want == 0 && err != nil || want != 0 && !errors.Is(err, want) {
		t.Errorf("got %v, want %v", err, want)
	}
	if want == 0 {
		return
	}
	after, err := table.Read(ctx)
	all := cmp.Transformer("All", func(e nft.Elements) []nft.Element { return e.All() })
	if diff := cmp.Diff(before, after, all); diff != "" || err != nil {
		t.Errorf("a refused transaction changed something (%v):\n%s", err, diff)
	}
}

// TestRun follows one packet by hand.
func TestRun(t *testing.T) {
	table := New(fwd.IPv4)
	dnat := nft.Rule{nft.Random(4, 0, 0), nft.ToNetworkOrder(0), nft.Compare(unix.NFT_CMP_LT, 0, "\x00\x00\x00\x01"),
		nft.Payload(unix.NFT_PAYLOAD_NETWORK_HEADER, 16, 4, 0), nft.Map("addrs", 0, 0), nft.DNAT(unix.NFPROTO_IPV4, 0, 1)}
	ops := append(begin[:len(begin):len(begin)], nft.Op{Kind: nft.AddRules, Name: "target", Rules: []nft.Rule{dnat, {nft.Verdict("drop")}}})
	if err := table.Commit(t.Context(), ops); err != nil {
		t.Fatal(err)
	}
	p := fwd.Packet{Src: netip.MustParseAddr("192.0.2.1"), Dst: netip.MustParseAddrPort("10.0.0.1:80"), Proto: fwd.TCP, InInterface: "eth0"}
	got, err := table.Run(Host{}, p)
	want := []Result{
		{Outcome: Outcome{Verdict: fwd.VerdictDrop}, Probability: 0.75},
		{Outcome: Outcome{Verdict: fwd.VerdictForward, Endpoint: netip.MustParseAddrPort("10.1.0.1:8080")}, Probability: 0.25},
	}
	if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{}, netip.AddrPort{})); diff != "" || err != nil {
		t.Errorf("%v\n%s", err, diff)
	}
	p.Dst = netip.MustParseAddrPort("10.0.0.1:81")
	if got, err := table.Run(Host{}, p); err != nil || len(got) != 1 || got[0].Verdict != fwd.VerdictPass {
		t.Errorf("another port: %v, %v", got, err)
	}
}

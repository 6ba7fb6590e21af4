package nft

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/internal/fwd"
	"github.com/fairlead/fairlead/internal/host/hosttest"
	"github.com/fairlead/fairlead/internal/host/netlink"
)

// TestUserdata: the userdata are those of nft 1.0.6 for the declarations in the names, on a
// little-endian machine.
func TestUserdata(t *testing.T) {
	if binary.NativeEndian.Uint16([]byte{1, 0}) != 1 {
		t.Skip("userdata is in the byte order of the machine")
	}
	tests := []struct {
		name string
		fam  fwd.Family
		set  Set
		want string
	}{
		{"typeof meta l4proto . th dport : verdict", fwd.IPv4, Set{Key: []Field{Protocol, DestPort}, Verdicts: true},
			"000400000000010400000000032e00040d0000000126000e00040900000001060004100000000114000407000000010c00040b000000010402000000040800040100000001000604" + "00000000"},
		{"typeof ip daddr", fwd.IPv4, Set{Key: []Field{DestAddr}}, "000402000000031400040700000001" + "0c00040c00000001040c000000"},
		{"typeof ip6 saddr", fwd.IPv6, Set{Key: []Field{SourceAddr}, Interval: true}, "000402000000031400040700000001" + "0c00040d000000010408000000"},
		{"typeof @nh,120,8 . @nh,152,8", fwd.IPv4, Set{Key: []Field{SourceLast, DestLast}},
			"000400000000035800040d0000000150002600040700000" + "0011e0004000000000104000000000204020000000304780000000404080000000126000407000000011e0004000000000104000000000204020000000304980000000404" + "08000000"},
		{"typeof ip saddr . numgen random mod 4294967295 . numgen random mod 4294967295", fwd.IPv4, Set{Key: []Field{SourceAddr, Number, Number}, Dynamic: true},
			"000400000000035600040d000000014e00140004070000" + "00010c00040c00000001040b000000011a000417000000011200040100000001" + "04ffffffff020400000000021a00041700000001120004010000000104ffffffff020400000000"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, hex.EncodeToString([]byte(tt.set.userdata(tt.fam)))); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestVerdicts(t *testing.T) {
	for _, v := range []string{"accept", "drop", "return", "goto somewhere", "jump a-b"} {
		got, err := ParseVerdict(string(appendVerdict(nil, v)))
		if err != nil || got != v {
			t.Errorf("%q is read as %q, %v", v, got, err)
		}
	}
}

// TestExpressionsAreNormal: expressions are written in the form in which they are compared.
func TestExpressionsAreNormal(t *testing.T) {
	for _, x := range []Expr{
		Payload(unix.NFT_PAYLOAD_NETWORK_HEADER, 16, 4, 3), Meta(unix.NFT_META_MARK, 0), SetMeta(unix.NFT_META_MARK, 0), Ct(unix.NFT_CT_STATE, 0),
		FibType(unix.NFTA_FIB_F_SADDR, 0), Random(10, 3, 4), Compare(unix.NFT_CMP_LT, 0, "abcd"), Bitwise(0, "abcd", "efgh"), ToNetworkOrder(0),
		In("s", 0), Map("m", 0, 4), VerdictMap("v", 0), Update("d", 0, 10), Immediate("abcd", 0), Verdict("goto x"), DNAT(unix.NFPROTO_IPV4, 0, 1), Masquerade(), Reject(3),
	} {
		got, err := normal(x.Name, x.Attrs)
		if err != nil || got != x {
			t.Errorf("%s: %x becomes %x, %v", x.Name, x.Attrs, got.Attrs, err)
		}
		unknown := string(netlink.AppendNet32(nil, 99, 7)) // of a newer kernel
		if got, err := normal(x.Name, unknown+x.Attrs); err != nil || got != x {
			t.Errorf("%s with an unknown attribute: %x, %v", x.Name, got.Attrs, err)
		}
	}
	if _, err := normal("meta", "abc"); err == nil {
		t.Error("malformed attributes are accepted")
	}
}

func TestRegister(t *testing.T) {
	for word, reg := range map[int]uint32{0: 1, 1: 9, 2: 10, 3: 11, 4: 2, 5: 13, 6: 14, 8: 3} {
		if got := Register(word); got != reg {
			t.Errorf("word %d is register %d, want %d", word, got, reg)
		}
	}
}

// FuzzAttrs: whatever the kernel sends, decoding does not panic, and attributes survive encoding
// and decoding.
func FuzzAttrs(f *testing.F) {
	f.Add("")
	f.Add(Random(10, 3, 4).Attrs)
	f.Add("\x05\x00\x01\x00a")
	f.Add("\xff\xff\x01\x00a")
	f.Fuzz(func(t *testing.T, s string) {
		var b, again []byte
		if netlink.Each(s, func(a Attr) error { b = netlink.AppendRaw(b, a.Type, a.Data); return nil }) != nil {
			return
		}
		err := netlink.Each(string(b), func(a Attr) error { again = netlink.AppendRaw(again, a.Type, a.Data); return nil })
		if err != nil || string(again) != string(b) {
			t.Errorf("%x is written as %x and then as %x, %v", s, b, again, err)
		}
		if _, err := parseElement(true, s); err != nil {
			return
		}
		if _, err := parseRule(s); err != nil {
			return
		}
	})
}

// TestUsable: the error names exactly the missing features; another error of the check is returned
// as it is.
func TestUsable(t *testing.T) {
	// kernel refuses operations for which lacks is true.
	kernel := func(errno unix.Errno, lacks func(Op) bool) func([]Op) error {
		return func(ops []Op) error {
			for _, o := range ops {
				if lacks(o) {
					return &Error{Op: o.String(), Errno: errno}
				}
			}
			return nil
		}
	}
	expr := func(names ...string) func(Op) bool {
		return func(o Op) bool {
			return slices.ContainsFunc(o.Rules, func(r Rule) bool {
				return slices.ContainsFunc(r, func(x Expr) bool { return slices.Contains(names, x.Name) })
			})
		}
	}
	tests := []struct {
		name  string
		check func([]Op) error
		want  []string // nil: usable
	}{
		{"everything", kernel(0, func(Op) bool { return false }), nil},
		{"no nf_tables", kernel(unix.EAFNOSUPPORT, func(o Op) bool { return o.Kind == AddTable }), []string{"nf_tables itself"}},
		{"no numgen", kernel(unix.ENOENT, expr("numgen")), []string{"random numbers (CONFIG_NFT_NUMGEN)"}},
		{"no fib", kernel(unix.ENOENT, expr("fib")), []string{"address types (CONFIG_NFT_FIB)"}},
		{"no masquerade", kernel(unix.ENOENT, expr("masq")), []string{"masquerade (CONFIG_NFT_MASQ)"}},
		{"no dynset", kernel(unix.ENOENT, expr("dynset")), []string{"packets add elements to"}},
		{"no reject", kernel(unix.ENOENT, expr("reject")), []string{"reject (CONFIG_NFT_REJECT)"}},
		{"no nat", kernel(unix.ENOENT, func(o Op) bool { return o.Base.Type == "nat" }), []string{"chains of type nat", "CONFIG_NFT_FIB", "CONFIG_NFT_REJECT", "CONFIG_NFT_MASQ", "destination NAT"}},
		{"no concatenations", kernel(unix.EOPNOTSUPP, func(o Op) bool { return len(o.Set.Key) > 1 }), []string{"concatenations", "maps to verdicts", "destination NAT"}},
		{"no ranges", kernel(unix.EOPNOTSUPP, func(o Op) bool { return o.Set.Interval }), []string{"sets of ranges"}},
		{"two things", kernel(unix.ENOENT, expr("numgen", "ct")), []string{"CONFIG_NFT_NUMGEN", "CONFIG_NFT_CT"}},
		{"not permitted", kernel(unix.EPERM, func(Op) bool { return true }), []string{"check the kernel", "not permitted"}},
		{"no answer", func([]Op) error { return errors.New("nobody is there") }, []string{"check the kernel", "nobody is there"}},
	}
	for _, tt := range tests {
		for _, f := range fwd.Families {
			asked := 0
			err := usable(f, func(ops []Op) error { asked++; return tt.check(ops) })
			if tt.want == nil && asked != 1 {
				t.Errorf("%s, %s: the kernel was asked %d times", tt.name, f, asked)
			}
			if tt.want == nil {
				if err != nil {
					t.Errorf("%s, %s: %v", tt.name, f, err)
				}
				continue
			}
			if err == nil {
				t.Errorf("%s, %s: usable", tt.name, f)
				continue
			}
			left := err.Error()
			for _, w := range tt.want {
				if !strings.Contains(left, w) {
					t.Errorf("%s, %s: %q is not named: %v", tt.name, f, w, err)
				}
			}
			if named := strings.Count(left, ";") + 1; named != len(tt.want) && strings.Contains(left, "lacks") {
				t.Errorf("%s, %s: %d things are named, want %d: %v", tt.name, f, named, len(tt.want), err)
			}
		}
	}
}

// TestKernel: a refused transaction names the operation and changes nothing; many messages are one
// transaction.
func TestKernel(t *testing.T) {
	hosttest.Netns(t)
	ctx := context.Background()
	for _, f := range fwd.Families {
		c, err := Open(f, "fl-test")
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Usable(ctx); err != nil {
			t.Fatal(err)
		}
		if found, err := c.Exists(t.Context()); found || err != nil {
			t.Fatalf("%s: the table exists (%v) before it was added: %v", f, found, err)
		}
		set := Set{Name: "s", Key: []Field{DestAddr, DestPort}, Value: []Field{DestPort, Number}}
		var els []Element
		for i := range 5000 {
			key := strings.Repeat("\x01", Len(f, set.Key)-8) + string(binary.BigEndian.AppendUint32(nil, uint32(i))) + "\x00\x50\x00\x00"
			els = append(els, Element{Key: key, Value: "\x00\x51\x00\x00abcd"})
		}
		good := []Op{{Kind: AddTable}, {Kind: AddSet, Name: "s", Set: set}, {Kind: AddElements, Name: "s", Set: set, Elements: els}, {Kind: AddChain, Name: "c"}}
		if err := c.Commit(ctx, good); err != nil {
			t.Fatal(err)
		}
		bad := []Op{{Kind: DelElements, Name: "s", Set: set, Elements: els[:10]}, {Kind: AddRules, Name: "c", Rules: []Rule{{In("none", 0)}}}, {Kind: AddChain, Name: "d"}}
		var ne *Error
		if err := c.Commit(ctx, bad); !errors.As(err, &ne) || ne.Errno != unix.ENOENT || ne.Op != "add rules to chain c" || ne.Refused() {
			t.Errorf("%s: a rule with a missing set: %v", f, err)
		}
		got, err := c.Read(ctx)
		read := got.Elements["s"]
		if err != nil || !slices.Equal(read.All(), els) || len(got.Chains) != 1 || got.Sets["s"] != set.Shape(f) {
			t.Errorf("%s: %d elements, %d chains, %+v, %v", f, read.Len(), len(got.Chains), got.Sets["s"], err)
		}
		if err := c.Commit(ctx, []Op{{Kind: DelTable}}); err != nil {
			t.Error(err)
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
}

package nft

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/internal/fwd"
)

// feature is a feature of the kernel that mode nftables needs.
type feature struct {
	// name describes it, with the option of the kernel's configuration if there is one.
	name string
	// ops use the feature, in a table that exists.
	ops []Op
}

// features returns the features; each can be checked alone. The names of its chains and sets end
// with id.
func features(f fwd.Family, id string) []feature {
	vip := []Field{DestAddr, Protocol, DestPort}
	words := f.Bits() / 32
	c, b, p, sn := "c"+id, "b"+id, "p"+id, "s"+id
	rules := func(r ...Rule) []Op { return []Op{{Kind: AddChain, Name: c}, {Kind: AddRules, Name: c, Rules: r}} }
	set := func(s Set) Op { s.Name = sn; return Op{Kind: AddSet, Name: sn, Set: s} }
	base := func(typ string, h Hook, r ...Rule) []Op {
		ops := []Op{{Kind: AddChain, Name: b, Base: Base{Type: typ, Hook: h}}}
		if len(r) > 0 {
			ops = append(ops, Op{Kind: AddRules, Name: b, Rules: r})
		}
		return ops
	}
	with := func(s Set, r ...Rule) []Op { return append([]Op{set(s)}, rules(r...)...) }
	nfproto := uint32(unix.NFPROTO_IPV4)
	code := uint8(3)
	addr := string(make([]byte, f.Bits()/8))
	next := string(append(make([]byte, f.Bits()/8-1), 8))
	if f == fwd.IPv6 {
		nfproto, code = unix.NFPROTO_IPV6, 4
	}
	return []feature{
		{"nf_tables itself (CONFIG_NF_TABLES)", nil},
		{"chains of type nat (CONFIG_NFT_NAT)", append(base("nat", Prerouting), Op{Kind: AddChain, Name: p, Base: Base{Type: "nat", Hook: Postrouting, Priority: 100}})},
		{"chains of type filter", base("filter", Input)},
		{"expressions meta, payload, bitwise, byteorder and cmp", rules(
			Rule{Meta(unix.NFT_META_MARK, 0), Bitwise(0, HostUint32(1), HostUint32(1)), SetMeta(unix.NFT_META_MARK, 0)},
			Rule{Payload(unix.NFT_PAYLOAD_NETWORK_HEADER, 12, 4, 0), Compare(unix.NFT_CMP_EQ, 0, "\x00\x00\x00\x00")},
			Rule{Meta(unix.NFT_META_MARK, 0), ToNetworkOrder(0), Compare(unix.NFT_CMP_LT, 0, HostUint32(1))})},
		{"sets with several fields in a key (concatenations)", with(Set{Key: []Field{SourceAddr, DestAddr}},
			Rule{Payload(unix.NFT_PAYLOAD_NETWORK_HEADER, 0, uint32(2*words*4), 0), In(sn, 0)})},
		{"sets of ranges", []Op{set(Set{Key: []Field{SourceAddr}, Interval: true}), {Kind: AddElements, Name: sn,
			Set: Set{Name: sn, Key: []Field{SourceAddr}, Interval: true}, Elements: []Element{{Key: addr}, {Key: next, End: true}}}}},
		{"maps to verdicts", with(Set{Key: []Field{Protocol, DestPort}, Verdicts: true}, Rule{
			Meta(unix.NFT_META_L4PROTO, 0), Payload(unix.NFT_PAYLOAD_TRANSPORT_HEADER, 2, 2, 1), VerdictMap(sn, 0)})},
		{"sets that packets add elements to, with a timeout (dynset)", with(Set{Key: []Field{SourceAddr}, Dynamic: true, Size: 16},
			Rule{Payload(unix.NFT_PAYLOAD_NETWORK_HEADER, 0, uint32(words*4), 0), Update(sn, 0, 10)})},
		{"random numbers (CONFIG_NFT_NUMGEN)", rules(Rule{Random(2, 0, 0), Compare(unix.NFT_CMP_EQ, 0, HostUint32(1))})},
		{"address types (CONFIG_NFT_FIB)", base("nat", Prerouting,
			Rule{FibType(unix.NFTA_FIB_F_DADDR, 0), Compare(unix.NFT_CMP_EQ, 0, HostUint32(unix.RTN_LOCAL))})},
		{"connection tracking (CONFIG_NFT_CT)", rules(Rule{Ct(unix.NFT_CT_STATUS, 0), Compare(unix.NFT_CMP_EQ, 0, HostUint32(0))})},
		{"reject (CONFIG_NFT_REJECT)", base("nat", Prerouting, Rule{Reject(code)})},
		{"masquerade (CONFIG_NFT_MASQ)", base("nat", Postrouting, Rule{Masquerade()})},
		{"destination NAT by a map (CONFIG_NFT_NAT)", append([]Op{set(Set{Key: vip, Value: []Field{DestAddr, DestPort}})}, base("nat", Prerouting, Rule{
			Payload(unix.NFT_PAYLOAD_NETWORK_HEADER, 0, uint32(words*4), 0), Meta(unix.NFT_META_L4PROTO, words),
			Payload(unix.NFT_PAYLOAD_TRANSPORT_HEADER, 2, 2, words+1), Map(sn, 0, 0), DNAT(nfproto, 0, words)})...)},
	}
}

// usable checks all features at once, and each of them if that fails. A check takes up to tens of
// milliseconds, since the kernel waits until no CPU uses the old rules.
func usable(f fwd.Family, check func([]Op) error) error {
	every := []Op{{Kind: AddTable}}
	for i := range features(f, "") {
		every = append(every, features(f, strconv.Itoa(i))[i].ops...)
	}
	if check(every) == nil {
		return nil
	}
	var missing []string
	var first error
	for _, feat := range features(f, "") {
		err := check(append([]Op{{Kind: AddTable}}, feat.ops...))
		var ne *Error
		if err != nil && (!errors.As(err, &ne) || errors.Is(err, unix.EPERM)) {
			return fmt.Errorf("check the kernel's features of nf_tables: %w", err) // the check itself failed
		}
		if err == nil {
			continue
		}
		if missing = append(missing, feat.name); first == nil {
			first = err
		}
		if len(feat.ops) == 0 {
			break // no other feature can exist
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("the kernel lacks or refuses features of nf_tables: %s (%w)", strings.Join(missing, "; "), first)
	}
	return nil
}

// IsTransient reports whether an error of Usable may pass by itself. A feature that the kernel
// lacks does not.
func IsTransient(err error) bool {
	return slices.ContainsFunc([]error{
		unix.ENOMEM, unix.ENOBUFS, unix.EINTR, unix.EAGAIN, unix.EBUSY, unix.ETIMEDOUT, os.ErrDeadlineExceeded,
	}, func(e error) bool { return errors.Is(err, e) })
}

// Usable returns an error that names the features that the kernel lacks. Nothing is written: the
// kernel checks operations on a table with another name, and discards them.
func (c *Conn) Usable(ctx context.Context) error {
	probe := Conn{family: c.family, table: c.table + "-probe", writes: c.writes}
	return usable(c.family, func(ops []Op) error { return probe.Check(ctx, ops) })
}

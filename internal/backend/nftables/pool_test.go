package nftables

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/fairlead/fairlead/internal/fwd"
	"github.com/fairlead/fairlead/internal/host/nft"
)

func randomTokens(r *rand.Rand, n int) []token {
	var out []token
	for range n {
		b := binary.BigEndian.AppendUint32(nil, r.Uint32())
		out = append(out, newToken(netip.AddrPortFrom(netip.AddrFrom4([4]byte(b)), 80), 0))
	}
	return out
}

// TestSlots: every token has one index, the order of the tokens does not matter, and adding or
// removing one moves few others.
func TestSlots(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for _, n := range []int{1, 2, 3, 10, 64, 65, 100, 300} {
		moved, most := 0, 0
		const rounds = 40
		for range rounds {
			tokens := randomTokens(r, n+1)
			with := slotsOf(slices.Clone(tokens))
			got := slices.Clone(with)
			want := make([]netip.AddrPort, n+1)
			for i, tok := range tokens {
				want[i] = tok.addr
			}
			slices.SortFunc(got, netip.AddrPort.Compare)
			slices.SortFunc(want, netip.AddrPort.Compare)
			if !slices.Equal(got, want) {
				t.Fatalf("of %d: not every token has an index", n+1)
			}
			r.Shuffle(len(tokens), func(i, j int) { tokens[i], tokens[j] = tokens[j], tokens[i] })
			if !slices.Equal(slotsOf(slices.Clone(tokens)), with) {
				t.Fatalf("of %d: the order matters", n+1)
			}
			without := slotsOf(slices.Clone(tokens[:n]))
			changed := 1
			for i := range without {
				if without[i] != with[i] {
					changed++
				}
			}
			moved, most = moved+changed, max(most, changed)
		}
		// If the number of bits of an index changes, half of the tokens ask for another index.
		if n != 64 && n > 3 && (float64(moved)/rounds > 8 || most > 16) {
			t.Errorf("of %d: one more changes %.1f indexes on average and %d at most", n, float64(moved)/rounds, most)
		}
	}
}

// TestLevels: the shares of the endpoints are exactly in proportion to their weights.
func TestLevels(t *testing.T) {
	for _, weights := range [][]uint32{{1}, {7}, {1, 2, 3}, {65535, 65535}, {1, 65535}, {40000, 1001, 1}, {12, 18, 30, 6}} {
		var eps []fwd.Endpoint
		for i, w := range weights {
			eps = append(eps, fwd.Endpoint{Addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}), 80), Weight: w})
		}
		levels := levelsOf(eps)
		got := make(map[netip.AddrPort]uint64)
		for _, lv := range levels {
			each := uint64(1)
			if lv.bit != plain {
				each = 1 << lv.bit
			} else if len(levels) > 1 {
				t.Errorf("%v: a plain level among others", weights)
			}
			for _, a := range lv.slots {
				got[a] += each
			}
		}
		for _, e := range eps {
			if got[e.Addr]*uint64(eps[0].Weight) != got[eps[0].Addr]*uint64(e.Weight) {
				t.Errorf("weights %v: shares %v", weights, got)
				break
			}
		}
	}
}

func TestRanges(t *testing.T) {
	tests := []struct {
		name     string
		prefixes []string
		// want are the addresses at which membership changes.
		want []string
	}{
		{"one", []string{"10.0.0.0/8"}, []string{"10.0.0.0", "11.0.0.0"}},
		{"from the lowest", []string{"0.0.0.0/1"}, []string{"0.0.0.0", "128.0.0.0"}},
		{"to the highest", []string{"255.0.0.0/8"}, []string{"255.0.0.0"}},
		{"everything but the first half", []string{"128.0.0.0/1"}, []string{"128.0.0.0"}},
		{"side by side", []string{"10.0.0.0/25", "10.0.0.128/25", "10.0.1.0/24"}, []string{"10.0.0.0", "10.0.2.0"}},
		{"apart", []string{"10.0.0.1/32", "10.0.0.3/32"}, []string{"10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4"}},
		{"IPv6", []string{"fd00::/64"}, []string{"fd00::", "fd00:0:0:1::"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := &rangeSet{Set: nft.Set{Interval: true}}
			for _, p := range tt.prefixes {
				s.prefixes = append(s.prefixes, netip.MustParsePrefix(p))
			}
			read := func(els []nft.Element) (out []string) {
				for _, b := range boundaries(els) {
					a, _ := netip.AddrFromSlice([]byte(b))
					out = append(out, a.String())
				}
				return out
			}
			if diff := cmp.Diff(tt.want, read(s.elements())); diff != "" {
				t.Error(diff)
			}
			// As a kernel or nft may split it.
			var split []nft.Element
			for _, p := range s.prefixes {
				split = append(split, nft.Element{Key: string(p.Addr().AsSlice())})
				if end, more := after(p); more {
					split = append(split, nft.Element{Key: string(end.AsSlice()), End: true})
				}
			}
			if diff := cmp.Diff(tt.want, read(split)); diff != "" {
				t.Errorf("split: %s", diff)
			}
		})
	}
}

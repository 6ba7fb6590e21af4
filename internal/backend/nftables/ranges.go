package nftables

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"

	"github.com/fairlead/fairlead/internal/host/nft"
)

// elements returns the elements of a set of prefixes as nft(8) writes them: the first address of each range, and the first
// address after it with End. A set whose first range does not begin at the lowest address has an End there.
func (s *rangeSet) elements() []nft.Element {
	var bounds, out []nft.Element
	for _, p := range s.prefixes {
		bounds = append(bounds, nft.Element{Key: string(p.Masked().Addr().AsSlice())})
		if end, ok := after(p); ok {
			bounds = append(bounds, nft.Element{Key: string(end.AsSlice()), End: true})
		}
	}
	for i, b := range boundaries(bounds) {
		if lowest := strings.Repeat("\x00", len(b)); i == 0 && b != lowest {
			out = append(out, nft.Element{Key: lowest, End: true})
		}
		out = append(out, nft.Element{Key: b, End: i%2 == 1})
	}
	return out
}

// after returns the first address after a prefix; there is none after one that ends with the highest address.
func after(p netip.Prefix) (netip.Addr, bool) {
	b := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 1 << (7 - i%8)
	}
	last, _ := netip.AddrFromSlice(b)
	next := last.Next()
	return next, next.IsValid()
}

// boundaries returns the addresses at which membership in a set of ranges changes, sorted: in, out, in, and so on.
func boundaries(elements []nft.Element) []string {
	ordinal := func(e nft.Element) int { // where one range ends and the next begins, the end comes first
		if e.End {
			return 0
		}
		return 1
	}
	sorted := slices.SortedFunc(slices.Values(elements), func(a, b nft.Element) int {
		return cmp.Or(cmp.Compare(a.Key, b.Key), cmp.Compare(ordinal(a), ordinal(b)))
	})
	var out []string
	inside := false
	for _, e := range sorted {
		if e.End != inside {
			continue // an end outside of a range, or a beginning inside
		}
		inside = !e.End
		if n := len(out); n > 0 && out[n-1] == e.Key {
			out = out[:n-1] // the next range begins here: nothing changes
			continue
		}
		out = append(out, e.Key)
	}
	return out
}

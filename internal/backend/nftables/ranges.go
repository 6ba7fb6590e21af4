package nftables

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"

	"github.com/fairlead/fairlead/internal/host/nft"
)

// elements returns the elements of a set of prefixes as nft(8) writes them: the first address of
// each range, and the first address after it with End. A set whose first range does not begin at
// the lowest address has an End there. Prefixes must be sorted; the kernel refuses those that
// overlap.
func (s *rangeSet) elements() []nft.Element {
	var out []nft.Element
	var last netip.Addr
	for i, p := range s.prefixes {
		first := string(p.Addr().AsSlice())
		if lowest := strings.Repeat("\x00", len(first)); i == 0 && first != lowest {
			out = append(out, nft.Element{Key: lowest, End: true})
		}
		if p.Addr() == last { // the range continues
			out = out[:len(out)-1]
		} else {
			out = append(out, nft.Element{Key: first})
		}
		end, ok := after(p)
		if !ok {
			break
		}
		last = end
		out = append(out, nft.Element{Key: string(end.AsSlice()), End: true})
	}
	return out
}

// after returns the first address after a prefix; there is none after one that ends with the
// highest address.
func after(p netip.Prefix) (netip.Addr, bool) {
	b := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 1 << (7 - i%8)
	}
	last, _ := netip.AddrFromSlice(b)
	next := last.Next()
	return next, next.IsValid()
}

// boundaries returns the addresses at which membership in a set of ranges changes, sorted: in, out,
// in, and so on.
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

package nftables

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/fairlead/fairlead/internal/host/nft"
)

// elements are those of a set of prefixes as nft(8) writes them: where each range begins, and where it has ended. A set
// whose first range does not begin at the lowest address says so with an end there.
func (s *rangeSet) elements() []nft.Element {
	if len(s.prefixes) == 0 {
		return nil
	}
	var out []nft.Element
	zero := make([]byte, s.prefixes[0].Addr().BitLen()/8)
	if s.prefixes[0].Addr().Compare(lowest(s.prefixes[0])) != 0 {
		out = append(out, nft.Element{Key: string(zero), End: true})
	}
	var last netip.Addr
	for _, p := range s.prefixes {
		if p.Addr() == last { // one range with the one before
			out = out[:len(out)-1]
		} else {
			out = append(out, nft.Element{Key: string(p.Addr().AsSlice())})
		}
		end, more := after(p)
		if !more {
			break
		}
		last = end
		out = append(out, nft.Element{Key: string(end.AsSlice()), End: true})
	}
	return out
}

func lowest(p netip.Prefix) netip.Addr {
	if p.Addr().Is4() {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}

// after is the first address behind a prefix; there is none behind one that ends with the highest address.
func after(p netip.Prefix) (netip.Addr, bool) {
	b := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 1 << (7 - i%8)
	}
	last, _ := netip.AddrFromSlice(b)
	next := last.Next()
	return next, next.IsValid()
}

// boundaries are the addresses at which membership in a set of ranges changes, sorted.
func boundaries(elements []nft.Element) []string {
	sorted := slices.Clone(elements)
	slices.SortFunc(sorted, func(a, b nft.Element) int {
		if c := strings.Compare(a.Key, b.Key); c != 0 {
			return c
		}
		// Where a range ends and the next begins, nothing changes: the end comes first, and the beginning takes it back.
		if a.End == b.End {
			return 0
		}
		if a.End {
			return -1
		}
		return 1
	})
	var out []string
	inside := false
	for _, e := range sorted {
		if e.End != inside {
			continue // an end outside or a beginning inside
		}
		inside = !e.End
		if n := len(out); n > 0 && out[n-1] == e.Key {
			out = out[:n-1]
			continue
		}
		out = append(out, e.Key)
	}
	return out
}

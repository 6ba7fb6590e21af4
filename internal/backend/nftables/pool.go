package nftables

import (
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"math/bits"
	"net/netip"
	"slices"
	"sync"

	"github.com/fairlead/fairlead/internal/fwd"
)

// An endpoint of a pool is chosen by index: a random number below the number of indexes is looked
// up together with the frontend. If all weights are equal each endpoint has one index; if their sum
// is small it has as many as its weight. Otherwise the weights are split into powers of two: there
// is a level for each power, with the endpoints whose weight has that bit. First a level is chosen,
// then one of its endpoints.

// level is a list of endpoints that are equally likely.
type level struct {
	// bit is the power of two, or plain.
	bit   int
	slots []netip.AddrPort
}

// plain is the bit of a level that is the whole pool.
const plain = -1

// levelsOf assigns the indexes of a pool.
func levelsOf(eps []fwd.Endpoint) []level {
	weights := make([]uint32, len(eps))
	var sum, divisor uint64
	for _, e := range eps {
		divisor = gcd(divisor, uint64(e.Weight))
		sum += uint64(e.Weight)
	}
	for i, e := range eps {
		weights[i] = uint32(uint64(e.Weight) / divisor)
	}
	if sum/divisor <= uint64(4*len(eps)+16) {
		tokens := make([]token, 0, sum/divisor)
		for i, e := range eps {
			for n := range weights[i] {
				tokens = append(tokens, newToken(e.Addr, n))
			}
		}
		return []level{{plain, slotsOf(tokens)}}
	}
	var out []level
	for bit := range 32 {
		var tokens []token
		for i, e := range eps {
			if weights[i]>>bit&1 == 1 {
				tokens = append(tokens, newToken(e.Addr, 0))
			}
		}
		if len(tokens) > 0 {
			out = append(out, level{bit, slotsOf(tokens)})
		}
	}
	return out
}

func gcd(a, b uint64) uint64 {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}

// token is the claim of an endpoint to one index.
type token struct {
	hash uint64
	addr netip.AddrPort
}

func newToken(a netip.AddrPort, n uint32) token {
	b := a.Addr().As16()
	x := mix(binary.BigEndian.Uint64(b[:]) ^ 0x9e3779b97f4a7c15)
	x = mix(x ^ binary.BigEndian.Uint64(b[8:]))
	return token{mix(x ^ uint64(a.Port())<<32 ^ uint64(n)), a}
}

// mix spreads the bits of a number (the finalizer of SplitMix64).
func mix(x uint64) uint64 {
	x ^= x >> 30
	x *= 0xbf58476d1ce4e5b9
	x ^= x >> 27
	x *= 0x94d049bb133111eb
	return x ^ x>>31
}

// slotsOf gives each token an index. The result depends only on the set of tokens, and adding or
// removing one changes few of the others, five of a hundred on average.
//
// In each round, every token without an index asks for one and gets it if it is free, the token
// with the lowest hash first. The index is the low bits of a hash that depends on the round, with
// one bit less if that is beyond the end, as in linear hashing. slotsOf overwrites tokens.
func slotsOf(tokens []token) []netip.AddrPort {
	n := len(tokens)
	slots := make([]netip.AddrPort, n)
	left := tokens
	slices.SortFunc(left, func(a, b token) int {
		if a.hash != b.hash {
			if a.hash < b.hash {
				return -1
			}
			return 1
		}
		return a.addr.Compare(b.addr)
	})
	mask := uint64(1)<<bits.Len(uint(n-1)) - 1
	for round := uint64(0); len(left) > 0; round++ {
		waiting := left[:0]
		for _, t := range left {
			i := mix(t.hash+round*0x9e3779b97f4a7c15) & mask
			if i >= uint64(n) {
				i &= mask >> 1
			}
			if slots[i].IsValid() {
				waiting = append(waiting, t)
			} else {
				slots[i] = t.addr
			}
		}
		left = waiting
	}
	return slots
}

// place says in which pool of a frontend an endpoint is looked up.
type place struct {
	// nodePort says that the frontend is a node port.
	nodePort bool
	scope    fwd.Scope
}

func (p place) prefix() string {
	s := ""
	if p.nodePort {
		s = "np-"
	}
	if p.scope == fwd.Local {
		s += "local-"
	}
	return s + "pool"
}

// firstIndex is the lowest index of a level. The indexes of the two pools of a service port, and of
// the levels of a pool, do not overlap.
func firstIndex(s fwd.Scope, bit int) uint32 { return uint32(s)<<30 | uint32(bit+1)<<24 }

// indexed returns the endpoints of a pool in the encoding of targets.
func indexed(s fwd.Scope, levels []level) []string {
	n := 0
	for _, lv := range levels {
		n += len(lv.slots)
	}
	list := make([]string, 0, n)
	for _, lv := range levels {
		first := firstIndex(s, lv.bit)
		for i, a := range lv.slots {
			b := make([]byte, 0, indexLen+20)
			list = append(list, string(endpointValue(keyNumber(b, first+uint32(i)), a)))
		}
	}
	return list
}

// pick is the part that chooses an endpoint of a level: one chain for all pools of that size.
func (l lang) pick(p place, bit, size int) *part {
	name := fmt.Sprintf("%s-%d", p.prefix(), size)
	if bit != plain {
		name += fmt.Sprintf("-bit%d", bit)
	}
	return &part{id: ID{Kind: KindChain, Name: name}, build: func(*fwd.Header) Object {
		index := random(uint32(size), firstIndex(p.scope, bit))
		to := l.dnatBy(setEndpoints, l.dest(), protocol(), destPort(), index)
		if p.nodePort {
			to = l.dnatBy(setNodePortEndpoints, protocol(), destPort(), index)
		}
		return chainObject(&chain{rules: []rule{all(to)}})
	}}
}

// commonSizes is the size up to which the chains of pools always exist, by scope. When a rule with
// a map of endpoints is added, the kernel walks through the map (nf_tables_bind_set), which takes
// 15 ms for 100,000 endpoints. So the chains that are likely to be needed are added while the maps
// are empty. There are no more of them because for each endpoint that is added the kernel walks
// through all rules that use the map (nft_add_set_elem), 25 ns for each: with 200 rules a start
// takes twice as long.
var commonSizes = [fwd.NumScopes]int{fwd.Cluster: 24, fwd.Local: 8}

// commonPools returns, by fwd.Family.Index, the chains that always exist. They are rendered once
// and never change.
var commonPools = [2]func() []*part{
	sync.OnceValue(lang{fwd.IPv4}.commonChains), sync.OnceValue(lang{fwd.IPv6}.commonChains),
}

func (l lang) commonChains() []*part {
	var out []*part
	for _, nodePort := range []bool{false, true} {
		for _, scope := range []fwd.Scope{fwd.Cluster, fwd.Local} {
			for size := 1; size <= commonSizes[scope]; size++ {
				p := l.pick(place{nodePort, scope}, plain, size)
				o := p.build(nil)
				out = append(out, &part{id: p.id, build: func(*fwd.Header) Object { return o }})
			}
		}
	}
	return out
}

// choose is the part that chooses an endpoint of a pool.
func (l lang) choose(p place, levels []level) *part {
	if len(levels) == 1 {
		return l.pick(p, levels[0].bit, len(levels[0].slots))
	}
	h := fnv.New64a()
	levels = slices.Clone(levels)
	slices.Reverse(levels) // the most likely first
	var needs []*part
	var shares []uint64
	for _, lv := range levels {
		fmt.Fprintf(h, "%d:%d ", lv.bit, len(lv.slots))
		needs = append(needs, l.pick(p, lv.bit, len(lv.slots)))
		shares = append(shares, uint64(len(lv.slots))<<lv.bit)
	}
	return &part{id: ID{Kind: KindChain, Name: fmt.Sprintf("%s-weights-%016x", p.prefix(), h.Sum64())}, needs: needs,
		build: func(*fwd.Header) Object {
			c := &chain{}
			for i, among := range shareOut(shares) {
				c.rules = append(c.rules, all(among, goTo(needs[i].id.Name)))
			}
			return chainObject(c)
		}}
}

// shareOut returns the matches for a list of rules, of which the first that matches is taken, so
// that each is taken in proportion to its share. The last one always matches.
func shareOut(shares []uint64) []rule {
	var left uint64
	for _, s := range shares {
		left += s
	}
	out := make([]rule, len(shares))
	for i, s := range shares[:len(shares)-1] {
		x, n := s, left
		for n >= 1<<32 { // 65536 endpoints with the greatest weight
			x, n = x>>1, n>>1
		}
		out[i] = chance(uint32(x), uint32(n))
		left -= s
	}
	return out
}

package iptables

import (
	"strings"
	"sync/atomic"

	"github.com/fairlead/fairlead/internal/backend"
	"github.com/fairlead/fairlead/internal/fwd"
)

// Backend is mode iptables for all families of a node. It counts the rules.
type Backend struct {
	backend.Families
	// Found knows the frontends that an earlier process wrote.
	Found *backend.Found
	// counts are those of the open families, by fwd.Family.Index.
	counts [2]atomic.Pointer[counts]
}

// RuleCount counts the rules of one table.
type RuleCount struct {
	Family fwd.Family
	Table  Table
	// Total is the number of desired rules, Last the number in the last successful write.
	Total, Last int
}

// Rules counts the rules by family and table. It is safe for concurrent use.
func (b *Backend) Rules() []RuleCount {
	var out []RuleCount
	for i := range b.counts {
		c := b.counts[i].Load()
		if c == nil {
			continue
		}
		for _, t := range []Table{Filter, NAT} {
			out = append(out, RuleCount{c.family, t, int(c.total[t].Load()), int(c.last[t].Load())})
		}
	}
	return out
}

// counts are the numbers of one family by table.
type counts struct {
	family      fwd.Family
	total, last [2]atomic.Int64
}

// counted is a renderer that counts the desired rules.
type counted struct {
	*renderer
	counts *counts
	// sizes is the number of rules of each desired chain.
	sizes map[ChainID]int32
}

// Render implements backend.Renderer.
func (c *counted) Render(ch fwd.Changes) edits {
	out := c.renderer.Render(ch)
	for _, e := range out {
		was := c.sizes[e.Key]
		is := int32(0)
		if e.Delete {
			delete(c.sizes, e.Key)
		} else {
			is = int32(e.Value.size())
			c.sizes[e.Key] = is
		}
		c.counts.total[e.Key.Table].Add(int64(is - was))
	}
	return out
}

// wrote records the size of a successful write.
func (c *counts) wrote(p plan) {
	var n [2]int
	for id, chain := range p.Upserts {
		n[id.Table] += chain.size()
	}
	for t := range n {
		c.last[t].Store(int64(n[t]))
	}
}

// size is the number of rules.
func (c Chain) size() int {
	if c.Rules == "" {
		return 0
	}
	return 1 + strings.Count(c.Rules, "\n")
}

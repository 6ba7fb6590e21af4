package nftables

import (
	"cmp"
	"maps"
	"slices"

	"github.com/fairlead/fairlead/internal/fwd"
	"github.com/fairlead/fairlead/internal/host/nft"
)

// step is one transaction.
type step struct {
	ops []nft.Op
	// completes are the objects that are written when it is committed.
	completes []ID
}

// steps orders a plan into transactions. Mostly they are one, or two where chains go:
//
//	prepare  new chains and sets, and addresses of endpoints
//	switch   changed chains, then frontends; last, if they are new, the base chains
//	collect  sets, chains and addresses that nothing refers to any more
//
// A transaction of more than chunk elements, new chains and their rules is split, to leave the kernel's lock to others in between and to fit into
// the socket's buffer. A frontend is switched in one step in any case.
func steps(fam fwd.Family, p plan, chunk int) []step {
	if _, gone := p.Deletes[ID{Kind: KindTable}]; gone {
		s := step{ops: []nft.Op{{Kind: nft.DelTable}}}
		s.completes = slices.AppendSeq(s.completes, maps.Keys(p.Deletes))
		return []step{s}
	}
	b := &batcher{family: fam, plan: p, chunk: chunk}
	b.table()
	b.prepare()
	b.switchOver()
	b.collect()
	return b.flush()
}

// batcher collects operations into steps.
type batcher struct {
	family fwd.Family
	plan   plan
	chunk  int
	steps  []step
	cur    step
	// elements counts those of the present step, and the rules of new chains.
	elements int
}

// flush ends the present step.
func (b *batcher) flush() []step {
	switch n := len(b.steps); {
	case len(b.cur.ops) > 0:
		b.steps = append(b.steps, b.cur)
	case n > 0: // nothing was left to do for these
		b.steps[n-1].completes = append(b.steps[n-1].completes, b.cur.completes...)
	}
	b.cur, b.elements = step{}, 0
	return b.steps
}

func (b *batcher) add(o nft.Op) { b.cur.ops = append(b.cur.ops, o) }

func (b *batcher) complete(id ID) { b.cur.completes = append(b.cur.completes, id) }

// elementsOf are those of an operation on elements: of the last one if it is of the same kind, otherwise of a new one.
func (b *batcher) elementsOf(kind nft.OpKind, set string) *[]nft.Element {
	if n := len(b.cur.ops); n == 0 || b.cur.ops[n-1].Kind != kind || b.cur.ops[n-1].Name != set {
		def, _ := staticSet(set)
		b.add(nft.Op{Kind: kind, Name: set, Set: def})
	}
	return &b.cur.ops[len(b.cur.ops)-1].Elements
}

// was is the value that an object is believed to have.
func (b *batcher) was(id ID) string {
	o, _ := b.plan.Actual(id)
	return o.Value
}

// count counts n elements or rules to come, in a new step if the present one has enough.
func (b *batcher) count(n int) {
	if b.elements > 0 && b.elements+n > b.chunk {
		b.flush()
	}
	b.elements += n
}

// limited adds or deletes an element without a value.
func (b *batcher) limited(kind nft.OpKind, set, key string) {
	b.count(1)
	els := b.elementsOf(kind, set)
	*els = append(*els, nft.Element{Key: key})
}

func (b *batcher) table() {
	id := ID{Kind: KindTable}
	if _, wanted := b.plan.Upserts[id]; !wanted {
		return
	}
	if _, there := b.plan.Actual(id); there {
		b.add(nft.Op{Kind: nft.DelTable})
	}
	b.add(nft.Op{Kind: nft.AddTable})
	b.complete(id)
}

// sorted are the objects of some kind, in a fixed order.
func sorted(m map[ID]Object, kind Kind) []ID {
	var ids []ID
	for id := range m {
		if id.Kind == kind {
			ids = append(ids, id)
		}
	}
	slices.SortFunc(ids, func(a, b ID) int { return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Key, b.Key)) })
	return ids
}

// isNew says that an object is to be made, and not changed.
func (b *batcher) isNew(id ID) bool {
	_, there := b.plan.Actual(id)
	return !there
}

// prepare makes what nothing meets yet. Chains come before what goes to them, and sets before rules that use them.
func (b *batcher) prepare() {
	chains := sorted(b.plan.Upserts, KindChain)
	for _, id := range chains {
		if b.isNew(id) && b.plan.Upserts[id].chain.base == (nft.Base{}) {
			b.count(1)
			b.add(nft.Op{Kind: nft.AddChain, Name: id.Name})
		}
	}
	for _, id := range sorted(b.plan.Upserts, KindSet) {
		b.set(id)
	}
	for _, id := range chains {
		if c := b.plan.Upserts[id].chain; b.isNew(id) && c.base == (nft.Base{}) {
			b.count(len(c.rules))
			b.add(nft.Op{Kind: nft.AddRules, Name: id.Name, Rules: c.exprs()})
			b.complete(id)
		}
	}
	for _, id := range sorted(b.plan.Upserts, KindElement) {
		b.limited(nft.AddElements, id.Name, id.Key)
		b.complete(id)
	}
}

// set makes a set. One that is there otherwise, which nobody but a stranger can have made, makes way for it.
func (b *batcher) set(id ID) {
	s := b.plan.Upserts[id].set
	if !b.isNew(id) {
		b.add(nft.Op{Kind: nft.DelSet, Name: id.Name})
	}
	b.add(nft.Op{Kind: nft.AddSet, Name: id.Name, Set: s.Set})
	if els := s.elements(); len(els) > 0 {
		b.add(nft.Op{Kind: nft.AddElements, Name: id.Name, Set: s.Set, Elements: els})
	}
	b.complete(id)
}

// switchOver changes what packets meet.
func (b *batcher) switchOver() {
	chains := sorted(b.plan.Upserts, KindChain)
	for _, id := range chains {
		if !b.isNew(id) {
			b.rewrite(id)
		}
	}
	for _, m := range []map[ID]Object{b.plan.Upserts, b.plan.Deletes} {
		b.frontends(sorted(m, KindFrontend))
	}
	for _, id := range chains {
		if c := b.plan.Upserts[id].chain; b.isNew(id) && c.base != (nft.Base{}) {
			b.add(nft.Op{Kind: nft.AddChain, Name: id.Name, Base: c.base})
			b.add(nft.Op{Kind: nft.AddRules, Name: id.Name, Rules: c.exprs()})
			b.complete(id)
		}
	}
}

// rewrite gives a chain other rules. A base chain may hang elsewhere than it should, so it is made anew.
func (b *batcher) rewrite(id ID) {
	c := b.plan.Upserts[id].chain
	b.add(nft.Op{Kind: nft.FlushChain, Name: id.Name})
	if c.base != (nft.Base{}) {
		b.add(nft.Op{Kind: nft.DelChain, Name: id.Name})
		b.add(nft.Op{Kind: nft.AddChain, Name: id.Name, Base: c.base})
	}
	b.add(nft.Op{Kind: nft.AddRules, Name: id.Name, Rules: c.exprs()})
	b.complete(id)
}

// frontends changes frontends, as many at a time as a step may have, so that their elements are in few messages.
func (b *batcher) frontends(ids []ID) {
	for len(ids) > 0 {
		var all changes
		n := 0
		for n < len(ids) && (b.elements == 0 && n == 0 || b.elements+all.size() < b.chunk) {
			b.compare(ids[n], &all)
			b.complete(ids[n])
			n++
		}
		for _, c := range all {
			for _, set := range []string{setVIPs, setNodePorts, setEndpoints, setNodePortEndpoints} {
				if els := c.elements[set]; len(els) > 0 {
					of := b.elementsOf(c.kind, set)
					if *of == nil {
						*of = els
					} else {
						*of = append(*of, els...)
					}
					b.elements += len(els)
				}
			}
		}
		if ids = ids[n:]; len(ids) > 0 {
			b.flush()
		}
	}
}

// changes are elements to delete and to add, by set.
type changes [2]struct {
	kind     nft.OpKind
	elements map[string][]nft.Element
}

func (c *changes) note(kind nft.OpKind, set string, el nft.Element) {
	i := 0
	if kind == nft.AddElements {
		i = 1
	}
	if c[i].elements == nil {
		c[i].kind, c[i].elements = kind, make(map[string][]nft.Element)
	}
	c[i].elements[set] = append(c[i].elements[set], el)
}

func (c *changes) size() int {
	n := 0
	for _, half := range c {
		for _, els := range half.elements {
			n += len(els)
		}
	}
	return n
}

// compare notes what changes in a frontend. The kernel has no change of an element's value: the old one goes and the new
// one comes.
func (b *batcher) compare(id ID, out *changes) {
	was, is := targets(b.was(id)), targets(b.plan.Upserts[id].Value)
	if v, w := was.verdict(), is.verdict(); v != w {
		if v != "" {
			out.note(nft.DelElements, id.Name, nft.Element{Key: id.Key, Value: v})
		}
		if w != "" {
			out.note(nft.AddElements, id.Name, nft.Element{Key: id.Key, Value: w})
		}
	}
	endpoints := endpointsOf(id.Name)
	old := make(map[string]string)
	was.endpoints(b.family, func(i, ep string) { old[i] = ep })
	is.endpoints(b.family, func(i, ep string) {
		el := nft.Element{Key: id.Key + i, Value: ep}
		before, there := old[i]
		delete(old, i)
		if there && before == ep {
			return
		}
		if there {
			out.note(nft.DelElements, endpoints, nft.Element{Key: el.Key, Value: before})
		}
		out.note(nft.AddElements, endpoints, el)
	})
	for i, ep := range old {
		out.note(nft.DelElements, endpoints, nft.Element{Key: id.Key + i, Value: ep})
	}
}

// collect removes what nothing refers to. It is a transaction of its own: kernels before 6.2 may find a chain in use that
// the same transaction ceased to use.
func (b *batcher) collect() {
	chains := sorted(b.plan.Deletes, KindChain)
	sets := sorted(b.plan.Deletes, KindSet)
	if len(chains)+len(sets) > 0 {
		b.flush()
	}
	for _, id := range chains {
		b.add(nft.Op{Kind: nft.FlushChain, Name: id.Name})
	}
	for _, id := range sets {
		b.add(nft.Op{Kind: nft.DelSet, Name: id.Name})
		b.complete(id)
	}
	for _, id := range chains {
		b.add(nft.Op{Kind: nft.DelChain, Name: id.Name})
		b.complete(id)
	}
	for _, id := range sorted(b.plan.Deletes, KindElement) {
		b.limited(nft.DelElements, id.Name, id.Key)
		b.complete(id)
	}
}

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
	// completes are the objects that are in the kernel once it is committed.
	completes []ID
}

// steps orders a plan into transactions, mostly one, or two if chains are deleted:
//
//	prepare  new chains and sets, and elements that no packet meets yet
//	switch   changed chains, then frontends, then base chains if they are new
//	collect  sets, chains and elements that nothing refers to any more
//
// A transaction is split when it has more than chunk elements, new chains and rules, so that others
// get the kernel's lock in between and the messages fit into the socket's buffer. One frontend is
// always switched in one step.
func steps(fam fwd.Family, p plan, chunk int) []step {
	if _, gone := p.Deletes[ID{Kind: KindTable}]; gone {
		return []step{{ops: []nft.Op{{Kind: nft.DelTable}}, completes: slices.Collect(maps.Keys(p.Deletes))}}
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
	// size counts the elements of the current step, its new chains and their rules.
	size int
}

// flush ends the current step.
func (b *batcher) flush() []step {
	switch n := len(b.steps); {
	case len(b.cur.ops) > 0:
		b.steps = append(b.steps, b.cur)
	case n > 0: // these objects need no operation
		b.steps[n-1].completes = append(b.steps[n-1].completes, b.cur.completes...)
	}
	b.cur, b.size = step{}, 0
	return b.steps
}

func (b *batcher) add(o nft.Op) { b.cur.ops = append(b.cur.ops, o) }

func (b *batcher) complete(id ID) { b.cur.completes = append(b.cur.completes, id) }

// addElements adds to the last operation if it is of the same kind on the same set.
func (b *batcher) addElements(kind nft.OpKind, set string, els ...nft.Element) {
	if n := len(b.cur.ops); n == 0 || b.cur.ops[n-1].Kind != kind || b.cur.ops[n-1].Name != set {
		def, _ := staticSet(set)
		b.add(nft.Op{Kind: kind, Name: set, Set: def})
	}
	last := &b.cur.ops[len(b.cur.ops)-1]
	last.Elements = append(last.Elements, els...)
}

// reserve makes room for n elements or rules, in a new step if the current one is full.
func (b *batcher) reserve(n int) {
	if b.size > 0 && b.size+n > b.chunk {
		b.flush()
	}
	b.size += n
}

func (b *batcher) table() {
	id := ID{Kind: KindTable}
	if _, wanted := b.plan.Upserts[id]; !wanted {
		return
	}
	if !b.isNew(id) {
		b.add(nft.Op{Kind: nft.DelTable})
	}
	b.add(nft.Op{Kind: nft.AddTable})
	b.complete(id)
}

// sorted returns the objects of a kind in a fixed order.
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

// isNew reports whether an object does not exist yet.
func (b *batcher) isNew(id ID) bool {
	_, exists := b.plan.Actual(id)
	return !exists
}

// prepare adds what no packet meets yet. Chains come before what jumps to them, and sets before
// rules that use them.
func (b *batcher) prepare() {
	var chains []ID
	for _, id := range sorted(b.plan.Upserts, KindChain) {
		if b.isNew(id) && b.plan.Upserts[id].chain.base == (nft.Base{}) {
			b.reserve(1)
			b.add(nft.Op{Kind: nft.AddChain, Name: id.Name})
			chains = append(chains, id)
		}
	}
	for _, id := range sorted(b.plan.Upserts, KindSet) {
		b.set(id)
	}
	for _, id := range chains {
		c := b.plan.Upserts[id].chain
		b.reserve(len(c.rules))
		b.add(nft.Op{Kind: nft.AddRules, Name: id.Name, Rules: c.exprs()})
		b.complete(id)
	}
	b.elements(nft.AddElements, b.plan.Upserts)
}

// elements adds or deletes elements without a value.
func (b *batcher) elements(kind nft.OpKind, m map[ID]Object) {
	for _, id := range sorted(m, KindElement) {
		b.reserve(1)
		b.addElements(kind, id.Name, nft.Element{Key: id.Key})
		b.complete(id)
	}
}

// set adds a set. One that exists with other contents, which somebody else must have made, is
// replaced.
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
		if b.isNew(id) && b.plan.Upserts[id].chain.base != (nft.Base{}) {
			b.addBase(id)
		}
	}
}

// addBase adds a base chain with its rules.
func (b *batcher) addBase(id ID) {
	c := b.plan.Upserts[id].chain
	b.add(nft.Op{Kind: nft.AddChain, Name: id.Name, Base: c.base})
	b.add(nft.Op{Kind: nft.AddRules, Name: id.Name, Rules: c.exprs()})
	b.complete(id)
}

// rewrite replaces the rules of a chain. A base chain may hang on the wrong hook, so it is deleted
// and added.
func (b *batcher) rewrite(id ID) {
	c := b.plan.Upserts[id].chain
	b.add(nft.Op{Kind: nft.FlushChain, Name: id.Name})
	if c.base != (nft.Base{}) {
		b.add(nft.Op{Kind: nft.DelChain, Name: id.Name})
		b.addBase(id)
		return
	}
	b.add(nft.Op{Kind: nft.AddRules, Name: id.Name, Rules: c.exprs()})
	b.complete(id)
}

// frontends changes frontends, as many together as fit into a step, so that their elements are in
// few messages.
func (b *batcher) frontends(ids []ID) {
	for len(ids) > 0 {
		all := changes{elements: make(map[change][]nft.Element)}
		n := 0
		for n < len(ids) && (b.size == 0 && n == 0 || b.size+all.size < b.chunk) {
			b.compare(ids[n], &all)
			b.complete(ids[n])
			n++
		}
		for _, kind := range []nft.OpKind{nft.DelElements, nft.AddElements} {
			for _, set := range []string{setVIPs, setNodePorts, setEndpoints, setNodePortEndpoints} {
				if els := all.elements[change{kind, set}]; len(els) > 0 {
					b.addElements(kind, set, els...)
				}
			}
		}
		b.size += all.size
		if ids = ids[n:]; len(ids) > 0 {
			b.flush()
		}
	}
}

// change is an operation on the elements of a set.
type change struct {
	kind nft.OpKind
	set  string
}

// changes are the elements to delete and to add.
type changes struct {
	elements map[change][]nft.Element
	size     int
}

func (c *changes) add(kind nft.OpKind, set, key, value string) {
	at := change{kind, set}
	c.elements[at] = append(c.elements[at], nft.Element{Key: key, Value: value})
	c.size++
}

// compare adds what changes in a frontend. The kernel cannot change an element's value: the old
// element is deleted and a new one added.
func (b *batcher) compare(id ID, out *changes) {
	actual, _ := b.plan.Actual(id)
	was, is := targets(actual.Value), targets(b.plan.Upserts[id].Value)
	if v, w := was.verdict(), is.verdict(); v != w {
		if v != "" {
			out.add(nft.DelElements, id.Name, id.Key, v)
		}
		if w != "" {
			out.add(nft.AddElements, id.Name, id.Key, w)
		}
	}
	set := endpointsOf(id.Name)
	old := maps.Collect(was.endpoints(b.family))
	for i, ep := range is.endpoints(b.family) {
		before, exists := old[i]
		delete(old, i)
		if exists && before == ep {
			continue
		}
		if exists {
			out.add(nft.DelElements, set, id.Key+i, before)
		}
		out.add(nft.AddElements, set, id.Key+i, ep)
	}
	for i, ep := range old {
		out.add(nft.DelElements, set, id.Key+i, ep)
	}
}

// collect deletes what nothing refers to. It is a transaction of its own: before 6.2 the kernel may
// take a chain for used if the last use of it was deleted in the same transaction.
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
	b.elements(nft.DelElements, b.plan.Deletes)
}

package nftables

import (
	"cmp"
	"maps"
	"slices"

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
//	prepare  new chains and sets, and elements that nothing asks for yet: indexes that no chain chooses, addresses
//	switch   changed chains and elements; last, if they are new, the base chains
//	collect  sets and chains that nothing refers to any more
//
// A transaction of more than chunk elements is split, to leave the kernel's lock to others in between and to fit into
// the socket's buffer. The elements of a frontend, its verdict and its endpoints, are switched together in any case.
func steps(p plan, chunk int) []step {
	if _, gone := p.Deletes[ID{Kind: KindTable}]; gone {
		s := step{ops: []nft.Op{{Kind: nft.DelTable}}}
		s.completes = slices.AppendSeq(s.completes, maps.Keys(p.Deletes))
		return []step{s}
	}
	b := &batcher{plan: p, chunk: chunk}
	b.table()
	b.prepare()
	b.change()
	b.collect()
	return b.flush()
}

// batcher collects operations into steps.
type batcher struct {
	plan  plan
	chunk int
	steps []step
	cur   step
	// elements counts those of the present step.
	elements int
}

// flush ends the present step.
func (b *batcher) flush() []step {
	if len(b.cur.ops) > 0 {
		b.steps = append(b.steps, b.cur)
	}
	b.cur, b.elements = step{}, 0
	return b.steps
}

func (b *batcher) add(o nft.Op) { b.cur.ops = append(b.cur.ops, o) }

func (b *batcher) complete(id ID) { b.cur.completes = append(b.cur.completes, id) }

// element adds or deletes an element, together with the one before if that was of the same kind.
func (b *batcher) element(kind nft.OpKind, id ID, value string) {
	el := nft.Element{Key: id.Key, Value: value}
	b.elements++
	if n := len(b.cur.ops); n > 0 && b.cur.ops[n-1].Kind == kind && b.cur.ops[n-1].Name == id.Name {
		b.cur.ops[n-1].Elements = append(b.cur.ops[n-1].Elements, el)
		return
	}
	set, _ := staticSet(id.Name)
	b.add(nft.Op{Kind: kind, Name: id.Name, Set: set, Elements: []nft.Element{el}})
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
			b.add(nft.Op{Kind: nft.AddChain, Name: id.Name})
		}
	}
	for _, id := range sorted(b.plan.Upserts, KindSet) {
		b.set(id)
	}
	for _, id := range chains {
		if c := b.plan.Upserts[id].chain; b.isNew(id) && c.base == (nft.Base{}) {
			b.add(nft.Op{Kind: nft.AddRules, Name: id.Name, Rules: c.exprs()})
			b.complete(id)
		}
	}
	for _, id := range sorted(b.plan.Upserts, KindElement) {
		if !b.early(id) {
			continue
		}
		if b.elements >= b.chunk {
			b.flush()
		}
		b.element(nft.AddElements, id, b.plan.Upserts[id].Value)
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

// early says that an element may be there before the switch: a new one that no packet asks for.
func (b *batcher) early(id ID) bool {
	return b.isNew(id) && (id.Name == setEndpoints || id.Name == setNodePortEndpoints || id.Name == setHairpin)
}

// change switches over.
func (b *batcher) change() {
	chains := sorted(b.plan.Upserts, KindChain)
	for _, id := range chains {
		if !b.isNew(id) {
			b.rewrite(id)
		}
	}
	for _, group := range b.frontends() {
		if b.elements > 0 && b.elements+len(group) > b.chunk {
			b.flush()
		}
		b.switchOver(group)
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

// frontends are the elements that change or go, but for those that are cleared up later, in groups: those of one
// frontend together.
func (b *batcher) frontends() [][]ID {
	var ids []ID
	for _, m := range []map[ID]Object{b.plan.Upserts, b.plan.Deletes} {
		for id := range m {
			_, wanted := b.plan.Upserts[id]
			if id.Kind == KindElement && !(wanted && b.early(id)) && (wanted || id.Name != setHairpin) {
				ids = append(ids, id)
			}
		}
	}
	slices.SortFunc(ids, func(a, c ID) int {
		return cmp.Or(cmp.Compare(frontendOf(a), frontendOf(c)), cmp.Compare(a.Name, c.Name), cmp.Compare(a.Key, c.Key))
	})
	var out [][]ID
	for len(ids) > 0 {
		n := 1
		for n < len(ids) && frontendOf(ids[n]) == frontendOf(ids[0]) {
			n++
		}
		out, ids = append(out, ids[:n]), ids[n:]
	}
	return out
}

// frontendOf is the key of the frontend to which an element belongs.
func frontendOf(id ID) string {
	if id.Name == setEndpoints || id.Name == setNodePortEndpoints {
		return id.Key[:max(0, len(id.Key)-4)] // without the index
	}
	return id.Key
}

// switchOver changes the elements of a group. The kernel has no change of an element's value: the old one goes and the
// new one comes.
func (b *batcher) switchOver(ids []ID) {
	for _, id := range ids {
		if !b.isNew(id) {
			b.element(nft.DelElements, id, b.was(id))
		}
	}
	for _, id := range ids {
		if o, wanted := b.plan.Upserts[id]; wanted {
			b.element(nft.AddElements, id, o.Value)
		}
		b.complete(id)
	}
}

func (b *batcher) was(id ID) string {
	o, _ := b.plan.Actual(id)
	return o.Value
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
		if id.Name != setHairpin {
			continue
		}
		if b.elements >= b.chunk {
			b.flush()
		}
		b.element(nft.DelElements, id, b.was(id))
		b.complete(id)
	}
}

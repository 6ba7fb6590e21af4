package iptables

import (
	"strings"

	"github.com/fairlead/fairlead/internal/backend"
	"github.com/fairlead/fairlead/internal/fwd"
)

// renderer turns changes of the table into desired chains of one family. Its state is derived from
// the table: the dispatch trees, and the fragments, which it renders again when the header changes.
// To find what a Service no longer needs, it renders the old fragment again: that is a pure
// function, and the chains and entries are not held twice.
type renderer struct {
	opt       options
	family    fwd.Family
	header    fwd.Header
	fragments map[fwd.Service]*fwd.Fragment
	trees     [numTrees]*tree
	// shared counts the Services that need an entry without an owner.
	shared map[treePlace]int
	// begun is whether the static chains were rendered.
	begun bool
}

func newRenderer(family fwd.Family, opt options) *renderer {
	digits := family.Bits() / 4
	r := &renderer{
		opt:       opt,
		family:    family,
		fragments: make(map[fwd.Service]*fwd.Fragment),
		trees: [numTrees]*tree{
			treeVIP:        newTree(NAT, chainServices, letterVIPTree, digits),
			treePort:       newTree(NAT, chainNodePorts, letterPortTree, 0),
			treeVIPFilter:  newTree(Filter, chainFilter, letterVIPTree, digits),
			treePortFilter: newTree(Filter, chainNodePorts, letterPortTree, 0),
			treeHealth:     newTree(Filter, chainHealth, letterHealth, 0),
			treeHairpin:    newTree(NAT, chainHairpin, letterLocalTree, digits),

			treeHealthReplies: newTree(Filter, chainHealthReplies, letterReplies, 0),
			treeUnmoved:       newTree(NAT, chainUnmoved, letterUnmoved, digits),
			treeUnmovedFilter: newTree(Filter, chainUnmoved, letterUnmoved, digits),
		},
		shared: make(map[treePlace]int),
	}
	r.trees[treeHealthReplies].port = sport
	r.trees[treeVIPFilter].head = []string{forwarded}
	return r
}

type edits = []backend.Edit[ChainID, Chain]

// Render implements backend.Renderer.
func (r *renderer) Render(ch fwd.Changes) edits {
	var out edits
	all := !r.begun
	if ch.Header != nil {
		all = true
		out = r.setHeader(*ch.Header, out)
	}
	if all {
		s := staticsOf(&r.opt, r.family, &r.header)
		for id, c := range s.chains {
			out = append(out, backend.Edit[ChainID, Chain]{Key: id, Value: c})
		}
		r.trees[treeVIP].tail = s.natTail
		r.trees[treeVIPFilter].tail = s.filterEnd
		r.begun = true
	}
	for _, sc := range ch.Services {
		unchanged := sc.Unchanged()
		was := programOf(&r.opt, r.family, &r.header, sc.Old, unchanged)
		is := programOf(&r.opt, r.family, &r.header, sc.New, unchanged)
		out = r.replace(was, is, out)
		if sc.New == nil {
			delete(r.fragments, sc.Owner)
		} else {
			r.fragments[sc.Owner] = sc.New
		}
	}
	set := func(id ChainID, rules []string) {
		out = append(out, backend.Edit[ChainID, Chain]{Key: id, Value: Chain{Rules: strings.Join(rules, "\n")}})
	}
	remove := func(id ChainID) {
		out = append(out, backend.Edit[ChainID, Chain]{Key: id, Delete: true})
	}
	for _, t := range r.trees {
		t.edits(all, set, remove)
	}
	return out
}

// setHeader renders all Services again if their rules depend on what changed.
func (r *renderer) setHeader(h fwd.Header, out edits) edits {
	i := r.family.Index()
	old := r.header
	r.header = h
	if old.Detector[i] == h.Detector[i] && old.MasqueradeBit == h.MasqueradeBit {
		return out
	}
	none := func(fwd.ServicePort) bool { return false }
	for _, f := range r.fragments {
		out = r.replace(programOf(&r.opt, r.family, &old, f, none), programOf(&r.opt, r.family, &h, f, none), out)
	}
	return out
}

// replace replaces the program of one Service.
func (r *renderer) replace(was, is program, out edits) edits {
	if len(was.chains) > 0 {
		keep := make(map[ChainID]bool, len(is.chains))
		for _, c := range is.chains {
			keep[c.id] = true
		}
		for _, c := range was.chains {
			if !keep[c.id] {
				out = append(out, backend.Edit[ChainID, Chain]{Key: c.id, Delete: true})
			}
		}
	}
	for _, c := range is.chains {
		out = append(out, backend.Edit[ChainID, Chain]{Key: c.id, Value: c.chain})
	}
	old := make(map[treePlace]entry, len(was.entries))
	for _, e := range was.entries {
		old[e.treePlace] = e.entry
	}
	for i := range is.entries {
		e := &is.entries[i]
		if o, ok := old[e.treePlace]; !ok || o != e.entry {
			r.trees[e.tree].set(e.key, e.entry)
		}
		delete(old, e.treePlace)
	}
	for place, e := range old {
		r.trees[place.tree].remove(place.key, e.owner)
	}
	r.count(is.shared, 1)
	r.count(was.shared, -1)
	return out
}

// count adds by to the number of Services that need shared entries.
func (r *renderer) count(shared []treeEntry, by int) {
	for _, e := range shared {
		before := r.shared[e.treePlace]
		after := before + by
		r.shared[e.treePlace] = after
		switch {
		case after == 0:
			delete(r.shared, e.treePlace)
			r.trees[e.tree].remove(e.key, fwd.Service{})
		case before == 0:
			r.trees[e.tree].set(e.key, e.entry)
		}
	}
}

// culprit returns the Service that owns a refused rule.
func (r *renderer) culprit(id ChainID, rule string, c Chain) (fwd.Service, bool) {
	if c.Owner != (fwd.Service{}) {
		return c.Owner, true
	}
	for _, t := range r.trees {
		if t.table != id.Table {
			continue
		}
		if s, ok := t.owner(rule); ok {
			return s, true
		}
	}
	return fwd.Service{}, false
}

// chainsOf renders all of a table for one family.
func chainsOf(family fwd.Family, opt options, t *fwd.Table) map[ChainID]Chain {
	r := newRenderer(family, opt)
	out := make(map[ChainID]Chain)
	take := func(es edits) {
		for _, e := range es {
			if e.Delete {
				delete(out, e.Key)
			} else {
				out[e.Key] = e.Value
			}
		}
	}
	h := t.Header()
	take(r.Render(fwd.Changes{Header: &h}))
	var all fwd.Changes
	for f := range t.Services() {
		all.Services = append(all.Services, fwd.ServiceChange{Owner: f.Owner, New: f})
	}
	take(r.Render(all))
	return out
}

package nftables

import (
	"strings"

	"github.com/fairlead/fairlead/internal/backend"
	"github.com/fairlead/fairlead/internal/fwd"
)

// renderer implements backend.Renderer for one family. What it keeps is derived from the table.
type renderer struct {
	family fwd.Family
	header fwd.Header
	// owners are the Services of the objects in their programs. If a frontend moves from one
	// Service to another, the change of the one that loses it may come last.
	owners  map[ID]fwd.Service
	parts   map[ID]*counted
	statics map[string]*chain
	begun   bool
}

// counted is a part with the number of references to it.
type counted struct {
	part *part
	uses int
}

func newRenderer(fam fwd.Family) *renderer {
	return &renderer{family: fam, owners: make(map[ID]fwd.Service), parts: make(map[ID]*counted)}
}

type edits []backend.Edit[ID, Object]

func (e *edits) set(id ID, o Object) { *e = append(*e, backend.Edit[ID, Object]{Key: id, Value: o}) }
func (e *edits) gone(id ID)          { *e = append(*e, backend.Edit[ID, Object]{Key: id, Delete: true}) }

// tableObject is the table as it should be.
var tableObject = Object{Value: "table"}

// Render implements backend.Renderer.
func (r *renderer) Render(ch fwd.Changes) []backend.Edit[ID, Object] {
	var out edits
	if !r.begun {
		r.begun = true
		out.set(ID{Kind: KindTable}, tableObject)
		for _, s := range staticSets {
			out.set(ID{Kind: KindSet, Name: s.Name}, setObject(r.family, &rangeSet{Set: s}))
		}
		for b := range 256 {
			out.set(elementID(setEqualBytes, string(keyByte(keyByte(nil, byte(b)), byte(b)))), Object{})
		}
		for _, p := range commonPools[r.family.Index()]() {
			r.need(p, 1, &out)
		}
		r.setHeader(r.header, &out)
	}
	if ch.Header != nil {
		r.setHeader(*ch.Header, &out)
	}
	for _, v := range ch.VIPs {
		if fwd.FamilyOf(v.VIP.Addr) != r.family {
			continue
		}
		id := elementID(setClusterIPs, string(v.VIP.Addr.AsSlice()))
		if v.VIP.ClusterIP && !v.Gone {
			out.set(id, Object{})
		} else {
			out.gone(id)
		}
	}
	for _, sc := range ch.Services {
		unchanged := sc.Unchanged()
		r.replace(sc.Owner, programOf(r.family, sc.Old, unchanged), programOf(r.family, sc.New, unchanged), &out)
	}
	return out
}

// setHeader renders again what depends on the header: the static chains and the parts.
func (r *renderer) setHeader(h fwd.Header, out *edits) {
	if was := serviceCIDRs(r.family, &r.header); was != nil {
		out.gone(ID{Kind: KindSet, Name: was.Name})
	}
	if is := serviceCIDRs(r.family, &h); is != nil {
		out.set(ID{Kind: KindSet, Name: is.Name}, setObject(r.family, is))
	}
	r.header = h
	old := r.statics
	r.statics = staticChains(r.family, &h)
	for name := range old {
		if r.statics[name] == nil {
			out.gone(ID{Kind: KindChain, Name: name})
		}
	}
	for name, c := range r.statics {
		out.set(ID{Kind: KindChain, Name: name}, chainObject(c))
	}
	for id, c := range r.parts {
		out.set(id, c.part.build(&r.header))
	}
}

// replace changes the program of one Service.
func (r *renderer) replace(owner fwd.Service, was, is program, out *edits) {
	for id, o := range is.objects {
		out.set(id, o)
		r.owners[id] = owner
	}
	for id := range was.objects {
		if _, stays := is.objects[id]; !stays && r.owners[id] == owner {
			out.gone(id)
			delete(r.owners, id)
		}
	}
	for _, p := range is.parts {
		r.need(p, 1, out)
	}
	for _, p := range was.parts {
		r.need(p, -1, out)
	}
}

// need changes the number of references to a part.
func (r *renderer) need(p *part, by int, out *edits) {
	c := r.parts[p.id]
	if c == nil {
		c = &counted{part: p}
		r.parts[p.id] = c
		out.set(p.id, p.build(&r.header))
		for _, n := range p.needs {
			r.need(n, 1, out)
		}
	}
	if c.uses += by; c.uses > 0 {
		return
	}
	delete(r.parts, p.id)
	out.gone(p.id)
	for _, n := range c.part.needs {
		r.need(n, -1, out)
	}
}

// partsOf returns the parts that a frontend with this verdict leads to.
func (r *renderer) partsOf(verdict string) (out []ID) {
	name, _ := strings.CutPrefix(verdict, "goto ")
	var add func(*part)
	add = func(p *part) {
		out = append(out, p.id)
		for _, n := range p.needs {
			add(n)
		}
	}
	if c := r.parts[ID{Kind: KindChain, Name: name}]; c != nil {
		add(c.part)
	}
	return out
}

// wholeTable returns the changes that add everything in a table.
func wholeTable(t *fwd.Table) fwd.Changes {
	h := t.Header()
	ch := fwd.Changes{Header: &h}
	for f := range t.Services() {
		ch.Services = append(ch.Services, fwd.ServiceChange{Owner: f.Owner, New: f})
	}
	for _, v := range t.VIPs() {
		ch.VIPs = append(ch.VIPs, fwd.VIPChange{VIP: v})
	}
	return ch
}

// objectsOf renders a whole table for one family.
func objectsOf(fam fwd.Family, t *fwd.Table) map[ID]Object {
	out := make(map[ID]Object)
	for _, e := range newRenderer(fam).Render(wholeTable(t)) {
		if e.Delete {
			delete(out, e.Key)
		} else {
			out[e.Key] = e.Value
		}
	}
	return out
}

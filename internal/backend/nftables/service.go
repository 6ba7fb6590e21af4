package nftables

import (
	"fmt"
	"hash/fnv"
	"net/netip"
	"slices"
	"strings"

	"github.com/fairlead/fairlead/internal/fwd"
	"github.com/fairlead/fairlead/internal/host/nft"
)

// part is an object that several Services may share: a chain or set whose name determines its
// content, apart from what depends on the header.
type part struct {
	id    ID
	build func(*fwd.Header) Object
	// needs are the parts that this one refers to.
	needs []*part
}

// program is what a Service contributes to one family.
type program struct {
	// objects are the Service's own: its frontends, elements of the set "unmoved", and chains for
	// session affinity.
	objects map[ID]Object
	// parts are those that the objects refer to; one part may occur several times.
	parts []*part
}

// compiler collects the program of one Service.
type compiler struct {
	lang
	frag *fwd.Fragment
	out  program
	// pools has an entry for each pool of the fragment.
	pools []pool
}

// pool is a pool without session affinity; one with session affinity has no levels.
type pool struct {
	levels []level
	// list are the indexes with their endpoints (indexed).
	list []string
}

// pool finds a pool by its key.
func (c *compiler) pool(k fwd.PoolKey) pool {
	i, ok := slices.BinarySearchFunc(c.frag.Pools, k, func(p fwd.Pool, k fwd.PoolKey) int { return p.Key.Compare(k) })
	if !ok {
		return pool{}
	}
	return c.pools[i]
}

// programOf renders a Service for one family, without the service ports to skip. It is pure, and
// does not depend on the header.
func programOf(fam fwd.Family, f *fwd.Fragment, skip func(fwd.ServicePort) bool) program {
	if f == nil {
		return program{}
	}
	c := compiler{lang: lang{fam}, frag: f, pools: make([]pool, len(f.Pools)), out: program{objects: make(map[ID]Object)}}
	for i := range f.Pools {
		p := &f.Pools[i]
		if p.Key.Family != fam || skip(p.Key.Port) {
			continue
		}
		if p.AffinitySec > 0 {
			c.affinity(p)
		} else {
			levels := levelsOf(p.Endpoints)
			c.pools[i] = pool{levels, indexed(p.Key.Scope, levels)}
		}
	}
	for i := range f.Frontends {
		if f.Frontends[i].Key.Family == fam && !skip(f.Frontends[i].Owner) {
			c.frontend(&f.Frontends[i])
		}
	}
	return c.out
}

// action is a route in terms of nf_tables: a verdict, and the parts that it refers to.
type action struct {
	verdict string
	mark    bool
	// letter stands for the route in the name of a chain.
	letter string
	needs  []*part
}

func (c *compiler) action(f *fwd.Frontend, r fwd.Route) action {
	switch r.Action {
	case fwd.Drop:
		return action{verdict: "drop", letter: "x"}
	case fwd.Reject:
		return action{verdict: "goto " + chainRefuse, letter: "r"}
	}
	a := action{mark: r.Masquerade, letter: r.Scope.String()[:1]}
	if a.mark {
		a.letter = strings.ToUpper(a.letter)
	}
	key := f.Pool(r)
	levels := c.pool(key).levels
	if levels == nil {
		a.verdict = "goto " + affinityChain(key)
		return a
	}
	at := place{f.Key.IsNodePort(), r.Scope}
	choice := c.choose(at, levels)
	a.verdict, a.needs = "goto "+choice.id.Name, []*part{choice}
	return a
}

// frontend renders one frontend.
func (c *compiler) frontend(f *fwd.Frontend) {
	var acts [fwd.NumClasses]action
	var scopes [fwd.NumScopes]bool
	for i, r := range f.Routes {
		acts[i] = c.action(f, r)
		if r.Action == fwd.Forward {
			scopes[r.Scope] = true
		}
	}
	v, root := c.route(acts)
	if len(f.Sources) > 0 && v != "drop" {
		v, root = c.gate(f.Sources, v, root)
	}
	c.out.parts = append(c.out.parts, root...)

	set := setVIPs
	if f.Key.IsNodePort() {
		set = setNodePorts
	}
	var list []string
	for s, used := range scopes {
		if used {
			list = append(list, c.pool(fwd.PoolKey{Port: f.Owner, Family: f.Key.Family, Scope: fwd.Scope(s)}).list...)
		}
	}
	key := string(frontendKey(nil, f.Key))
	c.out.objects[ID{Kind: KindFrontend, Name: set, Key: key}] = Object{Value: string(newTargets(v, list))}
	if c.frag.KeepsAddress(f) {
		c.out.objects[elementID(setUnmoved, key)] = Object{}
	}
}

// route returns the verdict for a frontend with these actions, by class of source, and the parts
// that it refers to.
func (c *compiler) route(acts [fwd.NumClasses]action) (string, []*part) {
	out := acts[fwd.Outside]
	same := !slices.ContainsFunc(acts[:], func(a action) bool { return a.verdict != out.verdict || a.mark })
	if same {
		return out.verdict, out.needs
	}
	name, seen := "", ""
	for _, a := range acts {
		name += a.letter
	}
	p := &part{}
	for _, a := range acts {
		target, isGoto := strings.CutPrefix(a.verdict, "goto ")
		if isGoto && target != chainRefuse && !strings.Contains(seen, "_"+target+"_") {
			seen += "_" + target + "_"
			name += "_" + target
			p.needs = append(p.needs, a.needs...)
		}
	}
	p.id = ID{Kind: KindChain, Name: name}
	l := c.lang
	p.build = func(h *fwd.Header) Object { return chainObject(l.routeChain(h, acts)) }
	return "goto " + name, []*part{p}
}

// routeChain renders the chain that distinguishes the classes of sources.
func (l lang) routeChain(h *fwd.Header, acts [fwd.NumClasses]action) *chain {
	c := &chain{}
	do := func(match rule, a action) {
		var mark rule
		if a.mark {
			mark = addMark(h.Mark())
		}
		c.rules = append(c.rules, all(match, mark, verdict(a.verdict)))
	}
	differ := func(a, b action) bool { return a.verdict != b.verdict || a.mark != b.mark }
	outside, pod, host := acts[fwd.Outside], acts[fwd.Pod], acts[fwd.Host]
	// The usual case of a cluster IP takes fewer expressions: all sources have the same verdict,
	// and all except pods are masqueraded.
	if d := h.Detector[l.family.Index()].Prefix; d.Bits() > 0 && pod.verdict == outside.verdict && !differ(outside, host) && outside.mark && !pod.mark {
		c.rules = append(c.rules, all(l.prefix(nft.SourceAddr, d, true), addMark(h.Mark())))
		do(rule{}, pod)
		return c
	}
	// A node address that the detector recognizes counts as a pod, so pods are matched even if they
	// are treated like everybody else.
	if match, ok := l.pod(h.Detector[l.family.Index()]); ok && (differ(pod, outside) || differ(host, outside)) {
		do(match, pod)
	}
	if differ(host, outside) {
		do(isLocal(nft.SourceAddr, false), host)
	}
	do(rule{}, outside)
	return c
}

// gate accepts only sources in the prefixes.
func (c *compiler) gate(sources []netip.Prefix, v string, needs []*part) (string, []*part) {
	h := prefixHash(sources)
	fam := c.family
	set := &part{id: ID{Kind: KindSet, Name: fmt.Sprintf("sources-%016x", h.Sum64())}}
	set.build = func(*fwd.Header) Object {
		return setObject(fam, &rangeSet{nft.Set{Name: set.id.Name, Key: []nft.Field{nft.SourceAddr}, Interval: true}, sources})
	}
	fmt.Fprint(h, v)
	l := c.lang
	gate := &part{id: ID{Kind: KindChain, Name: fmt.Sprintf("from-%016x", h.Sum64())}, needs: append([]*part{set}, needs...)}
	gate.build = func(*fwd.Header) Object {
		return chainObject(&chain{rules: []rule{all(in(set.id.Name, l.source()), verdict(v)), all(verdict("drop"))}})
	}
	return "goto " + gate.id.Name, []*part{gate}
}

// affinityPrefix is the prefix of the names of chains for session affinity.
const affinityPrefix = "affinity-"

// affinityChain returns the name of the chain of a pool with session affinity.
func affinityChain(k fwd.PoolKey) string {
	return fmt.Sprintf(affinityPrefix+"%s-%016x", k.Scope, portHash(k.Port, ""))
}

// portHash hashes a service port and something that belongs to it. The probability that two of a
// hundred thousand are the same is below one in a billion.
func portHash(p fwd.ServicePort, what string) uint64 {
	h := fnv.New64a()
	fmt.Fprintf(h, "%s\x00%s\x00%s\x00%s\x00%s", p.Namespace, p.Name, p.Port, p.Proto, what)
	return mix(h.Sum64())
}

// affinity renders the chain of a pool with session affinity, and a chain for each of its
// endpoints:
//
//	if the client is remembered with endpoint A: goto A; with B: goto B; ...
//	choose by weight: goto A, or B, or ...
//	A: remember the client with A; DNAT to A
//
// All chains of a service port share the remembered clients. A client that is remembered with an
// endpoint outside of the pool gets a new one. If the set of clients is full, a client is served
// without being remembered.
func (c *compiler) affinity(p *fwd.Pool) {
	l := c.lang
	proto := p.Key.Port.Proto
	var again, fresh []rule
	shares := make([]uint64, len(p.Endpoints))
	for i, e := range p.Endpoints {
		shares[i] = uint64(e.Weight)
	}
	for i, among := range shareOut(shares) {
		e := p.Endpoints[i]
		h := portHash(p.Key.Port, e.Addr.String())
		record := []operand{l.source(), random(1, uint32(h>>32)), random(1, uint32(h))}
		name := fmt.Sprintf("endpoint-%016x", h)
		c.out.objects[ID{Kind: KindChain, Name: name}] = chainObject(&chain{rules: []rule{
			all(update(setAffinity, p.AffinitySec, record...)), all(isProto(proto), l.dnatTo(e.Addr))}})
		again = append(again, all(in(setAffinity, record...), goTo(name)))
		fresh = append(fresh, all(among, goTo(name)))
	}
	c.out.objects[ID{Kind: KindChain, Name: affinityChain(p.Key)}] = chainObject(&chain{rules: append(again, fresh...)})
}

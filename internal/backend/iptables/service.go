package iptables

import (
	"fmt"
	"hash/fnv"
	"math"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/fairlead/fairlead/internal/fwd"
)

// Chain is the content of a chain: its rules without the leading "-A NAME", joined by newlines. For
// a built-in chain, these are only our rules.
type Chain struct {
	Rules string
	// Owner is the Service that the chain belongs to. It is zero for shared chains and for chains
	// that were read from the kernel.
	Owner fwd.Service
}

// lines returns the rules.
func (c Chain) lines() []string {
	if c.Rules == "" {
		return nil
	}
	return strings.Split(c.Rules, "\n")
}

// sameRules compares chains by what is in the kernel.
func sameRules(a, b Chain) bool { return a.Rules == b.Rules }

// program is what a Service contributes to one family: its chains, and entries of the shared trees.
type program struct {
	chains  []namedChain
	entries []treeEntry
	// shared are entries without an owner, which other Services may have too.
	shared []treeEntry
}

type namedChain struct {
	id    ChainID
	chain Chain
}

// treeEntry is an entry of one of the shared trees.
type treeEntry struct {
	treePlace
	entry
}

type treePlace struct {
	tree int
	key  treeKey
}

// The shared trees of a family.
const (
	treeVIP           = iota // nat, by virtual IP
	treePort                 // nat, by node port
	treeVIPFilter            // filter, by virtual IP: what is rejected or dropped
	treePortFilter           // filter, by node port: what is rejected or dropped
	treeHealth               // filter, by health-check node port: what is accepted
	treeHealthReplies        // filter, by source port of health-check node ports: what is accepted
	treeUnmoved              // nat, by virtual IP: what is masqueraded although the destination does not change
	treeUnmovedFilter        // filter, by virtual IP: the same is accepted
	treeHairpin              // nat, by endpoint address: what is masqueraded, where xt_bpf is missing
	numTrees
)

// writer collects the program of one Service.
type writer struct {
	opt    *options
	family fwd.Family
	header *fwd.Header
	frag   *fwd.Fragment
	out    program
}

// programOf renders a Service for one family, without the service ports that skip selects. It is
// pure: the same fragment, header and options give the same program.
func programOf(opt *options, family fwd.Family, h *fwd.Header, f *fwd.Fragment, skip func(fwd.ServicePort) bool) program {
	if f == nil {
		return program{}
	}
	w := writer{opt: opt, family: family, header: h, frag: f}
	for fes := range byPort(f.Frontends, family) {
		if !skip(fes[0].Owner) {
			w.servicePort(fes)
		}
	}
	if !opt.bpf {
		w.hairpin()
	}
	if p := f.HealthCheck.Port; p != 0 {
		w.share(treeHealth, portKey(fwd.TCP, p), and(dport(fwd.TCP, p, p), "-j ACCEPT"))
		w.share(treeHealthReplies, portKey(fwd.TCP, p), and(sport(fwd.TCP, p, p), "-j ACCEPT"))
	}
	return w.out
}

// byPort yields the frontends of one family grouped by service port, in the order in which the
// ports first occur.
func byPort(all []fwd.Frontend, family fwd.Family) func(func([]*fwd.Frontend) bool) {
	var ports []fwd.ServicePort
	groups := make(map[fwd.ServicePort][]*fwd.Frontend)
	for i := range all {
		f := &all[i]
		if f.Key.Family != family {
			continue
		}
		if groups[f.Owner] == nil {
			ports = append(ports, f.Owner)
		}
		groups[f.Owner] = append(groups[f.Owner], f)
	}
	return func(yield func([]*fwd.Frontend) bool) {
		for _, p := range ports {
			if !yield(groups[p]) {
				return
			}
		}
	}
}

func (w *writer) enter(tree int, k treeKey, rule string) {
	w.out.entries = append(w.out.entries, treeEntry{treePlace{tree, k}, entry{rule: rule, owner: w.frag.Owner}})
}

// share enters a rule that is the same for all Services that need it.
func (w *writer) share(tree int, k treeKey, rule string) {
	w.out.shared = append(w.out.shared, treeEntry{treePlace{tree, k}, entry{rule: rule}})
}

// hairpin masquerades connections from endpoints to themselves.
func (w *writer) hairpin() {
	seen := make(map[netip.Addr]bool)
	for _, p := range w.frag.Pools {
		if p.Key.Family != w.family {
			continue
		}
		for _, e := range p.Endpoints {
			if a := e.Addr.Addr(); !seen[a] {
				seen[a] = true
				w.share(treeHairpin, addrKey(a), and("-s "+hostPrefix(a), "-d "+hostPrefix(a), "-g "+chainMasquerade))
			}
		}
	}
}

func (w *writer) chain(t Table, name string, rules []string) {
	w.out.chains = append(w.out.chains, namedChain{ChainID{t, name}, Chain{Rules: strings.Join(rules, "\n"), Owner: w.frag.Owner}})
}

// group is a set of frontends of one service port with the same routes; they share a chain.
type group struct {
	routes    [fwd.NumClasses]fwd.Route
	frontends []*fwd.Frontend
	// name distinguishes the groups of a service port: the kind of the first frontend, and a number
	// if several groups start with the same kind. It does not depend on the routes, so that a
	// change of routes only changes one chain.
	name string
}

// groupsOf groups the frontends by routes, ignoring the reasons of the routes. It does not change
// the frontends.
func groupsOf(fes []*fwd.Frontend) []*group {
	fes = slices.Clone(fes)
	slices.SortStableFunc(fes, func(a, b *fwd.Frontend) int { return int(a.Kind) - int(b.Kind) })
	var groups []*group
	names := make(map[string]int)
	for _, f := range fes {
		routes := f.Routes
		for i := range routes {
			routes[i].Reason = 0
		}
		i := slices.IndexFunc(groups, func(g *group) bool { return g.routes == routes })
		if i < 0 {
			kind := f.Kind.String()
			names[kind]++
			g := &group{routes: routes, name: kind}
			if n := names[kind]; n > 1 {
				g.name = fmt.Sprintf("%s-%d", kind, n)
			}
			groups = append(groups, g)
			i = len(groups) - 1
		}
		groups[i].frontends = append(groups[i].frontends, f)
	}
	return groups
}

// servicePort renders the frontends of one service port.
func (w *writer) servicePort(fes []*fwd.Frontend) {
	port := fes[0].Owner
	groups := groupsOf(fes)

	// A pool that is used once is part of the chain that uses it. Otherwise it gets its own chain.
	uses := make(map[fwd.Scope]int)
	for _, g := range groups {
		tail, jumps := w.scopes(g.routes)
		for _, s := range jumps {
			uses[s] += 2 // a jump needs a chain
		}
		if tail != nil {
			uses[*tail]++
		}
	}
	for s := range fwd.NumScopes {
		if uses[s] > 1 {
			w.chain(NAT, w.poolChain(port, s), w.pool(port, s))
		}
	}
	for _, g := range groups {
		w.nat(port, g, uses)
		w.filter(port, g)
	}
}

func (w *writer) poolChain(p fwd.ServicePort, s fwd.Scope) string {
	return portName(letterPool, p, w.family, s.String())
}

// detector returns the match of local pods, empty if there is none.
func (w *writer) detector() string { return matchPod(w.header.Detector[w.family.Index()]) }

// uniform returns whether all source classes that can occur have the same route, apart from
// masquerading, and which rule marks connections for masquerading: those of all sources, of none,
// or of all but pods. Other combinations are not uniform.
func (w *writer) uniform(r [fwd.NumClasses]fwd.Route) (mark string, ok bool) {
	pods := w.detector() != ""
	out, pod, host := r[fwd.Outside], r[fwd.Pod], r[fwd.Host]
	if !pods {
		pod = out
	}
	if out.Action != pod.Action || out.Action != host.Action || out.Scope != pod.Scope || out.Scope != host.Scope {
		return "", false
	}
	switch {
	case out.Masquerade && pod.Masquerade && host.Masquerade:
		return addMark, true
	case out.Masquerade && host.Masquerade:
		return "-j " + chainAddMarkNonPod, true
	case !out.Masquerade && !pod.Masquerade && !host.Masquerade:
		return "", true
	}
	return "", false
}

// addMark marks for masquerading. It is a jump instead of the target MARK because of the nft
// userland (order.go).
const addMark = "-j " + chainAddMark

// scopes returns the pool at the end of the group's chain, if any, and the pools that the chain
// jumps to before.
func (w *writer) scopes(r [fwd.NumClasses]fwd.Route) (tail *fwd.Scope, jumps []fwd.Scope) {
	if out := r[fwd.Outside]; out.Action == fwd.Forward {
		tail = &out.Scope
	}
	if _, ok := w.uniform(r); ok {
		return tail, nil
	}
	for _, c := range w.special() {
		if r[c.class].Action == fwd.Forward {
			jumps = append(jumps, r[c.class].Scope)
		}
	}
	return tail, jumps
}

// classMatch is a source class with its match.
type classMatch struct {
	class fwd.Class
	match string
}

// special returns the source classes other than Outside that can occur, in the order in which they
// are tested. A node address that the detector matches counts as a pod.
func (w *writer) special() []classMatch {
	if d := w.detector(); d != "" {
		return []classMatch{{fwd.Pod, d}, {fwd.Host, matchHostSource}}
	}
	return []classMatch{{fwd.Host, matchHostSource}}
}

// stop ends the traversal of the nat table for a connection without a pool, which the filter table
// rejects or drops. Without it, the packet could still match a node port.
const stop = "-j ACCEPT"

// nat renders the group's chain in the nat table and the entries of its frontends.
func (w *writer) nat(port fwd.ServicePort, g *group, uses map[fwd.Scope]int) {
	forwards := g.routes[fwd.Outside].Action == fwd.Forward
	for _, c := range w.special() {
		forwards = forwards || g.routes[c.class].Action == fwd.Forward
	}
	name := portName(letterFrontend, port, w.family, g.name)
	if forwards {
		w.chain(NAT, name, w.routes(port, g.routes, uses))
	}
	for _, f := range g.frontends {
		target := "-g " + name
		switch {
		case !forwards:
			target = stop
		case len(f.Sources) > 0:
			target = "-g " + w.gate(NAT, letterAdmit, port, g, f, "-g "+name, stop)
		}
		w.dispatch(treeVIP, treePort, f, target)
		if forwards && w.frag.KeepsAddress(f) {
			k := f.Key
			match := and("-d "+hostPrefix(k.Addr), dport(k.Proto, k.Port, k.Port))
			w.enter(treeUnmoved, frontendKey(k), and(match, "-g "+chainMasquerade))
			w.enter(treeUnmovedFilter, frontendKey(k), and(match, "-j ACCEPT"))
		}
	}
}

// dispatch enters a frontend into one of two trees, by virtual IP or by node port.
func (w *writer) dispatch(vips, ports int, f *fwd.Frontend, target string) {
	k := f.Key
	if k.IsNodePort() {
		w.enter(ports, frontendKey(k), and(dport(k.Proto, k.Port, k.Port), commentOf(f.Owner), target))
		return
	}
	w.enter(vips, frontendKey(k), and("-d "+hostPrefix(k.Addr), dport(k.Proto, k.Port, k.Port), commentOf(f.Owner), target))
}

// gate renders a chain with one target for the frontend's Sources and another for other sources,
// and returns its name. Frontends of a group with the same Sources share it.
func (w *writer) gate(t Table, letter string, port fwd.ServicePort, g *group, f *fwd.Frontend, admitted, refused string) string {
	rules := make([]string, 0, len(f.Sources)+1)
	key := g.name
	for _, p := range f.Sources {
		rules = append(rules, ruleFor("-s "+p.String(), admitted))
		key += " " + p.String()
	}
	name := portName(letter, port, w.family, key)
	w.chain(t, name, append(rules, refused))
	return name
}

// routes renders the rules of a group's chain in the nat table.
func (w *writer) routes(port fwd.ServicePort, r [fwd.NumClasses]fwd.Route, uses map[fwd.Scope]int) []string {
	var rules []string
	if mark, ok := w.uniform(r); ok {
		if mark != "" {
			rules = append(rules, mark)
		}
	} else {
		for _, c := range w.special() {
			route := r[c.class]
			if route.Action != fwd.Forward {
				rules = append(rules, and(c.match, stop))
				continue
			}
			if route.Masquerade {
				rules = append(rules, and(c.match, addMark))
			}
			rules = append(rules, and(c.match, "-g "+w.poolChain(port, route.Scope)))
		}
		if r[fwd.Outside].Masquerade {
			rules = append(rules, addMark)
		}
	}
	out := r[fwd.Outside]
	switch {
	case out.Action != fwd.Forward:
		return append(rules, stop)
	case uses[out.Scope] > 1:
		return append(rules, "-g "+w.poolChain(port, out.Scope))
	}
	return append(rules, w.pool(port, out.Scope)...)
}

// filter enters the group's frontends into the filter table if they reject or drop connections. The
// rules there do not rely on other connections having been translated: an endpoint can have the
// same address and port as the frontend, and connection tracking does not count that as
// translation.
func (w *writer) filter(port fwd.ServicePort, g *group) {
	target := w.verdicts(port, g)
	for _, f := range g.frontends {
		t := target
		if len(f.Sources) > 0 && t != drop {
			t = "-g " + w.gate(Filter, letterUnadmit, port, g, f, t, drop)
		}
		if t != pass {
			w.dispatch(treeVIPFilter, treePortFilter, f, t)
		}
	}
}

// verdicts returns the target in the filter table for a group's frontends: a chain if it differs by
// source class.
func (w *writer) verdicts(port fwd.ServicePort, g *group) string {
	outside := w.verdict(port.Proto, g.routes[fwd.Outside])
	var rules []string
	same := true
	for _, c := range w.special() {
		v := w.verdict(port.Proto, g.routes[c.class])
		rules = append(rules, ruleFor(c.match, v))
		same = same && v == outside
	}
	if same {
		return outside
	}
	name := portName(letterVerdict, port, w.family, g.name)
	w.chain(Filter, name, append(rules, ruleFor("", outside)))
	return "-g " + name
}

const (
	drop = "-j DROP"
	pass = "-j RETURN"
	// reset refuses TCP. The kernel limits ICMP errors per client, but not TCP resets.
	reset = "-j REJECT --reject-with tcp-reset"
)

// ruleFor is a rule for the sources that match. reset needs the protocol in the same rule.
func ruleFor(match, target string) string {
	switch {
	case target != reset:
		return and(match, target)
	case strings.HasPrefix(match, "-m "): // iptables-save prints the protocol before the extensions
		return and("-p tcp", match, target)
	}
	return and(match, "-p tcp", target)
}

// verdict is the target of a route in the filter table.
func (w *writer) verdict(proto fwd.Proto, r fwd.Route) string {
	switch r.Action {
	case fwd.Forward:
		return pass
	case fwd.Reject:
		if proto == fwd.TCP {
			return reset
		}
		if w.family == fwd.IPv6 {
			return "-j REJECT --reject-with icmp6-port-unreachable"
		}
		return "-j REJECT --reject-with icmp-port-unreachable"
	}
	return drop
}

// maxFlatPool is the size up to which a pool is one list of rules. For a larger pool, the rules
// choose a group and then an endpoint of the group, so that a first packet does not traverse a
// thousand rules for a thousand endpoints.
const maxFlatPool = 32

// pool renders the choice of an endpoint.
func (w *writer) pool(port fwd.ServicePort, s fwd.Scope) []string {
	key := fwd.PoolKey{Port: port, Family: w.family, Scope: s}
	p := w.frag.Pool(key)
	if p == nil || len(p.Endpoints) == 0 {
		panic("BUG: a route of " + port.String() + " forwards to the pool " + s.String() + ", which is not there")
	}
	var rules []string
	if p.AffinitySec > 0 {
		rules = w.remembered(p)
	}
	if len(p.Endpoints) <= maxFlatPool {
		return append(rules, w.spread(p, p.Endpoints)...)
	}
	// An endpoint's group depends on the endpoint and on the number of groups, which is a power of
	// two. So adding one endpoint rewrites one group.
	n := 1
	for n*n*2 < len(p.Endpoints) {
		n *= 2
	}
	members := make([][]fwd.Endpoint, n)
	for _, e := range p.Endpoints {
		h := fnv.New32a()
		h.Write([]byte(e.Addr.String()))
		i := int(mix(h.Sum32()) % uint32(n))
		members[i] = append(members[i], e)
	}
	var names []string
	var weights []uint64
	for i, m := range members {
		if len(m) == 0 {
			continue
		}
		name := portName(letterGroup, port, w.family, fmt.Sprintf("%s %d/%d", s, i, n))
		w.chain(NAT, name, w.spread(p, m))
		names = append(names, name)
		weights = append(weights, total(m))
	}
	for i, prob := range chances(weights) {
		rules = append(rules, and(prob, "-g "+names[i]))
	}
	return rules
}

// mix improves the low bits of an FNV sum, which differ little between similar addresses.
func mix(x uint32) uint32 {
	x ^= x >> 16
	x *= 0x85ebca6b
	x ^= x >> 13
	x *= 0xc2b2ae35
	return x ^ x>>16
}

func total(eps []fwd.Endpoint) uint64 {
	var sum uint64
	for _, e := range eps {
		sum += uint64(e.Weight)
	}
	return sum
}

// remembered are the rules of session affinity, which send a client to its previous endpoint: one
// for each endpoint, in the order of the pool. A match refreshes the record.
func (w *writer) remembered(p *fwd.Pool) []string {
	rules := make([]string, len(p.Endpoints))
	for i, e := range p.Endpoints {
		rules[i] = fmt.Sprintf("-p %s -m recent --update --seconds %d --reap --name %s --mask %s --rsource -j DNAT --to-destination %s",
			p.Key.Port.Proto, p.AffinitySec, w.affinityList(p, e), w.fullMask(), e.Addr)
	}
	return rules
}

// affinityList is the name of the xt_recent list of an endpoint. All frontends and pools of a
// service port share it.
func (w *writer) affinityList(p *fwd.Pool, e fwd.Endpoint) string {
	return portName(letterAffinity, p.Key.Port, w.family, e.Addr.String())
}

func (w *writer) fullMask() string {
	if w.family == fwd.IPv6 {
		return "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"
	}
	return "255.255.255.255"
}

// spread renders the random choice of an endpoint by weight.
func (w *writer) spread(p *fwd.Pool, eps []fwd.Endpoint) []string {
	weights := make([]uint64, len(eps))
	for i, e := range eps {
		weights[i] = uint64(e.Weight)
	}
	rules := make([]string, len(eps))
	for i, prob := range chances(weights) {
		record := ""
		if p.AffinitySec > 0 {
			record = fmt.Sprintf("-m recent --set --name %s --mask %s --rsource", w.affinityList(p, eps[i]), w.fullMask())
		}
		rules[i] = and("-p", p.Key.Port.Proto.String(), prob, record, "-j DNAT --to-destination", eps[i].Addr.String())
	}
	return rules
}

// chances returns the matches that make each rule of a list apply in proportion to its weight, if
// the first matching rule applies: its share of the remaining weight. The last rule always matches.
func chances(weights []uint64) []string {
	out := make([]string, len(weights))
	var left uint64
	for _, x := range weights {
		left += x
	}
	for i, x := range weights[:len(weights)-1] {
		if n := left / x; n*x == left && n < uint64(len(oneIn)) {
			out[i] = oneIn[n]
		} else {
			out[i] = chance(float64(x) / float64(left))
		}
		left -= x
	}
	return out
}

// chance is the match with a probability, rounded to 31 bits as in the kernel (xt_statistic) and
// printed as iptables-save prints it.
func chance(p float64) string {
	return "-m statistic --mode random --probability " + strconv.FormatFloat(math.Round(p*(1<<31))/(1<<31), 'f', 11, 64)
}

// oneIn holds chance(1/n), which nearly all rules use.
var oneIn = func() (t [2 * maxFlatPool]string) {
	for n := 1; n < len(t); n++ {
		t[n] = chance(1 / float64(n))
	}
	return t
}()

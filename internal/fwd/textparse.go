package fwd

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// ParseText reads a table from its text form. Empty lines and lines that begin with "#" are skipped; lines and lists may
// be in any order. Everything else is strict: an unknown, doubled or missing field, a value out of range, an object of a
// Service without a line of its own, a route without its pool and a pool without a route are errors, which name the line.
func ParseText(r io.Reader) (*Table, error) {
	text, err := io.ReadAll(r)
	if err != nil {
		return nil, fmt.Errorf("read the text of a table: %w", err)
	}
	d := decoder{services: make(map[Service]*parsed)}
	n := 0
	for line := range strings.Lines(string(text)) {
		n++
		line = strings.TrimSuffix(line, "\n")
		if line == "" || line[0] == '#' {
			continue
		}
		if err := d.line(n, line); err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
	}
	return d.table()
}

// decoder collects the objects of a text.
type decoder struct {
	header     Header
	headerLine int
	services   map[Service]*parsed
	// order is that of the text, so that of several errors the first is told.
	order []*parsed
}

// parsed is a Service with the numbers of the lines that its parts come from; line is 0 until its own line is read.
type parsed struct {
	line int
	// first is the line of the first part.
	first     int
	fragment  Fragment
	frontends []parsedFrontend
	pools     []parsedPool
	serving   []parsedServing
}

type (
	parsedFrontend struct {
		line  int
		claim bool
		Frontend
	}
	parsedPool struct {
		line int
		Pool
	}
	parsedServing struct {
		line int
		ServingPort
	}
)

func (d *decoder) service(name Service, line int) *parsed {
	p := d.services[name]
	if p == nil {
		p = &parsed{first: line, fragment: Fragment{Owner: name}}
		d.services[name] = p
		d.order = append(d.order, p)
	}
	return p
}

// line reads one object.
func (d *decoder) line(n int, text string) error {
	word, rest, _ := strings.Cut(text, " ")
	f, err := newFields(rest, word != "header")
	if err != nil {
		return err
	}
	switch word {
	case "header":
		if d.headerLine != 0 {
			return fmt.Errorf("a second header; the first is in line %d", d.headerLine)
		}
		d.header, d.headerLine = f.header(), n
	case "service":
		name := f.serviceKey()
		p := d.service(name, n)
		if p.line != 0 && f.err == nil {
			return fmt.Errorf("a second line for service %s; the first is line %d", serviceText(name), p.line)
		}
		p.line = n
		f.service(&p.fragment)
	case "frontend", "claim":
		fe := f.frontend()
		p := d.service(fe.Owner.Service, n)
		p.frontends = append(p.frontends, parsedFrontend{n, word == "claim", fe})
	case "pool":
		pool := f.pool()
		p := d.service(pool.Key.Port.Service, n)
		p.pools = append(p.pools, parsedPool{n, pool})
	case "serving":
		s := f.serving()
		p := d.service(s.Port.Service, n)
		p.serving = append(p.serving, parsedServing{n, s})
	default:
		return fmt.Errorf("%q: want header, service, frontend, claim, pool or serving", word)
	}
	return f.finish()
}

// table puts the fragments together and checks what needs more than one line to see.
func (d *decoder) table() (*Table, error) {
	t := &Table{header: d.header}
	for _, p := range d.order {
		if p.line == 0 {
			return nil, fmt.Errorf("line %d: there is no line for service %s", p.first, serviceText(p.fragment.Owner))
		}
		if err := p.assemble(); err != nil {
			return nil, err
		}
		if p.fragment.Empty() {
			return nil, fmt.Errorf("line %d: service %s has nothing", p.line, serviceText(p.fragment.Owner))
		}
		t.Put(&p.fragment)
	}
	for _, p := range d.order {
		for _, f := range p.frontends {
			if lost := t.owners[f.Key].Owner.Service != f.Owner.Service; lost != f.claim {
				return nil, fmt.Errorf("line %d: %s belongs to %s: frontend and claim are the wrong way round",
					f.line, f.Key, serviceText(t.owners[f.Key].Owner.Service))
			}
		}
	}
	return t, nil
}

// assemble sorts the parts of a Service into its fragment.
func (p *parsed) assemble() error {
	slices.SortStableFunc(p.frontends, func(a, b parsedFrontend) int { return a.Key.Compare(b.Key) })
	slices.SortStableFunc(p.pools, func(a, b parsedPool) int { return a.Key.Compare(b.Key) })
	slices.SortStableFunc(p.serving, func(a, b parsedServing) int {
		return cmp.Or(a.Port.Compare(b.Port), cmp.Compare(a.Family, b.Family))
	})
	f := &p.fragment
	for i, s := range p.serving {
		if i > 0 && s.Port == p.serving[i-1].Port && s.Family == p.serving[i-1].Family {
			return fmt.Errorf("line %d: the same list is in line %d", s.line, p.serving[i-1].line)
		}
		f.Serving = append(f.Serving, s.ServingPort)
	}
	for i, pool := range p.pools {
		if i > 0 && pool.Key == p.pools[i-1].Key {
			return fmt.Errorf("line %d: the same pool is in line %d", pool.line, p.pools[i-1].line)
		}
		f.Pools = append(f.Pools, pool.Pool)
	}
	used := make(map[PoolKey]bool, len(p.pools))
	for i, fe := range p.frontends {
		if i > 0 && fe.Key == p.frontends[i-1].Key {
			return fmt.Errorf("line %d: the same Service has this frontend in line %d", fe.line, p.frontends[i-1].line)
		}
		f.Frontends = append(f.Frontends, fe.Frontend)
		for _, r := range fe.Routes {
			k := fe.Pool(r)
			if r.Action == Forward && f.Pool(k) == nil {
				return fmt.Errorf("line %d: there is no pool %s family=%s scope=%s", fe.line, portText(k.Port), k.Family, k.Scope)
			}
			used[k] = used[k] || r.Action == Forward
		}
	}
	for _, pool := range p.pools {
		if !used[pool.Key] {
			return fmt.Errorf("line %d: no route uses this pool", pool.line)
		}
	}
	return nil
}

// fields is a line as key and key=value fields. The first error sticks, so that readers need not check each step.
type fields struct {
	key    string
	values map[string]string
	err    error
}

func newFields(rest string, wantKey bool) (*fields, error) {
	f := &fields{values: make(map[string]string)}
	for first := true; rest != ""; first = false {
		var tok string
		tok, rest = token(rest)
		if first && wantKey {
			f.key = tok
			continue
		}
		k, v, ok := strings.Cut(tok, "=")
		if !ok {
			return nil, fmt.Errorf("%q: want field=value", tok)
		}
		if _, twice := f.values[k]; twice {
			return nil, fmt.Errorf("field %q is there twice", k)
		}
		f.values[k] = v
	}
	return f, nil
}

// token cuts off what stands before the first space that is not inside quotes.
func token(s string) (tok, rest string) {
	quoted := false
	for i := 0; i < len(s); i++ {
		switch {
		case quoted && s[i] == '\\':
			i++
		case s[i] == '"':
			quoted = !quoted
		case s[i] == ' ' && !quoted:
			return s[:i], s[i+1:]
		}
	}
	return s, ""
}

func (f *fields) fail(format string, args ...any) {
	if f.err == nil {
		f.err = fmt.Errorf(format, args...)
	}
}

// finish reports the first error, or a field that nobody asked for.
func (f *fields) finish() error {
	if f.err != nil {
		return f.err
	}
	for _, k := range slices.Sorted(maps.Keys(f.values)) {
		f.fail("unknown field %q", k)
	}
	return f.err
}

// take removes a field and returns its value.
func (f *fields) take(name string) (string, bool) {
	v, ok := f.values[name]
	delete(f.values, name)
	return v, ok
}

// must is take of a field that has to be there.
func (f *fields) must(name string) string {
	v, ok := f.take(name)
	if !ok {
		f.fail("field %q is missing", name)
	}
	return v
}

// read takes a field, if it is there, and converts it.
func read[T any](f *fields, name string, parse func(string) (T, error)) (out T) {
	s, ok := f.take(name)
	if !ok {
		return out
	}
	out, err := parse(s)
	if err != nil {
		f.fail("%s: %w", name, err)
	}
	return out
}

// uint takes a number, 0 if the field is not there.
func (f *fields) uint(name string, limit uint64) uint64 {
	return read(f, name, func(s string) (uint64, error) { return parseUint(s, 1, limit) })
}

func parseUint(s string, from, to uint64) (uint64, error) {
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil || n < from || n > to {
		return 0, fmt.Errorf("%q: want a number from %d to %d", s, from, to)
	}
	return n, nil
}

func (f *fields) header() (h Header) {
	for i, fam := range Families {
		h.Detector[i] = Detector{
			Prefix:          read(f, fmt.Sprintf("cidr%d", fam), func(s string) (netip.Prefix, error) { return parsePrefix(s, fam) }),
			Bridge:          read(f, fmt.Sprintf("bridge%d", fam), parseWholeName),
			InterfacePrefix: read(f, fmt.Sprintf("ifprefix%d", fam), parseWholeName),
		}
		h.NodePorts[i] = f.nodePorts(fam)
	}
	bit, err := parseUint(f.must("masqueradebit"), 0, 31)
	if err != nil {
		f.fail("masqueradebit: %w", err)
	}
	h.MasqueradeBit = uint8(bit)
	for i, fam := range Families {
		h.MasqueradeSource[i] = read(f, fmt.Sprintf("masqueradesource%d", fam), func(s string) (netip.Addr, error) {
			a, err := netip.ParseAddr(s)
			if err == nil {
				err = plain(a)
			}
			if err == nil && FamilyOf(a) != fam {
				err = fmt.Errorf("%s: want an address of %s", a, fam)
			}
			return a, err
		})
	}
	if s, there := f.take("otherports"); there {
		h.RejectOtherPorts = s == "reject"
		if !h.RejectOtherPorts {
			f.fail("otherports %q: want reject", s)
		}
	}
	for i, fam := range Families {
		h.ServiceCIDRs[i] = f.serviceCIDRs(fam)
	}
	if s, there := f.take("unallocated"); there {
		h.DropUnallocated = s == "drop"
		if !h.DropUnallocated {
			f.fail("unallocated %q: want drop", s)
		}
	}
	s, _ := f.take("local")
	h.LocalAddrs = list(f, "local", split(s), func(s string) (netip.Addr, error) {
		a, err := netip.ParseAddr(s)
		if err == nil {
			err = plain(a)
		}
		return a, err
	}, netip.Addr.Compare)
	return h
}

func (f *fields) serviceCIDRs(fam Family) []netip.Prefix {
	name := fmt.Sprintf("servicecidrs%d", fam)
	s, _ := f.take(name)
	out := list(f, name, split(s), func(s string) (netip.Prefix, error) { return parsePrefix(s, fam) }, comparePrefix)
	for i := 1; i < len(out); i++ {
		if out[i-1].Overlaps(out[i]) {
			f.fail("%s: %s is inside %s", name, out[i], out[i-1])
		}
	}
	return out
}

func (f *fields) nodePorts(fam Family) (a NodePortAddrs) {
	name := fmt.Sprintf("nodeports%d", fam)
	s, _ := f.take(name)
	var prefixes []string
	for _, v := range split(s) {
		switch v {
		case "all":
			a.All = true
		case "loopback":
			a.Loopback = true
		default:
			prefixes = append(prefixes, v)
		}
	}
	if a.All && len(prefixes) > 0 {
		f.fail("%s: all leaves nothing for prefixes", name)
	}
	if a.Loopback && fam == IPv6 {
		f.fail("%s: loopback is for IPv4 alone", name)
	}
	a.Prefixes = list(f, name, prefixes, func(s string) (netip.Prefix, error) { return parsePrefix(s, fam) }, comparePrefix)
	return a
}

func (f *fields) serviceKey() Service {
	s, rest, err := parseService(f.key)
	if err == nil && rest != "" {
		err = fmt.Errorf("%q follows the name", rest)
	}
	if err != nil {
		f.fail("service: %w", err)
	}
	return s
}

func (f *fields) service(out *Fragment) {
	created, err := strconv.ParseInt(f.must("created"), 10, 64)
	if err != nil {
		f.fail("created: want seconds since 1970")
	}
	out.CreatedUnix = created
	out.HealthCheck = HealthCheck{
		Port:           uint16(f.uint("healthcheck", 65535)),
		LocalEndpoints: int(f.uint("localendpoints", 1<<31-1)),
	}
	for i, names := range emptyFields {
		for policy, name := range names {
			out.LocalPolicyEmpty[i][policy] = int(f.uint(name, 1<<31-1))
		}
	}
	leaving, _ := f.take("leaving")
	out.Leaving = list(f, "leaving", split(leaving), func(s string) (netip.AddrPort, error) {
		a, err := netip.ParseAddrPort(s)
		if err != nil {
			return a, err
		}
		return parseAddrPort(s, FamilyOf(a.Addr()))
	}, netip.AddrPort.Compare)
}

func (f *fields) frontend() (fe Frontend) {
	var err error
	if fe.Key, err = parseKey(f.key); err != nil {
		f.fail("%w", err)
	}
	fe.Kind = enum(f, "kind", ClusterIP, ExternalIP, LoadBalancer, NodePort)
	fe.Owner = f.port("owner", f.must("owner"))
	if s, ok := f.take("all"); ok {
		r := f.route("all", s)
		fe.Routes = [NumClasses]Route{r, r, r}
	} else {
		for c := range fe.Routes {
			name := Class(c).String()
			fe.Routes[c] = f.route(name, f.must(name))
		}
	}
	s, _ := f.take("sources")
	fe.Sources = list(f, "sources", split(s), func(s string) (netip.Prefix, error) {
		return parsePrefix(s, fe.Key.Family)
	}, comparePrefix)
	for i := 1; i < len(fe.Sources); i++ {
		if fe.Sources[i-1].Contains(fe.Sources[i].Addr()) {
			f.fail("sources: %s is inside %s", fe.Sources[i], fe.Sources[i-1])
		}
	}
	return fe
}

func (f *fields) route(name, s string) (r Route) {
	word := split(s)
	next := func() string {
		if len(word) == 0 {
			return ""
		}
		w := word[0]
		word = word[1:]
		return w
	}
	bad := func() { f.fail("%s: %q: want drop, reject or forward, a scope, masquerade, and a reason", name, s) }
	w := next()
	switch w {
	case Drop.String():
		r.Action = Drop
	case Reject.String():
		r.Action = Reject
	case Forward.String():
		r.Action = Forward
		switch next() {
		case Cluster.String():
			r.Scope = Cluster
		case Local.String():
			r.Scope = Local
		default:
			bad()
		}
		if len(word) > 0 && word[0] == "masquerade" {
			r.Masquerade = true
			next()
		}
	default:
		bad()
	}
	reason := next()
	for r.Reason = 0; r.Reason < numReasons && handle(r.Reason) != reason; {
		r.Reason++
	}
	if r.Reason == numReasons || len(word) > 0 {
		bad()
	}
	return r
}

func (f *fields) pool() (p Pool) {
	p.Key.Port = f.port("pool", f.key)
	p.Key.Family = enum(f, "family", IPv4, IPv6)
	p.Key.Scope = enum(f, "scope", Cluster, Local)
	p.AffinitySec = uint32(f.uint("affinity", 86400))
	p.Scheduler = read(f, "scheduler", parseWholeName)
	p.SchedulerFlags = read(f, "schedulerflags", ParseSchedulerFlags)
	p.Endpoints = list(f, "endpoints", split(f.must("endpoints")), func(s string) (Endpoint, error) {
		return parseEndpoint(s, p.Key.Family)
	}, func(a, b Endpoint) int { return a.Addr.Compare(b.Addr) })
	if len(p.Endpoints) == 0 {
		f.fail("a pool has at least one endpoint")
	}
	return p
}

func (f *fields) serving() (s ServingPort) {
	s.Port = f.port("serving", f.key)
	s.Family = enum(f, "family", IPv4, IPv6)
	s.Endpoints = list(f, "endpoints", split(f.must("endpoints")), func(v string) (netip.AddrPort, error) {
		return parseAddrPort(v, s.Family)
	}, netip.AddrPort.Compare)
	return s
}

func (f *fields) port(name, s string) ServicePort {
	p, err := parsePort(s)
	if err != nil {
		f.fail("%s: %w", name, err)
	}
	return p
}

// enum takes a field that has one of a few values, by their names.
func enum[T fmt.Stringer](f *fields, name string, values ...T) T {
	s := f.must(name)
	for _, v := range values {
		if s == v.String() {
			return v
		}
	}
	f.fail("%s: %q is none of %v", name, s, values)
	return values[0]
}

// list converts, sorts, and refuses what is there twice.
func list[T any](f *fields, name string, texts []string, parse func(string) (T, error), compare func(a, b T) int) []T {
	if len(texts) == 0 {
		return nil
	}
	out := make([]T, len(texts))
	for i, s := range texts {
		v, err := parse(s)
		if err != nil {
			f.fail("%s: %w", name, err)
			return nil
		}
		out[i] = v
	}
	slices.SortFunc(out, compare)
	for i := 1; i < len(out); i++ {
		if compare(out[i-1], out[i]) == 0 {
			f.fail("%s: %v is there twice", name, out[i])
		}
	}
	return out
}

func split(s string) []string {
	if s == "" {
		return nil
	}
	return strings.Split(s, ",")
}

// plain refuses addresses that no frontend or endpoint can have.
func plain(a netip.Addr) error {
	if a.Is4In6() || a.Zone() != "" {
		return fmt.Errorf("%s: want an address without a zone, and not an IPv4-mapped one", a)
	}
	return nil
}

func ofFamily(a netip.Addr, fam Family) error {
	if err := plain(a); err != nil {
		return err
	}
	if FamilyOf(a) != fam {
		return fmt.Errorf("%s is not an %s address", a, fam)
	}
	return nil
}

func comparePrefix(a, b netip.Prefix) int {
	return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
}

func parsePrefix(s string, fam Family) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return p, err
	}
	if p != p.Masked() {
		return p, fmt.Errorf("%s has bits set beyond its length", p)
	}
	return p, ofFamily(p.Addr(), fam)
}

func parseAddrPort(s string, fam Family) (netip.AddrPort, error) {
	a, err := netip.ParseAddrPort(s)
	if err != nil {
		return a, err
	}
	if a.Port() == 0 {
		return a, fmt.Errorf("%s: port 0", s)
	}
	return a, ofFamily(a.Addr(), fam)
}

func parseKey(s string) (k Key, err error) {
	bad := func(err error) (Key, error) { return Key{}, fmt.Errorf("frontend %q: %w", s, err) }
	addr, proto, ok := strings.Cut(s, "/")
	if !ok {
		return bad(errors.New("want address:port/protocol"))
	}
	if k.Proto, err = parseProto(proto); err != nil {
		return bad(err)
	}
	for _, fam := range Families {
		if port, ok := strings.CutPrefix(addr, fmt.Sprintf("node%d:", fam)); ok {
			n, err := parseUint(port, 1, 65535)
			if err != nil {
				return bad(err)
			}
			k.Family, k.Port = fam, uint16(n)
			return k, nil
		}
	}
	ap, err := netip.ParseAddrPort(addr)
	if err != nil {
		return bad(err)
	}
	k.Family, k.Addr, k.Port = FamilyOf(ap.Addr()), ap.Addr(), ap.Port()
	if err := plain(k.Addr); err != nil {
		return bad(err)
	}
	if k.Port == 0 {
		return bad(errors.New("port 0"))
	}
	return k, nil
}

// parseProto is ParseProto for names as they are written.
func parseProto(s string) (Proto, error) {
	p, err := ParseProto(s)
	if err == nil && s != p.String() {
		err = fmt.Errorf("protocol %q: want %s", s, p)
	}
	return p, err
}

func parseEndpoint(s string, fam Family) (Endpoint, error) {
	parts := strings.Split(s, "/")
	addr, err := parseAddrPort(parts[0], fam)
	if err != nil {
		return Endpoint{}, err
	}
	e := Endpoint{Addr: addr, Weight: 1}
	for _, flag := range parts[1:] {
		weight, isWeight := strings.CutPrefix(flag, "weight:")
		instance, isInstance := strings.CutPrefix(flag, "instance:")
		switch {
		case flag == "local":
			e.Local = true
		case flag == "draining":
			e.Terminating = true
		case isWeight:
			n, err := parseUint(weight, 1, 65535)
			if err != nil {
				return e, err
			}
			e.Weight = uint32(n)
		case isInstance:
			n, err := parseUint(instance, 1, math.MaxUint32)
			if err != nil {
				return e, err
			}
			e.Instance = uint32(n)
		default:
			return e, fmt.Errorf("%q: want local, draining, weight or instance", flag)
		}
	}
	return e, nil
}

func parsePort(s string) (p ServicePort, err error) {
	var rest string
	if p.Service, rest, err = parseService(s); err != nil {
		return p, err
	}
	rest, ok := strings.CutPrefix(rest, ":")
	if !ok {
		return p, fmt.Errorf("%q: want namespace/name:port/protocol", s)
	}
	if p.Port, rest, err = parseName(rest); err != nil {
		return p, err
	}
	if rest, ok = strings.CutPrefix(rest, "/"); !ok {
		return p, fmt.Errorf("%q: want namespace/name:port/protocol", s)
	}
	p.Proto, err = parseProto(rest)
	return p, err
}

// parseService reads a Service name off the front of a text.
func parseService(s string) (out Service, rest string, err error) {
	if out.Namespace, rest, err = parseName(s); err != nil {
		return out, "", err
	}
	rest, ok := strings.CutPrefix(rest, "/")
	if !ok {
		return out, "", fmt.Errorf("%q: want namespace/name", s)
	}
	out.Name, rest, err = parseName(rest)
	return out, rest, err
}

// parseName reads a name, quoted or not, off the front of a text.
func parseName(s string) (name, rest string, err error) {
	if strings.HasPrefix(s, `"`) {
		q, err := strconv.QuotedPrefix(s)
		if err != nil {
			return "", "", fmt.Errorf("%s: %w", s, err)
		}
		name, err = strconv.Unquote(q)
		return name, s[len(q):], err
	}
	end := strings.IndexFunc(s, func(r rune) bool { return !isNameRune(r) })
	if end < 0 {
		end = len(s)
	}
	return s[:end], s[end:], nil
}

// parseWholeName reads a text that is a name and nothing else.
func parseWholeName(s string) (string, error) {
	name, rest, err := parseName(s)
	if err == nil && rest != "" {
		err = fmt.Errorf("%q follows the name", rest)
	}
	return name, err
}

package ipvs

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/internal/backend"
	"github.com/fairlead/fairlead/internal/backend/backendtest"
	"github.com/fairlead/fairlead/internal/backend/ipvs/ipvssim"
	"github.com/fairlead/fairlead/internal/fwd"
	"github.com/fairlead/fairlead/internal/host/ipset"
	"github.com/fairlead/fairlead/internal/host/ipset/ipsetfake"
	hostipvs "github.com/fairlead/fairlead/internal/host/ipvs"
	"github.com/fairlead/fairlead/internal/host/ipvs/ipvsfake"
	"github.com/fairlead/fairlead/internal/host/link"
	"github.com/fairlead/fairlead/internal/host/link/linkfake"
	"github.com/fairlead/fairlead/internal/host/xtables"
	"github.com/fairlead/fairlead/internal/host/xtables/rulesim"
)

// simulation is a Subject: the backend on a simulated kernel.
type simulation struct {
	header  fwd.Header
	options RenderOptions
	backend backend.Families

	servers ipvsfake.Table
	sets    ipsetfake.Sets
	links   linkfake.Host
	tables  map[fwd.Family]*simTables

	writes, fail int
	foreign      string
	// machines simulate packets; they are rebuilt after the kernel changed.
	machines map[fwd.Family]*ipvssim.Machine
}

// simTables are the tables of one family in the simulated kernel.
type simTables struct {
	rules *rulesim.Ruleset
	sim   *simulation
	// sets are the sets that rules may use.
	sets map[string]bool
	// failReads is the number of reads that will fail.
	failReads int
}

func newSimulation(h fwd.Header, o RenderOptions) *simulation {
	s := &simulation{header: h, options: o, tables: make(map[fwd.Family]*simTables), machines: make(map[fwd.Family]*ipvssim.Machine)}
	s.servers.FailCall = func(method string) error { return s.write(method == "Apply", unix.EBUSY) }
	s.sets.Fail = func(op string) error { return s.write(op != "list", unix.EBUSY) }
	s.links.Fail = func(op string) error { return s.write(op == "ensure" || op == "remove" || op == "apply", unix.EBUSY) }
	for _, f := range fwd.Families {
		t := &simTables{rules: rulesim.New(f), sim: s}
		t.rules.HaveSet = func(name string) bool { return t.sets[name] }
		s.tables[f] = t
	}
	s.links.AddDevice("eth0", link.Device{Up: true})
	for _, a := range h.LocalAddrs {
		s.links.AddForeign(link.Addr{Dev: "eth0", Prefix: hostPrefix(a), Global: a.Is4()})
	}
	s.Restart()
	return s
}

// write counts a write, and fails it if requested.
func (s *simulation) write(writes bool, err error) error {
	if !writes {
		return nil
	}
	clear(s.machines)
	s.writes++
	if s.fail > 0 {
		s.fail--
		return err
	}
	return nil
}

func (t *simTables) Read(_ context.Context, table string) (xtables.Table, error) {
	if t.failReads > 0 {
		t.failReads--
		return nil, errors.New("made to fail")
	}
	return xtables.ParseTable(strings.NewReader(t.rules.Save(table)), table)
}

func (t *simTables) Restore(_ context.Context, input []byte) error {
	transient := &xtables.RestoreError{Stderr: "made to fail", Transient: true, Err: errors.New("exit status 4")}
	failed := t.sim.write(true, transient)
	if failed != nil {
		// A restore may fail after it has written some tables.
		i := strings.Index(string(input), "COMMIT\n")
		if t.sim.fail%2 == 0 || i < 0 {
			return failed
		}
		input = input[:i+len("COMMIT\n")]
	}
	t.sets = make(map[string]bool)
	sets, err := t.sim.sets.List(context.Background(), "")
	if err != nil {
		return err
	}
	for _, c := range sets {
		t.sets[c.Name] = true
	}
	if err := t.rules.Restore(string(input)); err != nil {
		return &xtables.RestoreError{Stderr: err.Error(), Err: errors.New("exit status 1")}
	}
	// Sets that rules use cannot be destroyed.
	uses := make(map[string]int)
	words := strings.Fields(t.rules.Save())
	for i, w := range words {
		if w == "--match-set" {
			uses[words[i+1]]++
		}
	}
	for _, c := range sets {
		if strings.HasPrefix(c.Name, setPrefix(t.rules.Family())) {
			t.sim.sets.Use(c.Name, uses[c.Name])
		}
	}
	return failed
}

func (s *simulation) Backend() backend.Families { return s.backend }
func (s *simulation) Writes() int               { return s.writes }
func (s *simulation) Fail(n int)                { s.fail = n }

func (s *simulation) FailReads(f fwd.Family, n int) { s.tables[f].failReads = n }

func (s *simulation) Restart() backend.Families {
	opts := make(map[fwd.Family]FamilyOptions)
	for f, t := range s.tables {
		opts[f] = FamilyOptions{RenderOptions: s.options, Servers: &s.servers, Sets: &s.sets, Links: &s.links, Tables: t}
	}
	s.backend = New(opts).Families
	return s.backend
}

func (s *simulation) Judge(p fwd.Packet) ([]backendtest.Outcome, error) {
	m, err := s.machine(fwd.FamilyOf(p.Dst.Addr()))
	if err != nil {
		return nil, err
	}
	results, err := m.Rules.Run(m.Host, p)
	return outcomes(results), err
}

func (s *simulation) JudgeMarked(p fwd.Packet, mark uint32) ([]backendtest.Outcome, error) {
	m, err := s.machine(fwd.FamilyOf(p.Dst.Addr()))
	if err != nil {
		return nil, err
	}
	h := m.Host
	h.Mark = mark
	results, err := m.Rules.Run(h, p)
	return outcomes(results), err
}

// machine simulates packets of a family.
func (s *simulation) machine(f fwd.Family) (*ipvssim.Machine, error) {
	if m := s.machines[f]; m != nil {
		return m, nil
	}
	ctx := context.Background()
	m := ipvssim.New(f, s.header.LocalAddrs)
	m.Rules = s.tables[f].rules
	sets, err := s.sets.List(ctx, "")
	if err != nil {
		return nil, err
	}
	for _, c := range sets {
		if c.IPv6 != (f == fwd.IPv6) {
			continue
		}
		set, err := rulesim.NewSet(string(c.Type), f)
		if err != nil {
			return nil, err
		}
		for _, e := range c.Entries {
			if err := set.Add(rulesim.Element{Addr: e.Addr, Proto: fwd.Proto(e.Proto), Port: e.Port, Third: e.Net}); err != nil {
				return nil, err
			}
		}
		m.Host.Sets[c.Name] = set
	}
	content, err := s.servers.Read(ctx)
	if err != nil {
		return nil, err
	}
	for _, v := range content.Servers {
		srv := rulesim.Server{Scheduler: v.Settings.Scheduler}
		for _, r := range v.Reals {
			srv.Reals = append(srv.Reals, rulesim.Real{Addr: r.Addr, Weight: r.Weight})
		}
		m.Host.Servers[rulesim.ServerKey{Proto: fwd.Proto(v.VirtualServer.Protocol), Addr: v.VirtualServer.Addr}] = srv
	}
	if err := s.routing(ctx, f, &m.Host); err != nil {
		return nil, err
	}
	s.machines[f] = m
	return m, nil
}

// routing determines which packets are delivered to the host.
func (s *simulation) routing(ctx context.Context, f fwd.Family, h *rulesim.Host) error {
	addrs, _, err := s.links.Addrs(ctx, Device)
	if err != nil {
		return err
	}
	for _, a := range addrs {
		h.Local = append(h.Local, a.Prefix.Addr())
	}
	routes, err := s.links.Routes(ctx)
	if err != nil {
		return err
	}
	rules, err := s.links.Rules(ctx)
	if err != nil {
		return err
	}
	for _, r := range routes {
		if r.Table == link.LocalTable {
			h.LocalPrefixes = append(h.LocalPrefixes, r.Dst)
			continue
		}
		for _, rule := range rules {
			if rule.Table == r.Table && rule.IPv6 == (f == fwd.IPv6) && r == link.MarkRoute(rule.IPv6, r.Table) {
				h.DivertMark = rule.Mark
			}
		}
	}
	return nil
}

func outcomes(results []rulesim.Result) []backendtest.Outcome {
	out := make([]backendtest.Outcome, len(results))
	for i, r := range results {
		out[i] = backendtest.Outcome{Verdict: r.Verdict, Endpoint: r.Endpoint, Masquerade: r.Masquerade, Source: r.Source, Reset: r.Reset, Probability: r.Probability}
	}
	return out
}

// simOptions converts the options of the renderer to those of Expect.
func simOptions(o RenderOptions) ipvssim.Options {
	return ipvssim.Options{Divert: o.VIPs == VIPMark, Route: o.VIPs == VIPRoute, HairpinBPF: o.HairpinBPF, Exclude: o.Exclude}
}

func (s *simulation) Deviate(t *fwd.Table, p fwd.Packet, lookup []backendtest.Outcome) []backendtest.Outcome {
	want := make([]rulesim.Result, len(lookup))
	for i, o := range lookup {
		want[i] = rulesim.Result{Verdict: o.Verdict, Endpoint: o.Endpoint, Masquerade: o.Masquerade, Source: o.Source, Reset: o.Reset, Probability: o.Probability}
	}
	return outcomes(simOptions(s.options).Expect(t, p, want))
}

// Dump prints what Read returns; Foreign adds objects that must not be in it.
func (s *simulation) Dump() string {
	var b strings.Builder
	for line := range strings.Lines(s.everything()) {
		if !isForeign(line) {
			b.WriteString(line)
		}
	}
	return b.String()
}

// foreignMarks occur in each line of everything about foreign objects or the host itself.
var foreignMarks = []string{"KUBE-", "192.0.2.", "2001:db8:f::", "dev eth0", "device ", ":PREROUTING", ":INPUT", ":FORWARD", ":OUTPUT", ":POSTROUTING", "*", "COMMIT"}

func isForeign(line string) bool {
	return slices.ContainsFunc(foreignMarks, func(m string) bool { return strings.Contains(line, m) })
}

// everything prints all objects of the kernel, sorted if their order does not matter.
func (s *simulation) everything() string {
	var b strings.Builder
	for _, f := range fwd.Families {
		for line := range strings.Lines(s.tables[f].rules.Save()) {
			fmt.Fprintf(&b, "%s %s", f, line)
		}
	}
	return b.String() + s.sets.Dump() + s.servers.Dump() + s.links.Dump()
}

func (s *simulation) Foreign() {
	for _, f := range fwd.Families {
		if err := s.tables[f].rules.Restore(backendtest.ForeignRules); err != nil {
			panic(err)
		}
	}
	s.sets.Load("create KUBE-CLUSTER-IP hash:ip,port family inet hashsize 1024 maxelem 65536\nadd KUBE-CLUSTER-IP 192.0.2.1,tcp:80\n")
	vs := hostipvs.VirtualServer{Protocol: unix.IPPROTO_TCP, Addr: netip.MustParseAddrPort("192.0.2.1:80")}
	s.servers.Put(vs, hostipvs.Settings{Scheduler: "rr"}, hostipvs.RealServer{Addr: netip.MustParseAddrPort("192.0.2.2:80"), Weight: 1})
	s.foreign = s.foreignText()
}

func (s *simulation) foreignText() string {
	var b strings.Builder
	for line := range strings.Lines(s.everything()) {
		if isForeign(line) && !strings.Contains(line, "device "+Device) {
			b.WriteString(line)
		}
	}
	return b.String()
}

func (s *simulation) ForeignIntact() error { return backendtest.Unchanged(s.foreign, s.foreignText()) }

// Drift changes something as another program would.
func (s *simulation) Drift(r *rand.Rand) string {
	clear(s.machines)
	f := fwd.Families[r.IntN(2)]
	ctx := context.Background()
	content, err := s.servers.Read(ctx)
	if err != nil {
		panic(err)
	}
	own := slices.DeleteFunc(content.Servers, func(v hostipvs.Server) bool { return v.Settings.Flags&flagTag == 0 })
	if len(own) == 0 {
		return ""
	}
	v := own[r.IntN(len(own))]
	reals := make([]hostipvs.RealServer, len(v.Reals))
	for i, r := range v.Reals {
		reals[i] = r.RealServer
	}
	stranger := hostipvs.RealServer{Addr: netip.AddrPortFrom(v.VirtualServer.Addr.Addr(), 9), Weight: 3}
	switch r.IntN(8) {
	case 0:
		v.Settings.Scheduler = "lblc"
		s.servers.Put(v.VirtualServer, v.Settings, reals...)
		return "other scheduler of " + v.VirtualServer.String()
	case 1:
		s.servers.Put(v.VirtualServer, v.Settings, append(reals, stranger)...)
		return "real server added to " + v.VirtualServer.String()
	case 2:
		if len(reals) > 0 {
			reals[0].Weight += 7
			s.servers.Put(v.VirtualServer, v.Settings, reals...)
		}
		return "other weight in " + v.VirtualServer.String()
	case 3:
		s.servers.Flush()
		return "no virtual servers"
	case 4:
		addrs, _, err := s.links.Addrs(ctx, Device)
		if err != nil || len(addrs) == 0 {
			return ""
		}
		a := addrs[r.IntN(len(addrs))]
		s.links.Lose(a)
		return "lost " + a.String()
	case 5:
		sets, err := s.sets.List(ctx, setPrefix(f))
		if err != nil {
			panic(err)
		}
		sets = slices.DeleteFunc(sets, func(c ipset.Content) bool { return len(c.Entries) == 0 })
		if len(sets) == 0 {
			return ""
		}
		c := sets[r.IntN(len(sets))]
		e := c.Entries[r.IntN(len(c.Entries))]
		if _, err := s.sets.Apply(ctx, []ipset.Change{{Set: c.Set, Entry: e, Del: true}}); err != nil {
			panic(err)
		}
		return fmt.Sprintf("%v deleted from %s", e, c.Name)
	}
	how := []string{"-F " + chainServices, "-F PREROUTING", "-A " + chainFromPod + " -j RETURN", "-I OUTPUT -j " + chainServices}[r.IntN(4)]
	if err := s.tables[f].rules.Restore("*nat\n" + how + "\nCOMMIT\n"); err != nil {
		panic(err)
	}
	return fmt.Sprintf("%s nat %s", f, how)
}

func TestConformance(t *testing.T) {
	t.Parallel()
	backendtest.Run(t, func(_ testing.TB, h fwd.Header) backendtest.Subject {
		return newSimulation(h, RenderOptions{HairpinBPF: true, RandomFully: true})
	})
}

func TestConformanceOfVariants(t *testing.T) {
	for name, o := range map[string]RenderOptions{
		"mark": {VIPs: VIPMark}, // without anything optional
		"route": {VIPs: VIPRoute, HairpinBPF: true, RandomFully: true, NodeIP: netip.MustParseAddr("192.168.7.10"), Exclude: []netip.Prefix{
			netip.MustParsePrefix("10.96.0.32/27"), netip.MustParsePrefix("203.0.113.80/32"), netip.MustParsePrefix("fd00:99::/125")}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			backendtest.RunBriefly(t, func(_ testing.TB, h fwd.Header) backendtest.Subject { return newSimulation(h, o) })
		})
	}
}

package ipvs

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/internal/backend"
	"github.com/fairlead/fairlead/internal/fwd"
	"github.com/fairlead/fairlead/internal/host/conntrack"
	"github.com/fairlead/fairlead/internal/host/ipset"
	hostipvs "github.com/fairlead/fairlead/internal/host/ipvs"
	"github.com/fairlead/fairlead/internal/host/link"
	"github.com/fairlead/fairlead/internal/host/xtables"
	"github.com/fairlead/fairlead/internal/instance"
)

// Options are what the operator decides.
type Options struct {
	// Instance is whose objects these are.
	Instance instance.ID
	// NodeName decides in which order this node adds endpoints.
	NodeName string
	// VIPs says how packets to VIPs come to be delivered to this node.
	VIPs VIPMode
	// Scheduler is the kernel's name of the scheduler for Services that name none.
	Scheduler string
	// Exclude are networks whose addresses are other programs' business.
	Exclude []netip.Prefix
	// NodeIP is, by fwd.Family.Index, the node's source address towards VIPs in mode VIPRoute; it may be the zero Addr.
	NodeIP [2]netip.Addr
	// Timeouts are set where they are not 0.
	Timeouts hostipvs.Timeouts
	// DrainTimeout is how long a removed real server may keep its connections; 0 stands for the kernel's TCP time-out.
	DrainTimeout time.Duration
	// StrictARP keeps the node from answering ARP requests for VIPs on other interfaces.
	StrictARP bool
	// Warn tells users about a Service; nil if there is nobody to tell.
	Warn func(s fwd.Service, reason, message string)
}

// Plane is a Backend on this node's kernel, with what belongs to it.
type Plane struct {
	*Backend
	// Flavour is the one of iptables that is in use.
	Flavour xtables.Flavour
	// Drift receives when something that the backend wrote may have been changed by others.
	Drift backend.Hints
	// Listen is to be called once for each family, when everything was written for the first time: from then on changes of
	// rules are noticed. Those of addresses and routes are noticed at once, those of virtual servers and sets by Run.
	Listen func(fwd.Family)

	sweeper *sweeper
	looker  *looker
}

// Run removes connection-tracking entries from before their virtual server, and looks whether others have changed virtual
// servers or sets, until the context ends.
func (p *Plane) Run(ctx context.Context) {
	var both sync.WaitGroup
	both.Go(func() { p.sweeper.run(ctx) })
	both.Go(func() { p.looker.run(ctx) })
	both.Wait()
}

// Open prepares this node's kernel and returns a Backend on it, for the families that kernel and tools offer; at least
// one. The error says what is missing and what to do.
func Open(ctx context.Context, log *slog.Logger, o Options) (*Plane, error) {
	servers, err := hostipvs.Open(ctx)
	if err != nil {
		return nil, err
	}
	if err := servers.ProbeScheduler(ctx, o.Scheduler); err != nil {
		if errors.Is(err, unix.ENOENT) {
			return nil, fmt.Errorf("the kernel has no IPVS scheduler %q: load the module ip_vs_%s, or choose another with --ipvs-scheduler (%w)", o.Scheduler, o.Scheduler, err)
		}
		return nil, err
	}
	sets, err := ipset.Open()
	if err != nil {
		return nil, fmt.Errorf("the kernel has no ipset: load the module ip_set (%w)", err)
	}
	links, err := link.Open(o.Instance.Routing())
	if err != nil {
		return nil, err
	}
	if _, err := links.EnsureDummy(ctx, o.Instance.Device()); err != nil {
		return nil, fmt.Errorf("the device of VIPs cannot be made: load the module dummy, and let no other device have the name (%w)", err)
	}
	if err := setSysctls(log, o.StrictARP); err != nil {
		return nil, err
	}
	t, err := setTimeouts(ctx, servers, o.Timeouts)
	if err != nil {
		return nil, err
	}
	p := &Plane{sweeper: newSweeper(conntrack.Kernel{}, log)}
	common := FamilyOptions{
		Servers: servers, Sets: sets, Links: links, Stale: p.sweeper.submit, Seed: seed(o.NodeName),
		FinTimeout: t.TCPFin, DrainTimeout: t.TCP, Warn: o.Warn, Logger: log,
	}
	if o.DrainTimeout > 0 {
		common.DrainTimeout = o.DrainTimeout
	}
	common.RenderOptions = RenderOptions{Instance: o.Instance, VIPs: o.VIPs, Scheduler: o.Scheduler, Exclude: o.Exclude}
	opts, kernel, err := openFamilies(ctx, log, p, common, o)
	if err != nil {
		return nil, err
	}
	if o.VIPs == VIPMark {
		if err := beginNarrow(ctx, o.Instance, links, servers, opts); err != nil {
			return nil, err
		}
	}
	p.Backend, p.Drift = New(opts), backend.NewHints()
	lost, err := links.WatchLoss(ctx, o.Instance.Device())
	if err != nil {
		return nil, err
	}
	go func() {
		for range lost {
			for f := range opts {
				p.Drift.Send(backend.Drift{Family: f, What: "addresses, routes or routing rules"})
			}
		}
	}()
	p.Listen = func(f fwd.Family) {
		err := kernel[f].Watch(ctx, tables, o.Instance.Prefix(), func(table, process string) {
			p.Drift.Send(backend.Drift{Family: f, What: "table " + table, Process: process})
		})
		if err != nil {
			log.Warn("what others do to the rules is not noticed before the next verification", "family", f.String(), "error", err)
		}
	}
	p.looker = newLooker(servers, sets.Sizes, p.targets(), p.Drift)
	if size, err := servers.ConnTableSize(ctx); err == nil {
		log.Info("using IPVS", "scheduler", o.Scheduler, "vips", o.VIPs.String(), "connectionBuckets", size, "tcpTimeout", t.TCP, "finTimeout", t.TCPFin,
			"udpTimeout", t.UDP, "drainTimeout", common.DrainTimeout)
	}
	return p, nil
}

// beginNarrow lets those families begin with a narrow table that have no other, for there another mode may serve until now.
func beginNarrow(ctx context.Context, id instance.ID, links link.Host, servers hostipvs.Interface, opts map[fwd.Family]FamilyOptions) error {
	routes, err := links.Routes(ctx)
	if err != nil {
		return err
	}
	for f, o := range opts {
		if wide(id, routes, f) {
			continue
		}
		if err := narrowServers(ctx, id, links, servers, f); err != nil {
			return err
		}
		o.Narrow = true
		opts[f] = o
	}
	return nil
}

// seed is a number of the node's own.
func seed(node string) uint64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(node))
	return h.Sum64()
}

// setTimeouts sets what is not 0, and returns what is in force.
func setTimeouts(ctx context.Context, servers hostipvs.Interface, t hostipvs.Timeouts) (hostipvs.Timeouts, error) {
	have, err := servers.Timeouts(ctx)
	if err != nil {
		return have, err
	}
	want := have
	for _, p := range []struct{ to, from *time.Duration }{{&want.TCP, &t.TCP}, {&want.TCPFin, &t.TCPFin}, {&want.UDP, &t.UDP}} {
		if *p.from > 0 {
			*p.to = *p.from
		}
	}
	if want == have {
		return have, nil
	}
	return want, servers.SetTimeouts(ctx, want)
}

// openFamilies finds the flavour of iptables and the families that can be used.
func openFamilies(ctx context.Context, log *slog.Logger, p *Plane, common FamilyOptions, o Options) (map[fwd.Family]FamilyOptions, map[fwd.Family]*xtables.Tables, error) {
	detected, why, err := xtables.Detect(ctx, xtables.Host{})
	if err != nil {
		return nil, nil, err
	}
	flavours := []xtables.Flavour{detected}
	for _, fl := range []xtables.Flavour{xtables.NFT, xtables.Legacy} {
		if fl != detected && detected != xtables.Plain {
			flavours = append(flavours, fl)
		}
	}
	var errs []error
	for _, fl := range flavours {
		if fl != detected { // a kernel may let a userland read tables that it cannot write
			why = fmt.Sprintf("the kernel does not take the rules from %s", detected)
		}
		p.Flavour = fl
		opts, kernel, failed := openFlavour(ctx, fl, common, o)
		if len(opts) == 0 {
			errs = append(errs, failed...)
			continue
		}
		for _, err := range failed {
			log.Warn("one address family is left out", "error", err)
		}
		for _, f := range fwd.Families {
			if fo, ok := opts[f]; ok {
				log.Info("using iptables", "family", f.String(), "flavour", string(fl), "why", why, "hairpinByBPF", fo.HairpinBPF, "randomFully", fo.RandomFully, "chains", o.Instance.Prefix())
			}
		}
		return opts, kernel, nil
	}
	return nil, nil, errors.Join(errs...)
}

// openFlavour finds the families that can be used with a flavour.
func openFlavour(ctx context.Context, fl xtables.Flavour, common FamilyOptions, o Options) (opts map[fwd.Family]FamilyOptions, kernel map[fwd.Family]*xtables.Tables, failed []error) {
	opts, kernel = make(map[fwd.Family]FamilyOptions), make(map[fwd.Family]*xtables.Tables)
	for _, f := range fwd.Families {
		if f == fwd.IPv6 && !link.HasIPv6() {
			failed = append(failed, fmt.Errorf("%s: the kernel does not speak it", f))
			continue
		}
		tables, err := xtables.New(fl, f == fwd.IPv6)
		if err == nil {
			err = tables.Usable(ctx)
		}
		var bpf bool
		if err == nil {
			bpf, err = tryKernel(ctx, f, tables, common.Sets, o.Instance)
		}
		if err != nil {
			failed = append(failed, fmt.Errorf("%s, iptables %s: %w", f, fl, err))
			continue
		}
		fo := common
		fo.Tables, fo.HairpinBPF, fo.RandomFully, fo.NodeIP = tables, bpf, tables.RandomFully(), o.NodeIP[f.Index()]
		opts[f], kernel[f] = fo, tables
	}
	return opts, kernel, failed
}

// tryKernel says whether the kernel has what the rules need, and xt_bpf beside. One that holds the rules of an earlier run has
// it, and is not written to.
func tryKernel(ctx context.Context, f fwd.Family, tables *xtables.Tables, sets ipset.Sets, id instance.ID) (bpf bool, err error) {
	if len(tables.Rules(ctx, tableMangle, names(id).Name(chainGuard))) > 0 {
		if rules := tables.Rules(ctx, tableNAT, names(id).Name(chainPostrouting)); len(rules) > 0 {
			return strings.Contains(strings.Join(rules, "\n"), "-m bpf "), nil
		}
	}
	return probe(ctx, f, xtables.Exchanged(tables, names(id)), ipset.Renamed(sets, names(id).Name))
}

// probeName is the chain and the set that a probe makes.
const probeName = chainPrefix + "PROBE"

// probe tries what the rules need, and leaves nothing. bpf says that there is xt_bpf, which they can do without; the error names
// what is missing.
func probe(ctx context.Context, f fwd.Family, tables xtables.Interface, sets ipset.Sets) (bpf bool, err error) {
	if err := sets.Destroy(ctx, probeName); err != nil && !errors.Is(err, ipset.ErrNoSet) { // left by one that was cut off
		return false, err
	}
	for _, typ := range []ipset.Type{ipset.HashIPPortNet, ipset.HashIPPortIP, ipset.HashIP, ipset.HashIPPort} {
		s := ipset.Set{Name: probeName, Type: typ, IPv6: f == fwd.IPv6, MaxElem: ipset.DefaultMaxElem}
		if err := sets.Create(ctx, s); err != nil {
			return false, fmt.Errorf("the kernel has no sets of type %s: load the modules ip_set and ip_set_hash_* (%w)", typ, err)
		}
		if typ == ipset.HashIPPort {
			break // the rules ask it
		}
		if err := sets.Destroy(ctx, probeName); err != nil {
			return false, err
		}
	}
	ctx = context.WithoutCancel(ctx)
	defer func() { err = errors.Join(err, sets.Destroy(ctx, probeName)) }()
	lacking, err := xtables.Lacking(ctx, tables, probeName, needs)
	if err != nil {
		return false, err
	}
	for _, n := range needs {
		if why := lacking[n]; why != nil && n != xtables.NeedBPF {
			return false, fmt.Errorf("iptables cannot write %q into table %s: load the module %s (%w)", n.Rule, n.Table, n.Module, why)
		}
	}
	return lacking[xtables.NeedBPF] == nil, nil
}

// needs are sorted by table, as in a restore.
var needs = []xtables.Need{
	{Table: tableMangle, Rule: "-m set --match-set " + probeName + " dst,dst -j RETURN", Module: "xt_set"},
	{Table: tableNAT, Rule: "-m set --match-set " + probeName + " dst,dst -j RETURN", Module: "xt_set"},
	xtables.NeedBPF,
	{Table: tableFilter, Rule: "-m ipvs --vmethod MASQ --vdir ORIGINAL -j RETURN", Module: "xt_ipvs"},
	{Table: tableFilter, Rule: "-m addrtype --src-type LOCAL -j RETURN", Module: "xt_addrtype"},
	{Table: tableFilter, Rule: "-m conntrack --ctstate NEW -j RETURN", Module: "xt_conntrack"},
}

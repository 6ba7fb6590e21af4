package main

import (
	"context"
	"fmt"
	"io"

	"github.com/fairlead/fairlead/internal/backend/iptables"
	"github.com/fairlead/fairlead/internal/config"
	"github.com/fairlead/fairlead/internal/fwd"
	"github.com/fairlead/fairlead/internal/host/xtables"
	"github.com/fairlead/fairlead/internal/instance"
	"github.com/fairlead/fairlead/internal/metrics"
)

var iptablesMode = mode{
	metrics: metrics.Mode{
		Name: string(config.ModeIPTables), FullAndPartial: true,
		WriteFailures:   "kubeproxy_sync_proxy_rules_iptables_restore_failures_total",
		PartialFailures: "kubeproxy_sync_proxy_rules_iptables_partial_restore_failures_total",
	},
	open:      openIPTables,
	render:    renderIPTables,
	leftovers: iptablesLeftovers,
	retire:    retireIPTables,
}

func openIPTables(ctx context.Context, s setup) (*dataplane, error) {
	p, err := iptables.Open(ctx, s.log, s.id(), dropInvalid(s.log))
	if err != nil {
		return nil, err
	}
	narrowIPVS(ctx, s)
	out := &dataplane{Families: p.Families, iptables: string(p.Flavour), finder: p.Found, drift: p.Drift, written: p.Listen}
	out.metrics = func(m *metrics.Monitor) { registerRuleCounts(m, p.Rules) }
	out.verified = func(_ context.Context, f fwd.Family) { openLoopback(s.cfg, f, s.log) }
	out.init = func(ctx context.Context) error { return guardLoopback(ctx, s, p.Families[fwd.IPv4.Index()]) }
	return out, nil
}

func renderIPTables(w io.Writer, cfg *config.Config, f fwd.Family, t *fwd.Table) error {
	o := iptables.FamilyOptions{Instance: instance.Of(cfg.ServiceProxyName), HairpinBPF: true, RandomFully: true, DropInvalid: true}
	return iptables.Render(w, f, o, t)
}

// registerRuleCounts registers kube-proxy's metrics of the number of rules.
func registerRuleCounts(m *metrics.Monitor, rules func() []iptables.RuleCount) {
	read := func(value func(iptables.RuleCount) int) func(metrics.Emit) {
		return func(e metrics.Emit) {
			for _, c := range rules() {
				e(float64(value(c)), c.Table.String(), c.Family.String())
			}
		}
	}
	m.Gauge("kubeproxy_sync_proxy_rules_iptables_total", "Rules of Fairlead in the kernel.",
		read(func(c iptables.RuleCount) int { return c.Total }), "table", "ip_family")
	m.Gauge("kubeproxy_sync_proxy_rules_iptables_last", "Rules that the last sync wrote.",
		read(func(c iptables.RuleCount) int { return c.Last }), "table", "ip_family")
}

// iptablesLeftovers finds the chains of modes iptables and ipvs.
func iptablesLeftovers(ctx context.Context, o leftoverOptions) (out []leftover, closeAll func(), err error) {
	found, err := iptables.Leftovers(ctx)
	for _, l := range found {
		out = append(out, leftover{l.Instance, l.Family, fmt.Sprintf("%d chains of iptables, %s", l.Chains, l.Flavour), func(ctx context.Context) error {
			closeLoopback(ctx, l, o.log)
			return l.Remove(ctx)
		}})
	}
	return out, func() {}, err
}

func retireIPTables(ctx context.Context, s setup, inUse *dataplane, f fwd.Family) {
	before := func(l iptables.Leftover) { closeLoopback(ctx, l, s.log) }
	if inUse.mode == string(config.ModeIPTables) {
		before = nil // node ports on loopback addresses are served as before
	}
	iptables.RemoveOthers(ctx, s.id(), xtables.Flavour(inUse.iptables), f, before, s.log)
}

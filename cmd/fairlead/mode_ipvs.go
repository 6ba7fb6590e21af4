package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"time"

	"github.com/fairlead/fairlead/internal/backend/iptables"
	"github.com/fairlead/fairlead/internal/backend/ipvs"
	"github.com/fairlead/fairlead/internal/cluster"
	"github.com/fairlead/fairlead/internal/config"
	"github.com/fairlead/fairlead/internal/fwd"
	hostipvs "github.com/fairlead/fairlead/internal/host/ipvs"
	"github.com/fairlead/fairlead/internal/instance"
	"github.com/fairlead/fairlead/internal/metrics"
)

var ipvsMode = mode{
	metrics:   metrics.Mode{Name: string(config.ModeIPVS), WriteFailures: "kubeproxy_sync_proxy_rules_iptables_restore_failures_total"},
	open:      openIPVS,
	render:    renderIPVS,
	leftovers: ipvsLeftovers,
	retire:    retireIPVS,
	localVIPs: func(cfg *config.Config) bool { return cfg.IPVS.VIP != config.VIPMark },
	draining:  ipvsDraining,
}

func openIPVS(ctx context.Context, s setup) (*dataplane, error) {
	cfg := s.cfg
	vips, err := ipvs.ParseVIPMode(string(cfg.IPVS.VIP))
	if err != nil {
		return nil, fmt.Errorf("--ipvs-vip: %w", err)
	}
	o := ipvs.Options{
		Instance: s.id(), NodeName: cfg.NodeName, VIPs: vips, Scheduler: cfg.IPVS.Scheduler, Exclude: cfg.IPVS.ExcludeCIDRs,
		Timeouts:     hostipvs.Timeouts{TCP: cfg.IPVS.TCPTimeout, TCPFin: cfg.IPVS.TCPFinTimeout, UDP: cfg.IPVS.UDPTimeout},
		DrainTimeout: cfg.IPVS.DrainTimeout, StrictARP: cfg.IPVS.StrictARP, Warn: s.warn,
	}
	for _, f := range fwd.Families {
		o.NodeIP[f.Index()] = ipvsNodeIP(cfg, f)
	}
	p, err := ipvs.Open(ctx, s.log, o)
	if err != nil {
		return nil, err
	}
	// The rules of mode iptables are removed when those of this mode are written, and with them the
	// guard of loopback addresses.
	if loopbackOpen() {
		left, err := iptables.Leftovers(ctx, fwd.IPv4)
		if err != nil {
			s.log.Debug("cannot read all flavours of iptables", "error", err)
		}
		for _, l := range left {
			if l.Instance == s.id() {
				closeLoopback(ctx, l, s.log)
			}
		}
	}
	out := &dataplane{Families: p.Families, iptables: string(p.Flavour), drift: p.Drift, run: p.Run, written: p.Listen}
	out.metrics = func(m *metrics.Monitor) { registerDraining(m, p.Draining) }
	out.verified = func(ctx context.Context, f fwd.Family) {
		if err := p.Widen(ctx, f); err != nil {
			s.log.Warn("cannot add the route for marked packets, they are still routed by the addresses of virtual servers", "family", f.String(), "error", err)
		}
	}
	return out, nil
}

// ipvsNodeIP returns the source address of this node towards virtual IPs; the zero Addr if there is
// none.
func ipvsNodeIP(cfg *config.Config, f fwd.Family) netip.Addr {
	if a := cfg.PrimaryIP(cluster.Node{}, f); !a.IsLoopback() {
		return a
	}
	return netip.Addr{}
}

func renderIPVS(w io.Writer, cfg *config.Config, f fwd.Family, t *fwd.Table) error {
	vips, err := ipvs.ParseVIPMode(string(cfg.IPVS.VIP))
	if err != nil {
		return fmt.Errorf("--ipvs-vip: %w", err)
	}
	o := ipvs.RenderOptions{Instance: instance.Of(cfg.ServiceProxyName), VIPs: vips, Scheduler: cfg.IPVS.Scheduler, Exclude: cfg.IPVS.ExcludeCIDRs,
		HairpinBPF: true, RandomFully: true, NodeIP: ipvsNodeIP(cfg, f)}
	return ipvs.Render(w, f, o, t)
}

// registerDraining registers the metrics of destinations that drain.
func registerDraining(m *metrics.Monitor, draining func() [2]ipvs.Draining) {
	each := func(emit func(d ipvs.Draining, family string, e metrics.Emit)) func(metrics.Emit) {
		return func(e metrics.Emit) {
			for i, d := range draining() {
				emit(d, fwd.Families[i].String(), e)
			}
		}
	}
	m.Gauge("fairlead_ipvs_draining_destinations", "Destinations that get no new connections and wait until the old ones end, by reason.",
		each(func(d ipvs.Draining, family string, e metrics.Emit) {
			for reason, n := range d.Count {
				e(float64(n), family, ipvs.Reason(reason).String())
			}
		}), "ip_family", "reason")
	m.Gauge("fairlead_ipvs_draining_connections", "Connections to destinations that drain.",
		each(func(d ipvs.Draining, family string, e metrics.Emit) { e(float64(d.Connections), family) }), "ip_family")
	m.Gauge("fairlead_ipvs_draining_objects",
		"Objects that are still to be removed from the kernel: destinations that drain, their virtual servers, addresses and set elements.",
		each(func(d ipvs.Draining, family string, e metrics.Emit) { e(float64(d.Objects), family) }), "ip_family")
	m.Gauge("fairlead_ipvs_draining_oldest_seconds", "Time for which the oldest destination has been draining.",
		each(func(d ipvs.Draining, family string, e metrics.Emit) { e(d.Oldest.Seconds(), family) }), "ip_family")
}

// ipvsLeftovers finds everything of mode ipvs except its chains in tables nat and filter, which
// iptablesLeftovers finds.
func ipvsLeftovers(ctx context.Context, o leftoverOptions) (out []leftover, closeAll func(), err error) {
	found, closeAll, err := ipvs.Leftovers(ctx, o.exclude, o.instances...)
	for _, l := range found {
		what := fmt.Sprintf("%d virtual servers, %d local addresses, %d sets, %d chains of table mangle and %d other objects of mode ipvs",
			l.Servers, l.VIPs, l.Sets, l.Chains, l.Other)
		out = append(out, leftover{l.Instance, l.Family, what, l.Remove})
	}
	return out, closeAll, err
}

// narrowIPVS keeps what --ipvs-vip=mark left from delivering packets to this node that another mode
// has already translated.
func narrowIPVS(ctx context.Context, s setup) {
	if err := ipvs.Narrow(ctx, s.id()); err != nil {
		s.log.Warn("cannot limit the routes that mode ipvs left, new connections may fail until they are removed", "error", err)
	}
}

// retireTimeout is how long connections through virtual servers are kept after a change of modes:
// the kernel's own timeout of a connection without packets.
const retireTimeout = 15 * time.Minute

// retireIPVS removes what mode ipvs left when its connections have ended. That takes time, so that
// it happens in the background. If the process ends first, the next one goes on.
func retireIPVS(ctx context.Context, s setup, inUse *dataplane, f fwd.Family) {
	if inUse.mode == string(config.ModeIPVS) {
		return
	}
	s.spawn("removal of mode ipvs, "+f.String(), func() error {
		left, closeAll, err := ipvs.Leftovers(ctx, s.cfg.IPVS.ExcludeCIDRs, s.id())
		defer closeAll()
		errs := []error{err}
		for _, l := range left {
			if l.Family != f {
				continue
			}
			s.log.Info("removing what mode ipvs left, as soon as its connections have ended", "family", f.String(), "virtualServers", l.Servers, "vips", l.VIPs)
			err := l.Retire(ctx, cmp.Or(s.cfg.IPVS.DrainTimeout, retireTimeout))
			if err == nil {
				s.log.Info("removed what mode ipvs left", "family", f.String())
			}
			errs = append(errs, err)
		}
		if err := errors.Join(errs...); err != nil && ctx.Err() == nil {
			s.log.Warn("cannot remove what mode ipvs left, virtual servers may stay in force", "family", f.String(), "error", err)
		}
		return nil
	})
}

func ipvsDraining(ctx context.Context, p fwd.Packet) (notes []string, err error) {
	reals, err := ipvs.DrainingAt(ctx, p.Proto, p.Dst)
	for _, r := range reals {
		notes = append(notes, fmt.Sprintf("on this machine %s drains: %d established and %d other connections stay until they end", r.Addr, r.Active, r.Inactive))
	}
	return notes, err
}

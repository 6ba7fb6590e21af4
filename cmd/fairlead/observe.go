package main

import (
	"context"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/fairlead/fairlead/internal/cluster"
	"github.com/fairlead/fairlead/internal/config"
	"github.com/fairlead/fairlead/internal/fwd"
	"github.com/fairlead/fairlead/internal/health"
	"github.com/fairlead/fairlead/internal/kube"
	"github.com/fairlead/fairlead/internal/localport"
	"github.com/fairlead/fairlead/internal/metrics"
	"github.com/fairlead/fairlead/internal/reconcile"
	"github.com/fairlead/fairlead/internal/staleflow"
)

// observers learn from the loop what happens, and show it to load balancers, the kubelet,
// Prometheus and people.
type observers struct {
	health   *health.State
	checks   *health.Checks
	metrics  *metrics.Monitor
	recorder *kube.Recorder
	// programmed, if not nil, is called whenever the kernel was found complete, once it was in all
	// families.
	programmed func()
	// driftReported is, by fwd.Family.Index, when the last Event about drift was made. Only the
	// loop's goroutine uses it.
	driftReported [2]time.Time
}

func newObservers(d *daemon) *observers {
	o := &observers{recorder: d.recorder}
	mo := metrics.Options{Mode: d.mode.metrics, Version: version(), Backlog: d.feed.Backlog}
	ho := health.Options{SyncPeriod: d.cfg.SyncPeriod, Backlog: d.feed.Backlog, Notes: d.notes}
	if d.api != nil {
		mo.APIServer, mo.Watches, ho.Watches, o.programmed = d.api.Host(), d.api.Watches, d.api.Watches, d.api.Programmed
	}
	o.metrics = metrics.New(mo)
	kube.ReportRequests(o.metrics)
	registerKubeProxy(o.metrics, &d.kubeProxyPresent)
	if d.cfg.LocalPorts() != [2]bool{} {
		registerLocalPorts(o.metrics, d.local.Stats)
	}
	ho.Answered = o.metrics.Answered
	o.health = health.NewState(ho)
	o.checks = health.NewChecks(health.ChecksOptions{Node: d.cfg.NodeName, Healthy: o.health.Fresh, Warn: o.Warn, Log: d.log})
	return o
}

// opened completes the observers with what is known when the dataplane is open.
func (o *observers) opened(p *dataplane) {
	o.health.SetServed(p.Served())
	o.metrics.SetServed(p.Served())
	if p.metrics != nil {
		p.metrics(o.metrics)
	}
}

// registerKubeProxy registers the metric of a kube-proxy on the node.
func registerKubeProxy(m *metrics.Monitor, present *atomic.Bool) {
	m.Gauge("fairlead_kube_proxy_present", "Whether a kube-proxy, or anything that one wrote, is on the node.", func(e metrics.Emit) {
		if present.Load() {
			e(1)
		} else {
			e(0)
		}
	})
}

// registerLocalPorts registers the metrics of node ports on loopback addresses.
func registerLocalPorts(m *metrics.Monitor, stats func() localport.Stats) {
	each := func(value func(localport.Stats, int) int) func(metrics.Emit) {
		return func(e metrics.Emit) {
			s := stats()
			for i, f := range fwd.Families {
				e(float64(value(s, i)), f.String())
			}
		}
	}
	m.Gauge("kubeproxy_nftables_localhost_nodeport_listeners", "Node ports with a listener on a loopback address.",
		each(func(s localport.Stats, i int) int { return s.Listeners[i] }), "ip_family")
	m.Counter("kubeproxy_nftables_localhost_nodeport_listener_creation_failures_total", "Failed attempts to listen on a loopback address.",
		each(func(s localport.Stats, i int) int { return int(s.BindFailures[i]) }), "ip_family")
	m.Counter("fairlead_localhost_nodeport_accepted_total", "Connections to node ports on loopback addresses that were accepted.",
		each(func(s localport.Stats, i int) int { return int(s.Accepted[i]) }), "ip_family")
	m.Counter("fairlead_localhost_nodeport_refused_total", "Connections to node ports on loopback addresses that were reset at once: too many, or not from a loopback address.",
		each(func(s localport.Stats, i int) int { return int(s.Refused[i]) }), "ip_family")
	m.Counter("fairlead_localhost_nodeport_dial_failures_total", "Connections to node ports on loopback addresses that were reset because the endpoint did not respond.",
		each(func(s localport.Stats, i int) int { return int(s.DialFailures[i]) }), "ip_family")
	m.Gauge("fairlead_localhost_nodeport_connections", "Open connections to node ports on loopback addresses.",
		func(e metrics.Emit) { e(float64(stats().Connections)) })
}

// notes are the sentences that /readyz shows.
func (d *daemon) notes() (out []string) {
	if d.api != nil {
		if why := d.api.NodeProblem(); why != "" {
			out = append(out, why)
		}
		out = append(out, d.api.Outage()...)
	}
	if d.kubeProxyPresent.Load() {
		out = append(out, "a kube-proxy, or rules of one, are on this node: stop it, then run fairlead cleanup --kube-proxy")
	}
	return out
}

// serve starts the servers of the configuration.
func (d *daemon) serve(ctx context.Context) error {
	o := d.observers
	d.group.run("health-check node ports", func() error { o.checks.Run(ctx); return nil })
	d.serveHealth(ctx, d.cfg.BindAddressHardFail)
	if a := d.cfg.MetricsAddress; a.IsValid() {
		so := metrics.ServerOptions{
			Configz: func() any { return d.settings.current.Load().Configz() }, Flagz: func() map[string]string { return d.settings.current.Load().Flagz() },
			Profiling: d.cfg.EnableProfiling, SetVerbosity: func(v int) { d.level.Set(slog.Level(-v)) }, Auth: d.cfg.MetricsAuth, Log: d.log,
		}
		if d.api != nil && d.cfg.MetricsAuth {
			reviewer, err := d.api.Reviewer()
			if err != nil {
				return err
			}
			so.Reviewer = reviewer
		}
		s := health.Server{Name: "metrics", Flag: "--metrics-bind-address", Addr: a, Handler: o.metrics.Handler(so), HardFail: d.cfg.BindAddressHardFail,
			Failed: d.bindFailed("FailedToStartMetricServer"), Log: d.log}
		d.group.run("metrics server", func() error { return s.Run(ctx) })
	}
	d.recorder.Node(false, "Starting", "fairlead "+version()+" starts in mode "+d.mode.metrics.Name) // kube-proxy's reason
	return nil
}

// serveHealth starts the health server, once.
func (d *daemon) serveHealth(ctx context.Context, hardFail bool) {
	a := d.cfg.HealthzAddress
	if d.healthServed || !a.IsValid() {
		return
	}
	d.healthServed = true
	s := health.Server{Name: "health", Flag: "--healthz-bind-address", Addr: a, Handler: d.observers.health.Handler(), HardFail: hardFail,
		Failed: d.bindFailed("FailedToStartProxierHealthcheck"), Log: d.log}
	d.group.run("health server", func() error { return s.Run(ctx) })
}

// standby says that another process works on the node and this one waits, and why; an empty note
// ends that.
func (d *daemon) standby(ctx context.Context, note string) {
	d.observers.health.SetStandby(note)
	if note != "" {
		d.serveHealth(ctx, false) // the other process has the port until it ends
	}
}

// bindFailed makes an Event on the node, with one of kube-proxy's reasons.
func (d *daemon) bindFailed(reason string) func(error) {
	return func(err error) { d.recorder.Node(true, reason, err.Error()) }
}

// flowsSearched counts a search for stale connection-tracking entries.
func (o *observers) flowsSearched(p staleflow.Pass) {
	deleted := make(map[string]int, len(p.Deleted))
	for r, n := range p.Deleted {
		deleted[staleflow.Reason(r).String()] = n
	}
	o.metrics.FlowsSearched(p.Family, p.Duration, deleted, p.Err)
}

// Warn implements reconcile.Events.
func (o *observers) Warn(s fwd.Service, reason, message string) {
	o.recorder.Service(s, true, reason, message)
}

// The methods below implement reconcile.Monitor.

func (o *observers) Queued(since time.Time) {
	o.health.Queued(since)
	o.metrics.Queued(since)
}

func (o *observers) Synced(s reconcile.Sync) {
	var tried, failed [2]bool
	for i, part := range s.Families {
		tried[i], failed[i] = part.Tried, part.Failed
	}
	o.health.Synced(s.Start, s.End, tried, failed, s.Quarantined)
	o.metrics.Synced(s)
	o.reportDrift(s)
}

func (o *observers) Verified(f fwd.Family, at time.Time) {
	all := o.health.Verified(f)
	o.metrics.Verified(f, at)
	if all && o.programmed != nil {
		o.programmed()
	}
}

func (o *observers) Node(n cluster.Node) { o.health.Node(n.Deleting || n.ToBeDeleted) }

func (o *observers) Configured(cfg *config.Config) { o.health.SetSyncPeriod(cfg.SyncPeriod) }

// driftReportPause is the minimum time between two Events about drift of one family: a fight with
// another program is one story.
const driftReportPause = 10 * time.Minute

// reportDrift makes an Event on the Node if other programs changed our objects.
func (o *observers) reportDrift(s reconcile.Sync) {
	for i, part := range s.Families {
		if last := &o.driftReported[i]; part.Drifted > 0 && (last.IsZero() || s.End.Sub(*last) >= driftReportPause) {
			*last = s.End
			o.recorder.Node(true, reasonDrift, driftMessage(fwd.Families[i], part))
		}
	}
}

// driftMessage says what was changed and, if the kernel tells, by which program.
func driftMessage(f fwd.Family, part reconcile.FamilySync) string {
	what, who := "", "another program"
	if d := part.Drift; d != nil {
		if d.What != "" {
			what = " (" + d.What + ")"
		}
		if d.Process != "" {
			who = d.Process
		}
	}
	return fmt.Sprintf("%s changed %d objects of the %s dataplane%s; fairlead has repaired them", who, part.Drifted, f, what)
}

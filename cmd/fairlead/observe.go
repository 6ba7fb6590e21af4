package main

import (
	"context"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/fairlead/fairlead/internal/backend/ipvs"
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

// observers follow what the daemon does and tell others: load balancers, the kubelet, Prometheus and people.
type observers struct {
	health   *health.State
	checks   *health.Checks
	metrics  *metrics.Monitor
	recorder *kube.Recorder
	// programmed, if not nil, is called whenever rules were found in the kernel, once those of all families were.
	programmed func()
	// config is the one in force.
	config atomic.Pointer[config.Config]
	level  *slog.LevelVar
	log    *slog.Logger
	// waiting says that this process is on standby.
	waiting func() bool
	// healthServed says that serveHealth was called.
	healthServed bool
	// driftReported is, by fwd.Family.Index, when the last Event about drift was made. Only the loop's goroutine uses it.
	driftReported [2]time.Time
}

// newObservers makes observers of a daemon that takes objects from the source. They serve nothing before run, so that the
// dataplane may be opened until then.
func newObservers(cfg *config.Config, feed *kube.Feed, source kube.Source, recorder *kube.Recorder, plane *dataplane, local *localport.Forwarder,
	near *neighbour, wait *standby, level *slog.LevelVar, log *slog.Logger) *observers {
	o := &observers{recorder: recorder, waiting: wait.waiting, level: level, log: log}
	o.config.Store(cfg)
	mo := metrics.Options{Mode: string(cfg.Mode), Version: version(), Changes: func() metrics.Changes {
		total, waiting := feed.Changes()
		_, last := feed.Waiting()
		return metrics.Changes{Services: total.Services, Slices: total.Slices, ServicesWaiting: waiting.Services, SlicesWaiting: waiting.Slices, Last: last}
	}}
	mo.KubeProxy, mo.Served = near.present.Load, func() [2]bool { return plane.Served() }
	ho := health.Options{SyncPeriod: cfg.SyncPeriod, Notes: func() []string { return notes(source, near, wait) }, Standby: wait.waiting, Served: mo.Served, Waiting: func() time.Time { since, _ := feed.Waiting(); return since }}
	if api, ok := source.(*kube.APISource); ok {
		mo.APIServer = api.Host()
		mo.Watches = api.Watches
		ho.Watches = api.Watches
		o.programmed = api.Programmed
	}
	switch cfg.Mode {
	case config.ModeIPTables:
		mo.Rules = func() (out []metrics.Rules) {
			for _, c := range plane.rules() {
				out = append(out, metrics.Rules{Family: c.Family, Table: c.Table.String(), Total: c.Total, Last: c.Last})
			}
			return out
		}
	case config.ModeIPVS:
		mo.Draining = func() (out [2]metrics.Draining) {
			for i, d := range plane.draining() {
				out[i] = metrics.Draining{Oldest: d.Oldest, Connections: d.Connections, Objects: d.Objects, Destinations: make(map[string]int)}
				for r, n := range d.Count {
					out[i].Destinations[ipvs.Reason(r).String()] = n
				}
			}
			return out
		}
	}
	if cfg.LocalPorts() != [2]bool{} {
		mo.LocalPorts = func() metrics.LocalPorts { return metrics.LocalPorts(local.Stats()) }
	}
	o.metrics = metrics.New(mo)
	kube.ReportRequests(o.metrics)
	ho.Answered = o.metrics.Answered
	o.health = health.NewState(ho)
	o.checks = health.NewChecks(health.ChecksOptions{Node: cfg.NodeName, Healthy: o.health.Fresh, Warn: eventAdapter{recorder}.Warn, Log: log})
	return o
}

// run starts the servers of the configuration.
func (o *observers) run(ctx context.Context, g *group, source kube.Source) error {
	cfg := o.config.Load()
	g.run("health-check node ports", func() error { o.checks.Run(ctx); return nil })
	o.serveHealth(ctx, g)
	if a := cfg.MetricsAddress; a.IsValid() {
		so := metrics.ServerOptions{
			Configz: func() any { return o.config.Load().Configz() }, Flagz: func() map[string]string { return o.config.Load().Flagz() },
			Profiling: cfg.EnableProfiling, SetVerbosity: func(v int) { o.level.Set(slog.Level(-v)) }, Auth: cfg.MetricsAuth, Log: o.log,
		}
		if api, ok := source.(*kube.APISource); ok && cfg.MetricsAuth {
			reviewer, err := api.Reviewer()
			if err != nil {
				return err
			}
			so.Reviewer = reviewer
		}
		s := health.Server{Name: "metrics", Flag: "--metrics-bind-address", Addr: a, Handler: o.metrics.Handler(so), HardFail: cfg.BindAddressHardFail,
			Failed: o.failed("FailedToStartMetricServer"), Log: o.log}
		g.run("metrics server", func() error { return s.Run(ctx) })
	}
	o.recorder.Node(false, "Starting", "fairlead "+version()+" starts in mode "+string(cfg.Mode)) // kube-proxy's reason
	return nil
}

// serveHealth starts the health server, once: a process on standby has it before anything else.
func (o *observers) serveHealth(ctx context.Context, g *group) {
	cfg := o.config.Load()
	a := cfg.HealthzAddress
	if o.healthServed || !a.IsValid() {
		return
	}
	o.healthServed = true
	s := health.Server{Name: "health", Flag: "--healthz-bind-address", Addr: a, Handler: o.health.Handler(),
		HardFail: cfg.BindAddressHardFail && !o.waiting(), // then the other process has the port, until it ends
		Failed:   o.failed("FailedToStartProxierHealthcheck"), Log: o.log}
	g.run("health server", func() error { return s.Run(ctx) })
}

// failed makes an Event on the node, with the reasons of kube-proxy.
func (o *observers) failed(reason string) func(error) {
	return func(err error) { o.recorder.Node(true, reason, err.Error()) }
}

// flows counts what the worker did.
func (o *observers) flows(p staleflow.Pass) {
	deleted := make(map[string]int, len(p.Deleted))
	for r, n := range p.Deleted {
		deleted[staleflow.Reason(r).String()] = n
	}
	o.metrics.FlowsSearched(p.Family, p.Duration, deleted, p.Err)
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

// driftReportPause is the least time between two Events about drift of one family: a fight with another program is one story.
const driftReportPause = 10 * time.Minute

// reportDrift makes an Event on the Node of what others have changed.
func (o *observers) reportDrift(s reconcile.Sync) {
	for i, part := range s.Families {
		if last := &o.driftReported[i]; part.Drifted > 0 && (last.IsZero() || s.End.Sub(*last) >= driftReportPause) {
			*last = s.End
			o.recorder.Node(true, reasonDrift, driftMessage(fwd.Families[i], part))
		}
	}
}

// driftMessage says what was changed and, where the kernel tells, by whom.
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

func (o *observers) Verified(f fwd.Family, at time.Time) {
	all := o.health.Verified(f)
	o.metrics.Verified(f, at)
	if all && o.programmed != nil {
		o.programmed()
	}
}

func (o *observers) Node(n cluster.Node) { o.health.Node(n.Deleting || n.ToBeDeleted) }

func (o *observers) Configured(cfg *config.Config) {
	o.health.SetSyncPeriod(cfg.SyncPeriod)
}

var (
	_ reconcile.Monitor = (*observers)(nil)
	_ reconcile.Checks  = (*health.Checks)(nil)
)

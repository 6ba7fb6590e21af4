package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"os/signal"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"

	"github.com/spf13/pflag"
	"k8s.io/klog/v2"

	"github.com/fairlead/fairlead/internal/backend"
	"github.com/fairlead/fairlead/internal/config"
	"github.com/fairlead/fairlead/internal/fwd"
	"github.com/fairlead/fairlead/internal/host/conntrack"
	"github.com/fairlead/fairlead/internal/host/link"
	"github.com/fairlead/fairlead/internal/instance"
	"github.com/fairlead/fairlead/internal/kube"
	"github.com/fairlead/fairlead/internal/kubeproxy"
	"github.com/fairlead/fairlead/internal/localport"
	"github.com/fairlead/fairlead/internal/reconcile"
	"github.com/fairlead/fairlead/internal/staleflow"
)

const daemonUsage = `fairlead [flags]

Runs on every node and forwards connections to Kubernetes Services to their endpoints. When it stops, its rules stay in force.`

func runDaemon(ctx context.Context, args []string, s streams) error {
	cfg, err := config.Parse(args, os.Hostname)
	if errors.Is(err, pflag.ErrHelp) {
		fs := pflag.NewFlagSet("fairlead", pflag.ContinueOnError)
		config.Default().Bind(fs)
		return parseFlags(fs, args, daemonUsage, s)
	}
	if err != nil {
		printNotes(cfg, s) // the log cannot be set up: its settings may be what is invalid
		return err
	}
	if cfg.ShowVersion {
		return runVersion(ctx, nil, s)
	}
	log, level := newLogger(s.err, cfg)
	logNotes(cfg, log)
	if cfg.WriteConfigTo != "" {
		return writeConfig(cfg, log)
	}
	if cfg.Cleanup {
		var only []string
		if cfg.ServiceProxyName != "" {
			only = []string{"--service-proxy-name=" + cfg.ServiceProxyName}
		}
		return errors.Join(runCleanup(ctx, only, s), cleanupKubeProxy(ctx, cfg.IPVS.ExcludeCIDRs, false, s))
	}
	if cfg.InitOnly {
		return initOnly(ctx, cfg, log)
	}
	log.Log(ctx, slog.Level(-1), "flags", "values", cfg.Flagz())
	log.Info("fairlead starts", "version", version(), "node", cfg.NodeName, "mode", string(cfg.Mode))
	setOOMScoreAdj(cfg.OOMScoreAdj, log)
	ignoreHangups(ctx, log)
	d, err := newDaemon(cfg, level, log)
	if err != nil {
		return err
	}
	return d.run(ctx)
}

// ignoreHangups logs every SIGHUP instead of letting it end the process. There is nothing to
// reload: the configuration file is read again when it changes.
func ignoreHangups(ctx context.Context, log *slog.Logger) {
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, syscall.SIGHUP)
	go func() {
		defer signal.Stop(hangups)
		for {
			select {
			case <-ctx.Done():
				return
			case <-hangups:
				log.Info("SIGHUP ignored: the configuration file is read when it changes, other changes need a restart")
			}
		}
	}()
}

// newLogger returns the log, to which client-go writes too. Its level may be set at any time.
func newLogger(w io.Writer, cfg *config.Config) (*slog.Logger, *slog.LevelVar) {
	level := new(slog.LevelVar)
	level.Set(slog.Level(-cfg.Verbosity))
	o := &slog.HandlerOptions{Level: level}
	var h slog.Handler = slog.NewTextHandler(w, o)
	if cfg.LogJSON {
		h = slog.NewJSONHandler(w, o)
	}
	log := slog.New(h)
	klog.SetSlogLogger(log)
	return log, level
}

// daemon is what the parts of the running program share.
type daemon struct {
	// cfg is the configuration at startup; settings has the one in force.
	cfg      *config.Config
	settings *settings
	mode     mode
	level    *slog.LevelVar
	log      *slog.Logger
	group    group

	feed   *kube.Feed
	source kube.Source
	// api is the source, and recorder reports Events to it; both are nil if objects come from
	// files.
	api      *kube.APISource
	recorder *kube.Recorder
	// local serves node ports on loopback addresses, if the mode cannot.
	local *localport.Forwarder
	// kubeProxy watches for a kube-proxy on this node; kubeProxyPresent says that there is one, or
	// rules of one.
	kubeProxy        *kubeproxy.Watcher
	kubeProxyPresent atomic.Bool
	observers        *observers
	// healthServed says that serveHealth was called.
	healthServed bool
}

func newDaemon(cfg *config.Config, level *slog.LevelVar, log *slog.Logger) (*daemon, error) {
	d := &daemon{cfg: cfg, mode: modeOf(cfg), level: level, log: log, settings: newSettings(cfg), feed: kube.NewFeed()}
	if err := d.openSource(); err != nil {
		return nil, err
	}
	d.local = localport.New(localport.Options{Families: cfg.LocalPorts(), Logger: log})
	d.kubeProxy = &kubeproxy.Watcher{
		Signs:   kubeproxy.Signs,
		Running: func(ctx context.Context) kubeproxy.Neighbour { return kubeproxy.Running(ctx, kubeproxy.Address) },
		Warn:    func(reason, message string) { d.recorder.Node(true, reason, message) },
		Present: d.kubeProxyPresent.Store,
		Log:     log,
	}
	d.observers = newObservers(d)
	return d, nil
}

// openSource connects to the API server, or opens the files that objects come from.
func (d *daemon) openSource() (err error) {
	cfg := d.cfg
	if cfg.Objects != "" {
		d.source, err = kube.NewFileSource(cfg.Objects, cfg.NodeName, converter(cfg), d.log, d.feed)
		return err
	}
	d.api, err = kube.NewAPISource(kube.APIOptions{
		Kubeconfig: cfg.Kubeconfig, Master: cfg.Master, ContentType: cfg.ContentType, AcceptContentTypes: cfg.AcceptContentTypes, QPS: cfg.QPS, Burst: cfg.Burst,
		NodeName: cfg.NodeName, Convert: converter(cfg), ServiceCIDRs: cfg.WatchesServiceCIDRs(), RemoveTaint: cfg.RemoveTaint, Logger: d.log,
		UserAgent: fmt.Sprintf("fairlead/%s (%s/%s)", version(), runtime.GOOS, runtime.GOARCH),
	}, d.feed)
	if err == nil {
		d.source, d.recorder = d.api, d.api.Recorder()
	}
	return err
}

func (d *daemon) setup() setup {
	return setup{cfg: d.cfg, log: d.log, warn: d.observers.Warn, spawn: d.group.run}
}

// run works until the context ends or a part fails.
func (d *daemon) run(ctx context.Context) error {
	signalled := ctx
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	d.group.cancel = cancel
	startupOver := tuneGC()
	defer startupOver()
	addrs, err := link.Watch(ctx)
	if err != nil {
		return fmt.Errorf("watch the node's addresses: %w", err)
	}
	// Objects arrive while the dataplane opens, which may run programs and load modules.
	d.group.run("source", func() error { return d.source.Run(ctx) })
	lock, err := claim(ctx, d.cfg, func(note string) { d.standby(ctx, note) }, d.recorder, d.log)
	if err != nil { // the context ended
		return d.group.wait(ctx, d.log)
	}
	d.cfg.NodeShared = sharedNode(ctx, instance.Of(d.cfg.ServiceProxyName), d.log)
	plane, err := prepare(ctx, d.setup(), d.mode, d.recorder)
	if err != nil {
		cancel(err)
		failed := d.group.wait(ctx, d.log)
		if signalled.Err() != nil { // then err is a consequence of the signal
			d.log.Info("fairlead stops before its dataplane is open")
			return nil
		}
		return cmp.Or(failed, err)
	}
	d.observers.opened(plane)
	d.standby(ctx, "")
	d.kubeProxy.Start(ctx)
	d.start(ctx, plane, addrs, startupOver)
	if lock != nil {
		d.group.run("other instances", func() error {
			meetOthers(ctx, d.cfg, lock, func() { d.settings.share(ctx) }, d.log)
			return nil
		})
	}
	if err := d.serve(ctx); err != nil {
		cancel(&failure{"metrics server", err})
	}
	if err = d.group.wait(ctx, d.log); err == nil {
		d.log.Info("fairlead stops, its rules stay in force")
	}
	return err
}

// start starts the loop and everything that works alongside it, except servers. startupOver is
// called when everything was written in a family.
func (d *daemon) start(ctx context.Context, plane *dataplane, addrs <-chan struct{}, startupOver func()) {
	worker := staleflow.NewWorker(conntrack.Kernel{}, d.log, d.observers.flowsSearched)
	loop := reconcile.New(reconcile.Options{
		Config: d.cfg, Configs: d.settings.changed, Feed: d.feed, Backends: plane.Families,
		Flows: &flows{worker: worker, local: d.local, finder: plane.finder}, Events: d.observers,
		Checks: d.observers.checks, Monitor: d.observers,
		LocalAddrs: func() ([]netip.Addr, error) { return link.LocalAddrs(isVIPDevice) }, AddrChanges: addrs, Drift: plane.drift,
		OnWritten: func(f fwd.Family) {
			startupOver()
			if plane.written != nil {
				plane.written(f)
			}
		},
		OnVerified: func(f fwd.Family) { retireOthers(ctx, d.setup(), plane, f) },
		Logger:     d.log,
	})
	run := func(name string, fn func(context.Context)) {
		d.group.run(name, func() error { fn(ctx); return nil })
	}
	d.group.run("loop", func() error { return loop.Run(ctx) })
	run("configuration file", func(ctx context.Context) {
		watchConfig(ctx, d.cfg, d.level, d.log, func(c *config.Config) { d.settings.set(ctx, c) })
	})
	if plane.run != nil {
		run("dataplane", plane.run)
	}
	run("kube-proxy watcher", d.kubeProxy.Run)
	run("node settings", func(ctx context.Context) { checkSettings(ctx, d.cfg, d.recorder, d.log) })
	run("stale flows", worker.Run)
	if d.cfg.LocalPorts() != [2]bool{} {
		run("node ports on loopback", d.local.Run)
	}
}

// flows passes changes on to those that follow what is in the kernel: the worker that removes stale
// connection-tracking entries, and the forwarder of node ports on loopback addresses. It belongs to
// the loop's goroutine.
type flows struct {
	builder staleflow.Builder
	worker  *staleflow.Worker
	local   *localport.Forwarder
	// finder returns what was in the kernel before this process; nil if the mode does not know.
	finder backend.Finder
}

// Update implements reconcile.Flows.
func (f *flows) Update(ch fwd.Changes) {
	f.builder.Update(ch)
	f.local.Update(ch)
}

// Submit implements reconcile.Flows.
func (f *flows) Submit(written [2]bool, all bool) {
	if f.finder != nil {
		f.builder.Found(f.finder.Found())
	}
	f.worker.Submit(f.builder.Snapshot(written, all))
	f.local.Sync()
}

// mayAdminister says whether the process has CAP_NET_ADMIN. If that cannot be found out it returns
// true.
func mayAdminister() bool {
	const netAdmin = 12 // linux/capability.h
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return true
	}
	_, after, _ := strings.Cut(string(text), "\nCapEff:")
	line, _, _ := strings.Cut(after, "\n")
	caps, err := strconv.ParseUint(strings.TrimSpace(line), 16, 64)
	return err != nil || caps&(1<<netAdmin) != 0
}

// setOOMScoreAdj tells the kernel to spare this process when memory is short. A failure is not
// fatal.
func setOOMScoreAdj(want int, log *slog.Logger) {
	const path = "/proc/self/oom_score_adj"
	text, err := os.ReadFile(path)
	if err == nil && strings.TrimSpace(string(text)) == strconv.Itoa(want) {
		return
	}
	if err := os.WriteFile(path, []byte(strconv.Itoa(want)), 0); err != nil {
		log.Debug("cannot set oom_score_adj", "wanted", want, "error", err)
	}
}

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
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/spf13/pflag"
	"k8s.io/klog/v2"

	"github.com/fairlead/fairlead/internal/backend/iptables"
	"github.com/fairlead/fairlead/internal/cluster"
	"github.com/fairlead/fairlead/internal/config"
	"github.com/fairlead/fairlead/internal/fwd"
	"github.com/fairlead/fairlead/internal/host/conntrack"
	"github.com/fairlead/fairlead/internal/host/link"
	"github.com/fairlead/fairlead/internal/host/sysctl"
	"github.com/fairlead/fairlead/internal/instance"
	"github.com/fairlead/fairlead/internal/kube"
	"github.com/fairlead/fairlead/internal/localport"
	"github.com/fairlead/fairlead/internal/reconcile"
	"github.com/fairlead/fairlead/internal/staleflow"
)

const daemonUsage = `fairlead [flags]

Runs on a node and guides connections to Services to their endpoints. Ending it leaves the rules in force.`

func runDaemon(ctx context.Context, args []string, s streams) error {
	cfg, err := config.Parse(args, os.Hostname)
	if errors.Is(err, pflag.ErrHelp) {
		fs := pflag.NewFlagSet("fairlead", pflag.ContinueOnError)
		config.Default().Bind(fs)
		return parseFlags(fs, args, daemonUsage, s)
	}
	if err != nil {
		printNotes(cfg, s) // how to log is a part of what is not valid
		return err
	}
	if cfg.ShowVersion {
		return runVersion(ctx, nil, s)
	}
	log, level := newLogger(s.err, cfg)
	warnOfNotes(cfg, log)
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
	noteHangups(ctx, log)
	return guide(ctx, cfg, level, log)
}

// noteHangups logs each SIGHUP until the context ends, so that it does not end the process. There is nothing to reload: the
// configuration file is read again when it changes.
func noteHangups(ctx context.Context, log *slog.Logger) {
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, syscall.SIGHUP)
	go func() {
		defer signal.Stop(hangups)
		for {
			select {
			case <-ctx.Done():
				return
			case <-hangups:
				log.Info("SIGHUP ignored: a changed configuration file is read without it, other changes need a restart")
			}
		}
	}()
}

// newLogger makes the log, and makes client-go write to it. The level may be set at any time.
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

// guide builds the daemon and runs it until the context ends or a part of it fails.
func guide(ctx context.Context, cfg *config.Config, level *slog.LevelVar, log *slog.Logger) error {
	started := startGC()
	defer started()
	feed := kube.NewFeed()
	source, recorder, err := openSource(cfg, feed, log)
	if err != nil {
		return err
	}
	told := ctx
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	addrs, err := link.Watch(ctx)
	if err != nil {
		return fmt.Errorf("watch the node's addresses: %w", err)
	}
	var plane dataplane
	local := localport.New(localport.Options{Families: cfg.LocalPorts(), Logger: log})
	near, wait := newNeighbour(recorder, log), &standby{}
	watch := newObservers(cfg, feed, source, recorder, &plane, local, near, wait, level, log)
	g := group{cancel: cancel}
	// The objects come while the dataplane opens, which may mean to run programs and to load modules.
	g.run("source", func() error { return source.Run(ctx) })
	lock, err := claim(ctx, cfg, wait, func() { watch.serveHealth(ctx, &g) }, recorder, log)
	if err != nil { // we were told to end
		return g.wait(ctx, log)
	}
	cfg.NodeShared = sharedNode(ctx, instance.Of(cfg.ServiceProxyName), log)
	if plane, err = prepare(ctx, cfg, recorder, log); err != nil {
		cancel(err)
		failed := g.wait(ctx, log)
		if told.Err() != nil { // a signal is no failure, nor what fails because of it
			log.Info("fairlead ends before it has opened its dataplane")
			return nil
		}
		return cmp.Or(failed, err)
	}
	wait.holder.Store(nil)
	near.Start(ctx)
	worker := staleflow.NewWorker(conntrack.Kernel{}, log, watch.flows)
	flows := &flowAdapter{worker: worker, local: local, finder: plane.finder}
	configs := make(chan *config.Config)
	settings := &applied{store: watch.config.Store, to: configs, current: cfg}
	loop := reconcile.New(reconcile.Options{
		Config: cfg, Configs: configs, Feed: feed, Backends: plane.Families, Flows: flows, Events: eventAdapter{recorder},
		Checks: watch.checks, Monitor: watch,
		LocalAddrs: func() ([]netip.Addr, error) { return link.LocalAddrs(isVIPDevice) }, AddrChanges: addrs, Drift: plane.drift,
		OnWritten: func(f fwd.Family) {
			started()
			if plane.written != nil {
				plane.written(f)
			}
		},
		OnVerified: func(f fwd.Family) { plane.verified(ctx, f) },
		Logger:     log,
	})

	g.run("loop", func() error { return loop.Run(ctx) })
	g.run("configuration file", func() error {
		watchConfig(ctx, cfg, level, log, func(c *config.Config) { settings.set(ctx, c) })
		return nil
	})
	if lock != nil {
		g.run("other instances", func() error {
			meetOthers(ctx, cfg, lock, func() { settings.share(ctx) }, log)
			return nil
		})
	}
	if plane.run != nil {
		g.run("dataplane", func() error { plane.run(ctx); return nil })
	}
	g.run("kube-proxy", func() error { near.Run(ctx); return nil })
	g.run("settings", func() error { checkSettings(ctx, cfg, recorder, log); return nil })
	g.run("stale flows", func() error { worker.Run(ctx); return nil })
	if cfg.LocalPorts() != [2]bool{} {
		g.run("node ports on loopback", func() error { local.Run(ctx); return nil })
	}
	if err := watch.run(ctx, &g, source); err != nil {
		cancel(&failure{"metrics server", err})
	}
	err = g.wait(ctx, log)
	if err == nil {
		log.Info("fairlead ends, the rules stay in force")
	}
	return err
}

// openSource connects to where the objects come from. The Recorder is nil where there is no API server.
func openSource(cfg *config.Config, feed *kube.Feed, log *slog.Logger) (kube.Source, *kube.Recorder, error) {
	if cfg.Objects != "" {
		src, err := kube.NewFileSource(cfg.Objects, cfg.NodeName, convertOptions(cfg), log, feed)
		if err != nil {
			return nil, nil, err
		}
		return src, nil, nil
	}
	src, err := kube.NewAPISource(kube.APIOptions{
		Kubeconfig: cfg.Kubeconfig, Master: cfg.Master, ContentType: cfg.ContentType, AcceptContentTypes: cfg.AcceptContentTypes, QPS: cfg.QPS, Burst: cfg.Burst,
		NodeName: cfg.NodeName, Resync: cfg.Resync, Convert: convertOptions(cfg), ServiceCIDRs: cfg.WatchesServiceCIDRs(), RemoveTaint: cfg.RemoveTaint, Logger: log,
		UserAgent: fmt.Sprintf("fairlead/%s (%s/%s)", version(), runtime.GOOS, runtime.GOARCH),
	}, feed)
	if err != nil {
		return nil, nil, err
	}
	return src, src.Recorder(), nil
}

// dropInvalid says whether the node needs protection from packets that conntrack cannot place.
func dropInvalid(log *slog.Logger) bool {
	liberal, err := sysctl.FS{}.Int("net/netfilter/nf_conntrack_tcp_be_liberal")
	if err != nil {
		log.Debug("nf_conntrack_tcp_be_liberal cannot be read, taken for 0", "error", err)
		return true
	}
	return liberal == 0
}

// localnet is the kernel parameter that lets packets to and from loopback addresses pass on other interfaces.
const localnet = "net/ipv4/conf/all/route_localnet"

// loopbackOpen says that it is set. One that cannot be read is not said to be.
func loopbackOpen() bool {
	value, err := sysctl.FS{}.Get(localnet)
	return err == nil && value == "1"
}

// routeLocalnet lets packets of node ports on 127.0.0.1 leave loopback. It is called when the rules were found in the kernel
// that keep neighbours from loopback sockets, so that there is no time without them.
func routeLocalnet(cfg *config.Config, f fwd.Family, log *slog.Logger) {
	if f != fwd.IPv4 || !cfg.Header(cluster.Node{}, nil).NodePorts[f.Index()].Loopback {
		return
	}
	changed, err := sysctl.FS{}.Ensure(localnet, "1")
	if err != nil {
		log.Warn("node ports do not work on 127.0.0.1; allow the write, or set --iptables-localhost-nodeports=false", "error", err)
	} else if changed {
		log.Info("kernel parameter set", "name", localnet, "value", 1)
	}
}

// closeLoopback takes route_localnet back before the rules go that guard loopback addresses: the kernel is then the guard
// again. What interfaces have set for themselves stays in force. Where another instance has such rules, it needs the parameter.
func closeLoopback(ctx context.Context, l iptables.Leftover, log *slog.Logger) {
	if !l.Guard {
		return
	}
	all, err := iptables.Leftovers(ctx)
	if err != nil {
		log.Debug("not all flavours of iptables can be read", "error", err)
	}
	if slices.ContainsFunc(all, func(o iptables.Leftover) bool { return o.Guard && o.Instance != l.Instance }) {
		return
	}
	changed, err := sysctl.FS{}.Ensure(localnet, "0")
	if err != nil {
		log.Warn("neighbours can reach sockets on loopback addresses: set net.ipv4.conf.all.route_localnet to 0", "error", err)
	} else if changed {
		log.Info("kernel parameter set", "name", localnet, "value", 0)
	}
}

// mayAdminister says whether the process has CAP_NET_ADMIN; true where that cannot be found out.
func mayAdminister() bool {
	const netAdmin = 12 // linux/capability.h
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return true
	}
	_, rest, _ := strings.Cut(string(text), "\nCapEff:")
	line, _, _ := strings.Cut(rest, "\n")
	caps, err := strconv.ParseUint(strings.TrimSpace(line), 16, 64)
	return err != nil || caps&(1<<netAdmin) != 0
}

// setOOMScoreAdj makes the kernel spare this process when memory is short. It is not worth a failure.
func setOOMScoreAdj(want int, log *slog.Logger) {
	const path = "/proc/self/oom_score_adj"
	text, err := os.ReadFile(path)
	if err == nil && strings.TrimSpace(string(text)) == strconv.Itoa(want) {
		return
	}
	if err := os.WriteFile(path, []byte(strconv.Itoa(want)), 0); err != nil {
		log.Debug("oom_score_adj stays as it is", "wanted", want, "error", err)
	}
}

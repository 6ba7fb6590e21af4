package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"regexp"
	"strings"
	"sync/atomic"
	"time"

	"github.com/fairlead/fairlead/internal/backend"
	"github.com/fairlead/fairlead/internal/backend/iptables"
	"github.com/fairlead/fairlead/internal/cluster"
	"github.com/fairlead/fairlead/internal/config"
	"github.com/fairlead/fairlead/internal/fwd"
	"github.com/fairlead/fairlead/internal/host/link"
	"github.com/fairlead/fairlead/internal/host/sysctl"
	"github.com/fairlead/fairlead/internal/instance"
	"github.com/fairlead/fairlead/internal/kube"
	"github.com/fairlead/fairlead/internal/kubeproxy"
	"github.com/fairlead/fairlead/internal/tuning"
)

// The reasons of Events on the Node.
const (
	reasonMode      = "ModeUnusable"
	reasonConntrack = "ConntrackSettings"
	reasonNode      = "NodeSettings"
	reasonDrift     = "DriftRepaired"
)

// prepare brings the kernel into the state that the mode needs and opens its dataplane.
func prepare(ctx context.Context, cfg *config.Config, recorder *kube.Recorder, log *slog.Logger) (dataplane, error) {
	for _, w := range nodeNameWarnings(cfg, os.Getenv("NODE_NAME")) {
		log.Warn(w)
	}
	warnings, err := checkFamilies(cfg, link.HasIPv6())
	if err != nil {
		return dataplane{}, err
	}
	for _, w := range warnings {
		log.Warn(w)
	}
	// The rules depend on what connection tracking does with packets outside of the window. Its parameters are there when it
	// is loaded, which happens in openDataplane at the latest.
	kernel := tuning.Kernel{}
	loaded := kernel.Loaded()
	if loaded {
		tune(kernel, cfg, recorder, log)
	}
	plane, err := openDataplane(ctx, cfg, eventAdapter{recorder}.Warn, log)
	if err != nil {
		err = fmt.Errorf("open mode %s: %w", cfg.Mode, err)
		if !mayAdminister() {
			err = fmt.Errorf("no permission to change the kernel: run as root, or with the capabilities NET_ADMIN and NET_RAW (%w)", err)
		}
		reportLast(ctx, recorder, err, log)
		return dataplane{}, err
	}
	if !loaded {
		tune(kernel, cfg, recorder, log)
	}
	return plane, nil
}

// lastEventTimeout is how long the process waits for the API server before it ends with an error.
const lastEventTimeout = 2 * time.Second

// reportLast makes an Event of the error that the process ends with, as far as the API server takes it at once.
func reportLast(ctx context.Context, recorder *kube.Recorder, why error, log *slog.Logger) {
	ctx, cancel := context.WithTimeout(ctx, lastEventTimeout)
	defer cancel()
	if err := recorder.NodeAtOnce(ctx, reasonMode, oneLine(why)); err != nil {
		log.Debug("the Event is lost", "error", err)
	}
}

// tune sets the parameters of connection tracking. Forwarding works with any, so that failure is told and not fatal.
func tune(k tuning.Kernel, cfg *config.Config, recorder *kube.Recorder, log *slog.Logger) {
	changes, err := k.Conntrack(cfg.Conntrack)
	for _, c := range changes {
		log.Info("kernel parameter set", "name", c.Name, "value", c.Value, "was", c.Was)
	}
	if err != nil {
		log.Warn("parameters of connection tracking stay as they are", "error", oneLine(err))
		recorder.Node(true, reasonConntrack, "parameters of connection tracking stay as they are: "+oneLine(err))
	}
}

// initOnly does what a daemon without the right to set kernel parameters cannot do, for an init container. It needs no API
// server, and what an earlier run wrote stays in force.
func initOnly(ctx context.Context, cfg *config.Config, log *slog.Logger) error {
	plane, err := prepare(ctx, cfg, nil, log)
	if err != nil {
		return err
	}
	if cfg.Mode == config.ModeIPTables {
		if err := openLoopback(ctx, cfg, plane, log); err != nil {
			return err
		}
	}
	log.Info("the node is prepared, the daemon needs no right to set kernel parameters")
	return nil
}

// openLoopback sets route_localnet where node ports are served on 127.0.0.1. The rules that keep neighbours from loopback
// addresses come first: where nothing of ours is in the kernel, those that every node has are written.
func openLoopback(ctx context.Context, cfg *config.Config, plane dataplane, log *slog.Logger) error {
	h := cfg.Header(cluster.Node{}, nil)
	if !h.NodePorts[fwd.IPv4.Index()].Loopback {
		return nil
	}
	left, err := iptables.Leftovers(ctx, fwd.IPv4)
	if err != nil {
		return fmt.Errorf("look for rules that guard loopback addresses: %w", err)
	}
	guarded, ours := false, false
	for _, l := range left {
		if l.Instance != instance.Of(cfg.ServiceProxyName) {
			continue
		}
		ours = ours || l.Family == fwd.IPv4
		guarded = guarded || l.Guard
	}
	switch {
	case guarded:
	case ours:
		log.Warn("net.ipv4.conf.all.route_localnet is left to the daemon: the rules of an earlier run do not guard loopback addresses")
		return nil
	default:
		if err := writeVerified(ctx, plane.Families[fwd.IPv4.Index()], fwd.Changes{Header: &h}); err != nil {
			return fmt.Errorf("write rules that guard loopback addresses: %w", err)
		}
	}
	routeLocalnet(cfg, fwd.IPv4, log)
	return nil
}

// writeVerified writes what follows from changes of an empty table, and finds it in the kernel.
func writeVerified(ctx context.Context, b backend.Backend, ch fwd.Changes) error {
	if b == nil {
		return errors.New("the node does not serve this address family")
	}
	b.Update(ch)
	if _, err := b.Observe(ctx); err != nil {
		return fmt.Errorf("read the kernel: %w", err)
	}
	if _, err := b.Apply(ctx); err != nil {
		return err
	}
	lost, err := b.Observe(ctx)
	if err != nil {
		return fmt.Errorf("read the kernel back: %w", err)
	}
	if lost > 0 {
		return fmt.Errorf("%d objects that were written are not in the kernel", lost)
	}
	return nil
}

// nodeName matches what the API server takes for the name of a Node.
var nodeName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$`)

// nodeNameWarnings says what is odd about the node's name. env is NODE_NAME, which manifests take from the Pod's spec.
func nodeNameWarnings(cfg *config.Config, env string) []string {
	var out []string
	given := cfg.Flagz()["hostname-override"] != ""
	if !nodeName.MatchString(cfg.NodeName) {
		hint := "give the name of the Node object with --hostname-override"
		if strings.Contains(cfg.NodeName, "$(") {
			hint = "the environment variable in --hostname-override is not defined in the Pod"
		}
		out = append(out, fmt.Sprintf("%q cannot be the name of a Node: %s", cfg.NodeName, hint))
	}
	if env != "" && env != cfg.NodeName && !given {
		out = append(out, fmt.Sprintf("the node's name is taken from the host name, %q, and NODE_NAME is %q: add --hostname-override=$(NODE_NAME) if that is the name of the Node object", cfg.NodeName, env))
	}
	return out
}

// checkFamilies compares addresses of the configuration with the families that the kernel speaks. An error says that no
// connection would be treated rightly.
func checkFamilies(cfg *config.Config, ipv6 bool) (warnings []string, err error) {
	if ipv6 {
		return nil, nil
	}
	const no = "the kernel speaks no IPv6"
	flags := cfg.Flagz()
	if c := cfg.ClusterCIDRs; cfg.DetectMode == config.DetectClusterCIDR && len(c) > 0 && !anyOf(c, fwd.IPv4) {
		return nil, fmt.Errorf("--cluster-cidr %s has no IPv4 CIDR, and %s", flags["cluster-cidr"], no)
	}
	warn := func(flag, effect string) {
		warnings = append(warnings, fmt.Sprintf("--%s %s is of IPv6, and %s: %s", flag, flags[flag], no, effect))
	}
	if cfg.BindAddress.Is6() {
		warn("bind-address", "it counts for nothing")
	}
	if a := cfg.HealthzAddress.Addr(); a.Is6() {
		warn("healthz-bind-address", "the health server cannot listen")
	}
	if a := cfg.MetricsAddress.Addr(); a.Is6() {
		warn("metrics-bind-address", "the metrics server cannot listen")
	}
	if anyOf(cfg.NodePortAddresses.Prefixes, fwd.IPv6) {
		warn("nodeport-addresses", "only its IPv4 part counts")
	}
	if cfg.Mode == config.ModeIPVS && anyOf(cfg.IPVS.ExcludeCIDRs, fwd.IPv6) {
		warn("ipvs-exclude-cidrs", "only its IPv4 part counts")
	}
	return warnings, nil
}

// neighbour watches for a kube-proxy on the same node.
type neighbour struct {
	*kubeproxy.Watcher
	present atomic.Bool
}

func newNeighbour(recorder *kube.Recorder, log *slog.Logger) *neighbour {
	n := &neighbour{}
	n.Watcher = &kubeproxy.Watcher{
		Signs:   kubeproxy.Signs,
		Running: func(ctx context.Context) kubeproxy.Neighbour { return kubeproxy.Running(ctx, kubeproxy.Address) },
		Warn:    func(reason, message string) { recorder.Node(true, reason, message) },
		Present: n.present.Store,
		Log:     log,
	}
	return n
}

// notes are sentences for /readyz.
func notes(source kube.Source, n *neighbour, wait *standby) []string {
	var out []string
	if why := wait.note(); why != "" {
		out = append(out, why)
	}
	if api, ok := source.(*kube.APISource); ok {
		if why := api.NodeLack(); why != "" {
			out = append(out, why)
		}
		out = append(out, api.Outage()...)
	}
	if n.present.Load() {
		out = append(out, "a kube-proxy, or rules of one, are on this node: end it, then run fairlead cleanup --kube-proxy")
	}
	return out
}

// settleTime is how long after the start the node's settings are looked at: until then network plugins may still set them.
const settleTime = 2 * time.Minute

// checkSettings says once what of the node's settings keeps traffic from pods.
func checkSettings(ctx context.Context, cfg *config.Config, recorder *kube.Recorder, log *slog.Logger) {
	t := time.NewTimer(settleTime)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return
	case <-t.C:
	}
	for _, w := range (platform{sysctl.FS{}, "/sys"}).warnings(cfg) {
		log.Warn(w)
		recorder.Node(true, reasonNode, w)
	}
}

package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"regexp"
	"strings"
	"time"

	"github.com/fairlead/fairlead/internal/config"
	"github.com/fairlead/fairlead/internal/fwd"
	"github.com/fairlead/fairlead/internal/host/link"
	"github.com/fairlead/fairlead/internal/host/sysctl"
	"github.com/fairlead/fairlead/internal/kube"
	"github.com/fairlead/fairlead/internal/tuning"
)

// The reasons of Events on the Node.
const (
	reasonMode      = "ModeUnusable"
	reasonConntrack = "ConntrackSettings"
	reasonNode      = "NodeSettings"
	reasonDrift     = "DriftRepaired"
)

// prepare sets the kernel parameters and opens the dataplane of the mode.
func prepare(ctx context.Context, s setup, m mode, recorder *kube.Recorder) (*dataplane, error) {
	for _, w := range nodeNameWarnings(s.cfg, os.Getenv("NODE_NAME")) {
		s.log.Warn(w)
	}
	warnings, err := checkFamilies(s.cfg, link.HasIPv6())
	if err != nil {
		return nil, err
	}
	for _, w := range warnings {
		s.log.Warn(w)
	}
	// The rules depend on how connection tracking treats packets outside of the TCP window. Its
	// parameters exist once its module is loaded, which opening the dataplane does at the latest.
	kernel := tuning.Kernel{}
	loaded := kernel.Loaded()
	if loaded {
		tune(kernel, s.cfg, recorder, s.log)
	}
	plane, err := m.open(ctx, s)
	if err != nil {
		err = fmt.Errorf("open mode %s: %w", m.metrics.Name, err)
		if !mayAdminister() {
			err = fmt.Errorf("no permission to change the kernel: run as root, or with the capabilities NET_ADMIN and NET_RAW (%w)", err)
		}
		reportFatal(ctx, recorder, err, s.log)
		return nil, err
	}
	plane.mode = m.metrics.Name
	if !loaded {
		tune(kernel, s.cfg, recorder, s.log)
	}
	return plane, nil
}

// fatalEventTimeout is how long the process waits for the API server before it exits with an error.
const fatalEventTimeout = 2 * time.Second

// reportFatal makes an Event of the error that the process exits with.
func reportFatal(ctx context.Context, recorder *kube.Recorder, why error, log *slog.Logger) {
	ctx, cancel := context.WithTimeout(ctx, fatalEventTimeout)
	defer cancel()
	if err := recorder.NodeAtOnce(ctx, reasonMode, oneLine(why)); err != nil {
		log.Debug("cannot report the error as an Event", "error", err)
	}
}

// tune sets the parameters of connection tracking. Forwarding works with any values, so a failure
// is reported but not fatal.
func tune(k tuning.Kernel, cfg *config.Config, recorder *kube.Recorder, log *slog.Logger) {
	changes, err := k.Conntrack(cfg.Conntrack)
	for _, c := range changes {
		log.Info("kernel parameter set", "name", c.Name, "value", c.Value, "old", c.Old)
	}
	if err != nil {
		const message = "cannot set parameters of connection tracking"
		log.Warn(message, "error", oneLine(err))
		recorder.Node(true, reasonConntrack, message+": "+oneLine(err))
	}
}

// initOnly does, in an init container, what a daemon without the right to set kernel parameters
// cannot do. It needs no API server, and what an earlier run wrote stays in force.
func initOnly(ctx context.Context, cfg *config.Config, log *slog.Logger) error {
	s := setup{cfg: cfg, log: log, warn: func(fwd.Service, string, string) {}}
	plane, err := prepare(ctx, s, modeOf(cfg), nil)
	if err != nil {
		return err
	}
	if plane.init != nil {
		if err := plane.init(ctx); err != nil {
			return err
		}
	}
	log.Info("the node is prepared, the daemon needs no right to set kernel parameters")
	return nil
}

// nodeName matches what the API server accepts as the name of a Node.
var nodeName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$`)

// nodeNameWarnings describes what is probably wrong with the node's name. env is NODE_NAME, which
// manifests take from the Pod.
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
		out = append(out, fmt.Sprintf("the node's name is the host name, %q, but NODE_NAME is %q: add --hostname-override=$(NODE_NAME) if that is the name of the Node object", cfg.NodeName, env))
	}
	return out
}

// checkFamilies compares addresses of the configuration with the families that the kernel supports.
// An error means that no connection would be handled correctly.
func checkFamilies(cfg *config.Config, ipv6 bool) (warnings []string, err error) {
	if ipv6 {
		return nil, nil
	}
	const no = "the kernel does not support IPv6"
	flags := cfg.Flagz()
	if c := cfg.ClusterCIDRs; cfg.DetectMode == config.DetectClusterCIDR && len(c) > 0 && !anyOf(c, fwd.IPv4) {
		return nil, fmt.Errorf("--cluster-cidr %s has no IPv4 CIDR, and %s", flags["cluster-cidr"], no)
	}
	warn := func(flag, effect string) {
		warnings = append(warnings, fmt.Sprintf("--%s %s is IPv6, and %s: %s", flag, flags[flag], no, effect))
	}
	if cfg.BindAddress.Is6() {
		warn("bind-address", "it is ignored")
	}
	if a := cfg.HealthzAddress.Addr(); a.Is6() {
		warn("healthz-bind-address", "the health server cannot listen")
	}
	if a := cfg.MetricsAddress.Addr(); a.Is6() {
		warn("metrics-bind-address", "the metrics server cannot listen")
	}
	if anyOf(cfg.NodePortAddresses.Prefixes, fwd.IPv6) {
		warn("nodeport-addresses", "only its IPv4 part is used")
	}
	if cfg.Mode == config.ModeIPVS && anyOf(cfg.IPVS.ExcludeCIDRs, fwd.IPv6) {
		warn("ipvs-exclude-cidrs", "only its IPv4 part is used")
	}
	return warnings, nil
}

// settleTime is when, after startup, the node's settings are checked. Network plugins may set them
// until then.
const settleTime = 2 * time.Minute

// checkSettings reports, once, settings of the node that keep traffic from pods.
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

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"

	"github.com/fairlead/fairlead/internal/backend"
	"github.com/fairlead/fairlead/internal/backend/iptables"
	"github.com/fairlead/fairlead/internal/cluster"
	"github.com/fairlead/fairlead/internal/config"
	"github.com/fairlead/fairlead/internal/fwd"
	"github.com/fairlead/fairlead/internal/host/sysctl"
)

// Mode iptables serves node ports on 127.0.0.1. For that the kernel must route packets with
// loopback addresses (route_localnet), and rules must keep neighbours from reaching loopback
// sockets. There is never a time with the parameter and without the rules.

// localnet is the kernel parameter.
const localnet = "net/ipv4/conf/all/route_localnet"

// loopbackOpen says that route_localnet is set. If it cannot be read it counts as not set.
func loopbackOpen() bool {
	value, err := sysctl.FS{}.Get(localnet)
	return err == nil && value == "1"
}

// servesLoopback says that the configuration asks for node ports on 127.0.0.1.
func servesLoopback(cfg *config.Config) bool {
	return cfg.Header(cluster.Node{}, nil).NodePorts[fwd.IPv4.Index()].Loopback
}

// openLoopback sets route_localnet, once the rules that guard loopback addresses were found in the
// kernel.
func openLoopback(cfg *config.Config, f fwd.Family, log *slog.Logger) {
	if f != fwd.IPv4 || !servesLoopback(cfg) {
		return
	}
	setLocalnet("1", "cannot set route_localnet, node ports do not work on 127.0.0.1; allow the write, or set --iptables-localhost-nodeports=false", log)
}

func setLocalnet(value, failed string, log *slog.Logger) {
	changed, err := sysctl.FS{}.Ensure(localnet, value)
	if err != nil {
		log.Warn(failed, "error", err)
	} else if changed {
		log.Info("kernel parameter set", "name", localnet, "value", value)
	}
}

// closeLoopback clears route_localnet before the rules that guard loopback addresses are removed;
// then the kernel protects them again. What is set for single interfaces stays. It does nothing if
// another instance has such rules, and so needs the parameter.
func closeLoopback(ctx context.Context, l iptables.Leftover, log *slog.Logger) {
	if !l.Guard {
		return
	}
	all, err := iptables.Leftovers(ctx)
	if err != nil {
		log.Debug("cannot read all flavours of iptables", "error", err)
	}
	if slices.ContainsFunc(all, func(o iptables.Leftover) bool { return o.Guard && o.Instance != l.Instance }) {
		return
	}
	setLocalnet("0", "cannot clear route_localnet, neighbours can reach sockets on loopback addresses; set net.ipv4.conf.all.route_localnet to 0", log)
}

// guardLoopback is for --init-only: it sets route_localnet if node ports are to be served on
// 127.0.0.1. If nothing of this instance is in the kernel, it writes the rules that every node has,
// which guard loopback addresses.
func guardLoopback(ctx context.Context, s setup, b backend.Backend) error {
	if !servesLoopback(s.cfg) {
		return nil
	}
	left, err := iptables.Leftovers(ctx, fwd.IPv4)
	if err != nil {
		return fmt.Errorf("look for rules that guard loopback addresses: %w", err)
	}
	left = slices.DeleteFunc(left, func(l iptables.Leftover) bool { return l.Instance != s.id() })
	switch {
	case slices.ContainsFunc(left, func(l iptables.Leftover) bool { return l.Guard }):
	case len(left) > 0:
		s.log.Warn("net.ipv4.conf.all.route_localnet is left to the daemon: the rules of an earlier run do not guard loopback addresses")
		return nil
	default:
		h := s.cfg.Header(cluster.Node{}, nil)
		if err := writeVerified(ctx, b, fwd.Changes{Header: &h}); err != nil {
			return fmt.Errorf("write rules that guard loopback addresses: %w", err)
		}
	}
	openLoopback(s.cfg, fwd.IPv4, s.log)
	return nil
}

// writeVerified writes changes of an empty table and checks that they are in the kernel.
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

// dropInvalid says whether the rules must drop packets that connection tracking cannot place.
func dropInvalid(log *slog.Logger) bool {
	liberal, err := sysctl.FS{}.Int("net/netfilter/nf_conntrack_tcp_be_liberal")
	if err != nil {
		log.Debug("cannot read nf_conntrack_tcp_be_liberal, assuming 0", "error", err)
		return true
	}
	return liberal == 0
}

package main

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"github.com/fairlead/fairlead/internal/config"
	"github.com/fairlead/fairlead/internal/fwd"
	"github.com/fairlead/fairlead/internal/host/sysctl"
)

// platform is the node's kernel settings.
type platform struct {
	sysctl sysctl.FS
	// sys is the directory of /sys.
	sys string
}

// podBridges are bridges that network plugins create for pods.
var podBridges = []string{"cni0", "cbr0", "kube-bridge"}

// warnings returns a sentence for each setting that keeps traffic from pods, with what to do.
func (p platform) warnings(cfg *config.Config) []string {
	var out []string
	bridge := p.podBridge(cfg)
	for _, s := range []struct {
		family              fwd.Family
		forwarding, bridged string
	}{
		{fwd.IPv4, "net/ipv4/ip_forward", "net/bridge/bridge-nf-call-iptables"},
		{fwd.IPv6, "net/ipv6/conf/all/forwarding", "net/bridge/bridge-nf-call-ip6tables"},
	} {
		if !p.hasPods(cfg, s.family) {
			continue
		}
		if v, err := p.sysctl.Int(s.forwarding); err == nil && v == 0 {
			out = append(out, fmt.Sprintf("%s is 0: the node does not forward %s packets to pods; let the network plugin or the host set it to 1", s.forwarding, s.family))
		}
		if bridge == "" {
			continue
		}
		if v, err := p.sysctl.Int(s.bridged); err != nil || v == 0 {
			is := "is 0"
			if err != nil {
				is = "does not exist, the module br_netfilter is not loaded"
			}
			out = append(out, fmt.Sprintf("%s %s: pods on bridge %s cannot reach endpoints on the same bridge through a Service; load br_netfilter and set it to 1", s.bridged, is, bridge))
		}
	}
	return out
}

// hasPods says whether the configuration has pods of the family. If it says nothing about pods,
// they are IPv4.
func (platform) hasPods(cfg *config.Config, f fwd.Family) bool {
	if len(cfg.ClusterCIDRs) == 0 {
		return f == fwd.IPv4
	}
	return anyOf(cfg.ClusterCIDRs, f)
}

// podBridge returns the name of the bridge that connects pods; empty if there is none.
func (p platform) podBridge(cfg *config.Config) string {
	names := podBridges
	if cfg.DetectMode == config.DetectBridgeInterface {
		names = append([]string{cfg.PodBridge}, names...)
	}
	for _, name := range names {
		// Only a bridge has this directory. Without a port it connects no pods.
		if ports, err := os.ReadDir(filepath.Join(p.sys, "class/net", filepath.Base(name), "brif")); err == nil && len(ports) > 0 {
			return name
		}
	}
	return ""
}

func anyOf(ps []netip.Prefix, f fwd.Family) bool {
	return slices.ContainsFunc(ps, func(p netip.Prefix) bool { return fwd.FamilyOf(p.Addr()) == f })
}

package kubeproxy

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/internal/host/ipset"
	"github.com/fairlead/fairlead/internal/host/ipvs"
	"github.com/fairlead/fairlead/internal/host/link"
)

// Device is the dummy device on which kube-proxy has the addresses of Services in mode ipvs. Fairlead uses the same.
const Device = "kube-ipvs0"

// tag marks Fairlead's own virtual servers, as package backend/ipvs sets it.
const tag = ipvs.Sched3

// setNames are the sets that kube-proxy makes for IPv4. Those for IPv6 begin with KUBE-6- and are cut to the length that
// the kernel allows.
var setNames = []string{
	"KUBE-LOOP-BACK", "KUBE-CLUSTER-IP", "KUBE-EXTERNAL-IP", "KUBE-EXTERNAL-IP-LOCAL", "KUBE-LOAD-BALANCER", "KUBE-LOAD-BALANCER-FW",
	"KUBE-LOAD-BALANCER-LOCAL", "KUBE-LOAD-BALANCER-SOURCE-IP", "KUBE-LOAD-BALANCER-SOURCE-CIDR",
	"KUBE-NODE-PORT-TCP", "KUBE-NODE-PORT-LOCAL-TCP", "KUBE-NODE-PORT-UDP", "KUBE-NODE-PORT-LOCAL-UDP",
	"KUBE-NODE-PORT-SCTP", "KUBE-NODE-PORT-LOCAL-SCTP", "KUBE-NODE-PORT-SCTP-HASH", "KUBE-NODE-PORT-LOCAL-SCTP-HASH",
	"KUBE-HEALTH-CHECK-NODE-PORT", "KUBE-IPVS-IPS",
}

// allSetNames are the names for both families.
func allSetNames() []string {
	all := slices.Clone(setNames)
	for _, name := range setNames {
		six := "KUBE-6-" + strings.TrimPrefix(name, "KUBE-")
		all = append(all, six[:min(len(six), ipset.MaxName)])
	}
	return all
}

// nodePortSets says which protocol the node ports of a set have; 0 for a set of something else.
func nodePortSets(name string) uint8 {
	name = strings.TrimPrefix(strings.TrimPrefix(name, "KUBE-6-"), "KUBE-")
	switch {
	case !strings.HasPrefix(name, "NODE-PORT-"):
		return 0
	case strings.Contains(name, "-TCP"):
		return unix.IPPROTO_TCP
	case strings.Contains(name, "-UDP"):
		return unix.IPPROTO_UDP
	}
	return unix.IPPROTO_SCTP
}

// virtual is what kube-proxy left in mode ipvs.
type virtual struct {
	servers ipvs.Interface
	sets    ipset.Sets
	links   link.Host

	delServers []ipvs.VirtualServer
	delAddrs   []link.Addr
	// delDevice says that nothing else is on the device.
	delDevice bool
	delSets   []string
}

// findVirtual looks for what kube-proxy left. Any of the three kernel facilities may be nil: then there is nothing of it.
// Virtual servers whose address is inside one of the prefixes are somebody else's.
func findVirtual(ctx context.Context, servers ipvs.Interface, sets ipset.Sets, links link.Host, exclude []netip.Prefix) (*virtual, error) {
	v := &virtual{servers: servers, sets: sets, links: links}
	type nodePort struct {
		proto uint8
		port  uint16
	}
	nodePorts := make(map[nodePort]bool)
	if sets != nil {
		known := allSetNames()
		all, err := sets.List(ctx, "KUBE-")
		if err != nil {
			return nil, fmt.Errorf("list sets: %w", err)
		}
		for _, s := range all {
			if !slices.Contains(known, s.Name) {
				continue
			}
			v.delSets = append(v.delSets, s.Name)
			if proto := nodePortSets(s.Name); proto != 0 {
				for _, e := range s.Entries {
					nodePorts[nodePort{proto, e.Port}] = true
				}
			}
		}
	}
	onDevice := make(map[netip.Addr]link.Addr)
	others := make(map[netip.Addr]bool)
	if links != nil {
		on, other, err := links.Addrs(ctx, Device)
		if err != nil {
			return nil, fmt.Errorf("list addresses of %s: %w", Device, err)
		}
		for _, a := range on {
			onDevice[a.Prefix.Addr()] = a
		}
		for _, a := range other {
			others[a] = true
		}
	}
	stay := make(map[netip.Addr]bool)
	if servers != nil {
		content, err := servers.List(ctx)
		if err != nil {
			return nil, fmt.Errorf("list virtual servers: %w", err)
		}
		for _, s := range content.Servers {
			a := s.VirtualServer.Addr
			_, on := onDevice[a.Addr()]
			isNodePort := others[a.Addr()] && nodePorts[nodePort{s.VirtualServer.Protocol, a.Port()}]
			excluded := slices.ContainsFunc(exclude, func(p netip.Prefix) bool { return p.Contains(a.Addr()) })
			if s.Settings.Flags&tag != 0 || excluded || !on && !isNodePort {
				stay[a.Addr()] = true
				continue
			}
			v.delServers = append(v.delServers, s.VirtualServer)
		}
	}
	for a, addr := range onDevice {
		// An address without a virtual server is a leftover as well, unless Fairlead has made it.
		if !stay[a] && addr.Global {
			v.delAddrs = append(v.delAddrs, addr)
		} else if !stay[a] && slices.ContainsFunc(v.delServers, func(s ipvs.VirtualServer) bool { return s.Addr.Addr() == a }) {
			v.delAddrs = append(v.delAddrs, addr)
		}
	}
	slices.SortFunc(v.delAddrs, func(a, b link.Addr) int { return a.Prefix.Addr().Compare(b.Prefix.Addr()) })
	if len(v.delAddrs) == len(onDevice) && links != nil {
		d, err := links.Device(ctx, Device)
		v.delDevice = err == nil && d.Dummy && (len(v.delAddrs) > 0 || len(v.delSets) > 0)
	}
	return v, nil
}

func (v *virtual) empty() bool { return len(v.delServers)+len(v.delAddrs)+len(v.delSets) == 0 }

// removeServers ends the connections through IPVS: its addresses go with it.
func (v *virtual) removeServers(ctx context.Context) error {
	var errs []error
	ops := make([]ipvs.Op, len(v.delServers))
	for i, s := range v.delServers {
		ops[i] = ipvs.Op{Verb: ipvs.DelServer, Server: s}
	}
	if len(ops) > 0 {
		for _, err := range v.servers.Apply(ctx, ops) {
			if !errors.Is(err, unix.ESRCH) {
				errs = append(errs, err)
			}
		}
	}
	if v.delDevice {
		if err := v.links.RemoveDummy(ctx, Device); err != nil && !errors.Is(err, link.ErrNoDevice) {
			errs = append(errs, fmt.Errorf("remove %s: %w", Device, err))
		}
		return errors.Join(errs...)
	}
	changes := make([]link.Change, len(v.delAddrs))
	for i, a := range v.delAddrs {
		changes[i] = link.Change{Object: a, Del: true}
	}
	if len(changes) > 0 {
		failed, err := v.links.Apply(ctx, changes)
		errs = append(errs, err)
		for _, f := range failed {
			if !link.Missing(f.Err) {
				errs = append(errs, f.Err)
			}
		}
	}
	return errors.Join(errs...)
}

// removeSets can only succeed when no rule uses them any more.
func (v *virtual) removeSets(ctx context.Context) error {
	var errs []error
	for _, name := range v.delSets {
		if err := v.sets.Destroy(ctx, name); err != nil && !errors.Is(err, ipset.ErrNoSet) {
			errs = append(errs, fmt.Errorf("remove set %s: %w", name, err))
		}
	}
	return errors.Join(errs...)
}

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

// Device is the dummy device with the addresses of Services in mode ipvs. Fairlead uses the same
// device.
const Device = "kube-ipvs0"

// tag is the flag of Fairlead's virtual servers, as package backend/ipvs sets it.
const tag = ipvs.Sched3

// setNames are the sets of kube-proxy for IPv4. The names for IPv6 begin with KUBE-6- and are cut
// to the length that the kernel allows.
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

// nodePortSets returns the protocol of a set of node ports, or 0 for other sets.
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
	// delDevice is whether to delete the device: it has no other addresses.
	delDevice bool
	delSets   []string
}

// nodePort is a node port for which kube-proxy has virtual servers.
type nodePort struct {
	proto uint8
	port  uint16
}

// findVirtual looks for what kube-proxy left. servers and sets are nil where the kernel has no IPVS
// or no ip_set. Virtual servers whose address is in one of the prefixes belong to somebody else.
func findVirtual(ctx context.Context, servers ipvs.Interface, sets ipset.Sets, links link.Host, exclude []netip.Prefix) (*virtual, error) {
	v := &virtual{servers: servers, sets: sets, links: links}
	nodePorts, err := v.findSets(ctx)
	if err != nil {
		return nil, err
	}
	onDevice, elsewhere, err := links.Addrs(ctx, Device)
	if err != nil {
		return nil, fmt.Errorf("list addresses of %s: %w", Device, err)
	}
	vips := make(map[netip.Addr]bool, len(onDevice))
	for _, l := range onDevice {
		vips[l.Prefix.Addr()] = true
	}
	kubeProxys := func(s ipvs.VirtualServer) bool {
		a := s.Addr.Addr()
		return !slices.ContainsFunc(exclude, func(p netip.Prefix) bool { return p.Contains(a) }) &&
			(vips[a] || nodePorts[nodePort{s.Protocol, s.Addr.Port()}] && slices.Contains(elsewhere, a))
	}
	keep, err := v.findServers(ctx, kubeProxys)
	if err != nil {
		return nil, err
	}
	v.findAddrs(ctx, onDevice, keep)
	return v, nil
}

// findAddrs finds the addresses of the device to remove, and whether the device goes with them.
// keep holds the addresses of virtual servers that stay.
func (v *virtual) findAddrs(ctx context.Context, onDevice []link.Addr, keep map[netip.Addr]bool) {
	served := make(map[netip.Addr]bool, len(v.delServers))
	for _, s := range v.delServers {
		served[s.Addr.Addr()] = true
	}
	for _, l := range onDevice {
		// An address without a virtual server is a leftover too, unless Fairlead added it.
		if a := l.Prefix.Addr(); !keep[a] && (l.Global || served[a]) {
			v.delAddrs = append(v.delAddrs, l)
		}
	}
	slices.SortFunc(v.delAddrs, func(a, b link.Addr) int { return a.Prefix.Addr().Compare(b.Prefix.Addr()) })
	if len(v.delAddrs) == len(onDevice) {
		d, err := v.links.Device(ctx, Device)
		v.delDevice = err == nil && d.Dummy && (len(v.delAddrs) > 0 || len(v.delSets) > 0)
	}
}

// findSets finds the sets to remove, and returns the node ports in them.
func (v *virtual) findSets(ctx context.Context) (map[nodePort]bool, error) {
	if v.sets == nil {
		return nil, nil
	}
	all, err := v.sets.List(ctx, "KUBE-")
	if err != nil {
		return nil, fmt.Errorf("list sets: %w", err)
	}
	known := allSetNames()
	ports := make(map[nodePort]bool)
	for _, s := range all {
		if !slices.Contains(known, s.Name) {
			continue
		}
		v.delSets = append(v.delSets, s.Name)
		if proto := nodePortSets(s.Name); proto != 0 {
			for _, e := range s.Entries {
				ports[nodePort{proto, e.Port}] = true
			}
		}
	}
	return ports, nil
}

// findServers finds the virtual servers to remove, and returns the addresses of the others.
func (v *virtual) findServers(ctx context.Context, kubeProxys func(ipvs.VirtualServer) bool) (keep map[netip.Addr]bool, err error) {
	if v.servers == nil {
		return nil, nil
	}
	content, err := v.servers.List(ctx)
	if err != nil {
		return nil, fmt.Errorf("list virtual servers: %w", err)
	}
	keep = make(map[netip.Addr]bool)
	for _, s := range content.Servers {
		if s.Settings.Flags&tag == 0 && kubeProxys(s.VirtualServer) {
			v.delServers = append(v.delServers, s.VirtualServer)
		} else {
			keep[s.VirtualServer.Addr.Addr()] = true
		}
	}
	return keep, nil
}

// removeServers removes virtual servers and addresses. It ends connections through IPVS.
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

// removeSets removes the sets. It fails while a rule uses one of them.
func (v *virtual) removeSets(ctx context.Context) error {
	var errs []error
	for _, name := range v.delSets {
		if err := v.sets.Destroy(ctx, name); err != nil && !errors.Is(err, ipset.ErrNoSet) {
			errs = append(errs, fmt.Errorf("remove set %s: %w", name, err))
		}
	}
	return errors.Join(errs...)
}

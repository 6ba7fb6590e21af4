package lab

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/vishvananda/netns"
)

// Host is a namespace with addresses: a node, a pod, the client or the fabric.
type Host struct {
	*Netns
	// Label is the host's name inside the lab: "node1", "node1-p1", "client", "fabric".
	Label string
	// Addrs are the host's first addresses, IPv4 and IPv6.
	Addrs [2]netip.Addr
	// More are additional addresses.
	More []netip.Addr
}

// Pod is a namespace connected to a node.
type Pod struct {
	Host
	// Link is the name of the pod's interface on its node; it begins with "veth".
	Link string
}

// Node is a namespace that forwards for its pods.
type Node struct {
	Host
	// PodCIDRs hold the addresses of the node's pods.
	PodCIDRs [2]netip.Prefix
	Pods     []*Pod
}

// Lab is a cluster. One goroutine owns it; its namespaces may be used by several.
type Lab struct {
	// Fabric routes between the nodes, where its bridge is, and the client.
	Fabric Host
	// Client is an external client with two addresses of each family, the second ones in More.
	Client Host
	Nodes  []*Node

	prefix string
	macs   uint16
	all    []*Netns
}

// prefix is the prefix of the namespaces' names; the owner's process id follows.
const prefix = "fl-lab"

// New makes a lab with at most 9 nodes and 99 pods on each. It needs root.
func New(nodes, podsPerNode int) (*Lab, error) {
	if nodes < 1 || nodes > 9 || podsPerNode < 0 || podsPerNode > 99 {
		return nil, fmt.Errorf("lab of %d nodes with %d pods each: want 1 to 9 and 0 to 99", nodes, podsPerNode)
	}
	if err := sweep(); err != nil {
		return nil, err
	}
	l := &Lab{prefix: fmt.Sprintf("%s%d-%04x-", prefix, os.Getpid(), rand.IntN(1<<16))}
	if err := l.build(nodes, podsPerNode); err != nil {
		return nil, errors.Join(fmt.Errorf("build a lab: %w", err), l.Close())
	}
	return l, nil
}

// Close removes the lab. Stop processes in it first; they would keep their namespace alive without
// a name.
func (l *Lab) Close() error {
	var errs []error
	for _, n := range l.all {
		errs = append(errs, n.close())
	}
	l.all = nil
	return errors.Join(errs...)
}

// Pods returns the pods of all nodes.
func (l *Lab) Pods() []*Pod {
	var all []*Pod
	for _, n := range l.Nodes {
		all = append(all, n.Pods...)
	}
	return all
}

// sweep removes the namespaces of labs whose process has ended.
func sweep() error {
	entries, err := os.ReadDir(netnsDir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("look for labs of earlier runs: %w", err)
	}
	for _, e := range entries {
		rest, ours := strings.CutPrefix(e.Name(), prefix)
		owner, _, _ := strings.Cut(rest, "-")
		pid, err := strconv.Atoi(owner)
		if !ours || err != nil {
			continue
		}
		if _, err := os.Stat(fmt.Sprintf("/proc/%d", pid)); !errors.Is(err, os.ErrNotExist) {
			continue
		}
		// Another run may sweep at the same time.
		if err := netns.DeleteNamed(e.Name()); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("remove namespace %s of an earlier run: %w", e.Name(), err)
		}
	}
	return nil
}

func (l *Lab) newHost(label string, addrs [2]netip.Addr, router bool) (Host, error) {
	sysctls := hostSysctls
	if router {
		sysctls = slices.Concat(hostSysctls, routerSysctls)
	}
	n, err := newNetns(l.prefix+label, sysctls)
	if err != nil {
		return Host{}, err
	}
	l.all = append(l.all, n)
	return Host{Netns: n, Label: label, Addrs: addrs}, nil
}

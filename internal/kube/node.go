package kube

import (
	"net/netip"
	"slices"

	v1 "k8s.io/api/core/v1"

	"github.com/fairlead/fairlead/internal/cluster"
)

// taintToBeDeleted is the taint that the cluster autoscaler sets on a Node before it removes it.
const taintToBeDeleted = "ToBeDeletedByClusterAutoscaler"

// ConvertNode converts a Node. It leaves out invalid addresses and CIDRs. A nil Node gives the zero
// value.
func ConvertNode(n *v1.Node) cluster.Node {
	if n == nil {
		return cluster.Node{}
	}
	v := cluster.Node{
		Name:        n.Name,
		Zone:        n.Labels[v1.LabelTopologyZone],
		Deleting:    n.DeletionTimestamp != nil,
		ToBeDeleted: slices.ContainsFunc(n.Spec.Taints, func(t v1.Taint) bool { return t.Key == taintToBeDeleted }),
	}
	for _, kind := range []v1.NodeAddressType{v1.NodeInternalIP, v1.NodeExternalIP} {
		for _, addr := range n.Status.Addresses {
			if addr.Type != kind {
				continue
			}
			if a, ok := parseAddr(addr.Address); ok && !slices.Contains(v.Addrs, a) {
				v.Addrs = append(v.Addrs, a)
			}
		}
	}
	v.PodCIDRs = podCIDRs(&n.Spec)
	return v
}

// podCIDRs returns spec.podCIDRs, or the older single field if the list is empty.
func podCIDRs(spec *v1.NodeSpec) []netip.Prefix {
	list := spec.PodCIDRs
	if len(list) == 0 {
		list = []string{spec.PodCIDR}
	}
	var out []netip.Prefix
	for _, s := range list {
		if p, ok := parsePrefix(s); ok && !slices.Contains(out, p) {
			out = append(out, p)
		}
	}
	return out
}

package fwd

import "fmt"

// Reason names the rule that decided an outcome. docs/datapath.md lists them.
type Reason uint8

// The reasons. The String of each is what users read.
const (
	// ReasonNotService: the destination is no frontend of this node.
	ReasonNotService Reason = iota
	// ReasonNoEndpoints: the service port has no usable endpoint anywhere.
	ReasonNoEndpoints
	// ReasonSourceRanges: the source is outside of the Service's loadBalancerSourceRanges.
	ReasonSourceRanges
	// ReasonCluster: the traffic policy is Cluster.
	ReasonCluster
	// ReasonInternalLocal: internal traffic policy Local with endpoints on this node.
	ReasonInternalLocal
	// ReasonInternalLocalEmpty: internal traffic policy Local, endpoints exist, none on this node.
	ReasonInternalLocalEmpty
	// ReasonExternalLocal: external traffic policy Local with endpoints on this node.
	ReasonExternalLocal
	// ReasonExternalLocalEmpty: external traffic policy Local, endpoints exist, none on this node.
	ReasonExternalLocalEmpty
	// ReasonShortCircuit: external traffic policy Local, but the source is in the cluster: as if
	// through the load balancer.
	ReasonShortCircuit
	// ReasonLoopback: the destination is a loopback address and the source is not this host.
	ReasonLoopback
	// ReasonOtherPort: the destination is a cluster IP, but none of its ports (modes nftables and
	// ipvs).
	ReasonOtherPort
	// ReasonUnallocated: the destination is in a service CIDR, but no cluster IP (mode nftables).
	ReasonUnallocated
	// ReasonLocalPort: the destination is a node port on loopback that the daemon's own forwarder
	// serves (modes nftables and ipvs); see package localport, whose Lookup alone gives it.
	ReasonLocalPort
	// NumReasons is the number of reasons.
	NumReasons
)

var reasonText = [NumReasons]string{
	ReasonNotService:         "not-a-service: no frontend of this node has this address, protocol and port",
	ReasonNoEndpoints:        "no-endpoints: the service port has no usable endpoint on any node, so everybody is rejected",
	ReasonSourceRanges:       "source-ranges: the source is in none of loadBalancerSourceRanges, so it is dropped",
	ReasonCluster:            "policy-cluster: the traffic policy is Cluster, so all usable endpoints are candidates",
	ReasonInternalLocal:      "internal-local: internalTrafficPolicy is Local, so only endpoints on this node are candidates",
	ReasonInternalLocalEmpty: "internal-local-empty: internalTrafficPolicy is Local and no endpoint is on this node, so everybody is dropped",
	ReasonExternalLocal:      "external-local: externalTrafficPolicy is Local, so outside clients reach only endpoints on this node",
	ReasonExternalLocalEmpty: "external-local-empty: externalTrafficPolicy is Local and no endpoint is on this node, so outside clients are dropped",
	ReasonShortCircuit:       "short-circuit: externalTrafficPolicy is Local, but a source inside the cluster is served as if by the load balancer, from all usable endpoints",
	ReasonOtherPort:          "other-port: the address is a cluster IP that has no such protocol and port, so it is rejected",
	ReasonUnallocated:        "unallocated: the address is in a service CIDR and is no Service's cluster IP, so it is dropped",
	ReasonLocalPort:          "local-port: Fairlead itself listens on this node port on loopback, while it has endpoints for clients outside, and copies bytes",
	ReasonLoopback:           "loopback: a source that is not this host may not reach loopback addresses",
}

// String is the handle of the rule, a colon, and the rule in one sentence.
func (r Reason) String() string {
	if r < NumReasons {
		return reasonText[r]
	}
	return fmt.Sprintf("reason(%d)", uint8(r))
}

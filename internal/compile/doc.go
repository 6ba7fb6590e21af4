// Package compile turns one Service and its EndpointSlices into the fragment of the forwarding
// table that this node needs. All policy is decided here, once for every backend: which endpoints
// are usable, traffic policies, topology hints, terminating endpoints, who is masqueraded, who is
// dropped or rejected.
//
//	cluster.Service ─┐
//	cluster.Slice …  ├─► Compile ─► fwd.Fragment, Problems
//	Facts (node)    ─┘
//
//	per family and service port: endpoints (dedup, sort) ─► C-set, L-set, any ─► routes of each kind of frontend
//	per Service:                 frontends (sort, remove duplicates) ─► the pools that routes use
//
// Invariants:
//
//  1. Compile is a pure function: equal arguments give equal results, for any order of the slices.
//  2. Every Service gets a fragment. What is not supported or not valid is ignored and reported as
//     a Problem; the rest is served.
//  3. The fragment keeps what package fwd promises of it: sorted, without duplicates, no empty
//     pool, no pool unused.
//  4. The cost is n log n in the number of endpoints, for each service port.
//
// The rules are those of kube-proxy's iptables mode (KEP-1669, KEP-2086, KEP-2433, KEP-3015,
// KEP-1860), except that source ranges also apply if there is no endpoint, and if another field of
// the Service names the load-balancer IP too. Not here: conflicts between Services (fwd.Table), the
// shape of kernel objects (backends), reading API objects (kube). It imports the standard library,
// cluster and fwd alone.
//
// Tested through fwd.Table.Lookup: tables of cluster states and packets, each row with the handle
// of its case.
package compile

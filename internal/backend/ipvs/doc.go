// Package ipvs programs the forwarding table with virtual servers of the kernel's load balancer
// (IPVS), sets of addresses (ipset), and a number of iptables rules that does not depend on the
// number of Services, for both families.
//
//	fwd.Changes ─► renderer (pure) ─► Key → Value, see objects.go ─► target ─► ipset, ipvs, link, xtables (internal/host)
//	                                                                   │
//	                                                     Tend ◄────────┘ drains (what drains, and until when)
//
// The path of the first packet of a connection to a virtual IP that is bound as an address:
//
//	mangle PREROUTING, OUTPUT ─► FAIRLEAD-GUARD: source ranges, routes that drop
//	nat PREROUTING, OUTPUT ─► FAIRLEAD-SERVICES ─► FAIRLEAD-FROM-<class>: mark for masquerade; redirect to another virtual server
//	filter INPUT ─► FAIRLEAD-INPUT: accept frontends, reject all else on virtual IPs       (not for packets of this node)
//	IPVS ─► real server
//	filter OUTPUT ─► accept packets from IPVS; nat POSTROUTING ─► mark set, or source = destination ─► MASQUERADE (only of those)
//
// A virtual server has one list of real servers: the pool of its frontend's first class that is
// forwarded (Outside, Pod, Host). A class with another pool is redirected (DNAT) to a virtual
// server that has it: the cluster IP's, or an alternate at an otherwise unused port. See
// service.go.
//
// Invariants:
//
//  1. The wanted state depends only on table and options, not on the order in which Services
//     arrived or on the previous state (TestRenderDependsOnTheTableAlone). A change costs in
//     proportion to what it affects.
//  2. The number of sets, chains and rules is constant, except for one rule of FAIRLEAD-REDIRECT
//     for each frontend with two pools.
//  3. Rules are written exactly as iptables-save prints them, so that actual rules compare equal to
//     wanted ones, and a restart without changes writes nothing.
//  4. Only these are changed: chains whose names begin with FAIRLEAD-, sets whose names begin with
//     FAIRLEAD-4- or FAIRLEAD-6-, virtual servers with our tag or on an address of our device, and
//     our addresses, routes and rules; never anything with an excluded address.
//  5. A real server is never deleted and added again: one that is wanted again gets its weight
//     back. One that is no longer wanted keeps its connections until its deletion breaks none
//     (drain.go).
//  6. No name that a user chose becomes part of a rule or a set.
//
// docs/ipvs.md lists how the programmed kernel differs from the table; package ipvssim has the same
// list.
//
// cmd/fairlead and the loop import it. It is tested by golden files, by the conformance suite on
// strict fakes of the kernel and an interpreter of rules (package rulesim), and in the kernel (make
// test-ipvs). See ipvsadm(8), ipset(8), ip(8).
package ipvs

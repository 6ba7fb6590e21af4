// Package ipvs programs the forwarding table with virtual servers of the kernel's load balancer (IPVS), sets of addresses
// (ipset), and iptables rules whose number does not depend on that of Services, for both families.
//
//	fwd.Changes ─► renderer (pure) ─► Key → Value, see objects.go ─► target ─► ipset, ipvs, link, xtables (internal/host)
//	                                                                   │
//	                                                     Tend ◄────────┘ what drains
//
// The way of the first packet of a connection to a virtual IP that is bound as an address:
//
//	mangle PREROUTING, OUTPUT ─► FAIRLEAD-GUARD: source ranges, routes that drop
//	nat PREROUTING, OUTPUT ─► FAIRLEAD-SERVICES ─► FAIRLEAD-FROM-<class>: mark for masquerade; redirect to another virtual server
//	filter INPUT ─► FAIRLEAD-INPUT: accept frontends, reject all else on virtual IPs       (not for packets of this node)
//	IPVS ─► real server
//	filter OUTPUT ─► accept what IPVS sends on; nat POSTROUTING ─► mark set, or source = destination ─► MASQUERADE (only of those)
//
// A virtual server has one list of real servers: the pool of its frontend's first class that is forwarded at all (Outside,
// Pod, Host). A class with another pool is redirected (DNAT) to a virtual server that has it: the cluster IP's, or an
// alternate, at a port that nobody dials. See service.go.
//
// Invariants:
//
//  1. What is wanted depends on table and options alone, not on the order in which Services came, nor on what was there
//     (TestRenderDependsOnTheTableAlone). A change costs what it concerns.
//  2. The number of sets, chains and rules is constant, but for one rule of FAIRLEAD-REDIRECT for each frontend with two
//     pools.
//  3. Rules are written token for token as iptables-save prints them, so that what was read compares equal to what is
//     wanted, and a restart with nothing changed writes nothing.
//  4. Only chains whose names begin with FAIRLEAD-, sets whose names begin with FAIRLEAD-4- or FAIRLEAD-6-, virtual servers
//     with our tag or on an address of our device, and addresses, routes and rules of ours are changed; nothing that has an
//     excluded address.
//  5. A real server is never deleted and added again: one that is wanted again gets its weight back. What nobody wants any more
//     keeps its connections until nothing is lost (drain.go).
//  6. No name that a user chose gets into a rule or a set.
//
// In what the kernel so programmed differs from the table is a list: ipvssim.Differences, and docs/ipvs.md.
//
// Commands and the loop import it. Tested by golden files, by the conformance suite on strict fakes of the kernel and an
// interpreter of rules (package rulesim), and in the kernel (make test-ipvs). See ipvsadm(8), ipset(8), ip(8).
package ipvs

// Package link tells which addresses the node has and when that changes, and keeps what brings packets for Services' own
// addresses to the node: a dummy device with addresses, local routes, rules that choose a routing table by mark.
//
//	LocalAddrs(), Watch(ctx)      the addresses of the node
//	WatchLoss(ctx, device)        a signal after something of what follows is gone
//	Device, EnsureDummy, …        the device
//	Addrs, Routes, Rules  ◄── kernel, one dump each
//	Apply(changes) ──► kernel, hundreds in one send ──► an error for each that was refused
//	tests: Fake, a node in memory
//
// Invariants:
//
//  1. After the last change there is a signal, also where notifications were lost. Many changes may become one signal.
//  2. A failing subscription is made anew; only the end of the context ends a watch.
//  3. An IPv4 address that is written has scope link: the kernel takes no such address as the source of packets to others,
//     as it would one of scope global, so that pods would see a Service as their client.
//  4. Routes and rules are recognised by their protocol number, and by the owner's where there is one, and never taken for
//     somebody else's.
//  5. The device stays down, which is enough for its addresses: on a device that is up the kernel looks for others that
//     have an IPv6 address, and makes routes and addresses of its own.
//
// Single calls, those for the device, are made with the netlink library, which lacks batches.
//
// Packages below internal/backend, package reconcile and commands import it. Tested, with FAIRLEAD_KERNEL_TESTS=1 as root,
// in a network namespace; what needs a dummy device where the kernel has one. See rtnetlink(7), ip-address(8), ip-route(8)
// and ip-rule(8).
package link

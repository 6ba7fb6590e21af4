// Package link reports the addresses of the node and their changes, and manages what delivers
// packets for the addresses of Services to the node: a dummy device with addresses, local routes,
// and rules that select a routing table by mark.
//
//	LocalAddrs(), Watch(ctx)      the addresses of the node
//	WatchLoss(ctx, device)        a signal after one of the objects below was removed
//	Device, EnsureDummy, …        the device
//	Addrs, Routes, Rules  ◄── kernel, one dump each
//	Apply(changes) ──► kernel, hundreds in one send ──► an error for each refused change
//	tests: package linkfake, a node in memory
//
// Invariants:
//
//  1. A signal follows the last change, even if notifications were lost. Several changes may cause
//     one signal.
//  2. A failed subscription is renewed; only the end of the context ends a watch.
//  3. IPv4 addresses are written with scope link: the kernel does not use such an address as the
//     source of packets to other hosts. With scope global pods would see a Service as their client.
//  4. Our routes and rules are recognised by their protocol number, and by the owner's number if
//     there is one.
//  5. The device stays down, which is sufficient for its addresses. On a device that is up the
//     kernel does duplicate address detection for IPv6, and adds routes and addresses of its own.
//
// Single calls, those for devices and LocalAddrs, use github.com/vishvananda/netlink. The library
// sends one request at a time, which makes adding thousands of addresses several times slower
// (benchmark VIPs), has no subscription to rules and does not export its decoders. So objects are
// encoded and decoded here, for Apply and WatchLoss; the lists use the same decoders.
//
// Packages below internal/backend and packages kubeproxy, reconcile and cmd/fairlead import it.
// With FAIRLEAD_KERNEL_TESTS=1 as root, tests run in a network namespace; those that need a dummy
// device run where the kernel has one. See rtnetlink(7), ip-address(8), ip-route(8) and ip-rule(8).
package link

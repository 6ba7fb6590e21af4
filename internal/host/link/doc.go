// Package link tells which addresses the node has, and when that changes. It changes nothing.
//
//	rtnetlink ─► LocalAddrs() ─► sorted addresses
//	          └► Watch(ctx)   ─► a signal after each change; many changes may become one signal
//
// Invariants:
//
//  1. After the last change there is a signal, also where notifications were lost.
//  2. A failing subscription is made anew; only the end of the context ends a watch.
//
// Package reconcile and commands import it. Tested, with FAIRLEAD_KERNEL_TESTS=1 as root, in a network namespace.
package link

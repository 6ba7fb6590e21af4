// Package nodelock lets only one process of a name work on a node, and lets the others find out who does.
//
//	Acquire(name) ─► a socket @name listens ─► Lock, until the process ends
//	              └► somebody has it        ─► *HeldError, which says who; Wait returns when it may be free
//	Look(name)     who holds it; without taking it
//	Held(prefix)   names that are held
//	Visit(name)    tells the holder that we are here, as long as we are; Lock.Visitors receives at the other end
//
// The lock is a listening unix socket in the abstract namespace, and not a file in /run, for what is locked is a network namespace:
// its rules, sets and virtual servers. An abstract socket belongs to the network namespace, too. Pods on the host's network share the
// node's whatever they have mounted, where each container has a /run of its own; daemons in two network namespaces, as in tests, do
// not meet, where they would in /run. The socket needs no place that can be written, and the kernel takes it away with the process,
// however that ends. A connection to it ends at the same moment, which is what Wait waits for.
//
// Everybody on the host's network may make such a socket, with any user. One that neither root's process nor our own user's listens
// on is no lock: Acquire returns ErrUntrusted, so that its owner cannot keep the node without rules.
//
// Invariants:
//
//  1. Of two Locks of a name in a network namespace one is held at most.
//  2. A holder that does not answer, as one that was stopped, still holds.
//  3. What is said over the socket is for people and may be anything; only the credentials that the kernel vouches for count.
//
// Commands import it. Tested with processes' worth of sockets in network namespaces. See unix(7).
package nodelock

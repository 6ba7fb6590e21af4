// Package nodelock lets only one process per name work on a node, and lets other processes find out
// which one does.
//
//	Acquire(name) ─► a socket @name listens ─► Lock, until the process ends
//	              └► another process has it ─► *HeldError, which says who; Wait waits
//	Look(name)     who holds the lock, without taking it
//	Held(prefix)   names of locks that are held
//	Visit(name)    tells the holder, by Lock.Visitors, that we are here
//
// The lock is a listening unix socket in the abstract namespace. What it protects is a network
// namespace: its rules, sets and virtual servers, and an abstract socket belongs to a network
// namespace too. Pods on the host's network share the node's, whatever they have mounted; daemons
// in two network namespaces, as in tests, do not meet. Files in /run would do neither. The socket
// needs no writable file system, and the kernel removes it with the process, however that ends.
// Connections to it end at the same moment, which is what Wait waits for.
//
// Any user on the host's network can make such a socket. If its owner is neither root nor our own
// user it is no lock: Acquire returns ErrUntrusted, so that its owner cannot keep the node without
// rules.
//
// Invariants:
//
//  1. In a network namespace at most one Lock of a name is held.
//  2. A holder that does not respond, such as a stopped process, still holds the lock.
//  3. What is sent over the socket is for people and may be anything. Only the credentials that the
//     kernel reports count.
//
// Imported by cmd/fairlead. Tested with several sockets in one process, in network namespaces. See
// unix(7).
package nodelock

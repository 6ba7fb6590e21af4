// Package probe says what becomes of a connection: who answered, under which address the client was seen, or that it was
// refused or lost. A Server answers on the addresses of a host; a Dialer asks from inside a namespace.
//
//	Dialer.Dial(Target) ── "7\n" ──► (whatever the kernels in between do) ──► Server "pod1"
//	        Result ◄── "7 pod1 <address dialled at> <address of the client>\n" ──┘
//
// A server's answer begins with the question, so that an answer never passes for one to a later question.
// Sockets are made in the namespace of the Entrance, and live in this process: nothing has to be built, copied or ended.
// Where a kernel has no SCTP, the raw packets of sctp.go speak as much of it as a first exchange takes.
//
// Invariants:
//
//  1. Refused means ECONNREFUSED: a TCP reset or an ICMP port unreachable. Lost means that nothing came in time.
//  2. A Result that is neither is an error of the host that asks, and never counts as either.
//
// It is used by tests and by the demo. Tests: FAIRLEAD_KERNEL_TESTS=1 go test ./e2e/probe.
package probe

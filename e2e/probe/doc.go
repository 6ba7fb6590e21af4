// Package probe tests connections: which server answered and which client address it saw, or that
// the connection was refused or lost. A Server answers on the addresses of a host; a Dialer
// connects from a namespace.
//
//	Dialer.Dial(Target) ── "7\n" ──► (whatever the kernels in between do) ──► Server "pod1"
//	        Result ◄── "7 pod1 <address of the server> <address of the client>\n" ──┘
//
// A server's answer begins with the question, so that it cannot be mistaken for the answer to a
// later one. Sockets are opened in the namespace of the Entrance by this process: no other program
// is needed. For kernels without SCTP, sctp.go implements the first exchange of SCTP with raw
// packets.
//
// Invariants:
//
//  1. Refused means ECONNREFUSED: a TCP reset or an ICMP port unreachable. Lost means that no
//     answer arrived in time.
//  2. Every other failure is an error of the client host and counts as neither.
//
// Tests and the demo use it. Tests: FAIRLEAD_KERNEL_TESTS=1 go test ./e2e/probe.
package probe

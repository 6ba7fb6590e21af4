// Package daemon runs the real fairlead binary on the nodes of a lab, for tests and the demo.
//
//	Build ─► binary ─► Start(node, flags) ─► process in the node's namespace ─► Stop, Kill, Log
//
// Invariants:
//
//  1. The daemon is the released binary in its own process: none of its code runs in the test.
//  2. A daemon ends at the latest with the process that started it.
//
// The daemon selects the iptables userland by a chain of the kubelet; Hint creates it.
package daemon

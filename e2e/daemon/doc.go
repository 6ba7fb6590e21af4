// Package daemon runs the real fairlead binary on the nodes of a lab, for tests and the demo.
//
//	Build ─► binary ─► Start(node, flags) ─► process in the node's namespace ─► Stop, Kill, Log
//
// Invariants:
//
//  1. The daemon is the binary that users get, as its own process: nothing of it runs in the test.
//  2. A daemon ends, at the latest, with the process that started it.
//
// The daemon chooses the iptables userland by the chain that the kubelet leaves in it; Hint leaves such a chain.
package daemon

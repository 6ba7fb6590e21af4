// Command fairlead guides connections to Kubernetes Services to their endpoints, in place of kube-proxy.
//
//	fairlead [flags]    daemon.go   API server or files ─► kube.Feed ─► reconcile.Loop ─► kernel
//	fairlead trace      trace.go    files ─► fwd.Table ─► Lookup(packet) ─► text or JSON
//	fairlead render     render.go   files ─► fwd.Table ─► the program of one mode
//	fairlead cleanup    cleanup.go  takes what all modes wrote out of the kernel
//
// It is wiring: flags, goroutines and exit codes, no decisions. A mode is one case in mode.go.
//
// Invariants:
//
//  1. An error is one line on standard error that begins with "fairlead: ", and exit code 1. All else is exit code 0.
//  2. trace and render accept all flags of the daemon, so that the arguments of a DaemonSet can be pasted, and decide as
//     the daemon with these flags does. They touch neither kernel nor network.
//  3. Ending the daemon leaves the rules in force.
//
// Tested by golden files: objects and a command line in, output out.
package main

// Command fairlead guides connections to Kubernetes Services to their endpoints, in place of
// kube-proxy.
//
//	fairlead [flags]    daemon.go   API server or files ─► kube.Feed ─► reconcile.Loop ─► kernel
//	fairlead trace      trace.go    files ─► fwd.Table ─► Lookup(packet) ─► text or JSON
//	fairlead render     render.go   files ─► fwd.Table ─► the program of one mode
//	fairlead dump       dump.go     files ─► fwd.Table ─► fwdtext, which trace and render read back
//	fairlead cleanup    cleanup.go  takes what all modes wrote out of the kernel
//	fairlead version    main.go     and "fairlead help"
//
// It is wiring: flags, goroutines and exit codes. Forwarding is decided elsewhere; what is decided
// here concerns the process and the node around it: the order of startup, kernel parameters, what
// other modes left, memory. What depends on the mode is in mode.go and in a file for each mode;
// nothing else knows a mode by its name.
//
// Invariants:
//
//  1. An error is one line on standard error that begins with "fairlead: ", and exit code 1. All else is exit code 0. Notes, which
//     are no errors, begin with "note: ".
//  2. trace, render and dump accept all flags of the daemon, so that the arguments of a DaemonSet can be pasted, and decide as
//     the daemon with these flags does. They need no network and change nothing; trace reads the kernel in mode ipvs, where it may,
//     to tell which endpoints drain.
//  3. Ending the daemon leaves the rules in force.
//  4. The first SIGTERM or SIGINT ends the process, whatever it waits for. What no context can
//     interrupt is left after stopTimeout, with exit code 1; an orderly end of the daemon is exit
//     code 0. A second signal ends the process at once. SIGHUP is logged and has no effect on the
//     daemon.
//
// Tested by golden files (objects and a command line in, output out), by the test binary running as
// the program in network namespaces, and by package e2e.
package main

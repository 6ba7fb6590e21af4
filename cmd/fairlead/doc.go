// Command fairlead forwards connections to Kubernetes Services to their endpoints, in place of
// kube-proxy.
//
//	fairlead [flags]    daemon.go   API server or files ─► kube.Feed ─► reconcile ─► kernel
//	fairlead trace      trace.go    files ─► fwd.Table ─► Lookup(packet) ─► text or JSON
//	fairlead render     render.go   files ─► fwd.Table ─► the program of one mode
//	fairlead dump       dump.go     files ─► fwd.Table ─► text
//	fairlead cleanup    cleanup.go  removes what all modes wrote from the kernel
//	fairlead version    main.go     and "fairlead help"
//
// It is wiring: flags, goroutines and exit codes. Packets are decided about elsewhere. What is
// decided here concerns the process and the node around it: the order of startup, kernel
// parameters, what other modes left, memory.
//
// A mode (mode.go) is one value, defined in a file for each mode; nothing else knows a mode by its
// name. A new mode is a package below internal/backend, its file here, and a line in modes.
//
// Invariants:
//
//  1. An error is one line on standard error that begins with "fairlead: ", and exit code 1. In all
//     other cases the exit code is 0. Notes, which are not errors, begin with "note: ".
//  2. trace, render and dump accept all flags of the daemon, so that the arguments of a DaemonSet
//     can be pasted, and decide as a daemon with these flags does. They need no network and change
//     nothing. In mode ipvs trace reads the kernel, if it may, to show which endpoints drain.
//  3. When the daemon stops, its rules stay in force.
//  4. The first SIGTERM or SIGINT ends the process, whatever it waits for. After stopTimeout it
//     does not wait for what no context can interrupt, and exits with code 1; an orderly shutdown
//     of the daemon is exit code 0. A second signal ends the process at once. The daemon ignores
//     SIGHUP.
//
// Tested by golden files (objects and a command line in, output out), by the test binary running as
// the program in network namespaces, and by package e2e.
package main

// Package guest runs one command on another kernel than the machine's own, on the machine's own files. hack/uml and hack/vm
// are programs made of it: they say which process the kernel is, and how it finds files and consoles.
//
//	host:   Main ─► the kernel, a process group ─► stdout, stderr, verdict over pipes
//	guest:  the same binary as process 1 ─► mounts, modules, lo ─► the command ─► power off
//
// What the command sees:
//
//  1. The machine's files as they are. What it changes stays in the guest's memory and ends with it, except below the
//     directories that -rw names.
//  2. The caller's directory, PATH, HOME, CI and FAIRLEAD_*, and what -env names. Standard input is empty.
//  3. User 0 of a machine of its own: lo, no other network device; modules load on demand.
//
// What the caller gets: the command's output and exit code; 124 at the time limit, 125 when the guest did not come to an
// end of its own (a panic, no such kernel here), 130 at SIGINT, SIGTERM or SIGHUP; 128 and the signal for a command that
// a signal ended. Kernel log lines come only with a failure, on standard error, each with the prefix "kernel: ", warnings
// and worse.
package guest

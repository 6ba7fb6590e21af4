// Command uml runs one command on a Linux kernel that has IPVS, whatever kernel the machine runs: inside user-mode Linux,
// which Debian packages as user-mode-linux and which is a real kernel that runs as a process. Needs no privilege itself.
//
//	host:   run ─► linux.uml, a process group ─► stdout, stderr, verdict over pipes
//	guest:  the same binary as process 1 ─► mounts, modules, lo ─► the command ─► power off
//
// What the command sees:
//
//  1. The machine's files as they are. What it changes stays in the guest's memory and ends with it, except below the
//     directories that -rw names.
//  2. The caller's directory, PATH, HOME, CI and FAIRLEAD_*, and what -env names. Standard input is empty.
//  3. User 0 of a machine of its own: one processor, lo, no other network device; modules load on demand.
//
// What the caller gets: the command's output and exit code; 124 at the time limit, 125 when the guest did not come to an
// end of its own (a panic, no user-mode Linux here), 130 at SIGINT, SIGTERM or SIGHUP; 128 and the signal for a command that
// a signal ended. Kernel log lines come only with a failure, on standard error, each with the prefix "kernel: ", warnings
// and worse.
//
// On amd64 a library is preloaded into linux.uml, and into nothing in the guest, which lets it run on processors with AMX
// (preload/xstate.c). It is compiled with gcc once, into fairlead/uml-HASH in the user's cache directory.
//
// hack/uml/run builds and starts it. A system call costs 19 µs in the guest and a process 20 ms, so programs are built
// outside and only run inside.
package main

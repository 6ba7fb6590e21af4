// Package guest runs one command on a kernel other than the machine's own, with the machine's own
// files. The programs hack/uml and hack/vm are built on it: they define which process the kernel
// is, and how it gets files and consoles.
//
//	host:   Main ─► the kernel, a process group ─► stdout, stderr, verdict over pipes
//	guest:  the same binary as process 1 ─► mounts, modules, lo ─► the command ─► power off
//
// The command sees:
//
//  1. The machine's files. Its writes stay in the guest's memory and are lost at the end, except
//     below the directories that -rw names.
//  2. The caller's directory, PATH, HOME, CI and FAIRLEAD_*, and the variables that -env names.
//     Standard input is empty.
//  3. User 0 of a separate machine with lo and no other network device; modules load on demand.
//
// The caller gets the command's output and exit code, or one of these: 124 at the time limit, 125
// if the guest failed (a panic, or no such kernel here), 130 at SIGINT, SIGTERM or SIGHUP, 128 plus
// the signal's number if a signal ended the command. Kernel log lines, warnings and worse, are
// printed only after a failure, on standard error with the prefix "kernel: ".
package guest

// Command uml runs one command on a Linux kernel that has IPVS, whatever kernel the machine runs: inside user-mode Linux,
// which Debian packages as user-mode-linux and which is a real kernel that runs as a process. Needs no privilege itself.
// Package guest says what the command sees and what the caller gets; the guest has one processor.
//
// On amd64 a library is preloaded into linux.uml, and into nothing in the guest, which lets it run on processors with AMX
// (preload/xstate.c). It is compiled with gcc once, into fairlead/uml-HASH in the user's cache directory.
//
// hack/uml/run builds and starts it. A system call costs 19 µs in the guest and a process 20 ms, so programs are built
// outside and only run inside. It has no nf_tables: hack/vm is a kernel that has.
package main

// Command uml runs one command on a Linux kernel with IPVS, whatever kernel the machine runs: in
// user-mode Linux, a real kernel that runs as a process, from Debian's package user-mode-linux. It
// needs no privileges. Package guest describes what the command sees and what the caller gets. The
// guest has one processor.
//
// On amd64 a library is preloaded into linux.uml, but not into programs in the guest. It lets
// linux.uml run on processors with AMX (preload/xstate.c). It is compiled once with gcc, into
// fairlead/uml-HASH in the user's cache directory.
//
// hack/uml/run builds and starts it. A system call costs 19 µs in the guest and a process 20 ms, so
// programs are built outside and only run inside. It has no nf_tables; hack/vm has.
package main

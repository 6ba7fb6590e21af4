// Package sysctl reads and sets kernel parameters. It does not know which values are wanted.
//
//	Ensure(name, value) ─► read /proc/sys/name ─► equal: nothing │ different: write
//
// Invariants:
//
//  1. A parameter that has the value already is not written, so that a prepared node can have a
//     read-only /proc/sys.
//  2. Names are paths below /proc/sys ("net/ipv4/ip_forward"), since interface names may contain
//     dots.
//
// Package reconcile and commands import it. Tests use a directory in place of /proc/sys.
package sysctl

// Package sysctl reads and sets kernel parameters. Which values are wanted it does not know.
//
//	Ensure(name, value) ─► read /proc/sys/name ─► equal: nothing │ different: write
//
// Invariants:
//
//  1. What is right already is never written, so that a read-only /proc/sys is no obstacle to a node that was prepared.
//  2. Names are paths below /proc/sys ("net/ipv4/ip_forward"), since interface names may contain dots.
//
// Package reconcile and commands import it. Tests use a directory in place of /proc/sys.
package sysctl

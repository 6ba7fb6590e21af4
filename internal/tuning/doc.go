// Package tuning sets the kernel parameters of connection tracking: the size of its table and its
// timeouts.
//
//	config.Conntrack, CPUs ─► wanted values ─► sysctl: write differences ─► changed, failed
//
// Invariants:
//
//  1. 0 leaves a value alone, and a value that is right already is never written.
//  2. The table is never made smaller than an administrator made it.
//  3. No failure is fatal: forwarding works with any values. Each failure says what was wanted and
//     how to do without it.
//
// Imported by cmd/fairlead. Tested with directories in place of /proc/sys and /sys.
//
// See nf_conntrack-sysctl in the kernel's documentation.
package tuning

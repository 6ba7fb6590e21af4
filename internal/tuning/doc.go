// Package tuning sets the kernel parameters of connection tracking: the size of its table and its time-outs.
//
//	config.Conntrack, number of CPUs ─► wanted values ─► sysctl: write what differs ─► what was changed, what could not be
//
// Invariants:
//
//  1. 0 leaves a value alone, and what is right already is never written.
//  2. The table is never made smaller than an administrator has made it.
//  3. No failure is fatal: forwarding works with any values. Each failure says what was wanted and how to go without.
//
// Only commands import it. Tested against directories in place of /proc/sys and /sys.
//
// See nf_conntrack-sysctl in the kernel's documentation.
package tuning

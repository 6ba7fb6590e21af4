// Package xtables runs the iptables userland. It detects which of the two flavours a node uses,
// reads tables with iptables-save, and writes them with iptables-restore. It does not know Services
// and contains no rules for them.
//
//	Detect ─► Flavour ─► New(flavour, family) ─► Tables ─┬─ Read(table)    ─► iptables-save ─► ParseTable ─► chains
//	                                                     ├─ Restore(input) ─► one iptables-restore --noflush
//	                                                     └─ Watch(tables)  ─► notifications of nf_tables, or polling once a second
//	tests: rulesim.Tables, which keeps tables in memory and refuses what the kernel refuses
//
// Invariants:
//
//  1. A Restore is one process. Each table of its input is committed atomically, in the order of
//     the input. An error may leave the earlier tables written.
//  2. Writers wait for the xtables lock. If the wait times out, the error is transient.
//  3. Detect and Read write nothing. Lacking removes what it writes.
//  4. Watch does not report what Restore writes.
//  5. Detect never names a legacy table: that would make the kernel create it.
//
// Only backends and commands import the package. It is tested with scripts in place of the
// binaries, by fuzzing the parser, and, with FAIRLEAD_KERNEL_TESTS=1 as root, by giving the same
// inputs to both real flavours in a network namespace and to rulesim: all must agree on what is
// refused and what is in the tables afterwards.
//
// See iptables-restore(8), xtables-nft(8), and KEP-3178 for the hint chain.
package xtables

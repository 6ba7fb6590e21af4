// Package xtables runs the iptables userland: it finds out which of the two flavours a node uses, reads tables with
// iptables-save, and writes them with iptables-restore. It knows nothing of Services and holds no rules.
//
//	Detect ─► Flavour ─► New(flavour, family) ─► Tables ─┬─ Read(table)    ─► iptables-save ─► ParseTable ─► chains
//	                                                     ├─ Restore(input) ─► one iptables-restore --noflush
//	                                                     └─ Watch(tables)  ─► notifications of nf_tables, or a look each second
//	tests: rulesim.Tables, which keeps tables in memory and refuses what the kernel refuses
//
// Invariants:
//
//  1. A Restore is one process. Each table of its input is committed at once or not at all; tables are committed in the
//     order of the input, so that an error may leave the earlier ones written.
//  2. The xtables lock is awaited, never broken. A lock that is not to be had is an error that may pass.
//  3. Nothing is written by Detect and Read; Lacking writes nothing that remains.
//  4. What Restore writes is never reported by Watch.
//  5. Legacy tables are never asked for by name in Detect: asking makes the kernel create them.
//
// Only backends and commands import the package. It is tested with scripts in place of the binaries, by fuzzing the
// parser, and, with FAIRLEAD_KERNEL_TESTS=1 as root, by running the same inputs through both real flavours in a network
// namespace of its own and through rulesim: all must agree on what is refused and what is in the tables afterwards.
//
// See iptables-restore(8), xtables-nft(8), and KEP-3178 for the hint chain.
package xtables

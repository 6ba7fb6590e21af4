// Package nftsim is a table of nf_tables in memory: it takes the transactions that the kernel would take, refuses what the
// kernel refuses, and says what its rules do with a packet.
//
//	[]nft.Op ─► Commit (all or nothing) ─► chains, sets, elements ─► Read
//	                                             │
//	packet ─► Run: hooks, registers, expressions ┘─► every outcome, with its probability
//
// It reads expressions as they are encoded for netlink and knows nothing of who wrote them; the meaning of each is that of
// the kernel's nft_*.c and of nft(8). Random numbers are followed in all their values.
//
// Invariants:
//
//  1. A transaction that is refused changes nothing.
//  2. What is not simulated is an error, never a guess.
//
// Only tests import it.
package nftsim

// Package nftsim is a table of nf_tables in memory: it accepts the transactions that the kernel
// accepts, refuses what the kernel refuses, and computes what its rules do with a packet.
//
//	[]nft.Op ─► Commit (all or nothing) ─► chains, sets, elements ─► Read
//	                                             │
//	packet ─► Run: hooks, registers, expressions ┘─► every outcome, with its probability
//
// It reads expressions in their encoding for netlink and knows nothing about who wrote them; their
// meaning is that of the kernel's nft_*.c and of nft(8). It follows all values of a random number.
//
// Invariants:
//
//  1. A transaction that is refused changes nothing.
//  2. What is not simulated is an error, never a guess.
//
// Only tests import it.
package nftsim

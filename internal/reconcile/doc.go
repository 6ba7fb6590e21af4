// Package reconcile is the loop: it brings what the cluster asks for into the kernel, and keeps it there.
//
//	Feed ──wake──► news ─► cluster.Store ─► compile ─► fwd.Table ──Update──► family IPv4: Backend ─► kernel
//	                       └──────────── wanted ─────────────┘     └───────► family IPv6: Backend ─► kernel
//
//	each family:   unknown ──reading──► known ──write──► written ──reading found all──► verified
//	                  ▲                   │                  │ ▲                            │
//	                  └──── back-off ◄────┴──── failure ─────┘ └──── repair ◄── reading ◄───┘
//
// What came in and is not in the table yet is the Loop's news; what the table is made from, and the table, are wanted; one family
// holds how far a kernel is from that; the quarantine holds Services that a kernel refuses; reports what users were told.
//
// Invariants:
//
//  1. One goroutine, Run's, owns all of it; only immutable values leave it. The kernel is always read in a goroutine of its
//     own, so that a reading that takes long, or hangs, delays no change.
//  2. Nothing is compiled before the Feed has synced, and a family is not written before its kernel was read. A restart without a
//     change in the cluster therefore writes nothing. At startup the families wait for each other's first reading, a few
//     seconds at most.
//     Where a kernel holds nothing of ours, critical Services are written before the others, and these in pieces; the
//     family counts as written when all is. What an earlier run left serves until all is known.
//  3. Between the end of a sync and the start of the next for a change there is at least MinSyncPeriod; all changes until
//     then are one sync. The first change after a quiet time is applied at once.
//  4. The families fail apart. What failed stays pending. It is tried again after a wait that doubles, which changes do not
//     shorten; the kernel is read before, since the cause may be that it is not as it was believed to be. The other
//     family goes on: its changes, its verification, and what is told of it.
//  5. A Service that a kernel refuses is set aside (quarantined) and everybody else's rules are written. It is tried again
//     alone, after a reading, at growing distances; sooner if its objects changed. Users are told once.
//  6. Verification reads a family's kernel every SyncPeriod and repairs what others changed. A hint that somebody changed
//     something makes it due at once, and hints that follow each other at doubling distances. The first one follows the first
//     complete write at once: only what it has found counts as in the kernel for those who then remove something else
//     (OnVerified), and for readiness.
//  7. When Run ends, the kernel is left as it is.
//
// Not for: reading the API (kube), deciding about packets (compile), writing (backend). Imported by cmd/fairlead and
// metrics. Tested with fakes of the Feed and the Backends in synctest bubbles.
package reconcile

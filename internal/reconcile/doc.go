// Package reconcile is the loop that brings what the cluster asks for into the kernel, and keeps it
// there.
//
//	Feed ──wake──► news ─► cluster.Store ─► compile ─► fwd.Table ──Update──► family IPv4: Backend ─► kernel
//	                       └──────────── wanted ─────────────┘     └───────► family IPv6: Backend ─► kernel
//
//	each family:   unknown ──reading──► known ──write──► written ──reading found all──► verified
//	                  ▲                   │                  │ ▲                            │
//	                  └──── back-off ◄────┴──── failure ─────┘ └──── repair ◄── reading ◄───┘
//
// The parts of the Loop: news is what came in and is not in the table yet. wanted is the cluster's
// objects and the table made from them. A family tracks how far one kernel is from the table. The
// quarantine holds Services that a kernel refuses. reports remembers what users were told.
//
// Invariants:
//
//  1. Run's goroutine owns all state; only immutable values leave it. The kernel is always read in
//     another goroutine, so that a slow or hanging reading delays no change.
//  2. Nothing is compiled before the Feed has synced, and a family is not written before its kernel
//     was read. A restart without a change in the cluster therefore writes nothing. At startup the
//     families wait a few seconds for each other's first reading. On a kernel without our rules,
//     critical Services are written first and the others in batches; the family counts as written
//     when all are. On a kernel with rules of an earlier process, those rules serve until
//     everything is known.
//  3. Between the end of a sync and the next one for a change there is at least MinSyncPeriod; the
//     changes until then are one sync. The first change after a quiet time is applied at once. A
//     change of one Service that is too large for a sync is written in steps, each in a sync of its
//     own; a sync with changes of other Services leaves the step to the next one. The table holds
//     the steps taken so far. A family that has never been written counts as written, and endpoint
//     changes are reported as programmed, when no step is left.
//  4. The families fail independently. What failed stays pending. It is retried after a back-off
//     that doubles, which changes do not shorten, and after reading the kernel, which may not be as
//     expected. The other family's changes, verification and reports go on.
//  5. A Service that a kernel refuses is left out (quarantined), and all others are written. It is
//     retried alone, after a reading, at growing intervals, sooner if its objects changed. Users
//     are told once.
//  6. Verification reads a family's kernel every SyncPeriod and repairs what other programs
//     changed. A hint of such a change starts a reading at once; hints that follow each other start
//     readings at doubling intervals. The first verification follows the first complete write at
//     once: only what it finds counts as in the kernel for readiness and for OnVerified, which
//     removes other dataplanes. While a Service is written in steps, a verification without a hint
//     may be two minutes late.
//  7. When Run ends, the kernel is left as it is.
//
// Where to look: Loop.nextChange and takeNews decide when a change is applied, sync what is
// written, family.go when a failure is retried, verify.go when the kernel is read and how drift is
// repaired, gradual.go how a large change is divided.
//
// Not for: reading the API (kube), deciding about packets (compile), writing (backend). Imported by
// cmd/fairlead and metrics. Tested with fakes of the Feed and the Backends in synctest bubbles.
package reconcile

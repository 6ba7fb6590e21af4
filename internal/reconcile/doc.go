// Package reconcile is the loop: it brings what the cluster says into the kernel, and keeps it there.
//
//	Feed ──wake──► drain ─► cluster.Store ─► compile ─► fwd.Table ─► Backend.Update
//	                                                                     │
//	timers: retry, verify ──► Backend.Observe ─────────────────────► Backend.Apply ─► Flows, Checks, Monitor, Events
//
// Invariants:
//
//  1. One goroutine, Run's, owns the store, the table and the backend; only immutable values leave it.
//  2. Nothing is compiled or written before the Feed has synced and an Observe has succeeded. A restart without a change
//     in the cluster therefore writes nothing.
//     Where the kernel holds nothing of ours, critical Services are written before the others, and these in pieces; that
//     node counts as written when all is. What an earlier run left serves until all is known.
//  3. Between the end of a sync and the start of the next for a change there is at least MinSyncPeriod; all changes until
//     then are one sync. The first change after a quiet time is applied at once.
//  4. What failed stays pending. It is tried again after a wait that doubles, and together with the next change; the
//     kernel is read before, since the cause may be that it is not as it was believed to be.
//  5. A Service that the kernel refuses is set aside (quarantined) and everybody else's rules are written. It is tried
//     again when its objects change and at each verification.
//  6. Verification reads the kernel every SyncPeriod, when no change is waiting, and repairs what others changed. The first
//     one follows the first complete write at once: a node counts as ready when it has found everything.
//  7. When Run ends, the kernel is left as it is.
//
// Not for: reading the API (kube), deciding about packets (compile), writing (backend). Imported by cmd/fairlead and
// metrics. Tested with fakes of the Feed and the Backend in synctest bubbles.
package reconcile

// Package metrics shows the outside what the loop does: Prometheus metrics, and whether the node's forwarding is fresh.
//
//	reconcile.Loop ──Queued, Synced, Node──► Monitor ─┬─ MetricsHandler: /metrics, /proxyMode, /healthz   (127.0.0.1:10249)
//	                                                  └─ HealthHandler:  /healthz, /livez, /readyz        (0.0.0.0:10256)
//	Serve(ctx, address, handler): listens, and tries again every five seconds where it cannot
//
// Names, labels and buckets that begin with kubeproxy_ are kube-proxy's, so that dashboards and alerts go on working.
// The health endpoints follow kube-proxy and KEP-3836: fresh means that no change has waited for more than twice
// the sync period; /healthz also fails for a node that is about to go away; /readyz, which kube-proxy lacks, succeeds
// once everything has been written.
//
// Invariants:
//
//  1. The loop never waits: its calls take one short lock.
//  2. What is waiting counts for each family by itself; one stale family makes the whole answer stale.
//
// Imported by cmd/fairlead. Tested with recorded reports and a clock of the test.
package metrics

// Package metrics shows operators what the process does: Prometheus metrics, and the other pages of
// the metrics server.
//
//	reconcile.Loop ──Queued, Synced, Verified──► Monitor ──► /metrics, /configz, … (:10249)
//	client-go, stale flows, health server ─────►    │
//	functions that are called at each scrape ◄──────┘
//
// Metrics whose names begin with kubeproxy_ have the names, labels, types and buckets of kube-proxy
// 1.33 and later; those that begin with rest_client_ have those of all Kubernetes components.
// Dashboards and alerts keep working. Metrics that kube-proxy does not have begin with fairlead_.
// docs/metrics.md lists all of them, and those of kube-proxy that are missing.
//
// The package knows no mode: a Mode says which of kube-proxy's metrics a mode has, and the metrics
// that only one mode has are registered by whoever opens it (Counter, Gauge).
//
// Handler serves everybody who can reach it. With Auth it serves requests with a bearer token that
// the API server accepts, from users who may do with the path what the method says. /healthz is
// always open. While the API server does not respond, requests are refused.
//
// Invariants:
//
//  1. The loop never waits: its calls hold a lock for a moment.
//  2. The number of series is bounded: no label has the name of a Service, an endpoint or a client.
//  3. Every metric is registered through a set, which remembers it. A golden test of cmd/fairlead
//     shows each change of a name, type, label or bucket in review, and another one compares
//     docs/metrics.md.
//
// Not for: health (package health). Imported by cmd/fairlead. Tested with recorded reports and a
// fake of the API server's reviews.
package metrics

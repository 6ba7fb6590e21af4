// Package metrics shows operators what the process does: Prometheus metrics, and what else the metrics server has.
//
//	reconcile.Loop ──Queued, Synced, Verified──► Monitor ──► Handler: /metrics, /proxyMode, /configz, …   (127.0.0.1:10249)
//	client-go, stale flows, health server ─────►    │
//	functions that are asked at each scrape ◄───────┘
//
// Names, labels, types and buckets that begin with kubeproxy_ are those of kube-proxy 1.33 and later, those that begin with
// rest_client_ those of all components of Kubernetes, so that dashboards and alerts go on working. What kube-proxy does not
// have begins with fairlead_. docs/metrics.md lists all, with what kube-proxy has and we do not.
//
// Handler answers everybody who reaches it, or, with Auth, those whose bearer token the API server knows and whose user may
// do with the path what the method says; /healthz is always open. Where the API server does not answer nobody gets in.
//
// Invariants:
//
//  1. The loop never waits: its calls take one short lock.
//  2. The number of series is bounded: no label has the name of a Service, an endpoint or a client.
//  3. Every metric is registered through a set, which remembers it: a golden test shows each change of a name, type, label or
//     bucket in review, and another one compares docs/metrics.md.
//
// Not for: health (package health). Imported by cmd/fairlead. Tested with recorded reports and a fake of the API server's
// reviews.
package metrics

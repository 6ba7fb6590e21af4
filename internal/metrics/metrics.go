package metrics

import (
	"net/http"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/fairlead/fairlead/internal/cluster"
)

// vectors are the metrics that a Monitor writes. A metric that the mode does not have is nil.
type vectors struct {
	duration, full, partial, programming *prometheus.HistogramVec
	last, noLocal                        *prometheus.GaugeVec
	writeFailures, partialFailures       *prometheus.CounterVec
	flowDuration                         *prometheus.HistogramVec
	flowsDeleted                         *prometheus.CounterVec
	healthz, livez                       *prometheus.CounterVec

	apply                            *prometheus.HistogramVec
	failures                         *prometheus.CounterVec
	written, deleted, drifted        *prometheus.CounterVec
	services, frontends, endpoints   *prometheus.GaugeVec
	conflicts, quarantined           *prometheus.GaugeVec
	staleFlows, flowFailures         *prometheus.CounterVec
	requestDuration, limiterDuration *prometheus.HistogramVec
	requestSize, responseSize        *prometheus.HistogramVec
	requestResults, requestRetries   *prometheus.CounterVec
}

// syncBuckets are kube-proxy's: 1 ms to 16.384 s.
func syncBuckets() []float64 { return prometheus.ExponentialBuckets(0.001, 2, 15) }

// programmingBuckets are those of the network programming SLI of Kubernetes, in seconds.
func programmingBuckets() []float64 {
	out := []float64{0.25, 0.5}
	out = append(out, prometheus.LinearBuckets(1, 1, 59)...)
	out = append(out, prometheus.LinearBuckets(60, 5, 12)...)
	return append(out, prometheus.LinearBuckets(120, 30, 7)...)
}

// requestBuckets and sizeBuckets are those of all Kubernetes components, in seconds and in bytes.
func requestBuckets() []float64 {
	return []float64{0.005, 0.025, 0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60}
}

func sizeBuckets() []float64 {
	return []float64{64, 256, 512, 1 << 10, 4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20, 4 << 20, 16 << 20}
}

// registerProxy registers kube-proxy's metrics.
func (m *Monitor) registerProxy() {
	s, v := &m.set, &m.vectors
	v.duration = s.histogram("kubeproxy_sync_proxy_rules_duration_seconds", "Duration of a sync.", syncBuckets(), familyLabel)
	v.last = s.gauge("kubeproxy_sync_proxy_rules_last_timestamp_seconds", "Time of the last successful sync, in seconds since 1970.", familyLabel)
	m.Gauge("kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds", "Time when a sync was last requested, in seconds since 1970.", m.readQueued, familyLabel)
	v.programming = s.histogram("kubeproxy_network_programming_duration_seconds",
		"Time from a change of endpoints, as recorded by the control plane, until it is in the kernel.", programmingBuckets(), familyLabel)
	v.noLocal = s.gauge("kubeproxy_sync_proxy_rules_no_local_endpoints_total",
		"Service ports with traffic policy Local that have endpoints, but none on this node.", "traffic_policy", familyLabel)
	backlog := func(value func(cluster.Backlog) int) func(Emit) {
		return func(e Emit) { e(float64(value(m.o.Backlog()))) }
	}
	m.Counter("kubeproxy_sync_proxy_rules_service_changes_total", "Changes of Services received.",
		backlog(func(b cluster.Backlog) int { return b.Services }))
	m.Counter("kubeproxy_sync_proxy_rules_endpoint_changes_total", "Changes of EndpointSlices received.",
		backlog(func(b cluster.Backlog) int { return b.Slices }))
	m.Gauge("kubeproxy_sync_proxy_rules_service_changes_pending", "Changes of Services that are not in the kernel yet.",
		backlog(func(b cluster.Backlog) int { return b.WaitingServices + m.unwritten().services }))
	m.Gauge("kubeproxy_sync_proxy_rules_endpoint_changes_pending", "Changes of EndpointSlices that are not in the kernel yet.",
		backlog(func(b cluster.Backlog) int { return b.WaitingSlices + m.unwritten().slices }))
	v.flowDuration = s.histogram("kubeproxy_conntrack_reconciler_sync_duration_seconds", "Duration of a search for stale connection-tracking entries.", syncBuckets(), familyLabel)
	v.flowsDeleted = s.counter("kubeproxy_conntrack_reconciler_deleted_entries_total", "Stale connection-tracking entries deleted.", familyLabel)
	v.healthz = s.counter("kubeproxy_proxy_healthz_total", "Responses of /healthz on the health server.", "code")
	v.livez = s.counter("kubeproxy_proxy_livez_total", "Responses of /livez on the health server.", "code")
	for _, code := range []int{http.StatusOK, http.StatusServiceUnavailable} {
		v.healthz.WithLabelValues(strconv.Itoa(code))
		v.livez.WithLabelValues(strconv.Itoa(code))
	}
	// The rest depends on the mode.
	mode := m.o.Mode
	if mode.FullAndPartial {
		v.full = s.histogram("kubeproxy_sync_full_proxy_rules_duration_seconds", "Duration of a sync that read the kernel before it wrote.", syncBuckets(), familyLabel)
		v.partial = s.histogram("kubeproxy_sync_partial_proxy_rules_duration_seconds", "Duration of a sync that wrote only what changed.", syncBuckets(), familyLabel)
	}
	if mode.WriteFailures != "" {
		v.writeFailures = s.counter(mode.WriteFailures, "Syncs that failed to write.", familyLabel)
	}
	if mode.PartialFailures != "" {
		v.partialFailures = s.counter(mode.PartialFailures, "Syncs that failed to write and had not read the kernel before. The next one does.", familyLabel)
	}
}

// registerOwn registers the metrics that kube-proxy does not have.
func (m *Monitor) registerOwn() {
	s, v := &m.set, &m.vectors
	v.services = s.gauge("fairlead_services", "Services in the forwarding table.")
	v.frontends = s.gauge("fairlead_frontends", "Frontends (address, port and protocol) in the forwarding table.")
	v.endpoints = s.gauge("fairlead_endpoints", "Endpoints in the forwarding table, counted once for every service port.")
	v.conflicts = s.gauge("fairlead_conflicts", "Frontends that a Service claims but an older Service has.")
	v.quarantined = s.gauge("fairlead_quarantined_services", "Services that are left out because the kernel refuses their rules.")
	v.apply = s.histogram("fairlead_apply_duration_seconds", "Duration of the part of a sync that writes to the kernel.", syncBuckets())
	v.written = s.counter("fairlead_objects_written_total", "Dataplane objects written to the kernel.")
	v.deleted = s.counter("fairlead_objects_deleted_total", "Dataplane objects deleted from the kernel.")
	v.drifted = s.counter("fairlead_drifted_objects_total", "Dataplane objects that other programs changed and that were repaired.")
	v.failures = s.counter("fairlead_sync_failures_total", "Syncs that could not read the kernel or could not write everything.", familyLabel)
	m.Gauge("fairlead_last_verified_timestamp_seconds", "Time when the kernel was last read and found complete, in seconds since 1970.", m.readVerified, familyLabel)
	v.staleFlows = s.counter("fairlead_stale_flows_deleted_total", "Stale connection-tracking entries deleted, by reason.", familyLabel, "reason")
	v.flowFailures = s.counter("fairlead_stale_flow_failures_total", "Searches for stale connection-tracking entries that failed.", familyLabel)
	if m.o.Watches != nil {
		m.Gauge("fairlead_watch_stale_seconds", "Time since the last event, bookmark or response from the API server.", func(e Emit) {
			for _, w := range m.o.Watches() {
				e(time.Since(w.LastSeen).Seconds(), w.Resource)
			}
		}, "resource")
		m.Gauge("fairlead_watch_open", "Whether the watch is open.", func(e Emit) {
			for _, w := range m.o.Watches() {
				e(oneIf(w.Open), w.Resource)
			}
		}, "resource")
	}
	m.Gauge("fairlead_build_info", "Always 1; version and Go version are labels.", func(e Emit) { e(1, m.o.Version, runtime.Version()) }, "version", "go_version")
	m.Gauge("fairlead_info", "Always 1; mode and version are labels.", func(e Emit) { e(1, m.o.Mode.Name, m.o.Version) }, "mode", "version")
	// There is no kubernetes_build_info: it has the version of a Kubernetes component, and alerts
	// compare those of a cluster.
}

// registerRequests registers the metrics that all clients of the Kubernetes API have.
func (m *Monitor) registerRequests() {
	s, v := &m.set, &m.vectors
	v.requestDuration = s.histogram("rest_client_request_duration_seconds", "Time until the API server responds.", requestBuckets(), "verb", "host")
	v.limiterDuration = s.histogram("rest_client_rate_limiter_duration_seconds", "Time that requests wait for the client's rate limiter.", requestBuckets(), "verb", "host")
	v.requestSize = s.histogram("rest_client_request_size_bytes", "Size of requests to the API server.", sizeBuckets(), "verb", "host")
	v.responseSize = s.histogram("rest_client_response_size_bytes", "Size of responses of the API server.", sizeBuckets(), "verb", "host")
	v.requestResults = s.counter("rest_client_requests_total", "Requests to the API server, by status code of the response.", "code", "method", "host")
	v.requestRetries = s.counter("rest_client_request_retries_total", "Requests to the API server that were sent again.", "code", "verb", "host")
	if host := m.o.APIServer; host != "" {
		for method, code := range map[string]int{http.MethodGet: http.StatusOK, http.MethodPost: http.StatusCreated} {
			for _, h := range []*prometheus.HistogramVec{v.requestDuration, v.limiterDuration, v.requestSize, v.responseSize} {
				h.WithLabelValues(method, host)
			}
			v.requestResults.WithLabelValues(strconv.Itoa(code), method, host)
		}
	}
}

// kubernetesRelease returns the Kubernetes release that the linked k8s.io/client-go belongs to:
// v1.36.3 for v0.36.3.
func kubernetesRelease() string {
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, d := range info.Deps {
			if minor, ok := strings.CutPrefix(d.Version, "v0."); ok && d.Path == "k8s.io/client-go" {
				return "v1." + minor
			}
		}
	}
	return ""
}

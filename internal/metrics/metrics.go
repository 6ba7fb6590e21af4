package metrics

import (
	"net/http"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/fairlead/fairlead/internal/fwd"
)

// The modes, as the daemon's configuration names them.
const (
	iptables = "iptables"
	nftables = "nftables"
	ipvs     = "ipvs"
)

// vectors are the metrics that a Monitor writes. What is nil does not exist in the mode.
type vectors struct {
	duration, full, partial, programming *prometheus.HistogramVec
	last, noLocal                        *prometheus.GaugeVec
	restoreFailures, partialFailures     *prometheus.CounterVec
	nftFailures                          *prometheus.CounterVec
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

// programmingBuckets are those of the network programming objective of Kubernetes, in seconds.
func programmingBuckets() []float64 {
	out := []float64{0.25, 0.5}
	out = append(out, prometheus.LinearBuckets(1, 1, 59)...)
	out = append(out, prometheus.LinearBuckets(60, 5, 12)...)
	return append(out, prometheus.LinearBuckets(120, 30, 7)...)
}

// requestBuckets and sizeBuckets are those of all components of Kubernetes, in seconds and in bytes.
func requestBuckets() []float64 {
	return []float64{0.005, 0.025, 0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60}
}

func sizeBuckets() []float64 {
	return []float64{64, 256, 512, 1 << 10, 4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20, 4 << 20, 16 << 20}
}

// register makes the metrics of the mode.
func (m *Monitor) register() {
	m.registerProxy()
	m.registerMode()
	m.registerOwn()
	m.registerRequests()
	m.registerBuild()
	if m.o.LocalPorts != nil {
		m.registerLocalPorts()
	}
	if m.o.Draining != nil {
		m.registerDraining()
	}
}

// registerProxy makes the metrics of kube-proxy that all modes have.
func (m *Monitor) registerProxy() {
	s, v, family := &m.set, &m.vectors, "ip_family"
	v.duration = s.histogram("kubeproxy_sync_proxy_rules_duration_seconds", "Time of one sync.", syncBuckets(), family)
	v.last = s.gauge("kubeproxy_sync_proxy_rules_last_timestamp_seconds", "When a sync was successful last, in seconds since 1970.", family)
	s.readGauge("kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds", "When a sync was asked for last, in seconds since 1970.", m.readQueued, family)
	v.programming = s.histogram("kubeproxy_network_programming_duration_seconds",
		"Time from a change of endpoints, as the control plane noted it, until the kernel has it.", programmingBuckets(), family)
	v.noLocal = s.gauge("kubeproxy_sync_proxy_rules_no_local_endpoints_total",
		"Service ports whose traffic policy is Local and that have endpoints, none of them on this node.", "traffic_policy", family)
	s.readCounter("kubeproxy_sync_proxy_rules_service_changes_total", "Changes of Services that came.", m.readChanges(func(c Changes) float64 { return float64(c.Services) }))
	s.readCounter("kubeproxy_sync_proxy_rules_endpoint_changes_total", "Changes of EndpointSlices that came.", m.readChanges(func(c Changes) float64 { return float64(c.Slices) }))
	s.readGauge("kubeproxy_sync_proxy_rules_service_changes_pending", "Changes of Services that are not in the kernel yet.",
		m.readChanges(func(c Changes) float64 { return float64(c.ServicesWaiting) + float64(m.unwritten().Services) }))
	s.readGauge("kubeproxy_sync_proxy_rules_endpoint_changes_pending", "Changes of EndpointSlices that are not in the kernel yet.",
		m.readChanges(func(c Changes) float64 { return float64(c.SlicesWaiting) + float64(m.unwritten().Slices) }))
	v.flowDuration = s.histogram("kubeproxy_conntrack_reconciler_sync_duration_seconds", "Time of looking for stale flows once.", syncBuckets(), family)
	v.flowsDeleted = s.counter("kubeproxy_conntrack_reconciler_deleted_entries_total", "Stale flows that were removed.", family)
	v.healthz = s.counter("kubeproxy_proxy_healthz_total", "Answers of /healthz of the health server.", "code")
	v.livez = s.counter("kubeproxy_proxy_livez_total", "Answers of /livez of the health server.", "code")
	for _, code := range []int{http.StatusOK, http.StatusServiceUnavailable} {
		v.healthz.WithLabelValues(strconv.Itoa(code))
		v.livez.WithLabelValues(strconv.Itoa(code))
	}
}

// registerMode makes the metrics of kube-proxy that are of the mode.
func (m *Monitor) registerMode() {
	s, v, family := &m.set, &m.vectors, "ip_family"
	mode := m.o.Mode
	if mode == iptables || mode == nftables {
		v.full = s.histogram("kubeproxy_sync_full_proxy_rules_duration_seconds", "Time of a sync that read the kernel first.", syncBuckets(), family)
		v.partial = s.histogram("kubeproxy_sync_partial_proxy_rules_duration_seconds", "Time of a sync that wrote what changed.", syncBuckets(), family)
	}
	if mode == iptables || mode == ipvs {
		v.restoreFailures = s.counter("kubeproxy_sync_proxy_rules_iptables_restore_failures_total", "Syncs in which writing failed.", family)
	}
	if mode == iptables {
		v.partialFailures = s.counter("kubeproxy_sync_proxy_rules_iptables_partial_restore_failures_total",
			"Those of them that had not read the kernel first, as the next one does.", family)
		if m.o.Rules != nil {
			s.readGauge("kubeproxy_sync_proxy_rules_iptables_total", "Rules of ours.", m.readRules(func(r Rules) int { return r.Total }), "table", family)
			s.readGauge("kubeproxy_sync_proxy_rules_iptables_last", "Rules that the last sync wrote.", m.readRules(func(r Rules) int { return r.Last }), "table", family)
		}
	}
	if mode == nftables {
		v.nftFailures = s.counter("kubeproxy_sync_proxy_rules_nftables_sync_failures_total", "Syncs in which writing failed.", family)
	}
}

// registerOwn makes the metrics that kube-proxy does not have.
func (m *Monitor) registerOwn() {
	s, v, family := &m.set, &m.vectors, "ip_family"
	v.services = s.gauge("fairlead_services", "Services in the forwarding table.")
	v.frontends = s.gauge("fairlead_frontends", "Addresses and ports in the forwarding table.")
	v.endpoints = s.gauge("fairlead_endpoints", "Endpoints in the forwarding table; each counts once for every service port.")
	v.conflicts = s.gauge("fairlead_conflicts", "Addresses and ports that a Service claims and an older one has.")
	v.quarantined = s.gauge("fairlead_quarantined_services", "Services that are left out since the kernel refuses their rules.")
	v.apply = s.histogram("fairlead_apply_duration_seconds", "The part of a sync that writes to the kernel.", syncBuckets())
	v.written = s.counter("fairlead_objects_written_total", "Objects of the dataplane that were written.")
	v.deleted = s.counter("fairlead_objects_deleted_total", "Objects of the dataplane that were deleted.")
	v.drifted = s.counter("fairlead_drifted_objects_total", "Objects of the dataplane that others had changed, and that were repaired.")
	v.failures = s.counter("fairlead_sync_failures_total", "Syncs that could not read the kernel or not write everything.", family)
	s.readGauge("fairlead_last_verified_timestamp_seconds", "When the kernel was read last and had all that is wanted, in seconds since 1970.", m.readVerified, family)
	v.staleFlows = s.counter("fairlead_stale_flows_deleted_total", "Stale flows that were removed, by why they were stale.", family, "reason")
	v.flowFailures = s.counter("fairlead_stale_flow_failures_total", "Searches for stale flows that failed.", family)
	if m.o.KubeProxy != nil {
		s.readGauge("fairlead_kube_proxy_present", "Whether a kube-proxy, or anything that one has written, is on the node beside Fairlead.", func(e emit) {
			value := 0.0
			if m.o.KubeProxy() {
				value = 1
			}
			e(value)
		})
	}
	if m.o.Watches != nil {
		s.readGauge("fairlead_watch_stale_seconds", "Time since an event, a bookmark or an answer came from the API server.", func(e emit) {
			for _, w := range m.o.Watches() {
				e(time.Since(w.LastSeen).Seconds(), w.Resource)
			}
		}, "resource")
		s.readGauge("fairlead_watch_open", "Whether a watch is open.", func(e emit) {
			for _, w := range m.o.Watches() {
				value := 0.0
				if w.Open {
					value = 1
				}
				e(value, w.Resource)
			}
		}, "resource")
	}
}

// registerRequests makes the metrics of all clients of the Kubernetes API.
func (m *Monitor) registerRequests() {
	s, v := &m.set, &m.vectors
	v.requestDuration = s.histogram("rest_client_request_duration_seconds", "Time until the API server answers.", requestBuckets(), "verb", "host")
	v.limiterDuration = s.histogram("rest_client_rate_limiter_duration_seconds", "Time for which requests wait for their turn.", requestBuckets(), "verb", "host")
	v.requestSize = s.histogram("rest_client_request_size_bytes", "Size of requests to the API server.", sizeBuckets(), "verb", "host")
	v.responseSize = s.histogram("rest_client_response_size_bytes", "Size of answers of the API server.", sizeBuckets(), "verb", "host")
	v.requestResults = s.counter("rest_client_requests_total", "Requests to the API server by the status code of the answer.", "code", "method", "host")
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

// registerLocalPorts makes the metrics of the forwarder that serves node ports on loopback addresses.
func (m *Monitor) registerLocalPorts() {
	s, family := &m.set, "ip_family"
	each := func(value func(LocalPorts, int) float64) func(emit) {
		return func(e emit) {
			l := m.o.LocalPorts()
			for i, f := range fwd.Families {
				e(value(l, i), f.String())
			}
		}
	}
	s.readGauge("kubeproxy_nftables_localhost_nodeport_listeners", "Node ports that are listened on on a loopback address.",
		each(func(l LocalPorts, i int) float64 { return float64(l.Listeners[i]) }), family)
	s.readCounter("kubeproxy_nftables_localhost_nodeport_listener_creation_failures_total", "Attempts to listen there that failed.",
		each(func(l LocalPorts, i int) float64 { return float64(l.BindFailures[i]) }), family)
	s.readCounter("fairlead_localhost_nodeport_accepted_total", "Connections that came there and were to be forwarded.",
		each(func(l LocalPorts, i int) float64 { return float64(l.Accepted[i]) }), family)
	s.readCounter("fairlead_localhost_nodeport_refused_total", "Connections that were reset at once: too many, or not from a loopback address.",
		each(func(l LocalPorts, i int) float64 { return float64(l.Refused[i]) }), family)
	s.readCounter("fairlead_localhost_nodeport_dial_failures_total", "Connections that were reset since the endpoint did not answer.",
		each(func(l LocalPorts, i int) float64 { return float64(l.DialFailures[i]) }), family)
	s.readGauge("fairlead_localhost_nodeport_connections", "Connections that are open there.",
		func(e emit) { e(float64(m.o.LocalPorts().Connections)) })
}

// registerDraining makes the metrics of destinations that go.
func (m *Monitor) registerDraining() {
	each := func(tell func(Draining, string, emit)) func(emit) {
		return func(e emit) {
			for i, d := range m.o.Draining() {
				tell(d, fwd.Families[i].String(), e)
			}
		}
	}
	s, family := &m.set, "ip_family"
	s.readGauge("fairlead_ipvs_draining_destinations", "Destinations that get no new connections and wait for the end of their old ones, by why they go.",
		each(func(d Draining, family string, e emit) {
			for reason, n := range d.Destinations {
				e(float64(n), family, reason)
			}
		}), family, "reason")
	s.readGauge("fairlead_ipvs_draining_connections", "Connections of these destinations.",
		each(func(d Draining, family string, e emit) { e(float64(d.Connections), family) }), family)
	s.readGauge("fairlead_ipvs_draining_objects",
		"Objects that are still to be taken out of the kernel: these destinations, their virtual servers, addresses and set elements.",
		each(func(d Draining, family string, e emit) { e(float64(d.Objects), family) }), family)
	s.readGauge("fairlead_ipvs_draining_oldest_seconds", "For how long the oldest of them has waited.",
		each(func(d Draining, family string, e emit) { e(d.Oldest.Seconds(), family) }), family)
}

// registerBuild makes the metrics that tell what runs.
func (m *Monitor) registerBuild() {
	one := func(values ...string) func(emit) { return func(e emit) { e(1, values...) } }
	s := &m.set
	s.readGauge("fairlead_build_info", "Always 1.", one(m.o.Version, runtime.Version()), "version", "go_version")
	s.readGauge("fairlead_info", "Always 1.", one(m.o.Mode, m.o.Version), "mode", "version")
	// There is no kubernetes_build_info: it says the version of a component of Kubernetes, and alerts compare those of a cluster.
}

// kubernetesRelease is the release that belongs to k8s.io/client-go: v1.36.3 to v0.36.3.
func kubernetesRelease() string {
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, d := range info.Deps {
			if rest, ok := strings.CutPrefix(d.Version, "v0."); ok && d.Path == "k8s.io/client-go" {
				return "v1." + rest
			}
		}
	}
	return ""
}

package metrics

import (
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/fairlead/fairlead/internal/cluster"
	"github.com/fairlead/fairlead/internal/fwd"
	"github.com/fairlead/fairlead/internal/reconcile"
)

// Monitor is a reconcile.Monitor that remembers enough to answer. Make one with New; all methods may be called by any
// goroutine.
type Monitor struct {
	mode     string
	deadline time.Duration
	registry *prometheus.Registry
	vectors  vectors

	// mu guards all that follows.
	mu sync.Mutex
	// pendingSince is by family the time of the oldest change that is not written, zero for none.
	pendingSince [2]time.Time
	// updated is by family the end of the last sync without a failure.
	updated     [2]time.Time
	ready       bool
	leaving     bool
	quarantined int
}

var _ reconcile.Monitor = (*Monitor)(nil)

// New returns a Monitor. syncPeriod is the loop's: a change that waits for more than twice as long is stale.
func New(mode, version string, syncPeriod time.Duration) *Monitor {
	m := &Monitor{mode: mode, deadline: 2 * syncPeriod, registry: prometheus.NewRegistry(), vectors: newVectors()}
	m.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	m.registry.MustRegister(m.vectors.all()...)
	m.vectors.info.WithLabelValues(mode, version).Set(1)
	now := time.Now()
	m.updated = [2]time.Time{now, now}
	return m
}

// Queued implements reconcile.Monitor.
func (m *Monitor) Queued(since time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := range m.pendingSince {
		if m.pendingSince[i].IsZero() {
			m.pendingSince[i] = since
		}
		m.vectors.queued.WithLabelValues(fwd.Families[i].String()).Set(seconds(since))
	}
}

// Synced implements reconcile.Monitor.
func (m *Monitor) Synced(s reconcile.Sync) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i, f := range fwd.Families {
		label := f.String()
		m.vectors.duration.WithLabelValues(label).Observe(s.End.Sub(s.Start).Seconds())
		if s.Failed[i] {
			m.vectors.failures.WithLabelValues(label).Inc()
			if m.pendingSince[i].IsZero() {
				m.pendingSince[i] = s.Start
			}
			continue
		}
		m.pendingSince[i], m.updated[i] = time.Time{}, s.End
		m.vectors.last.WithLabelValues(label).Set(seconds(s.End))
		for _, t := range s.Triggers[i] {
			m.vectors.programming.WithLabelValues(label).Observe(s.End.Sub(t).Seconds())
		}
	}
	if s.Failed == [2]bool{} {
		m.ready = true
	}
	m.quarantined = s.Quarantined
	m.vectors.count(s)
}

// Verified implements reconcile.Monitor.
func (m *Monitor) Verified(time.Time) {}

// Node implements reconcile.Monitor.
func (m *Monitor) Node(n cluster.Node) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.leaving = n.Deleting || n.ToBeDeleted
}

// MetricsHandler serves /metrics, /proxyMode and /healthz.
func (m *Monitor) MetricsHandler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /proxyMode", func(w http.ResponseWriter, _ *http.Request) { writeText(w, m.mode) })
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { writeText(w, "ok") })
	return mux
}

func writeText(w http.ResponseWriter, text string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	_, _ = w.Write([]byte(text)) // a client that went away has no use for an error
}

func seconds(t time.Time) float64 { return float64(t.UnixNano()) / 1e9 }

// vectors are the metrics themselves.
type vectors struct {
	duration, programming           *prometheus.HistogramVec
	last, queued, noLocal           *prometheus.GaugeVec
	info                            *prometheus.GaugeVec
	failures                        *prometheus.CounterVec
	serviceChanges, sliceChanges    prometheus.Counter
	written, deleted, drifted       prometheus.Counter
	services, frontends, quarantine prometheus.Gauge
	answers                         map[string]*prometheus.CounterVec
}

func newVectors() vectors {
	family := []string{"ip_family"}
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	}
	gauge := func(name, help string) prometheus.Gauge {
		return prometheus.NewGauge(prometheus.GaugeOpts{Name: name, Help: help})
	}
	gauges := func(name, help string, labels ...string) *prometheus.GaugeVec {
		return prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: name, Help: help}, labels)
	}
	counters := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	}
	return vectors{
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "kubeproxy_sync_proxy_rules_duration_seconds", Help: "Time of one sync.", Buckets: prometheus.ExponentialBuckets(0.001, 2, 15),
		}, family),
		programming: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "kubeproxy_network_programming_duration_seconds", Help: "Time from a change of endpoints until it is in the kernel.", Buckets: programmingBuckets(),
		}, family),
		last:           gauges("kubeproxy_sync_proxy_rules_last_timestamp_seconds", "Time of the last successful sync.", family...),
		queued:         gauges("kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds", "Time at which a sync was last asked for.", family...),
		noLocal:        gauges("kubeproxy_sync_proxy_rules_no_local_endpoints_total", "Service ports with policy Local and no endpoint on this node.", "traffic_policy", "ip_family"),
		serviceChanges: counter("kubeproxy_sync_proxy_rules_service_changes_total", "Changes of Services."),
		sliceChanges:   counter("kubeproxy_sync_proxy_rules_endpoint_changes_total", "Changes of EndpointSlices."),
		info:           gauges("fairlead_info", "Always 1.", "mode", "version"),
		failures:       counters("fairlead_sync_failures_total", "Syncs that could not write everything.", family...),
		written:        counter("fairlead_objects_written_total", "Objects of the dataplane that were written."),
		deleted:        counter("fairlead_objects_deleted_total", "Objects of the dataplane that were deleted."),
		drifted:        counter("fairlead_drifted_objects_total", "Objects of the dataplane that others had changed."),
		services:       gauge("fairlead_services", "Services in the forwarding table."),
		frontends:      gauge("fairlead_frontends", "Addresses and ports in the forwarding table."),
		quarantine:     gauge("fairlead_quarantined_services", "Services that the kernel refuses."),
		answers: map[string]*prometheus.CounterVec{
			"healthz": counters("kubeproxy_proxy_healthz_total", "Answers of /healthz.", "code"),
			"livez":   counters("kubeproxy_proxy_livez_total", "Answers of /livez.", "code"),
		},
	}
}

// programmingBuckets are those of the network programming objective of Kubernetes.
func programmingBuckets() []float64 {
	out := []float64{0.25, 0.5}
	out = append(out, prometheus.LinearBuckets(1, 1, 59)...)
	out = append(out, prometheus.LinearBuckets(60, 5, 12)...)
	return append(out, prometheus.LinearBuckets(120, 30, 7)...)
}

func (v *vectors) all() []prometheus.Collector {
	return []prometheus.Collector{
		v.duration, v.programming, v.last, v.queued, v.noLocal, v.serviceChanges, v.sliceChanges, v.info, v.failures, v.written,
		v.deleted, v.drifted, v.services, v.frontends, v.quarantine, v.answers["healthz"], v.answers["livez"],
	}
}

// count takes in what concerns both families.
func (v *vectors) count(s reconcile.Sync) {
	v.serviceChanges.Add(float64(s.ServiceEvents))
	v.sliceChanges.Add(float64(s.SliceEvents))
	v.written.Add(float64(s.Result.Written))
	v.deleted.Add(float64(s.Result.Deleted))
	v.drifted.Add(float64(s.Drifted))
	v.services.Set(float64(s.Services))
	v.frontends.Set(float64(s.Frontends))
	v.quarantine.Set(float64(s.Quarantined))
	for i, f := range fwd.Families {
		v.noLocal.WithLabelValues("internal", f.String()).Set(float64(s.LocalPolicyEmpty[i][0]))
		v.noLocal.WithLabelValues("external", f.String()).Set(float64(s.LocalPolicyEmpty[i][1]))
	}
}

// answered counts an answer of a health endpoint.
func (v *vectors) answered(endpoint string, code int) {
	if c := v.answers[endpoint]; c != nil {
		c.WithLabelValues(strconv.Itoa(code)).Inc()
	}
}

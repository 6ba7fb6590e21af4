package metrics

import (
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/fairlead/fairlead/internal/cluster"
	"github.com/fairlead/fairlead/internal/fwd"
	"github.com/fairlead/fairlead/internal/reconcile"
)

// Options say what a Monitor shows beside what it is told. All functions but Changes may be nil; they are called when
// metrics are asked for, by any goroutine.
type Options struct {
	// Mode is the dataplane, Version that of the program.
	Mode, Version string
	// APIServer is the host of requests to the API server, as their URLs have it; empty where there is none.
	APIServer string
	// Changes tells of the objects' changes.
	Changes func() Changes
	// Watches tells of the watches of an API server.
	Watches func() []cluster.Watch
	// Served says by fwd.Family.Index which families the node serves; nil stands for both.
	Served func() [2]bool
	// Rules counts rules by family and table (mode iptables).
	Rules func() []Rules
	// Draining tells, by fwd.Family.Index, of destinations that get no new connections (mode ipvs).
	Draining func() [2]Draining
	// KubeProxy says whether there is a kube-proxy, or anything of one, on the node.
	KubeProxy func() bool
	// LocalPorts tells of node ports that are served in user space on loopback addresses.
	LocalPorts func() LocalPorts
}

// Changes counts changes of objects since the start, and how many of them the loop has not taken yet.
type Changes struct {
	Services, Slices               uint64
	ServicesWaiting, SlicesWaiting uint64
	// Last is when the newest came.
	Last time.Time
}

// Rules counts the rules of one table.
type Rules struct {
	Family fwd.Family
	Table  string
	// Total is how many there are, Last how many the last sync wrote.
	Total, Last int
}

// Draining is what is left of destinations that go.
type Draining struct {
	// Destinations counts them by reason.
	Destinations map[string]int
	// Oldest is for how long the oldest has drained.
	Oldest time.Duration
	// Connections are those of all of them.
	Connections uint64
	// Objects counts all that is still to be taken out of the kernel; 0 means that nothing drains.
	Objects int
}

// LocalPorts is what package localport tells; arrays are by fwd.Family.Index.
type LocalPorts struct {
	Listeners                                     [2]int
	Connections                                   int
	Accepted, Refused, DialFailures, BindFailures [2]uint64
}

// Monitor keeps metrics. The loop tells it what it does. Make one with New; all methods may be called by any goroutine.
type Monitor struct {
	o       Options
	set     set
	vectors vectors

	// mu guards all that follows.
	mu sync.Mutex
	// queued is when the loop last said that a change waits.
	queued time.Time
	// held are the changes that the loop took and could not write yet.
	held events
	// verified is, by fwd.Family.Index, when the kernel was read last and had all that is wanted, in seconds since 1970.
	verified [2]float64
}

// events counts changes of objects.
type events struct{ Services, Slices int }

// New returns a Monitor. At the start a first sync counts as asked for.
func New(o Options) *Monitor {
	m := &Monitor{o: o, set: set{registry: prometheus.NewRegistry()}, queued: time.Now()}
	m.set.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	m.register()
	return m
}

// Specs lists all metrics but those of the Go runtime and the process.
func (m *Monitor) Specs() []Spec { return m.set.specs }

// Queued says that a change waits to be written, since then.
func (m *Monitor) Queued(since time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.queued = since
}

// Synced counts a sync.
func (m *Monitor) Synced(s reconcile.Sync) {
	v := &m.vectors
	incomplete, applied := false, false
	var applying time.Duration
	for i, f := range fwd.Families {
		part := s.Families[i]
		incomplete = incomplete || part.Failed
		if !part.Tried {
			continue
		}
		if !part.Unread {
			applied, applying = true, applying+part.Applying
		}
		m.syncedFamily(s, part, f.String())
		if !part.Failed {
			v.noLocal.WithLabelValues("internal", f.String()).Set(float64(s.LocalPolicyEmpty[i][0]))
			v.noLocal.WithLabelValues("external", f.String()).Set(float64(s.LocalPolicyEmpty[i][1]))
		}
	}
	if applied {
		v.apply.WithLabelValues().Observe(applying.Seconds())
	}
	v.services.WithLabelValues().Set(float64(s.Services))
	v.frontends.WithLabelValues().Set(float64(s.Frontends))
	v.endpoints.WithLabelValues().Set(float64(s.Endpoints))
	v.conflicts.WithLabelValues().Set(float64(s.Conflicts))
	v.quarantined.WithLabelValues().Set(float64(s.Quarantined))

	m.mu.Lock()
	defer m.mu.Unlock()
	m.held.Services += s.ServiceEvents
	m.held.Slices += s.SliceEvents
	if !incomplete {
		m.held = events{}
	}
}

// syncedFamily counts the part of a sync that one family has.
func (m *Monitor) syncedFamily(s reconcile.Sync, part reconcile.FamilySync, label string) {
	v := &m.vectors
	took := part.End.Sub(s.Start).Seconds()
	v.duration.WithLabelValues(label).Observe(took)
	if part.Full && v.full != nil {
		v.full.WithLabelValues(label).Observe(took)
	} else if v.partial != nil && !part.Unread {
		v.partial.WithLabelValues(label).Observe(took)
	}
	v.written.WithLabelValues().Add(float64(part.Result.Written))
	v.deleted.WithLabelValues().Add(float64(part.Result.Deleted))
	v.drifted.WithLabelValues().Add(float64(part.Drifted))
	if part.Failed {
		m.failed(part, label)
		return
	}
	v.last.WithLabelValues(label).Set(seconds(part.End))
	for _, t := range part.Triggers {
		v.programming.WithLabelValues(label).Observe(part.End.Sub(t).Seconds())
	}
}

// failed counts a sync that failed for a family.
func (m *Monitor) failed(part reconcile.FamilySync, label string) {
	v := &m.vectors
	v.failures.WithLabelValues(label).Inc()
	if part.Unread {
		return
	}
	for _, c := range []*prometheus.CounterVec{v.restoreFailures, v.nftFailures} {
		if c != nil {
			c.WithLabelValues(label).Inc()
		}
	}
	if v.partialFailures != nil && !part.Full {
		v.partialFailures.WithLabelValues(label).Inc()
	}
}

// Verified says that a reading of the kernel found all that is wanted in one family.
func (m *Monitor) Verified(f fwd.Family, at time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.verified[f.Index()] = seconds(at)
}

func (m *Monitor) readVerified(e emit) {
	served := [2]bool{true, true}
	if m.o.Served != nil {
		served = m.o.Served()
	}
	m.mu.Lock()
	verified := m.verified
	m.mu.Unlock()
	for i, f := range fwd.Families {
		if served[i] {
			e(verified[i], f.String())
		}
	}
}

// Answered counts an answer of the health server.
func (m *Monitor) Answered(endpoint string, code int) {
	switch endpoint {
	case "healthz":
		m.vectors.healthz.WithLabelValues(strconv.Itoa(code)).Inc()
	case "livez":
		m.vectors.livez.WithLabelValues(strconv.Itoa(code)).Inc()
	}
}

// FlowsSearched counts a search for stale flows; deleted is by the reason for which they were stale.
func (m *Monitor) FlowsSearched(f fwd.Family, took time.Duration, deleted map[string]int, err error) {
	v, label := &m.vectors, f.String()
	v.flowDuration.WithLabelValues(label).Observe(took.Seconds())
	for reason, n := range deleted {
		v.flowsDeleted.WithLabelValues(label).Add(float64(n))
		v.staleFlows.WithLabelValues(label, reason).Add(float64(n))
	}
	if err != nil {
		v.flowFailures.WithLabelValues(label).Inc()
	}
}

func (m *Monitor) unwritten() events {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.held
}

// readQueued tells when a sync was asked for last, also while the loop hangs and takes no notice of it.
func (m *Monitor) readQueued(e emit) {
	last := m.o.Changes().Last
	m.mu.Lock()
	if m.queued.After(last) {
		last = m.queued
	}
	m.mu.Unlock()
	for _, f := range fwd.Families {
		e(seconds(last), f.String())
	}
}

func (m *Monitor) readChanges(value func(Changes) float64) func(emit) {
	return func(e emit) { e(value(m.o.Changes())) }
}

func (m *Monitor) readRules(value func(Rules) int) func(emit) {
	return func(e emit) {
		for _, r := range m.o.Rules() {
			e(float64(value(r)), r.Table, r.Family.String())
		}
	}
}

// The methods below are those of kube.RequestMetrics.

// Result counts an answer of the API server.
func (m *Monitor) Result(code, method, host string) {
	m.vectors.requestResults.WithLabelValues(code, method, host).Inc()
}

// Retry counts a request that is sent again.
func (m *Monitor) Retry(code, verb, host string) {
	m.vectors.requestRetries.WithLabelValues(code, verb, host).Inc()
}

// Duration observes the time until an answer.
func (m *Monitor) Duration(verb, host string, d time.Duration) {
	m.vectors.requestDuration.WithLabelValues(verb, host).Observe(d.Seconds())
}

// RateLimiter observes the time for which a request waited for its turn.
func (m *Monitor) RateLimiter(verb, host string, d time.Duration) {
	m.vectors.limiterDuration.WithLabelValues(verb, host).Observe(d.Seconds())
}

// RequestSize observes the size of a request's body.
func (m *Monitor) RequestSize(verb, host string, bytes float64) {
	m.vectors.requestSize.WithLabelValues(verb, host).Observe(bytes)
}

// ResponseSize observes the size of an answer's body.
func (m *Monitor) ResponseSize(verb, host string, bytes float64) {
	m.vectors.responseSize.WithLabelValues(verb, host).Observe(bytes)
}

func seconds(t time.Time) float64 { return float64(t.UnixNano()) / 1e9 }

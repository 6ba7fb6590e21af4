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

// Mode says which of kube-proxy's metrics a mode has, besides those of all modes.
type Mode struct {
	// Name is the name of the mode, such as "nftables".
	Name string
	// FullAndPartial adds the durations of full and of partial syncs.
	FullAndPartial bool
	// WriteFailures is the name of the counter of syncs that failed to write, PartialFailures that
	// of those among them that had not read the kernel before. A mode without such a counter has an
	// empty name.
	WriteFailures, PartialFailures string
}

// Options are what a Monitor works with. Its functions are called at each scrape, by any goroutine.
type Options struct {
	Mode Mode
	// Version is that of the program.
	Version string
	// APIServer is the host of requests to the API server, as in their URLs; empty if there is
	// none.
	APIServer string
	// Backlog returns what waits in front of the loop.
	Backlog func() cluster.Backlog
	// Watches returns the state of the watches of the API server; nil if there is none.
	Watches func() []cluster.Watch
}

// Monitor keeps the metrics, and learns from the loop what they count. Make one with New. Any
// goroutine may call its methods.
type Monitor struct {
	o       Options
	set     set
	vectors vectors

	// mu guards all fields below.
	mu sync.Mutex
	// queued is when the loop last said that a change waits.
	queued time.Time
	// held are the changes that the loop took and could not write yet.
	held events
	// served says by fwd.Family.Index which families the node serves.
	served [2]bool
	// verified is, by fwd.Family.Index, when the kernel was last found complete, in seconds since
	// 1970.
	verified [2]float64
}

// events counts changes of objects.
type events struct{ services, slices int }

// New returns a Monitor. The first sync counts as requested at the start of the process.
func New(o Options) *Monitor {
	m := &Monitor{o: o, set: set{registry: prometheus.NewRegistry()}, queued: time.Now(), served: [2]bool{true, true}}
	m.set.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	m.registerProxy()
	m.registerOwn()
	m.registerRequests()
	return m
}

// Specs lists all metrics except those of the Go runtime and of the process.
func (m *Monitor) Specs() []Spec { return m.set.specs }

// SetServed sets which families the node serves.
func (m *Monitor) SetServed(served [2]bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.served = served
}

// Queued says that a change has been waiting to be written since that time.
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
	m.held.services += s.ServiceEvents
	m.held.slices += s.SliceEvents
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
	if !part.Failed {
		v.last.WithLabelValues(label).Set(seconds(part.End))
		for _, t := range part.Triggers {
			v.programming.WithLabelValues(label).Observe(part.End.Sub(t).Seconds())
		}
		return
	}
	v.failures.WithLabelValues(label).Inc()
	if v.writeFailures != nil && !part.Unread {
		v.writeFailures.WithLabelValues(label).Inc()
	}
	if v.partialFailures != nil && !part.Unread && !part.Full {
		v.partialFailures.WithLabelValues(label).Inc()
	}
}

// Verified says that everything wanted was found in the kernel in one family.
func (m *Monitor) Verified(f fwd.Family, at time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.verified[f.Index()] = seconds(at)
}

func (m *Monitor) readVerified(e Emit) {
	m.mu.Lock()
	served, verified := m.served, m.verified
	m.mu.Unlock()
	for i, f := range fwd.Families {
		if served[i] {
			e(verified[i], f.String())
		}
	}
}

// Answered counts a response of the health server.
func (m *Monitor) Answered(endpoint string, code int) {
	switch endpoint {
	case "healthz":
		m.vectors.healthz.WithLabelValues(strconv.Itoa(code)).Inc()
	case "livez":
		m.vectors.livez.WithLabelValues(strconv.Itoa(code)).Inc()
	}
}

// FlowsSearched counts a search for stale connection-tracking entries. deleted has the number of
// deleted entries by reason.
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

// readQueued emits when a sync was last requested. It also sees requests that a loop that hangs has
// not taken.
func (m *Monitor) readQueued(e Emit) {
	last := m.o.Backlog().LastChange
	m.mu.Lock()
	if m.queued.After(last) {
		last = m.queued
	}
	m.mu.Unlock()
	for _, f := range fwd.Families {
		e(seconds(last), f.String())
	}
}

// The methods below implement kube.RequestMetrics.

// Result counts a response of the API server.
func (m *Monitor) Result(code, method, host string) {
	m.vectors.requestResults.WithLabelValues(code, method, host).Inc()
}

// Retry counts a request that is sent again.
func (m *Monitor) Retry(code, verb, host string) {
	m.vectors.requestRetries.WithLabelValues(code, verb, host).Inc()
}

// Duration observes the time until a response.
func (m *Monitor) Duration(verb, host string, d time.Duration) {
	m.vectors.requestDuration.WithLabelValues(verb, host).Observe(d.Seconds())
}

// RateLimiter observes the time that a request waited for the rate limiter.
func (m *Monitor) RateLimiter(verb, host string, d time.Duration) {
	m.vectors.limiterDuration.WithLabelValues(verb, host).Observe(d.Seconds())
}

// RequestSize observes the size of a request body.
func (m *Monitor) RequestSize(verb, host string, bytes float64) {
	m.vectors.requestSize.WithLabelValues(verb, host).Observe(bytes)
}

// ResponseSize observes the size of a response body.
func (m *Monitor) ResponseSize(verb, host string, bytes float64) {
	m.vectors.responseSize.WithLabelValues(verb, host).Observe(bytes)
}

func seconds(t time.Time) float64 { return float64(t.UnixNano()) / 1e9 }

func oneIf(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

package metrics

import (
	"slices"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/fairlead/fairlead/internal/fwd"
)

// familyLabel is the label for the address family.
const familyLabel = "ip_family"

// Spec describes one metric, for documentation and tests.
type Spec struct {
	Name string
	// Type is "counter", "gauge" or "histogram".
	Type string
	Help string
	// Labels are in the order of their registration.
	Labels []string
	// Buckets are the upper bounds of a histogram.
	Buckets []float64
}

// set is a registry that remembers the Spec of every metric in it.
type set struct {
	registry *prometheus.Registry
	specs    []Spec
}

func (s *set) add(c prometheus.Collector, spec Spec) {
	s.registry.MustRegister(c)
	s.specs = append(s.specs, spec)
}

func (s *set) counter(name, help string, labels ...string) *prometheus.CounterVec {
	v := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	initSeries(labels, func(values ...string) { v.WithLabelValues(values...) })
	s.add(v, Spec{Name: name, Type: "counter", Help: help, Labels: labels})
	return v
}

func (s *set) gauge(name, help string, labels ...string) *prometheus.GaugeVec {
	v := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: name, Help: help}, labels)
	if len(labels) == 0 {
		v.WithLabelValues() // makes its only series
	}
	s.add(v, Spec{Name: name, Type: "gauge", Help: help, Labels: labels})
	return v
}

func (s *set) histogram(name, help string, buckets []float64, labels ...string) *prometheus.HistogramVec {
	v := prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets}, labels)
	initSeries(labels, func(values ...string) { v.WithLabelValues(values...) })
	s.add(v, Spec{Name: name, Type: "histogram", Help: help, Labels: labels, Buckets: buckets})
	return v
}

// initSeries makes the series of a counter or histogram that are known before anything is counted.
// A dashboard then shows 0 instead of nothing, and rate() sees the first increase.
func initSeries(labels []string, make func(values ...string)) {
	switch {
	case len(labels) == 0:
		make()
	case slices.Equal(labels, []string{familyLabel}):
		for _, f := range fwd.Families {
			make(f.String())
		}
	}
}

// Emit takes one value of a metric with the values of its labels.
type Emit func(value float64, labels ...string)

// Counter and Gauge register a metric whose values are kept elsewhere. Each scrape calls read, from
// any goroutine.
func (m *Monitor) Counter(name, help string, read func(Emit), labels ...string) {
	m.set.read(prometheus.CounterValue, Spec{Name: name, Type: "counter", Help: help, Labels: labels}, read)
}

// Gauge is described at Counter.
func (m *Monitor) Gauge(name, help string, read func(Emit), labels ...string) {
	m.set.read(prometheus.GaugeValue, Spec{Name: name, Type: "gauge", Help: help, Labels: labels}, read)
}

func (s *set) read(kind prometheus.ValueType, spec Spec, read func(Emit)) {
	s.add(reader{prometheus.NewDesc(spec.Name, spec.Help, spec.Labels, nil), kind, read}, spec)
}

// reader is a prometheus.Collector of one metric.
type reader struct {
	desc *prometheus.Desc
	kind prometheus.ValueType
	read func(Emit)
}

// Describe implements prometheus.Collector.
func (r reader) Describe(ch chan<- *prometheus.Desc) { ch <- r.desc }

// Collect implements prometheus.Collector.
func (r reader) Collect(ch chan<- prometheus.Metric) {
	r.read(func(value float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(r.desc, r.kind, value, labels...)
	})
}

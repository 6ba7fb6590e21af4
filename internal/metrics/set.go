package metrics

import (
	"slices"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/fairlead/fairlead/internal/fwd"
)

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

// set is a registry that remembers what is in it.
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
	fromTheStart(labels, func(values ...string) { v.WithLabelValues(values...) })
	s.add(v, Spec{Name: name, Type: "counter", Help: help, Labels: labels})
	return v
}

func (s *set) gauge(name, help string, labels ...string) *prometheus.GaugeVec {
	v := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: name, Help: help}, labels)
	if len(labels) == 0 {
		v.WithLabelValues() // it is there from the beginning
	}
	s.add(v, Spec{Name: name, Type: "gauge", Help: help, Labels: labels})
	return v
}

func (s *set) histogram(name, help string, buckets []float64, labels ...string) *prometheus.HistogramVec {
	v := prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets}, labels)
	fromTheStart(labels, func(values ...string) { v.WithLabelValues(values...) })
	s.add(v, Spec{Name: name, Type: "histogram", Help: help, Labels: labels, Buckets: buckets})
	return v
}

// fromTheStart makes the series of a counter or histogram that are known before anything is counted: a dashboard then shows that nothing
// was, and a rate sees the first increase.
func fromTheStart(labels []string, make func(values ...string)) {
	switch {
	case len(labels) == 0:
		make()
	case slices.Equal(labels, []string{"ip_family"}):
		for _, f := range fwd.Families {
			make(f.String())
		}
	}
}

// emit takes a value with the values of its labels.
type emit func(value float64, labels ...string)

// readCounter and readGauge register metrics whose values somebody else keeps: read is called whenever they are asked for.
func (s *set) readCounter(name, help string, read func(emit), labels ...string) {
	s.read(prometheus.CounterValue, Spec{Name: name, Type: "counter", Help: help, Labels: labels}, read)
}

func (s *set) readGauge(name, help string, read func(emit), labels ...string) {
	s.read(prometheus.GaugeValue, Spec{Name: name, Type: "gauge", Help: help, Labels: labels}, read)
}

func (s *set) read(kind prometheus.ValueType, spec Spec, read func(emit)) {
	s.add(reader{prometheus.NewDesc(spec.Name, spec.Help, spec.Labels, nil), kind, read}, spec)
}

// reader is a prometheus.Collector of one metric.
type reader struct {
	desc *prometheus.Desc
	kind prometheus.ValueType
	read func(emit)
}

// Describe implements prometheus.Collector.
func (r reader) Describe(ch chan<- *prometheus.Desc) { ch <- r.desc }

// Collect implements prometheus.Collector.
func (r reader) Collect(ch chan<- prometheus.Metric) {
	r.read(func(value float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(r.desc, r.kind, value, labels...)
	})
}

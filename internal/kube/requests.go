package kube

import (
	"context"
	"net/url"
	"time"

	"k8s.io/client-go/tools/metrics"
)

// RequestMetrics observes requests to API servers. It must be safe for concurrent use.
type RequestMetrics interface {
	// Result counts a response by HTTP status code, or "<error>"; Retry counts a repeated request.
	Result(code, method, host string)
	Retry(code, verb, host string)
	// Duration is the time until the response, RateLimiter the time that a request was delayed by
	// the rate limit.
	Duration(verb, host string, d time.Duration)
	RateLimiter(verb, host string, d time.Duration)
	// RequestSize and ResponseSize are the sizes of bodies in bytes.
	RequestSize(verb, host string, bytes float64)
	ResponseSize(verb, host string, bytes float64)
}

// ReportRequests makes all clients in this process report to m. client-go ignores all calls but the
// first.
func ReportRequests(m RequestMetrics) {
	metrics.Register(metrics.RegisterOpts{
		RequestResult:      results{m},
		RequestRetry:       results{m},
		RequestLatency:     latency(m.Duration),
		RateLimiterLatency: latency(m.RateLimiter),
		RequestSize:        size(m.RequestSize),
		ResponseSize:       size(m.ResponseSize),
	})
}

type results struct{ m RequestMetrics }

func (r results) Increment(_ context.Context, code, method, host string) {
	r.m.Result(code, method, host)
}

func (r results) IncrementRetry(_ context.Context, code, method, host string) {
	r.m.Retry(code, method, host)
}

type latency func(verb, host string, d time.Duration)

func (l latency) Observe(_ context.Context, verb string, u url.URL, d time.Duration) {
	l(verb, u.Host, d)
}

type size func(verb, host string, bytes float64)

func (s size) Observe(_ context.Context, verb, host string, bytes float64) { s(verb, host, bytes) }

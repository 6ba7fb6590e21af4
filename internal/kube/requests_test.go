package kube

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"
)

// recordedRequests records what clients report, by host, because other tests send requests too.
type recordedRequests struct {
	mu   sync.Mutex
	seen map[string]map[string]int
}

// recorded is registered once per process, because tests may run more than once.
var recorded = sync.OnceValue(func() *recordedRequests {
	r := &recordedRequests{seen: make(map[string]map[string]int)}
	ReportRequests(r)
	return r
})

func (r *recordedRequests) put(host, what string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.seen[host] == nil {
		r.seen[host] = make(map[string]int)
	}
	r.seen[host][what]++
}

func (r *recordedRequests) Result(code, method, host string) { r.put(host, "result "+code+" "+method) }
func (r *recordedRequests) Retry(code, verb, host string)    { r.put(host, "retry "+code+" "+verb) }
func (r *recordedRequests) Duration(verb, host string, d time.Duration) {
	if d > 0 {
		r.put(host, "duration "+verb)
	}
}
func (r *recordedRequests) RateLimiter(verb, host string, _ time.Duration) {
	r.put(host, "limiter "+verb)
}
func (r *recordedRequests) RequestSize(verb, host string, bytes float64) {
	if bytes > 0 {
		r.put(host, "sent "+verb)
	}
}
func (r *recordedRequests) ResponseSize(verb, host string, bytes float64) {
	if bytes > 0 {
		r.put(host, "received "+verb)
	}
}

func TestReportRequests(t *testing.T) {
	a := httptest.NewServer(http.HandlerFunc(reviews))
	t.Cleanup(a.Close)
	m, host := recorded(), strings.TrimPrefix(a.URL, "http://")
	m.mu.Lock()
	delete(m.seen, host) // another server may have used the port before
	m.mu.Unlock()
	s, err := NewAPISource(APIOptions{Master: a.URL, NodeName: "n1", QPS: 1000, Burst: 1000, ContentType: "application/json"}, NewFeed())
	if err != nil {
		t.Fatal(err)
	}
	r, err := s.Reviewer()
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := r.Review(t.Context(), "bad", "get", "/metrics"); err != nil {
		t.Fatal(err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	seen := m.seen[host]
	for _, want := range []string{"result 200 POST", "duration POST", "sent POST", "received POST", "limiter POST"} {
		if seen[want] != 1 {
			t.Errorf("%q reported %d times, all: %v", want, seen[want], seen)
		}
	}
}

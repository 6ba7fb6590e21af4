package metrics

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func request(t *testing.T, h http.Handler, method, path, body string, header ...string) (int, string) {
	t.Helper()
	req := httptest.NewRequest(method, path, strings.NewReader(body))
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, req)
	return w.Code, w.Body.String()
}

func TestPages(t *testing.T) {
	m := New(full(ipvs))
	level := 0
	all := ServerOptions{
		Configz:   func() any { return map[string]any{"kubeproxy.config.k8s.io": map[string]any{"Mode": "ipvs"}} },
		Flagz:     func() map[string]string { return map[string]string{"v": "2", "mode": "ipvs"} },
		Profiling: true, SetVerbosity: func(v int) { level = v }, Log: slog.New(slog.DiscardHandler),
	}
	tests := []struct {
		name, method, path, body string
		o                        ServerOptions
		code                     int
		want                     string
	}{
		{"health", "GET", "/healthz", "", ServerOptions{}, 200, "ok"},
		{"ping", "GET", "/healthz/ping?verbose", "", ServerOptions{}, 200, "ok"},
		{"mode", "GET", "/proxyMode", "", ServerOptions{}, 200, "ipvs"},
		{"metrics", "GET", "/metrics", "", ServerOptions{}, 200, "# TYPE fairlead_services gauge"},
		{"status", "GET", "/statusz", "", all, 200, "Paths: /configz /debug/flags /debug/pprof /flagz /healthz /healthz/ping /metrics /proxyMode /statusz"},
		{"config", "GET", "/configz", "", all, 200, `{"kubeproxy.config.k8s.io":{"Mode":"ipvs"}}`},
		{"flags", "GET", "/flagz", "", all, 200, "\nmode=ipvs\nv=2\n"},
		{"profiles", "GET", "/debug/pprof/", "", all, 200, "goroutine"},
		{"one profile", "GET", "/debug/pprof/cmdline", "", all, 200, ""},
		{"list of flags", "GET", "/debug/flags", "", all, 200, "v"},
		{"verbosity", "PUT", "/debug/flags/v", " 4\n", all, 200, "successfully set klog.logging.verbosity to 4"},
		{"verbosity, no number", "PUT", "/debug/flags/v", "x", all, 400, "want a number"},
		{"verbosity, no PUT", "GET", "/debug/flags/v", "", all, 406, ""},
		{"no config", "GET", "/configz", "", ServerOptions{}, 404, ""},
		{"no flags", "GET", "/flagz", "", ServerOptions{}, 404, ""},
		{"no profiles", "GET", "/debug/pprof/", "", ServerOptions{}, 404, ""},
		{"no verbosity", "PUT", "/debug/flags/v", "4", ServerOptions{}, 404, ""},
		{"nothing", "GET", "/", "", all, 404, ""},
		{"no change of metrics", "DELETE", "/metrics", "", all, 405, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			code, body := request(t, m.Handler(tt.o), tt.method, tt.path, tt.body)
			if code != tt.code || !strings.Contains(body, tt.want) {
				t.Errorf("%d %q, want %d and %q", code, body, tt.code, tt.want)
			}
		})
	}
	if level != 4 {
		t.Errorf("verbosity %d, want 4", level)
	}
	for accept, want := range map[string]string{
		"": "text/plain; version=0.0.4",
		"application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited": "application/vnd.google.protobuf;",
	} {
		req := httptest.NewRequest("GET", "/metrics", nil)
		req.Header.Set("Accept", accept)
		w := httptest.NewRecorder()
		m.Handler(all).ServeHTTP(w, req)
		if got := w.Header().Get("Content-Type"); !strings.HasPrefix(got, want) {
			t.Errorf("Accept %q: Content-Type %q, want %q", accept, got, want)
		}
	}
}

// reviews is a Reviewer: alice may get /metrics, bob nothing.
type reviews struct {
	asked int
	err   error
	// hold makes answers wait for the end of the context.
	hold bool
}

func (r *reviews) Review(ctx context.Context, token, verb, path string) (string, bool, error) {
	r.asked++
	if r.hold {
		<-ctx.Done()
		return "", false, ctx.Err()
	}
	if r.err != nil {
		return "", false, r.err
	}
	user := map[string]string{"a": "alice", "b": "bob"}[token]
	return user, user == "alice" && verb == "get" && path == "/metrics", nil
}

func TestAuth(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	m := New(full(ipvs))
	tests := []struct {
		name, method, path, authorization string
		err                               error
		code, asked                       int
	}{
		{"may", "GET", "/metrics", "Bearer a", nil, 200, 1},
		{"scheme in lower case", "GET", "/metrics", "bearer  a", nil, 200, 1},
		{"another path", "GET", "/proxyMode", "Bearer a", nil, 403, 1},
		{"another method", "PUT", "/metrics", "Bearer a", nil, 403, 1},
		{"another spelling of a path", "GET", "//metrics", "Bearer a", nil, 403, 1},
		{"another spelling of the open path", "GET", "/healthz/../metrics", "", nil, 401, 0},
		{"a path below the open one", "GET", "/healthz/x", "", nil, 401, 0},
		{"another user", "GET", "/metrics", "Bearer b", nil, 403, 1},
		{"an unknown token", "GET", "/metrics", "Bearer c", nil, 401, 1},
		{"no token", "GET", "/metrics", "", nil, 401, 0},
		{"an empty token", "GET", "/metrics", "Bearer ", nil, 401, 0},
		{"an overlong token", "GET", "/metrics", "Bearer " + strings.Repeat("a", maxToken+1), nil, 401, 0},
		{"another scheme", "GET", "/metrics", "Basic a", nil, 401, 0},
		{"API server away", "GET", "/metrics", "Bearer a", errors.New("away"), 503, 1},
		{"API server away, health", "GET", "/healthz", "", errors.New("away"), 200, 0},
		{"health ping", "GET", "/healthz/ping", "", nil, 200, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := &reviews{err: tt.err}
			h := m.Handler(ServerOptions{Auth: true, Reviewer: r, Log: log})
			code, body := request(t, h, tt.method, tt.path, "", "Authorization", tt.authorization)
			if code != tt.code || r.asked != tt.asked {
				t.Errorf("%d, asked %d times, want %d and %d: %s", code, r.asked, tt.code, tt.asked, body)
			}
			if code != 200 && strings.Contains(body, "fairlead_") {
				t.Error("metrics leak")
			}
		})
	}
	if code, _ := request(t, m.Handler(ServerOptions{Auth: true, Log: log}), "GET", "/metrics", "", "Authorization", "Bearer a"); code != 503 {
		t.Errorf("without a reviewer: %d, want 503", code)
	}
}

func TestAuthRemembers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &reviews{}
		h := New(full(ipvs)).Handler(ServerOptions{Auth: true, Reviewer: r, Log: slog.New(slog.DiscardHandler)})
		ask := func(token string, code, asked int) {
			t.Helper()
			before := r.asked
			got, _ := request(t, h, "GET", "/metrics", "", "Authorization", "Bearer "+token)
			if got != code || r.asked-before != asked {
				t.Errorf("%s: %d, asked %d times, want %d and %d", token, got, r.asked-before, code, asked)
			}
		}
		ask("a", 200, 1)
		time.Sleep(allowedTTL - 1)
		ask("a", 200, 0)
		time.Sleep(2 * time.Nanosecond)
		r.err = errors.New("away")
		ask("a", 503, 1) // what was allowed does not outlive its time
		ask("a", 503, 1)
		r.err = nil
		ask("c", 401, 1)
		time.Sleep(refusedTTL - 1)
		ask("c", 401, 0)
		time.Sleep(2 * time.Nanosecond)
		ask("c", 401, 1)
		for i := range 2 * maxVerdicts {
			ask(strings.Repeat("x", 3+i), 401, 1)
		}
		if n := len(h.(*gate).verdicts.Keys()); n > maxVerdicts {
			t.Errorf("%d answers are remembered", n)
		}
	})
}

func TestAuthIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &reviews{hold: true}
		h := newGate(http.NotFoundHandler(), r, slog.New(slog.DiscardHandler))
		codes := make(chan int, maxReviews)
		for range maxReviews {
			go func() {
				code, _ := request(t, h, "GET", "/metrics", "", "Authorization", "Bearer a")
				codes <- code
			}()
			synctest.Wait() // one after the other: the fake counts without a lock
		}
		if code, _ := request(t, h, "GET", "/metrics", "", "Authorization", "Bearer b"); code != 503 || r.asked != maxReviews {
			t.Errorf("one more: %d, asked %d times", code, r.asked)
		}
		began := time.Now()
		for range maxReviews {
			if code := <-codes; code != 503 {
				t.Errorf("without an answer: %d", code)
			}
		}
		if took := time.Since(began); took != reviewTimeout {
			t.Errorf("waited for %v, want %v", took, reviewTimeout)
		}
	})
}

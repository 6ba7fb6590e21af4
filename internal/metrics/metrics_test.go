package metrics

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fairlead/fairlead/internal/backend"
	"github.com/fairlead/fairlead/internal/cluster"
	"github.com/fairlead/fairlead/internal/reconcile"
)

func get(t *testing.T, h http.Handler, path string) (int, string) {
	t.Helper()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest("GET", path, nil))
	return w.Code, w.Body.String()
}

func TestHealth(t *testing.T) {
	const ok, bad = http.StatusOK, http.StatusServiceUnavailable
	failed := func(v4, v6 bool) func(*Monitor) {
		return func(m *Monitor) {
			m.Synced(reconcile.Sync{Start: time.Now(), End: time.Now(), Failed: [2]bool{v4, v6}})
		}
	}
	queued := func(m *Monitor) { m.Queued(time.Now()) }
	wait := func(d time.Duration) func(*Monitor) { return func(*Monitor) { time.Sleep(d) } }
	node := func(n cluster.Node) func(*Monitor) { return func(m *Monitor) { m.Node(n) } }
	tests := []struct {
		name  string
		steps []func(*Monitor)
		// want are the codes of healthz, livez and readyz.
		want [3]int
	}{
		{"at the start", nil, [3]int{ok, ok, bad}},
		{"idle for long", []func(*Monitor){failed(false, false), wait(time.Hour)}, [3]int{ok, ok, ok}},
		{"a change waits for twice the period", []func(*Monitor){failed(false, false), queued, wait(time.Minute)}, [3]int{ok, ok, ok}},
		{"a change waits longer", []func(*Monitor){failed(false, false), queued, wait(time.Minute + 1)}, [3]int{bad, bad, bad}},
		{"the oldest change counts", []func(*Monitor){queued, wait(40 * time.Second), queued, wait(30 * time.Second)}, [3]int{bad, bad, bad}},
		{"written late", []func(*Monitor){queued, wait(time.Hour), failed(false, false)}, [3]int{ok, ok, ok}},
		{"one family fails", []func(*Monitor){queued, failed(false, true), wait(time.Minute + 1)}, [3]int{bad, bad, bad}},
		{"a repair fails", []func(*Monitor){failed(false, false), failed(true, true), wait(time.Minute + 1)}, [3]int{bad, bad, bad}},
		{"node about to be deleted", []func(*Monitor){failed(false, false), node(cluster.Node{ToBeDeleted: true})}, [3]int{bad, ok, ok}},
		{"node deleted", []func(*Monitor){failed(false, false), node(cluster.Node{Deleting: true})}, [3]int{bad, ok, ok}},
		{"node stays after all", []func(*Monitor){failed(false, false), node(cluster.Node{ToBeDeleted: true}), node(cluster.Node{})}, [3]int{ok, ok, ok}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := New("iptables", "test", 30*time.Second)
				for _, step := range tt.steps {
					step(m)
				}
				var got [3]int
				for i, path := range []string{"/healthz", "/livez", "/readyz"} {
					got[i], _ = get(t, m.HealthHandler(), path)
				}
				if got != tt.want {
					t.Errorf("codes of healthz, livez, readyz %v, want %v", got, tt.want)
				}
			})
		})
	}
}

func TestHealthBody(t *testing.T) {
	m := New("iptables", "test", 30*time.Second)
	_, body := get(t, m.HealthHandler(), "/healthz")
	var h map[string]any
	if err := json.Unmarshal([]byte(body), &h); err != nil {
		t.Fatal(err)
	}
	if h["nodeEligible"] != true || h["lastUpdated"] != h["currentTime"] || h["healthy"] != true {
		t.Errorf("body %s", body)
	}
	if _, body = get(t, m.HealthHandler(), "/livez"); strings.Contains(body, "nodeEligible") {
		t.Errorf("livez speaks of the node: %s", body)
	}
	if code, _ := get(t, m.HealthHandler(), "/other"); code != http.StatusNotFound {
		t.Errorf("other path: %d", code)
	}
	_, text := get(t, m.MetricsHandler(), "/metrics")
	for _, want := range []string{`kubeproxy_proxy_healthz_total{code="200"} 1`, `kubeproxy_proxy_livez_total{code="200"} 1`} {
		if !strings.Contains(text, want) {
			t.Errorf("metrics lack %s", want)
		}
	}
}

func TestMetrics(t *testing.T) {
	m := New("iptables", "v1", 30*time.Second)
	at := time.Unix(1_700_000_000, 0)
	m.Queued(at)
	m.Synced(reconcile.Sync{
		Start: at, End: at.Add(3 * time.Millisecond), Failed: [2]bool{false, true}, Services: 7, Frontends: 9, ServiceEvents: 2, SliceEvents: 3,
		Triggers: [2][]time.Time{{at.Add(-2500 * time.Millisecond)}}, LocalPolicyEmpty: [2][2]int{{1, 4}}, Quarantined: 1,
		Result: backend.Result{Written: 5, Deleted: 6}, Drifted: 8,
	})
	_, text := get(t, m.MetricsHandler(), "/metrics")
	for _, want := range []string{
		`kubeproxy_sync_proxy_rules_duration_seconds_bucket{ip_family="IPv4",le="0.002"} 0`,
		`kubeproxy_sync_proxy_rules_duration_seconds_bucket{ip_family="IPv4",le="0.004"} 1`,
		`kubeproxy_sync_proxy_rules_duration_seconds_bucket{ip_family="IPv6",le="16.384"} 1`,
		`kubeproxy_network_programming_duration_seconds_bucket{ip_family="IPv4",le="2"} 0`,
		`kubeproxy_network_programming_duration_seconds_bucket{ip_family="IPv4",le="3"} 1`,
		`kubeproxy_network_programming_duration_seconds_bucket{ip_family="IPv4",le="300"} 1`,
		`kubeproxy_sync_proxy_rules_last_timestamp_seconds{ip_family="IPv4"} 1.700000000003e+09`,
		`kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds{ip_family="IPv6"} 1.7e+09`,
		`kubeproxy_sync_proxy_rules_no_local_endpoints_total{ip_family="IPv4",traffic_policy="external"} 4`,
		`kubeproxy_sync_proxy_rules_no_local_endpoints_total{ip_family="IPv4",traffic_policy="internal"} 1`,
		`kubeproxy_sync_proxy_rules_service_changes_total 2`, `kubeproxy_sync_proxy_rules_endpoint_changes_total 3`,
		`fairlead_info{mode="iptables",version="v1"} 1`, `fairlead_sync_failures_total{ip_family="IPv6"} 1`,
		`fairlead_objects_written_total 5`, `fairlead_objects_deleted_total 6`, `fairlead_drifted_objects_total 8`,
		`fairlead_services 7`, `fairlead_frontends 9`, `fairlead_quarantined_services 1`, `go_goroutines`,
	} {
		if !strings.Contains(text, "\n"+want) {
			t.Errorf("metrics lack %s", want)
		}
	}
	for _, not := range []string{`last_timestamp_seconds{ip_family="IPv6"}`, `fairlead_sync_failures_total{ip_family="IPv4"}`, `programming_duration_seconds_count{ip_family="IPv6"}`} {
		if strings.Contains(text, not) {
			t.Errorf("metrics have %s of a family that failed, or did not", not)
		}
	}
	if _, mode := get(t, m.MetricsHandler(), "/proxyMode"); mode != "iptables" {
		t.Errorf("proxyMode %q", mode)
	}
	if _, body := get(t, m.MetricsHandler(), "/healthz"); body != "ok" {
		t.Errorf("healthz of the metrics server %q", body)
	}
}

func TestServe(t *testing.T) {
	// Take a port, so that the first attempt fails, and one that is free for the other server.
	var lc net.ListenConfig
	taken, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	go func() {
		done <- Serve(ctx, netip.MustParseAddrPort(taken.Addr().String()), http.NotFoundHandler(), log)
	}()
	cancel()
	if err := <-done; err != nil {
		t.Errorf("an address that is taken: %v", err)
	}

	free, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := netip.MustParseAddrPort(free.Addr().String())
	free.Close()
	ctx, cancel = context.WithCancel(t.Context())
	served := make(chan struct{}, 1)
	go func() {
		done <- Serve(ctx, addr, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { served <- struct{}{} }), log)
	}()
	for ok := false; !ok; { // until the server listens
		var d net.Dialer
		conn, err := d.DialContext(t.Context(), "tcp", addr.String())
		if ok = err == nil; ok {
			conn.Close()
		}
	}
	resp, err := http.Get("http://" + addr.String())
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	<-served
	cancel()
	if err := <-done; err != nil {
		t.Errorf("end: %v", err)
	}
}

package metrics

import (
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fairlead/fairlead/internal/backend"
	"github.com/fairlead/fairlead/internal/cluster"
	"github.com/fairlead/fairlead/internal/fwd"
	"github.com/fairlead/fairlead/internal/reconcile"
)

// The metrics of modes as the modes define them, see cmd/fairlead.
var (
	iptables = Mode{Name: "iptables", FullAndPartial: true, WriteFailures: "kubeproxy_sync_proxy_rules_iptables_restore_failures_total",
		PartialFailures: "kubeproxy_sync_proxy_rules_iptables_partial_restore_failures_total"}
	nftables = Mode{Name: "nftables", FullAndPartial: true, WriteFailures: "kubeproxy_sync_proxy_rules_nftables_sync_failures_total"}
	ipvs     = Mode{Name: "ipvs", WriteFailures: "kubeproxy_sync_proxy_rules_iptables_restore_failures_total"}
)

// full are options with everything there is.
func full(mode Mode) Options {
	return Options{
		Mode: mode, Version: "v1",
		Backlog: func() cluster.Backlog {
			return cluster.Backlog{Services: 20, Slices: 30, WaitingServices: 2, WaitingSlices: 3, LastChange: time.Unix(1_600_000_000, 0)}
		},
		Watches: func() []cluster.Watch {
			return []cluster.Watch{{Resource: "services", LastSeen: time.Now().Add(-time.Minute), Open: true}, {Resource: "nodes", LastSeen: time.Now()}}
		},
	}
}

func scrape(t *testing.T, m *Monitor) string {
	t.Helper()
	code, body := request(t, m.Handler(ServerOptions{}), "GET", "/metrics", "")
	if code != 200 {
		t.Fatalf("%d: %s", code, body)
	}
	return "\n" + body
}

func wantLines(t *testing.T, text string, lines ...string) {
	t.Helper()
	for _, l := range lines {
		if !strings.Contains(text, "\n"+l) {
			t.Errorf("metrics lack %s", l)
		}
	}
}

func wantNone(t *testing.T, text string, parts ...string) {
	t.Helper()
	for _, p := range parts {
		if strings.Contains(text, p) {
			t.Errorf("metrics have %s", p)
		}
	}
}

func TestSynced(t *testing.T) {
	m := New(full(iptables))
	at := time.Unix(1_700_000_000, 0)
	m.Synced(reconcile.Sync{
		Start: at, End: at.Add(5 * time.Millisecond), Families: [2]reconcile.FamilySync{
			{Tried: true, End: at.Add(3 * time.Millisecond), Applying: time.Millisecond, Triggers: []time.Time{at.Add(-2500 * time.Millisecond)},
				Result: backend.Result{Written: 3, Deleted: 4}, Drifted: 1},
			{Tried: true, Failed: true, End: at.Add(5 * time.Millisecond), Applying: time.Millisecond, Result: backend.Result{Written: 2, Deleted: 2}, Drifted: 7},
		},
		Services: 7, Frontends: 9, Endpoints: 11, Conflicts: 12, ServiceEvents: 2, SliceEvents: 3,
		LocalPolicyEmpty: [2][2]int{{1, 4}, {2, 2}}, Quarantined: 1,
	})
	text := scrape(t, m)
	wantLines(t, text,
		`kubeproxy_sync_proxy_rules_duration_seconds_bucket{ip_family="IPv4",le="0.002"} 0`,
		`kubeproxy_sync_proxy_rules_duration_seconds_bucket{ip_family="IPv4",le="0.004"} 1`,
		`kubeproxy_sync_proxy_rules_duration_seconds_bucket{ip_family="IPv6",le="16.384"} 1`,
		`kubeproxy_sync_partial_proxy_rules_duration_seconds_count{ip_family="IPv4"} 1`,
		`kubeproxy_network_programming_duration_seconds_bucket{ip_family="IPv4",le="2"} 0`,
		`kubeproxy_network_programming_duration_seconds_bucket{ip_family="IPv4",le="3"} 1`,
		`kubeproxy_network_programming_duration_seconds_bucket{ip_family="IPv4",le="300"} 1`,
		`kubeproxy_sync_proxy_rules_last_timestamp_seconds{ip_family="IPv4"} 1.700000000003e+09`,
		`kubeproxy_sync_proxy_rules_no_local_endpoints_total{ip_family="IPv4",traffic_policy="external"} 4`,
		`kubeproxy_sync_proxy_rules_no_local_endpoints_total{ip_family="IPv4",traffic_policy="internal"} 1`,
		`kubeproxy_sync_proxy_rules_service_changes_total 20`, `kubeproxy_sync_proxy_rules_endpoint_changes_total 30`,
		`kubeproxy_sync_proxy_rules_service_changes_pending 4`, `kubeproxy_sync_proxy_rules_endpoint_changes_pending 6`,
		`kubeproxy_sync_proxy_rules_iptables_restore_failures_total{ip_family="IPv4"} 0`,
		`kubeproxy_sync_proxy_rules_iptables_restore_failures_total{ip_family="IPv6"} 1`,
		`kubeproxy_sync_proxy_rules_iptables_partial_restore_failures_total{ip_family="IPv6"} 1`,
		`fairlead_sync_failures_total{ip_family="IPv6"} 1`, `fairlead_sync_failures_total{ip_family="IPv4"} 0`,
		`fairlead_objects_written_total 5`, `fairlead_objects_deleted_total 6`, `fairlead_drifted_objects_total 8`,
		`fairlead_services 7`, `fairlead_frontends 9`, `fairlead_endpoints 11`, `fairlead_conflicts 12`, `fairlead_quarantined_services 1`,
		`fairlead_apply_duration_seconds_bucket{le="0.002"} 1`, `fairlead_info{mode="iptables",version="v1"} 1`,
		`fairlead_last_verified_timestamp_seconds{ip_family="IPv4"} 0`, `fairlead_watch_open{resource="services"} 1`, `fairlead_watch_open{resource="nodes"} 0`,
		`fairlead_watch_stale_seconds{resource="services"} 6`, `go_goroutines `, `process_start_time_seconds `,
	)
	wantLines(t, text, `kubeproxy_network_programming_duration_seconds_count{ip_family="IPv6"} 0`, `kubeproxy_sync_full_proxy_rules_duration_seconds_count{ip_family="IPv4"} 0`)
	wantNone(t, text, `last_timestamp_seconds{ip_family="IPv6"}`, `no_local_endpoints_total{ip_family="IPv6"`)

	// IPv6 waits for its next attempt: that is neither a sync of its own, nor are the changes in
	// the kernel.
	m.Synced(reconcile.Sync{Start: at, ServiceEvents: 1, Families: [2]reconcile.FamilySync{{Tried: true, End: at.Add(time.Second)}, {Failed: true}}})
	text = scrape(t, m)
	wantLines(t, text, `kubeproxy_sync_proxy_rules_service_changes_pending 5`, `fairlead_sync_failures_total{ip_family="IPv6"} 1`,
		`kubeproxy_sync_proxy_rules_duration_seconds_count{ip_family="IPv4"} 2`, `kubeproxy_sync_proxy_rules_duration_seconds_count{ip_family="IPv6"} 1`)

	m.Synced(reconcile.Sync{Start: at, ServiceEvents: 1, Families: [2]reconcile.FamilySync{
		{Tried: true, Full: true, End: at.Add(time.Second)}, {Tried: true, Full: true, End: at.Add(time.Second)}}})
	m.Verified(fwd.IPv6, at)
	text = scrape(t, m)
	wantLines(t, text, `kubeproxy_sync_proxy_rules_service_changes_pending 2`, `kubeproxy_sync_proxy_rules_endpoint_changes_pending 3`,
		`kubeproxy_sync_full_proxy_rules_duration_seconds_count{ip_family="IPv6"} 1`, `fairlead_last_verified_timestamp_seconds{ip_family="IPv4"} 0`,
		`fairlead_last_verified_timestamp_seconds{ip_family="IPv6"} 1.7e+09`)
}

// TestReads registers metrics whose values are kept elsewhere.
func TestReads(t *testing.T) {
	m := New(full(nftables))
	m.Gauge("fairlead_g", "A gauge.", func(e Emit) { e(1, "a"); e(2, "b") }, "l")
	m.Counter("fairlead_c", "A counter.", func(e Emit) { e(3) })
	wantLines(t, scrape(t, m), "# HELP fairlead_g A gauge.", "# TYPE fairlead_g gauge", `fairlead_g{l="a"} 1`, `fairlead_g{l="b"} 2`, "# TYPE fairlead_c counter", "fairlead_c 3")
	if s := m.Specs()[len(m.Specs())-2]; s.Name != "fairlead_g" || s.Type != "gauge" || !slices.Equal(s.Labels, []string{"l"}) {
		t.Errorf("%+v", s)
	}
}

// A kernel that cannot be read is no failure to write.
func TestUnread(t *testing.T) {
	for _, mode := range []Mode{iptables, nftables, ipvs} {
		m := New(full(mode))
		m.Synced(reconcile.Sync{Families: [2]reconcile.FamilySync{{Tried: true, Failed: true, Unread: true}, {}}})
		text := scrape(t, m)
		wantLines(t, text, `fairlead_sync_failures_total{ip_family="IPv4"} 1`)
		wantNone(t, text, `restore_failures_total{ip_family="IPv4"} 1`, `nftables_sync_failures_total{ip_family="IPv4"} 1`,
			`fairlead_apply_duration_seconds_count 1`, `full_proxy_rules_duration_seconds_count{ip_family="IPv4"} 1`, `partial_proxy_rules_duration_seconds_count{ip_family="IPv4"} 1`)
	}
}

func TestQueued(t *testing.T) {
	newest := time.Unix(1_600_000_000, 0)
	o := full(nftables)
	o.Backlog = func() cluster.Backlog { return cluster.Backlog{LastChange: newest} }
	m := New(o)
	m.queued = newest.Add(-time.Hour) // the start of the process
	want := func(at time.Time) {
		t.Helper()
		wantLines(t, scrape(t, m), fmt.Sprintf(`kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds{ip_family="IPv6"} %g`, seconds(at)))
	}
	want(newest)
	m.Queued(newest.Add(time.Minute)) // a repair, which no change asked for
	want(newest.Add(time.Minute))
	newest = newest.Add(time.Hour) // and a change that the loop has not taken, since it hangs
	want(newest)
}

func TestOthers(t *testing.T) {
	m := New(full(nftables))
	m.FlowsSearched(fwd.IPv6, 3*time.Millisecond, map[string]int{"gone": 2, "moved": 3}, errors.New("no"))
	m.FlowsSearched(fwd.IPv6, 3*time.Millisecond, nil, nil)
	m.Answered("healthz", 503)
	m.Answered("livez", 200)
	m.Answered("readyz", 200)
	m.Result("200", "GET", "h")
	m.Retry("503", "GET", "h")
	m.Duration("GET", "h", 20*time.Millisecond)
	m.RateLimiter("GET", "h", time.Millisecond)
	m.RequestSize("GET", "h", 64)
	m.ResponseSize("GET", "h", 65)
	wantLines(t, scrape(t, m),
		`kubeproxy_conntrack_reconciler_sync_duration_seconds_bucket{ip_family="IPv6",le="0.004"} 2`,
		`kubeproxy_conntrack_reconciler_deleted_entries_total{ip_family="IPv6"} 5`,
		`fairlead_stale_flows_deleted_total{ip_family="IPv6",reason="moved"} 3`, `fairlead_stale_flow_failures_total{ip_family="IPv6"} 1`,
		`kubeproxy_proxy_healthz_total{code="503"} 1`, `kubeproxy_proxy_livez_total{code="200"} 1`,
		`rest_client_requests_total{code="200",host="h",method="GET"} 1`, `rest_client_request_retries_total{code="503",host="h",verb="GET"} 1`,
		`rest_client_request_duration_seconds_bucket{host="h",verb="GET",le="0.025"} 1`,
		`rest_client_rate_limiter_duration_seconds_bucket{host="h",verb="GET",le="0.005"} 1`,
		`rest_client_request_size_bytes_bucket{host="h",verb="GET",le="64"} 1`, `rest_client_response_size_bytes_bucket{host="h",verb="GET",le="64"} 0`,
	)
}

// TestSeriesFromTheStart has a process that has counted nothing yet.
func TestSeriesFromTheStart(t *testing.T) {
	o := full(iptables)
	o.APIServer = "10.0.0.1:6443"
	m := New(o)
	families, err := m.set.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	there := make(map[string]int)
	for _, f := range families {
		there[f.GetName()] = len(f.GetMetric())
	}
	later := []string{"fairlead_stale_flows_deleted_total", "rest_client_request_retries_total"} // their labels are not known before
	for _, s := range m.Specs() {
		if want := !slices.Contains(later, s.Name); s.Type != "gauge" && want != (there[s.Name] > 0) {
			t.Errorf("%s %s: %d series", s.Type, s.Name, there[s.Name])
		}
	}
	wantLines(t, scrape(t, m), `kubeproxy_sync_proxy_rules_duration_seconds_bucket{ip_family="IPv6",le="+Inf"} 0`, `kubeproxy_proxy_healthz_total{code="503"} 0`,
		`rest_client_request_duration_seconds_count{host="10.0.0.1:6443",verb="POST"} 0`, `rest_client_requests_total{code="200",host="10.0.0.1:6443",method="GET"} 0`)
}

// TestNoComponentOfKubernetes: alerts count the versions in kubernetes_build_info, and Fairlead has
// its own releases.
func TestNoComponentOfKubernetes(t *testing.T) {
	text := scrape(t, New(full(nftables)))
	wantNone(t, text, "kubernetes_build_info")
	wantLines(t, text, `fairlead_build_info{go_version="`+runtime.Version()+`",version="v1"} 1`)
}

func TestKubernetesRelease(t *testing.T) {
	release := kubernetesRelease()
	if release == "" {
		t.Skip("a test binary without the versions of modules")
	}
	if !strings.HasPrefix(release, "v1.") {
		t.Errorf("%q", release)
	}
}

// TestNothingElse compares what a scrape shows with what the set remembers.
func TestNothingElse(t *testing.T) {
	m := New(full(iptables))
	families, err := m.set.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	known := make(map[string]string)
	for _, s := range m.Specs() {
		known[s.Name] = s.Type
	}
	for _, f := range families {
		name := f.GetName()
		if strings.HasPrefix(name, "go_") || strings.HasPrefix(name, "process_") {
			continue
		}
		if kind := strings.ToLower(f.GetType().String()); known[name] != kind {
			t.Errorf("%s is a %s, the set says %q", name, kind, known[name])
		}
	}
}

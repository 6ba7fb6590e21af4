package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"

	"github.com/fairlead/fairlead/e2e/daemon"
	"github.com/fairlead/fairlead/e2e/lab"
)

// alertRules are the rules in testdata/alerts.yaml, which promtool tests with
// testdata/alerts_test.yaml.
type alertRules struct {
	Groups []struct {
		Rules []struct {
			Alert string `json:"alert"`
			Expr  string `json:"expr"`
		} `json:"rules"`
	} `json:"groups"`
}

// dashboard contains queries of stock dashboards for kube-proxy that have a result on every node.
var dashboard = []string{
	`sum(up{job="kube-proxy"})`,
	`sum(rate(kubeproxy_sync_proxy_rules_duration_seconds_count{job="kube-proxy"}[1m]))`,
	`histogram_quantile(0.99, sum by (le) (rate(kubeproxy_sync_proxy_rules_duration_seconds_bucket{job="kube-proxy"}[1m])))`,
	`sum(rate(kubeproxy_network_programming_duration_seconds_count{job="kube-proxy"}[1m]))`,
	`histogram_quantile(0.99, sum by (instance, le) (rate(kubeproxy_network_programming_duration_seconds_bucket{job="kube-proxy"}[1m])))`,
	`sum(rate(rest_client_requests_total{job="kube-proxy", code=~"2.."}[1m]))`,
	`histogram_quantile(0.99, sum by (verb, le) (rate(rest_client_request_duration_seconds_bucket{job="kube-proxy", verb="POST"}[1m])))`,
	`histogram_quantile(0.99, sum by (verb, le) (rate(rest_client_request_duration_seconds_bucket{job="kube-proxy", verb="GET"}[1m])))`,
	`process_resident_memory_bytes{job="kube-proxy"}`,
	`rate(process_cpu_seconds_total{job="kube-proxy"}[1m])`,
	`go_goroutines{job="kube-proxy"}`,
	`kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds{job="kube-proxy"} - kubeproxy_sync_proxy_rules_last_timestamp_seconds{job="kube-proxy"}`,
	`sum by (code) (rate(kubeproxy_proxy_healthz_total{job="kube-proxy"}[1m]))`,
}

// TestStockAlertRules tests the rules themselves with promtool: rules that never fire would prove
// nothing below.
func TestStockAlertRules(t *testing.T) {
	lab.RequireKernel(t)
	if out, err := exec.CommandContext(t.Context(), "promtool", "test", "rules", "testdata/alerts_test.yaml").CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// TestStockAlertsAreQuiet scrapes a daemon with a Prometheus as our PodMonitor does, together with
// a Kubernetes component of another release: no stock alert fires, and every panel of the dashboard
// has data.
func TestStockAlertsAreQuiet(t *testing.T) {
	s := newStartup(t)
	d := s.run(t, "--cluster-cidr="+lab.PodCIDRs[0].String()+","+lab.PodCIDRs[1].String())
	s.serves(t, d, true)

	dir := t.TempDir()
	server := netip.MustParseAddrPort("127.0.0.1:9090")
	scrape := func(job, target string, relabelings []map[string]any) map[string]any {
		return map[string]any{"job_name": job, "static_configs": []any{map[string]any{"targets": []string{target}}}, "relabel_configs": relabelings}
	}
	text, err := yaml.Marshal(map[string]any{
		"global":         map[string]any{"scrape_interval": "200ms", "scrape_timeout": "200ms"},
		"scrape_configs": []any{scrape("podMonitor/kube-system/fairlead/0", "127.0.0.1:10249", podMonitorRelabelings(t)), scrape("apiserver", otherComponent(t, s.node), nil)},
	})
	must(t, err)
	file := filepath.Join(dir, "prometheus.yml")
	must(t, os.WriteFile(file, text, 0o600))
	p, err := daemon.Start(s.node, "prometheus", "--config.file="+file, "--storage.tsdb.path="+dir, "--web.listen-address="+server.String())
	must(t, err)
	t.Cleanup(func() { check(t, p.Kill()) })

	query := func(expr string) (values []string, err error) {
		ctx, cancel := context.WithTimeout(t.Context(), settleTimeout)
		defer cancel()
		r, err := fetch(ctx, s.node.Host, server, "/api/v1/query?query="+url.QueryEscape(expr), "")
		if err != nil {
			return nil, err
		}
		var answer struct {
			Status, Error string
			Data          struct {
				Result []struct {
					Metric map[string]string
					Value  [2]any
				}
			}
		}
		if err := json.Unmarshal(r.body, &answer); err != nil || answer.Status != "success" {
			return nil, fmt.Errorf("%d: %v %s", r.code, err, r.body)
		}
		for _, series := range answer.Data.Result {
			values = append(values, fmt.Sprint(series.Metric, " ", series.Value[1]))
		}
		return values, nil
	}
	// A rate needs two scrapes of both targets.
	for end := time.Now().Add(settleTimeout); ; time.Sleep(50 * time.Millisecond) {
		scraped, err := query(`count_over_time(up[1m]) >= 3`)
		if len(scraped) == 2 {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("%q scraped, %v\n%s", scraped, err, p.Log())
		}
	}
	var rules alertRules
	text, err = os.ReadFile("testdata/alerts.yaml")
	must(t, err)
	must(t, yaml.Unmarshal(text, &rules))
	for _, g := range rules.Groups {
		for _, r := range g.Rules {
			if values, err := query(r.Expr); err != nil || len(values) > 0 {
				t.Errorf("%s: %v, %q", r.Alert, err, values)
			}
		}
	}
	for _, expr := range dashboard {
		if values, err := query(expr); err != nil || len(values) == 0 {
			t.Errorf("%s: %v, no series", expr, err)
		}
	}
	if values, err := query(`kubernetes_build_info`); err != nil || len(values) != 1 {
		t.Errorf("want the other component to be seen, and no other: %v %q", err, values)
	}
}

// podMonitorRelabelings are those of the manifest, as Prometheus has them.
func podMonitorRelabelings(t *testing.T) []map[string]any {
	t.Helper()
	text, err := os.ReadFile(rendered + "/kubeadm-metrics.yaml")
	must(t, err)
	for doc := range strings.SplitSeq(string(text), "\n---\n") {
		var o unstructured.Unstructured
		must(t, yaml.Unmarshal([]byte(doc), &o.Object))
		if o.GetKind() != "PodMonitor" {
			continue
		}
		endpoints, _, err := unstructured.NestedSlice(o.Object, "spec", "podMetricsEndpoints")
		must(t, err)
		var out []map[string]any
		for _, r := range endpoints[0].(map[string]any)["relabelings"].([]any) {
			names := map[string]string{"sourceLabels": "source_labels", "targetLabel": "target_label", "replacement": "replacement"}
			rule := make(map[string]any)
			for name, value := range r.(map[string]any) {
				if names[name] == "" {
					t.Fatalf("the PodMonitor has %s", name)
				}
				rule[names[name]] = value
			}
			out = append(out, rule)
		}
		return out
	}
	t.Fatal("no PodMonitor")
	return nil
}

// otherComponent serves metrics like a Kubernetes component of an older release than our client
// libraries.
func otherComponent(t *testing.T, host *lab.Node) string {
	t.Helper()
	var l net.Listener
	must(t, host.Do(func() (err error) {
		l, err = net.Listen("tcp", "127.0.0.1:0")
		return err
	}))
	srv := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "kubernetes_build_info{git_version=\"v1.34.2\",major=\"1\",minor=\"34\"} 1\n")
	})}
	go func() { _ = srv.Serve(l) }()
	t.Cleanup(func() { check(t, srv.Close()) })
	return l.Addr().String()
}

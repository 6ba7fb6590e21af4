package main

import (
	"fmt"
	"net/http/httptest"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/fairlead/fairlead/internal/backend/iptables"
	"github.com/fairlead/fairlead/internal/backend/ipvs"
	"github.com/fairlead/fairlead/internal/cluster"
	"github.com/fairlead/fairlead/internal/fwd"
	"github.com/fairlead/fairlead/internal/kube"
	"github.com/fairlead/fairlead/internal/localport"
	"github.com/fairlead/fairlead/internal/metrics"
)

// monitors returns, for each mode, a Monitor with all metrics that a daemon of the mode may have.
func monitors() map[string]*metrics.Monitor {
	out := make(map[string]*metrics.Monitor)
	for _, mode := range modes() {
		d := &daemon{mode: mode}
		m := metrics.New(metrics.Options{Mode: mode.metrics, Backlog: kube.NewFeed().Backlog, Watches: func() []cluster.Watch { return nil }})
		registerKubeProxy(m, &d.kubeProxyPresent)
		registerLocalPorts(m, func() localport.Stats {
			return localport.Stats{Listeners: [2]int{1, 2}, Connections: 3, BindFailures: [2]uint64{4, 5}}
		})
		out[mode.metrics.Name] = m
	}
	registerRuleCounts(out["iptables"], func() []iptables.RuleCount {
		return []iptables.RuleCount{{Family: fwd.IPv4, Table: iptables.NAT, Total: 100, Last: 7}}
	})
	registerDraining(out["ipvs"], func() [2]ipvs.Draining {
		return [2]ipvs.Draining{{}, {Count: [ipvs.NumReasons]int{ipvs.DrainRemoved: 2}, Oldest: 90 * time.Second, Connections: 7, Objects: 5}}
	})
	return out
}

// TestMetricsOfParts reads the metrics whose values other parts of the daemon keep.
func TestMetricsOfParts(t *testing.T) {
	all := monitors()
	for mode, want := range map[string][]string{
		"iptables": {
			`kubeproxy_sync_proxy_rules_iptables_total{ip_family="IPv4",table="nat"} 100`,
			`kubeproxy_sync_proxy_rules_iptables_last{ip_family="IPv4",table="nat"} 7`,
		},
		"ipvs": {
			`fairlead_ipvs_draining_destinations{ip_family="IPv6",reason="removed"} 2`,
			`fairlead_ipvs_draining_connections{ip_family="IPv4"} 0`, `fairlead_ipvs_draining_connections{ip_family="IPv6"} 7`,
			`fairlead_ipvs_draining_objects{ip_family="IPv4"} 0`, `fairlead_ipvs_draining_objects{ip_family="IPv6"} 5`,
			`fairlead_ipvs_draining_oldest_seconds{ip_family="IPv6"} 90`,
		},
		"nftables": {
			`kubeproxy_nftables_localhost_nodeport_listeners{ip_family="IPv6"} 2`,
			`kubeproxy_nftables_localhost_nodeport_listener_creation_failures_total{ip_family="IPv4"} 4`, `fairlead_localhost_nodeport_connections 3`,
			`fairlead_kube_proxy_present 0`,
		},
	} {
		w := httptest.NewRecorder()
		all[mode].Handler(metrics.ServerOptions{}).ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
		for _, line := range want {
			if !strings.Contains(w.Body.String(), "\n"+line+"\n") {
				t.Errorf("mode %s: no line %s", mode, line)
			}
		}
	}
}

// specs lists all metrics of all modes, one line each.
func specs() (lines []string, all []metrics.Spec) {
	modes := make(map[string][]string)
	for mode, m := range monitors() {
		for _, s := range m.Specs() {
			line := fmt.Sprintf("%s %s {%s}", s.Name, s.Type, strings.Join(s.Labels, ","))
			if len(s.Buckets) > 0 {
				line += fmt.Sprintf(" %v", s.Buckets)
			}
			if modes[line] == nil {
				all = append(all, s)
			}
			modes[line] = append(modes[line], mode)
		}
	}
	for line, in := range modes {
		if len(in) < 3 {
			slices.Sort(in)
			line += " mode " + strings.Join(in, ",")
		}
		lines = append(lines, line)
	}
	slices.Sort(lines)
	return lines, all
}

// TestMetricsGolden shows each change of what dashboards and alerts depend on: names, types, labels
// and buckets.
func TestMetricsGolden(t *testing.T) {
	lines, _ := specs()
	got := strings.Join(lines, "\n") + "\n"
	const file = "testdata/metrics.txt"
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), got); d != "" {
		t.Errorf("metrics changed; -update rewrites %s (-want +got):\n%s", file, d)
	}
}

// TestMetricsDocumented compares the table in docs/metrics.md with the metrics.
func TestMetricsDocumented(t *testing.T) {
	page, err := os.ReadFile("../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	rows := make(map[string]string)
	for _, row := range regexp.MustCompile("(?m)^\\| `([a-z0-9_]+)` \\|(.*)$").FindAllStringSubmatch(string(page), -1) {
		rows[row[1]] = row[2]
	}
	_, all := specs()
	for _, s := range all {
		row, ok := rows[s.Name]
		if !ok {
			t.Errorf("docs/metrics.md has no row for %s", s.Name)
			continue
		}
		cells := strings.Split(row, "|")
		if kind := strings.TrimSpace(cells[0]); kind != s.Type {
			t.Errorf("docs/metrics.md says that %s is a %s, it is a %s", s.Name, kind, s.Type)
		}
		if labels := strings.ReplaceAll(strings.TrimSpace(cells[1]), "`", ""); labels != strings.Join(s.Labels, ", ") {
			t.Errorf("docs/metrics.md says that %s has the labels %q, it has %q", s.Name, labels, s.Labels)
		}
		delete(rows, s.Name)
	}
	for name := range rows {
		t.Errorf("docs/metrics.md has a row for %s, which does not exist", name)
	}
}

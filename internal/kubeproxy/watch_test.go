package kubeproxy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/fairlead/fairlead/internal/host/hosttest"
	"github.com/fairlead/fairlead/internal/host/xtables"
)

func TestWatcher(t *testing.T) {
	const chain, table = "chain KUBE-PROXY-CANARY", "table kube-proxy"
	type look struct {
		signs []string
		err   error
	}
	for _, tt := range []struct {
		name    string
		running Neighbour
		looks   []look
		// events and logged count up to the last look; present are the calls of Present.
		events  []string
		logged  int
		present []bool
	}{
		{"nothing", Neighbour{}, []look{{}, {}, {}}, nil, 0, []bool{false, false}},
		{"left behind", Neighbour{}, []look{{signs: []string{chain}}, {signs: []string{chain}}, {}, {}}, []string{ReasonRules}, 2, []bool{false, true, false}},
		{"another Fairlead runs", Neighbour{"ipvs", true}, []look{{}, {}}, nil, 1, []bool{false, false}},
		{"runs", Neighbour{"ipvs", false}, []look{{signs: []string{chain}}, {signs: []string{chain}}}, []string{ReasonRunning}, 1, []bool{true, true}},
		{"comes", Neighbour{}, []look{{}, {signs: []string{table}}, {signs: []string{table}}}, []string{ReasonRunning}, 1, []bool{false, false, true}},
		{"comes back", Neighbour{}, []look{{signs: []string{chain}}, {}, {signs: []string{chain}}}, []string{ReasonRules, ReasonRunning}, 3, []bool{false, true, false, true}},
		{"changes its mode", Neighbour{}, []look{{signs: []string{chain}}, {signs: []string{table}}}, []string{ReasonRules, ReasonRunning}, 2, []bool{false, true, true}},
		{"one family goes", Neighbour{}, []look{{signs: []string{chain, table}}, {signs: []string{table}}}, []string{ReasonRules}, 1, []bool{false, true, true}},
		{"cannot be looked at first", Neighbour{}, []look{{err: errors.New("no")}, {signs: []string{chain}}, {signs: []string{chain}}}, []string{ReasonRules}, 2, []bool{false, true}},
		{"cannot be looked at", Neighbour{}, []look{{}, {err: errors.New("no")}, {err: errors.New("no")}, {}}, nil, 1, []bool{false, false}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var log bytes.Buffer
				var events []string
				var present []bool
				n := 0
				w := Watcher{
					Signs: func(context.Context) ([]string, error) {
						l := tt.looks[min(n, len(tt.looks)-1)]
						n++
						return l.signs, l.err
					},
					Running: func(context.Context) Neighbour { return tt.running },
					Warn:    func(reason, _ string) { events = append(events, reason) },
					Present: func(is bool) { present = append(present, is) },
					Log:     slog.New(slog.NewTextHandler(&log, nil)),
				}
				w.Start(t.Context())
				ctx, cancel := context.WithCancel(t.Context())
				done := make(chan struct{})
				go func() { w.Run(ctx); close(done) }()
				time.Sleep(2 * time.Hour)
				synctest.Wait()
				cancel()
				<-done
				if n < 20 || n > 32 {
					t.Errorf("%d looks in 2 hours", n)
				}
				if d := cmp.Diff(tt.events, events); d != "" {
					t.Errorf("events (-want +got):\n%s", d)
				}
				if d := cmp.Diff(tt.present, present); d != "" {
					t.Errorf("present (-want +got):\n%s", d)
				}
				if got := strings.Count(log.String(), "\n"); got != tt.logged {
					t.Errorf("%d lines, want %d:\n%s", got, tt.logged, log.String())
				}
			})
		})
	}
}

func TestRunning(t *testing.T) {
	const theirs, ours = "# TYPE go_goroutines gauge\ngo_goroutines 9\nkubeproxy_sync_proxy_rules_no_local_endpoints_total 0\n", "fairlead_services 3\nkubeproxy_sync_full_proxy_rules_duration_seconds_sum 1\n"
	for _, tt := range []struct {
		name, mode, metrics string
		want                Neighbour
		code                int
	}{
		{"kube-proxy", "iptables", theirs, Neighbour{"iptables", false}, 200},
		{"with a line break", "nftables\n", theirs, Neighbour{"nftables", false}, 200},
		{"another Fairlead", "iptables", ours, Neighbour{"iptables", true}, 200},
		{"another Fairlead that has kube-proxy's metrics first", "iptables", theirs + ours, Neighbour{"iptables", true}, 200},
		{"a mode alone is no proof", "iptables", "some_proxy_rules 1\n", Neighbour{}, 200},
		{"somebody else", "<html>", theirs, Neighbour{}, 200},
		{"without the path", "iptables", theirs, Neighbour{}, 404},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				body, ok := map[string]string{"/proxyMode": tt.mode, "/metrics": tt.metrics}[r.URL.Path]
				if !ok {
					t.Errorf("asked for %s", r.URL.Path)
				}
				w.WriteHeader(tt.code)
				fmt.Fprint(w, body)
			}))
			defer s.Close()
			if got := Running(t.Context(), s.Listener.Addr().String()); got != tt.want {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
			s.Close()
			if got := Running(t.Context(), s.Listener.Addr().String()); got != (Neighbour{}) {
				t.Errorf("nobody listens: %+v", got)
			}
		})
	}
}

func TestCanary(t *testing.T) {
	ctx := context.Background()
	for text, want := range map[string]bool{
		leftBehind: true,
		"*mangle\n:KUBE-IPTABLES-HINT - [0:0]\n:KUBE-KUBELET-CANARY - [0:0]\n:KUBE-PROXY-CANARY-2 - [0:0]\nCOMMIT\n": false,
	} {
		if got, err := hasCanary(ctx, tablesOf(t, text)); got != want || err != nil {
			t.Errorf("got %v, %v; want %v\n%s", got, err, want, text)
		}
	}
}

// TestSigns looks for what kube-proxy leaves in the kernel itself.
func TestSigns(t *testing.T) {
	hosttest.Netns(t, "iptables", "ipset", "nft")
	ctx := t.Context()
	want := func(want ...string) {
		t.Helper()
		signs, err := Signs(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(strings.Join(want, "; "), strings.Join(signs, "; ")); d != "" {
			t.Errorf("(-want +got):\n%s", d)
		}
	}
	want()
	hosttest.Run(t, "ipset", "create", "KUBE-CLUSTER-IP", "hash:ip,port")
	want("set KUBE-CLUSTER-IP")
	hosttest.Run(t, "nft", "add", "table", "ip6", "kube-proxy")
	want("set KUBE-CLUSTER-IP", "table kube-proxy of nf_tables, IPv6")
	hosttest.Run(t, "ipset", "destroy")
	hosttest.Run(t, "nft", "delete", "table", "ip6", "kube-proxy")
	for _, fl := range xtables.Installed() {
		hosttest.Run(t, "ip6tables-"+string(fl), "-t", "mangle", "-N", "KUBE-PROXY-CANARY")
		want(fmt.Sprintf("chain KUBE-PROXY-CANARY of iptables, %s, IPv6", fl))
		hosttest.Run(t, "ip6tables-"+string(fl), "-t", "mangle", "-X", "KUBE-PROXY-CANARY")
	}
	want()
}

package main

import (
	"bytes"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"

	"github.com/fairlead/fairlead/internal/host/sysctl"
	"github.com/fairlead/fairlead/internal/tuning"
)

func TestNodeNameWarnings(t *testing.T) {
	for _, tt := range []struct {
		name, args, env, want string
	}{
		{"host name", "", "", ""},
		{"host name that is the Node's", "", "n1", ""},
		{"host name that is not the Node's", "", "node-1", "--hostname-override=$(NODE_NAME)"},
		{"given", "--hostname-override=n2", "node-1", ""},
		{"variable that is not defined", "--hostname-override=$(NODE_NAME)", "", "not defined in the Pod"},
		{"no name of a Node", "--hostname-override=a_b", "", `"a_b" cannot be the name of a Node`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := strings.Join(nodeNameWarnings(settled(t, strings.Fields(tt.args)...), tt.env), "\n")
			if (got == "") != (tt.want == "") || !strings.Contains(got, tt.want) {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

func TestCheckFamilies(t *testing.T) {
	const six = "--bind-address=fd00::1 --nodeport-addresses=10.0.0.0/8,fd00::/8"
	for _, tt := range []struct {
		name, args string
		ipv6       bool
		want       []string
		fatal      string
	}{
		{"defaults", "", false, nil, ""},
		{"everything of IPv6, and the kernel too", six, true, nil, ""},
		{"everything of IPv6", six, false, []string{"--bind-address fd00::1", "--healthz-bind-address [::]:10256", "--metrics-bind-address [::1]:10249", "--nodeport-addresses"}, ""},
		{"pods of IPv6", "--cluster-cidr=fd00::/8", false, nil, "--cluster-cidr fd00::/8"},
		{"pods of IPv6, known by their interface", "--cluster-cidr=fd00::/8 --detect-local-mode=InterfaceNamePrefix --pod-interface-name-prefix=cali", false, nil, ""},
		{"pods of both", "--cluster-cidr=10.0.0.0/8,fd00::/8", false, nil, ""},
		{"servers of others", "--proxy-mode=ipvs --ipvs-exclude-cidrs=fd00::/8", false, []string{"--ipvs-exclude-cidrs fd00::/8"}, ""},
		{"servers of others, another mode", "--ipvs-exclude-cidrs=fd00::/8", false, nil, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := checkFamilies(settled(t, strings.Fields(tt.args)...), tt.ipv6)
			if (err != nil) != (tt.fatal != "") || err != nil && !strings.Contains(err.Error(), tt.fatal) {
				t.Errorf("error %v, want %q", err, tt.fatal)
			}
			if len(got) != len(tt.want) {
				t.Fatalf("got %q, want %q", got, tt.want)
			}
			for i, part := range tt.want {
				if !strings.Contains(got[i], part) {
					t.Errorf("%q does not say %q", got[i], part)
				}
			}
		})
	}
}

func TestTune(t *testing.T) {
	const ct = "net/netfilter/nf_conntrack_"
	tree := files(t, map[string]string{ct + "max": "65536", ct + "tcp_timeout_established": "432000", ct + "tcp_timeout_close_wait": "none"})
	sys := files(t, map[string]string{"module/nf_conntrack/parameters/hashsize": "65536"})
	k := tuning.Kernel{Sysctl: sysctl.FS{Root: tree}, Sys: sysctl.FS{Root: sys}, CPUs: 4}
	var log bytes.Buffer
	tune(k, settled(t), nil, slog.New(slog.NewTextHandler(&log, nil)))
	lines := strings.Split(strings.TrimSpace(log.String()), "\n")
	if len(lines) != 3 || !strings.Contains(lines[0], "nf_conntrack_max value=131072 old=65536") || !strings.Contains(lines[1], "established value=86400") ||
		!strings.Contains(lines[2], "level=WARN") || !strings.Contains(lines[2], "close_wait to 3600") {
		t.Errorf("log:\n%s", log.String())
	}
	for name, want := range map[string]int{"max": 131072, "tcp_timeout_established": 86400} {
		if got, err := k.Sysctl.Int(ct + name); got != want || err != nil {
			t.Errorf("%s is %d, %v; want %d", filepath.Base(name), got, err, want)
		}
	}
}

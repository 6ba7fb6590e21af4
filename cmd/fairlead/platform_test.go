package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/fairlead/fairlead/internal/config"
	"github.com/fairlead/fairlead/internal/host/sysctl"
)

// files makes a directory with the files.
func files(t *testing.T, content map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, text := range content {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

// settled is a Config of a command line.
func settled(t *testing.T, args ...string) *config.Config {
	t.Helper()
	c, err := config.Parse(args, func() (string, error) { return "n1", nil })
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestPlatformWarnings(t *testing.T) {
	const (
		v4, v6        = "net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"
		bridged       = "net/bridge/bridge-nf-call-iptables"
		cni           = "class/net/cni0/brif/veth1/port_no"
		both, onlyV4  = "--cluster-cidr=10.0.0.0/8,fd00::/8", "--cluster-cidr=10.0.0.0/8"
		podBridge     = "--detect-local-mode=BridgeInterface --pod-bridge-interface=br-pods"
		podBridgePort = "class/net/br-pods/brif/veth1/port_no"
	)
	for _, tt := range []struct {
		name, args string
		sysctl     map[string]string
		sys        []string
		want       []string
	}{
		{"all is well", both, map[string]string{v4: "1", v6: "1"}, nil, nil},
		{"nothing is forwarded", both, map[string]string{v4: "0", v6: "0"}, nil, []string{v4, v6}},
		{"IPv6 does not matter", onlyV4, map[string]string{v4: "1", v6: "0"}, nil, nil},
		{"no pods are named", "", map[string]string{v4: "0", v6: "0"}, nil, []string{v4}},
		{"no bridge", onlyV4, map[string]string{v4: "1", bridged: "0"}, nil, nil},
		{"a bridge that is not seen by rules", onlyV4, map[string]string{v4: "1", bridged: "0"}, []string{cni}, []string{bridged + " is 0"}},
		{"a bridge that is seen", onlyV4, map[string]string{v4: "1", bridged: "1"}, []string{cni}, nil},
		{"a bridge without br_netfilter", onlyV4, map[string]string{v4: "1"}, []string{cni}, []string{bridged + " does not exist"}},
		{"another bridge", onlyV4, map[string]string{v4: "1", bridged: "0"}, []string{podBridgePort}, nil},
		{"the bridge of the detector", podBridge, map[string]string{v4: "1", bridged: "0"}, []string{podBridgePort}, []string{"br-pods"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			sys := make(map[string]string)
			for _, f := range tt.sys {
				sys[f] = "1"
			}
			p := platform{sysctl.FS{Root: files(t, tt.sysctl)}, files(t, sys)}
			got := p.warnings(settled(t, strings.Fields(tt.args)...))
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

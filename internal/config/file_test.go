package config

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const head = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n"

// write creates a configuration file.
func write(t testing.TB, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "config.conf")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// parseFile parses a file together with flags; it adds the type to the file if it is missing.
func parseFile(t testing.TB, text string, flags ...string) (*Config, error) {
	t.Helper()
	if !strings.Contains(text, "apiVersion") {
		text = head + text
	}
	return Parse(append(flags, "--config", write(t, text)), hostname)
}

// TestKubeadm proves that the file of kubeadm's ConfigMap, with its nulls and zeros, gives the
// defaults.
func TestKubeadm(t *testing.T) {
	for _, mode := range []string{`""`, "iptables"} { // before and since 1.37
		data, err := os.ReadFile("testdata/kubeadm.conf")
		if err != nil {
			t.Fatal(err)
		}
		text := strings.Replace(string(data), `mode: ""`, "mode: "+mode, 1)
		got, err := parseFile(t, text, "--hostname-override=N1")
		if err != nil {
			t.Fatal(err)
		}
		want, err := Parse([]string{"--kubeconfig=/var/lib/kube-proxy/kubeconfig.conf", "--cluster-cidr=10.244.0.0/16", "--hostname-override=n1"}, hostname)
		if err != nil {
			t.Fatal(err)
		}
		want.ConfigFile = got.ConfigFile
		if d := cmp.Diff(want, got, compare); d != "" {
			t.Error(d)
		}
		if len(got.Notes()) > 0 {
			t.Errorf("notes: %q", got.Notes())
		}
	}
}

// TestFields sets each field to a value that is not the default, to zero, and to null if allowed.
func TestFields(t *testing.T) {
	tests := []struct {
		field, value string
		// mode is the mode that uses the field.
		mode Mode
		want func(*Config)
		// zero is the effect of the zero value; nil means the default.
		zero func(*Config)
		// note is part of the note about a field without effect.
		note string
	}{
		{field: "featureGates", value: "{LoadBalancerIPMode: false, Zeta: true}", want: func(c *Config) {
			c.Gates.LoadBalancerIPMode, c.UnknownGates = false, map[string]bool{"Zeta": true}
		}},
		{field: "clientConnection.kubeconfig", value: "k", want: func(c *Config) { c.Kubeconfig = "k" }},
		{field: "clientConnection.acceptContentTypes", value: "a", want: func(c *Config) { c.AcceptContentTypes = "a" }},
		{field: "clientConnection.contentType", value: "application/json", want: func(c *Config) { c.ContentType = "application/json" }},
		{field: "clientConnection.qps", value: "-0.5", want: func(c *Config) { c.QPS = -0.5 }},
		{field: "clientConnection.burst", value: "7", want: func(c *Config) { c.Burst = 7 }},
		{field: "logging.format", value: "json", want: func(c *Config) { c.LogJSON = true }},
		{field: "logging.flushFrequency", value: "7s", want: func(c *Config) { c.LogFlushFrequency = 7 * time.Second }, note: "not buffered"},
		{field: "logging.flushFrequency", value: "7000000000", want: func(c *Config) { c.LogFlushFrequency = 7 * time.Second }, note: "not buffered"},
		{field: "logging.verbosity", value: "4", want: func(c *Config) { c.Verbosity = 4 }},
		{field: "logging.vmodule", value: "[{filePattern: a*, verbosity: 3}, {filePattern: b, verbosity: 0}]", want: func(c *Config) { c.VModule = "a*=3,b=0" }, note: "use -v"},
		{field: "logging.options.text.splitStream", value: "true", note: "one unbuffered stream"},
		{field: "logging.options.text.infoBufferSize", value: "64Ki", note: "one unbuffered stream"},
		{field: "logging.options.json.splitStream", value: "true", note: "one unbuffered stream"},
		{field: "logging.options.json.infoBufferSize", value: "64Ki", note: "one unbuffered stream"},
		{field: "hostnameOverride", value: `" AbC "`, want: func(c *Config) { c.NodeName = "abc" }},
		{field: "bindAddress", value: "010.0.0.1", want: func(c *Config) { c.BindAddress = netip.MustParseAddr("10.0.0.1") }},
		{field: "bindAddress", value: `"fd00::1"`, want: func(c *Config) {
			c.BindAddress = netip.MustParseAddr("fd00::1")
			c.HealthzAddress, c.MetricsAddress = netip.MustParseAddrPort("[::]:10256"), netip.MustParseAddrPort("[::1]:10249")
		}},
		{field: "healthzBindAddress", value: "10.0.0.1", want: func(c *Config) { c.HealthzAddress = netip.MustParseAddrPort("10.0.0.1:10256") }},
		{field: "metricsBindAddress", value: "0.0.0.0:9", want: func(c *Config) { c.MetricsAddress = netip.MustParseAddrPort("0.0.0.0:9") }},
		{field: "bindAddressHardFail", value: "true", want: func(c *Config) { c.BindAddressHardFail = true }},
		{field: "enableProfiling", value: "true", want: func(c *Config) { c.EnableProfiling = true }},
		{field: "showHiddenMetricsForVersion", value: `"1.35"`, want: func(c *Config) { c.ShowHiddenMetricsForVersion = "1.35" }, note: "no metrics are hidden"},
		{field: "mode", value: "nftables", want: func(c *Config) { c.Mode = ModeNFTables }},
		{field: "iptables.masqueradeBit", value: "7", want: func(c *Config) { c.MasqueradeBit = 7 }, zero: func(c *Config) { c.MasqueradeBit = 0 }},
		{field: "iptables.masqueradeBit", mode: ModeIPVS, value: "7", want: func(c *Config) { c.MasqueradeBit = 7 }, zero: func(c *Config) { c.MasqueradeBit = 0 }},
		{field: "iptables.masqueradeBit", mode: ModeNFTables, value: "7"},
		{field: "iptables.masqueradeAll", value: "true", want: func(c *Config) { c.MasqueradeAll = true }},
		{field: "iptables.masqueradeAll", mode: ModeIPVS, value: "true", want: func(c *Config) { c.MasqueradeAll = true }},
		{field: "iptables.masqueradeAll", mode: ModeNFTables, value: "true"},
		{field: "iptables.localhostNodePorts", value: "false", want: func(c *Config) { c.LocalhostNodePorts = false }, zero: func(c *Config) { c.LocalhostNodePorts = false }},
		{field: "iptables.syncPeriod", value: "7s", want: func(c *Config) { c.SyncPeriod = 7 * time.Second }},
		{field: "iptables.syncPeriod", mode: ModeNFTables, value: "7s"},
		{field: "iptables.syncPeriod", mode: ModeIPVS, value: "7s"},
		{field: "iptables.minSyncPeriod", value: "7s", want: func(c *Config) { c.MinSyncPeriod = 7 * time.Second }},
		{field: "nftables.masqueradeBit", mode: ModeNFTables, value: "7", want: func(c *Config) { c.MasqueradeBit = 7 }, zero: func(c *Config) { c.MasqueradeBit = 0 }},
		{field: "nftables.masqueradeAll", mode: ModeNFTables, value: "true", want: func(c *Config) { c.MasqueradeAll = true }},
		{field: "nftables.syncPeriod", mode: ModeNFTables, value: "7s", want: func(c *Config) { c.SyncPeriod = 7 * time.Second }},
		{field: "nftables.minSyncPeriod", mode: ModeNFTables, value: "7s", want: func(c *Config) { c.MinSyncPeriod = 7 * time.Second }},
		{field: "ipvs.syncPeriod", mode: ModeIPVS, value: "7s", want: func(c *Config) { c.SyncPeriod = 7 * time.Second }},
		{field: "ipvs.minSyncPeriod", mode: ModeIPVS, value: "7s", want: func(c *Config) { c.MinSyncPeriod = 7 * time.Second }},
		{field: "ipvs.minSyncPeriod", value: "7s"},
		{field: "ipvs.scheduler", mode: ModeIPVS, value: "mh", want: func(c *Config) { c.IPVS.Scheduler = "mh" }},
		{field: "ipvs.excludeCIDRs", mode: ModeIPVS, value: "[010.0.0.9/8, fd00::/64]", want: func(c *Config) { c.IPVS.ExcludeCIDRs = prefixes("10.0.0.0/8", "fd00::/64") }},
		{field: "ipvs.strictARP", mode: ModeIPVS, value: "true", want: func(c *Config) { c.IPVS.StrictARP = true }},
		{field: "ipvs.tcpTimeout", mode: ModeIPVS, value: "7s", want: func(c *Config) { c.IPVS.TCPTimeout = 7 * time.Second }},
		{field: "ipvs.tcpFinTimeout", mode: ModeIPVS, value: "7s", want: func(c *Config) { c.IPVS.TCPFinTimeout = 7 * time.Second }},
		{field: "ipvs.udpTimeout", mode: ModeIPVS, value: "7s", want: func(c *Config) { c.IPVS.UDPTimeout = 7 * time.Second }},
		{field: "winkernel.networkName", value: "a", note: "Windows"},
		{field: "winkernel.sourceVip", value: "a", note: "Windows"},
		{field: "winkernel.enableDSR", value: "true", note: "Windows"},
		{field: "winkernel.rootHnsEndpointName", value: "a", note: "Windows"},
		{field: "winkernel.forwardHealthCheckVip", value: "true", note: "Windows"},
		{field: "windowsRunAsService", value: "true", note: "Windows"},
		{field: "detectLocalMode", value: "NodeCIDR", want: func(c *Config) { c.DetectMode = DetectNodeCIDR }},
		{field: "detectLocal.bridgeInterface", value: "br0", want: func(c *Config) { c.PodBridge = "br0" }},
		{field: "detectLocal.interfaceNamePrefix", value: "veth", want: func(c *Config) { c.PodInterfacePrefix = "veth" }},
		{field: "clusterCIDR", value: "10.0.0.0/8,fd00::/64", want: func(c *Config) { c.ClusterCIDRs = prefixes("10.0.0.0/8", "fd00::/64") }},
		{field: "nodePortAddresses", value: "[primary]", want: func(c *Config) { c.NodePortAddresses.Primary = true }},
		{field: "nodePortAddresses", value: "[10.0.0.0/8, localhost, all]", want: func(c *Config) {
			c.NodePortAddresses = NodePortAddresses{Localhost: true, All: true, Prefixes: prefixes("10.0.0.0/8")}
		}},
		{field: "oomScoreAdj", value: "-7", want: func(c *Config) { c.OOMScoreAdj = -7 }, zero: func(c *Config) { c.OOMScoreAdj = 0 }},
		{field: "conntrack.maxPerCore", value: "7", want: func(c *Config) { c.Conntrack.MaxPerCore = 7 }, zero: func(c *Config) { c.Conntrack.MaxPerCore = 0 }},
		{field: "conntrack.min", value: "7", want: func(c *Config) { c.Conntrack.Min = 7 }, zero: func(c *Config) { c.Conntrack.Min = 0 }},
		{field: "conntrack.tcpEstablishedTimeout", value: "7s", want: func(c *Config) { c.Conntrack.TCPEstablishedTimeout = 7 * time.Second }, zero: func(c *Config) { c.Conntrack.TCPEstablishedTimeout = 0 }},
		{field: "conntrack.tcpCloseWaitTimeout", value: "7s", want: func(c *Config) { c.Conntrack.TCPCloseWaitTimeout = 7 * time.Second }, zero: func(c *Config) { c.Conntrack.TCPCloseWaitTimeout = 0 }},
		{field: "conntrack.tcpBeLiberal", value: "true", want: func(c *Config) { c.Conntrack.TCPBeLiberal = true }},
		{field: "conntrack.udpTimeout", value: "7s", want: func(c *Config) { c.Conntrack.UDPTimeout = 7 * time.Second }},
		{field: "conntrack.udpStreamTimeout", value: "7s", want: func(c *Config) { c.Conntrack.UDPStreamTimeout = 7 * time.Second }},
		{field: "configSyncPeriod", value: "7s", want: func(c *Config) { c.Resync = 7 * time.Second }},
		{field: "portRange", value: "30000-30100", note: "userspace"},
	}
	tested := make(map[string]bool)
	for _, tt := range tests {
		tested[tt.field] = true
		kind := fieldsKind(t, tt.field)
		for value, want := range map[string]func(*Config){tt.value: tt.want, kind: tt.zero, "null": nil} {
			t.Run(fmt.Sprintf("%s %s %s", tt.field, value, tt.mode), func(t *testing.T) {
				text := nested(tt.field, value)
				if tt.mode != "" {
					text += "mode: " + string(tt.mode) + "\n"
				}
				if tt.field == "iptables.minSyncPeriod" || tt.field == "nftables.minSyncPeriod" {
					tt.note = ""
				}
				got, err := parseFile(t, text)
				if value == "null" && kind == "0s" && tt.zero == nil { // as in kube-proxy, only pointers may be null
					if err == nil || !strings.Contains(err.Error(), tt.field+" null: want a duration") {
						t.Errorf("got %v", err)
					}
					return
				}
				if err != nil {
					t.Fatal(err)
				}
				base, err := Parse([]string{"--mode=" + string(tt.mode)}, hostname)
				if err != nil {
					t.Fatal(err)
				}
				base.ConfigFile = got.ConfigFile
				if want != nil {
					want(base)
				}
				if d := cmp.Diff(base, got, compare); d != "" {
					t.Error(d)
				}
				notes := strings.Join(got.Notes(), "\n")
				if value != tt.value || tt.note == "" {
					if notes != "" {
						t.Errorf("notes: %s", notes)
					}
				} else if !strings.Contains(notes, tt.note) || !strings.Contains(notes, tt.field) || len(got.Notes()) != 1 {
					t.Errorf("note %q does not contain %q of %s", notes, tt.note, tt.field)
				}
			})
		}
	}
	for _, f := range allFields() {
		if !tested[f] {
			t.Errorf("%s is not tested", f)
		}
	}
	var settings []string
	for _, s := range Default().settings {
		if s.field != "" {
			settings = append(settings, s.field)
		}
	}
	slices.Sort(settings)
	if d := cmp.Diff(allFields(), settings); d != "" {
		t.Errorf("not one setting for each field: %s", d)
	}
}

// fieldsKind returns the zero value of a field in YAML.
func fieldsKind(t *testing.T, path string) string {
	t.Helper()
	for name, zero := range map[string]string{
		"Timeout": "0s", "Period": "0s", "CIDRs": "[]", "vmodule": "[]", "nodePortAddresses": "[]", "Gates": "{}", "BufferSize": `"0"`,
		"qps": "0", "burst": "0", "Bit": "0", "flushFrequency": "0", "verbosity": "0", "oomScoreAdj": "0", "maxPerCore": "0", "conntrack.min": "0",
		"splitStream": "false", "HardFail": "false", "enable": "false", "masqueradeAll": "false", "localhostNodePorts": "false", "strictARP": "false",
		"forward": "false", "windowsRunAsService": "false", "tcpBeLiberal": "false",
	} {
		if strings.HasSuffix(path, name) || strings.HasPrefix(path[strings.LastIndexByte(path, '.')+1:], name) {
			return zero
		}
	}
	return `""`
}

// nested returns a field with its parents in YAML.
func nested(path, value string) string {
	var b strings.Builder
	for i, part := range strings.Split(path, ".") {
		if i > 0 {
			b.WriteByte('\n')
		}
		fmt.Fprintf(&b, "%s%s:", strings.Repeat("  ", i), part)
	}
	return b.String() + " " + value + "\n"
}

// TestOnlyFirstDocumentIsUsed proves that notes name the other documents, even if the first one is
// not a KubeProxyConfiguration.
func TestOnlyFirstDocumentIsUsed(t *testing.T) {
	c, err := parseFile(t, "# first\n---\n"+head+"mode: nftables\n---\n# nothing\n---\n"+head+"mode: ipvs\n--- \njust text\n")
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"ignoring document 2 of the file (KubeProxyConfiguration): only the first one is used",
		"ignoring document 3 of the file (without kind): only the first one is used",
	}
	if d := cmp.Diff(want, c.Notes()); d != "" || c.Mode != ModeNFTables {
		t.Errorf("mode %s, notes (-want +got):\n%s", c.Mode, d)
	}
	c, err = parseFile(t, "apiVersion: kubeadm.k8s.io/v1beta4\nkind: ClusterConfiguration\n---\n"+head)
	if err == nil || !strings.Contains(err.Error(), `kind "ClusterConfiguration"`) || !slices.Equal(c.Notes(), want[:1]) {
		t.Errorf("error %v, notes %q", err, c.Notes())
	}
}

func TestFileRefusals(t *testing.T) {
	tests := []struct {
		name, text string
		// want are parts of each line of the error.
		want [][]string
	}{
		{"no kind", "apiVersion: kubeproxy.config.k8s.io/v1alpha1", [][]string{{`kind ""`, "KubeProxyConfiguration"}}},
		{"other version", strings.Replace(head, "v1alpha1", "v1alpha2", 1), [][]string{{"v1alpha2", "want kubeproxy.config.k8s.io/v1alpha1"}}},
		{"empty", " # apiVersion", [][]string{{"the file is empty", "KubeProxyConfiguration"}}},
		{"empty document", "---\n# apiVersion\n", [][]string{{"the file is empty", "KubeProxyConfiguration"}}},
		{"no YAML", head + "mode: [", [][]string{{"YAML or JSON"}}},
		{"types", "mode: 5\niptables: {masqueradeBit: x, masqueradeAll: 1, syncPeriod: 5, minSyncPeriod: 1}\nnodePortAddresses: primary\nipvs: no\nclientConnection: {qps: x, burst: 1.5}\nlogging: {verbosity: -1, flushFrequency: []}\nfeatureGates: [A]\n", [][]string{
			{"featureGates", `["A"]`, "true or false for each"}, {"clientConnection.qps", `"x"`, "a number"}, {"clientConnection.burst", "1.5", "whole number"},
			{"logging.flushFrequency", "[]", "nanoseconds"}, {"logging.verbosity", "-1", "from 0"},
			{"mode", "5", "a string"}, {"iptables.masqueradeBit", `"x"`, "whole number"}, {"iptables.masqueradeAll", "1", "true or false"},
			{"iptables.syncPeriod", "5", "duration"}, {"iptables.minSyncPeriod", "1", "duration"}, {"ipvs", "false", "object"},
			{"nodePortAddresses", `"primary"`, "list of strings"},
		}},
		{"all at once", "mode: userspace\noomScoreAdj: 1001\nconntrack: {maxPerCore: -1, min: -1, tcpEstablishedTimeout: -1s, tcpCloseWaitTimeout: -1s, udpTimeout: -1s, udpStreamTimeout: -1s}\n" +
			"iptables: {masqueradeBit: 32, syncPeriod: -1s}\nclusterCIDR: 10.0.0.0\nnodePortAddresses: [here]\nconfigSyncPeriod: -1s\nbindAddress: eth0\n" +
			"healthzBindAddress: 10.0.0.1:0\nmetricsBindAddress: ':1'\ndetectLocalMode: Bridge\nportRange: x\nclientConnection: {burst: -1}\nlogging: {format: xml, flushFrequency: -1s}\nhostnameOverride: ' '\n", [][]string{
			{"clientConnection.burst", `"-1"`}, {"hostnameOverride", `" "`, "not spaces"}, {"configSyncPeriod", `"-1s"`},
			{"mode", `"userspace"`, "want iptables, nftables, ipvs"}, {"bindAddress", `"eth0"`}, {"detectLocalMode", `"Bridge"`, "want ClusterCIDR"}, {"clusterCIDR", `"10.0.0.0"`},
			{"iptables.masqueradeBit", `"32"`, "0 to 31"}, {"iptables.syncPeriod", `"-1s"`, "above 0"}, {"nodePortAddresses", `"here"`, "primary, localhost or all"},
			{"conntrack.maxPerCore", `"-1"`}, {"conntrack.min", `"-1"`}, {"conntrack.tcpEstablishedTimeout", `"-1s"`}, {"conntrack.tcpCloseWaitTimeout", `"-1s"`},
			{"conntrack.udpTimeout", `"-1s"`}, {"conntrack.udpStreamTimeout", `"-1s"`},
			{"healthzBindAddress", `"10.0.0.1:0"`, "1 to 65535"}, {"metricsBindAddress", `":1"`}, {"oomScoreAdj", `"1001"`}, {"logging.format", `"xml"`}, {"logging.flushFrequency", `"-1s"`},
			{"portRange", `"x"`, "30000-30100"},
		}},
		{"ipvs", "mode: ipvs\nipvs: {syncPeriod: -1s, minSyncPeriod: -1s, excludeCIDRs: [a], tcpTimeout: -1s, tcpFinTimeout: -1s, udpTimeout: -1s}\n", [][]string{
			{"ipvs.syncPeriod"}, {"ipvs.minSyncPeriod"}, {"ipvs.excludeCIDRs", `"a"`}, {"ipvs.tcpTimeout"}, {"ipvs.tcpFinTimeout"}, {"ipvs.udpTimeout"}}},
		{"min above sync", "mode: nftables\nnftables: {syncPeriod: 1s, minSyncPeriod: 2s}\n", [][]string{{"nftables.minSyncPeriod 2s", "nftables.syncPeriod, which is 1s"}}},
		{"min above sync, ipvs", "mode: ipvs\nipvs: {minSyncPeriod: 31s}\n", [][]string{{"ipvs.minSyncPeriod 31s", "ipvs.syncPeriod, which is 30s"}}},
		{"two of a family", "clusterCIDR: 10.0.0.0/8,11.0.0.0/8", [][]string{{"clusterCIDR 10.0.0.0/8,11.0.0.0/8", "one of IPv6"}}},
		{"bridge", "detectLocalMode: BridgeInterface", [][]string{{`detectLocal.bridgeInterface ""`, "because of detectLocalMode BridgeInterface"}}},
		{"prefix", "detectLocalMode: InterfaceNamePrefix", [][]string{{`detectLocal.interfaceNamePrefix ""`}}},
		{"vmodule with JSON", "logging: {format: json, vmodule: [{filePattern: a, verbosity: 1}]}", [][]string{{"logging.vmodule a=1", "logging.format is json"}}},
		{"vmodule", "logging: {vmodule: [{filePattern: '', verbosity: 1}]}", [][]string{{"logging.vmodule", `"=1"`}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c, err := parseFile(t, tt.text)
			if err == nil {
				t.Fatalf("accepted: %+v", c)
			}
			lines := strings.Split(err.Error(), "\n")
			if len(lines) != len(tt.want) {
				t.Errorf("%d lines, want %d:\n%s", len(lines), len(tt.want), err)
			}
			for i, line := range lines[:min(len(lines), len(tt.want))] {
				for _, part := range tt.want[i] {
					if !strings.Contains(line, part) {
						t.Errorf("line %q does not contain %q", line, part)
					}
				}
			}
		})
	}
	if _, err := Parse([]string{"--config=/none/such"}, hostname); err == nil || !strings.Contains(err.Error(), "--config") || !strings.Contains(err.Error(), "/none/such") {
		t.Errorf("a file that is not there: %v", err)
	}
}

// TestFileNotesWithErrors proves that unknown fields are noted even if there is an error: a
// misspelled field may be its cause.
func TestFileNotesWithErrors(t *testing.T) {
	twice := "duplicate field in the file, the last value is used: line 7: key \"portRange\" already set in map"
	for _, tt := range []struct {
		name, text, wrong string
		known             bool // whether the fields of the version are known
	}{
		{"a value", head + "mode: userspace\n", "userspace", true},
		{"the type of a value", head + "oomScoreAdj: many\n", "oomScoreAdj", true},
		{"the type of an object", head + "ipvs: yes\n", "ipvs", true},
		{"version", "apiVersion: kubeproxy.config.k8s.io/v1\nkind: KubeProxyConfiguration\nmode: ipvs\n", "v1", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, err := parseFile(t, tt.text+"resourceContainer: /kube-proxy\nconntrack: {max: 0, maxPerCore: 1}\nportRange: \"\"\nportRange: \"\"\n")
			if err == nil || !strings.Contains(err.Error(), tt.wrong) {
				t.Fatalf("error %v does not name %s", err, tt.wrong)
			}
			want := []string{twice}
			if tt.known {
				want = append(want, `ignoring a field in the file: unknown field "conntrack.max"`, `ignoring a field in the file: unknown field "resourceContainer"`)
			}
			if d := cmp.Diff(want, c.Notes()); d != "" {
				t.Errorf("notes (-want +got):\n%s", d)
			}
		})
	}
}

// TestFileNotes proves that mistakes which are no errors for kube-proxy are noted.
func TestFileNotes(t *testing.T) {
	tests := []struct {
		name, text string
		flags      []string
		want       [][]string
	}{
		{"fields of old versions", "udpIdleTimeout: 250ms\nresourceContainer: /kube-proxy\nconntrack: {max: 0, maxPerCore: 1}\nenableprofiling: true\n", nil,
			[][]string{{`"conntrack.max"`}, {`"enableprofiling"`}, {`"resourceContainer"`}, {`"udpIdleTimeout"`}}},
		{"twice", "clusterCIDR: 10.0.0.0/8\nclusterCIDR: 10.0.0.0/9\n", nil, [][]string{{"line 4", "clusterCIDR"}}},
		{"other modes", "ipvs: {syncPeriod: -1s, excludeCIDRs: [a]}\nnftables: {masqueradeBit: 32}\n", nil, [][]string{{"nftables.masqueradeBit"}, {"ipvs.syncPeriod"}, {"ipvs.excludeCIDRs"}}},
		{"cluster CIDR does not matter", "detectLocalMode: NodeCIDR\nclusterCIDR: x\n", nil, [][]string{{"clusterCIDR", "not used in this configuration"}}},
		{"flags win", "mode: nftables\nnodePortAddresses: [primary]\nfeatureGates: {A: true, B: true}\nlogging: {verbosity: 2}\nhostnameOverride: a\nnftables: {syncPeriod: 5s}\n",
			[]string{"--proxy-mode=iptables", "--nodeport-addresses=all", "--nodeport-addresses=10.0.0.0/8", "--feature-gates=B=false", "-v=2", "--hostname-override=b", "--iptables-sync-period=7s", "--cluster-cidr=10.0.0.0/8"},
			[][]string{
				{"--hostname-override b overrides", "hostnameOverride, which is a"},
				{"--proxy-mode iptables overrides", "mode, which is nftables"},
				{"--iptables-sync-period 7s overrides", "nftables.syncPeriod, which is 5s"},
				{"--nodeport-addresses all,10.0.0.0/8 overrides", "nodePortAddresses, which is primary"},
				{"--feature-gates B=false overrides", "featureGates, which is A=true,B=true"},
			}},
		{"deprecated ports", "", []string{"--healthz-port=0", "--metrics-port=5"}, [][]string{{"--healthz-port 0", "healthzBindAddress"}, {"--metrics-port 5", "metricsBindAddress"}}},
		{"ignored flags", "", []string{"--proxy-port-range=1-2", "--boot-id-file=/x", "--conntrack-max=5", "--cleanup-ipvs", "--log_file=/x", "--alsologtostderr", "--enable-dsr", "--logtostderr=false", "--udp-timeout=5"},
			[][]string{{"--proxy-port-range"}, {"--enable-dsr", "Windows"}, {"--boot-id-file"}, {"--cleanup-ipvs", "fairlead cleanup"}, {"--conntrack-max", "--conntrack-min"}, {"--udp-timeout"}, {"--alsologtostderr"}, {"--log-file", "standard error"}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c, err := parseFile(t, tt.text, tt.flags...)
			if err != nil {
				t.Fatal(err)
			}
			got := c.Notes()
			if len(got) != len(tt.want) {
				t.Fatalf("%d notes, want %d:\n%s", len(got), len(tt.want), strings.Join(got, "\n"))
			}
			for i, note := range got {
				for _, part := range tt.want[i] {
					if !strings.Contains(note, part) {
						t.Errorf("note %q does not contain %q", note, part)
					}
				}
			}
		})
	}
}

func TestFlagsWin(t *testing.T) {
	got, err := parseFile(t, "nodePortAddresses: [primary]\nfeatureGates: {A: true, B: true, LoadBalancerIPMode: false}\nhealthzBindAddress: 10.0.0.1\nclusterCIDR: 10.0.0.0/8\n",
		"--nodeport-addresses=all", "--nodeport-addresses=10.0.0.0/8", "--feature-gates=B=false", "--healthz-bind-address=", "--ipvs-vip=route")
	if err != nil {
		t.Fatal(err)
	}
	want, err := Parse([]string{"--nodeport-addresses=all,10.0.0.0/8", "--feature-gates=A=true,B=false,LoadBalancerIPMode=false", "--healthz-bind-address=", "--ipvs-vip=route", "--cluster-cidr=10.0.0.0/8"}, hostname)
	if err != nil {
		t.Fatal(err)
	}
	want.ConfigFile = got.ConfigFile
	if d := cmp.Diff(want, got, compare); d != "" {
		t.Error(d)
	}
}

// TestFileForms proves that JSON is accepted and that a second document changes nothing.
func TestFileForms(t *testing.T) {
	for _, text := range []string{
		`{"apiVersion":"kubeproxy.config.k8s.io/v1alpha1","kind":"KubeProxyConfiguration","clusterCIDR":"10.0.0.0/8"}`,
		"---\n" + head + "clusterCIDR: 10.0.0.0/8\n---\nmode: ipvs\n",
	} {
		c, err := parseFile(t, text)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(prefixes("10.0.0.0/8"), c.ClusterCIDRs, compare); d != "" || c.Mode != ModeIPTables {
			t.Errorf("%s: %s, mode %s", text, d, c.Mode)
		}
	}
}

// samples are values of flags other than the defaults.
var samples = map[string][]string{
	"mode": {"nftables", "ipvs"}, "detect-local-mode": {"NodeCIDR"}, "bind-address": {"10.0.0.1", "::", "fd00::1"}, "cluster-cidr": {"10.0.0.0/8", "fd00::/64,10.0.0.0/8"},
	"nodeport-addresses": {"primary", "localhost,10.0.0.0/8", "all"}, "feature-gates": {"A=true", "LoadBalancerIPMode=false,A=false"}, "healthz-bind-address": {"10.0.0.1", "[fd00::1]:5"},
	"metrics-bind-address": {"[::]:5"}, "hostname-override": {"n1"}, "kube-api-qps": {"0.5", "0", "-1"}, "kube-api-burst": {"7", "0"}, "logging-format": {"json"},
	"ipvs-exclude-cidrs": {"10.0.0.0/8,fd00::/64"}, "ipvs-scheduler": {"mh"}, "oom-score-adj": {"0", "7"}, "v": {"3"}, "log-flush-frequency": {"1ms"},
	"pod-bridge-interface": {"br0"}, "pod-interface-name-prefix": {"veth"}, "kubeconfig": {"k"}, "kube-api-content-type": {"application/json"},
	"show-hidden-metrics-for-version": {"1.35"}, "iptables-masquerade-bit": {"0", "31"}, "log-text-info-buffer-size": {"64Ki"}, "network-name": {"a"}, "source-vip": {"a"},
	"iptables-min-sync-period": {"7ms"}, "ipvs-min-sync-period": {"7ms"}, "root-hnsendpoint-name": {"a"}, "log-json-info-buffer-size": {"1"}, "vmodule": {"a=1,b=2"},
}

// TestRoundTrip proves that reading what --write-config-to writes gives the same Config.
func TestRoundTrip(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 100 {
		var args []string
		for _, s := range Default().settings {
			if s.flag == "" || s.field == "" || rnd.IntN(3) > 0 {
				continue
			}
			texts := samples[s.flag]
			switch s.typ {
			case boolean:
				texts = []string{"true", "false"}
			case "duration":
				texts = append(texts, "7s")
			case "number":
				texts = append(texts, "9")
			}
			if texts == nil {
				t.Fatalf("no samples for --%s", s.flag)
			}
			args = append(args, "--"+s.flag+"="+texts[rnd.IntN(len(texts))])
		}
		if slices.Contains(args, "--logging-format=json") {
			args = append(args, "--vmodule=")
			args = slices.DeleteFunc(args, func(a string) bool { return strings.HasPrefix(a, "--vmodule=") })
		}
		want, err := Parse(args, hostname)
		if err != nil {
			t.Fatal(args, err)
		}
		data, lost, err := want.YAML()
		if err != nil || len(lost) > 0 {
			t.Fatal(args, lost, err)
		}
		got, err := parseFile(t, string(data))
		if err != nil {
			t.Fatalf("%q: %v\n%s", args, err, data)
		}
		want.ConfigFile = got.ConfigFile
		d := cmp.Diff(want, got, compare)
		live, restart := Diff(want, got)
		if again, _, _ := got.YAML(); d != "" || len(live)+len(restart) > 0 || string(again) != string(data) {
			t.Fatalf("%q: %s%v%v\n%s\n%s", args, d, live, restart, data, again)
		}
	}
}

func TestLost(t *testing.T) {
	c, err := Parse([]string{"--healthz-bind-address=", "--iptables-min-sync-period=0", "--metrics-auth", "--master=m", "--cluster-cidr=10.0.0.0/8"}, hostname)
	if err != nil {
		t.Fatal(err)
	}
	_, lost, err := c.YAML()
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"--master=m", "--iptables-min-sync-period=0s", "--healthz-bind-address=", "--metrics-auth=true"}
	if len(lost) != len(want) {
		t.Fatalf("lost %q, want %q", lost, want)
	}
	for i, l := range lost {
		if !strings.Contains(l, want[i]+":") {
			t.Errorf("%q does not contain %s", l, want[i])
		}
	}
}

// TestYAMLSaysDefaults proves that a written file contains every default.
func TestYAMLSaysDefaults(t *testing.T) {
	data, err := os.ReadFile("testdata/kubeadm.conf")
	if err != nil {
		t.Fatal(err)
	}
	c, err := parseFile(t, string(data))
	if err != nil {
		t.Fatal(err)
	}
	got, _, err := c.YAML()
	if err != nil {
		t.Fatal(err)
	}
	const golden = "testdata/kubeadm.resolved.yaml"
	if *update {
		if err := os.WriteFile(golden, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), string(got)); d != "" {
		t.Error(d)
	}
}

// FuzzFile proves that no file causes a panic, and that an accepted file can be written and read
// back.
func FuzzFile(f *testing.F) {
	data, err := os.ReadFile("testdata/kubeadm.conf")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(string(data))
	f.Add(head + "mode: ipvs\nipvs: {excludeCIDRs: [010.0.0.0/8], scheduler: mh}\nlogging: {vmodule: [{filePattern: a, verbosity: 1}], flushFrequency: 5}\n")
	f.Add(head + "featureGates: {A: true}\nnodePortAddresses: [all, 10.0.0.0/8]\noomScoreAdj: 0\n")
	f.Add("{")
	f.Fuzz(func(t *testing.T, text string) {
		path := write(t, text)
		c, err := Parse([]string{"--config", path}, hostname)
		if err != nil {
			return
		}
		out, lost, err := c.YAML()
		if err != nil || len(lost) > 0 {
			t.Fatalf("cannot be written: %v %q", err, lost)
		}
		back, err := Parse([]string{"--config", write(t, string(out))}, hostname)
		if err != nil {
			t.Fatalf("cannot be read again: %v\n%s", err, out)
		}
		back.ConfigFile = c.ConfigFile
		if d := cmp.Diff(c, back, compare); d != "" {
			t.Errorf("%s\n%s", d, out)
		}
		if len(slices.Sorted(maps.Keys(c.Flagz()))) == 0 {
			t.Error("no flags")
		}
	})
}

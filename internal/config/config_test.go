package config

import (
	"errors"
	"flag"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func hostname() (string, error) { return "Host.Example\n", nil }

var update = flag.Bool("update", false, "rewrite the outputs in testdata")

// compare compares the exported fields of Configs.
var compare = cmp.Options{
	cmpopts.EquateComparable(netip.Addr{}, netip.AddrPort{}, netip.Prefix{}),
	cmpopts.IgnoreUnexported(Config{}),
}

func TestDefaults(t *testing.T) {
	got, err := Parse(nil, hostname)
	if err != nil {
		t.Fatal(err)
	}
	want := &Config{
		Mode: "iptables", ContentType: "application/vnd.kubernetes.protobuf", QPS: 5, Burst: 10, NodeName: "host.example",
		BindAddress:    netip.MustParseAddr("0.0.0.0"),
		HealthzAddress: netip.MustParseAddrPort("0.0.0.0:10256"), MetricsAddress: netip.MustParseAddrPort("127.0.0.1:10249"),
		DetectMode: "ClusterCIDR", MasqueradeBit: 14, MasqueradeSource: "auto", LocalhostNodePorts: true,
		SyncPeriod: 30 * time.Second, MinSyncPeriod: time.Second, Resync: 15 * time.Minute,
		Gates: Gates{true, true, true}, OOMScoreAdj: -999, LogFlushFrequency: 5 * time.Second,
		IPVS:      IPVS{Scheduler: "rr", VIP: "address"},
		Conntrack: Conntrack{MaxPerCore: 32768, Min: 131072, TCPEstablishedTimeout: 24 * time.Hour, TCPCloseWaitTimeout: time.Hour},
	}
	if d := cmp.Diff(want, got, compare); d != "" {
		t.Error(d)
	}
}

func TestFlags(t *testing.T) {
	tests := []struct {
		name string
		args string
		want func(*Config)
	}{
		{"words joined with underscores", "--cluster_cidr=10.1.2.3/8 --masquerade_all", func(c *Config) {
			c.ClusterCIDRs, c.MasqueradeAll = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}, true
		}},
		{"mode by its old name", "--proxy-mode iptables", func(*Config) {}},
		{"empty mode", "--mode=", func(*Config) {}},
		{"node name is trimmed and lower-cased", "--hostname-override=\u00a0AbC\u00a0", func(c *Config) { c.NodeName = "abc" }},
		{"empty node name is the host name", "--hostname-override=", func(*Config) {}},
		{"pair of cluster CIDRs", "--cluster-cidr fd00::1/64,10.0.0.0/8", func(c *Config) {
			c.ClusterCIDRs = []netip.Prefix{netip.MustParsePrefix("fd00::/64"), netip.MustParsePrefix("10.0.0.0/8")}
		}},
		{"cluster CIDRs do not matter in other modes", "--detect-local-mode NodeCIDR --cluster-cidr 10.0.0.0/16,10.1.0.0/16", func(c *Config) {
			c.DetectMode = DetectNodeCIDR
			c.ClusterCIDRs = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/16"), netip.MustParsePrefix("10.1.0.0/16")}
		}},
		{"bridge", "--detect-local-mode BridgeInterface --pod-bridge-interface cni0", func(c *Config) {
			c.DetectMode, c.PodBridge = DetectBridgeInterface, "cni0"
		}},
		{"interface prefix", "--detect-local-mode=InterfaceNamePrefix --pod-interface-name-prefix=veth", func(c *Config) {
			c.DetectMode, c.PodInterfacePrefix = DetectInterfacePrefix, "veth"
		}},
		{"an interface prefix of 15 characters is a name", "--detect-local-mode=InterfaceNamePrefix --pod-interface-name-prefix=cali23456789012", func(c *Config) {
			c.DetectMode, c.PodInterfacePrefix = DetectInterfacePrefix, "cali23456789012"
		}},
		{"an interface's name does not matter to other detectors", "--pod-interface-name-prefix=veth+", func(*Config) {}},
		{"IPv6 bind address moves the servers", "--bind-address=fd00::1", func(c *Config) {
			c.BindAddress = netip.MustParseAddr("fd00::1")
			c.HealthzAddress, c.MetricsAddress = netip.MustParseAddrPort("[::]:10256"), netip.MustParseAddrPort("[::1]:10249")
		}},
		{"servers without ports and off", "--healthz-bind-address=10.0.0.1 --metrics-bind-address=", func(c *Config) {
			c.HealthzAddress, c.MetricsAddress = netip.MustParseAddrPort("10.0.0.1:10256"), netip.AddrPort{}
		}},
		{"periods", "--iptables-sync-period 1m --iptables-min-sync-period 0 --config-sync-period 1h", func(c *Config) {
			c.SyncPeriod, c.MinSyncPeriod, c.Resync = time.Minute, 0, time.Hour
		}},
		{"periods of mode nftables", "--mode nftables --iptables-sync-period 1m --iptables-min-sync-period 0 --ipvs-sync-period 5s", func(c *Config) {
			c.Mode, c.SyncPeriod, c.MinSyncPeriod = ModeNFTables, time.Minute, 0
		}},
		{"periods of mode ipvs", "--mode ipvs --iptables-sync-period 1m --ipvs-sync-period 2m --ipvs-min-sync-period 5s", func(c *Config) {
			c.Mode, c.SyncPeriod, c.MinSyncPeriod = ModeIPVS, 2*time.Minute, 5*time.Second
		}},
		{"mode ipvs by default has the periods that the file gives it", "--mode ipvs", func(c *Config) {
			c.Mode, c.MinSyncPeriod = ModeIPVS, 0
		}},
		{"mode ipvs", "--mode ipvs --ipvs-scheduler=mh --ipvs-exclude-cidrs=10.0.0.1/8 --ipvs-exclude-cidrs=fd00::/64 --ipvs-strict-arp --ipvs-tcp-timeout=1s --ipvs-tcpfin-timeout=2s --ipvs-udp-timeout=3s --ipvs-vip=route --ipvs-drain-timeout=4s --masquerade-all --iptables-masquerade-bit=3",
			func(c *Config) {
				c.Mode, c.MinSyncPeriod, c.MasqueradeAll, c.MasqueradeBit = ModeIPVS, 0, true, 3
				c.IPVS = IPVS{Scheduler: "mh", ExcludeCIDRs: prefixes("10.0.0.0/8", "fd00::/64"), StrictARP: true, TCPTimeout: time.Second, TCPFinTimeout: 2 * time.Second,
					UDPTimeout: 3 * time.Second, VIP: VIPRoute, DrainTimeout: 4 * time.Second}
			}},
		{"connection tracking", "--conntrack-max-per-core=0 --conntrack-min=0 --conntrack-tcp-timeout-established=0 --conntrack-tcp-timeout-close-wait=0s --conntrack-udp-timeout=1s --conntrack-udp-timeout-stream=2s --conntrack-tcp-be-liberal",
			func(c *Config) {
				c.Conntrack = Conntrack{UDPTimeout: time.Second, UDPStreamTimeout: 2 * time.Second, TCPBeLiberal: true}
			}},
		{"mark and masquerading of mode nftables", "--proxy-mode nftables --masquerade-all --iptables-masquerade-bit=3", func(c *Config) {
			c.Mode, c.MasqueradeAll, c.MasqueradeBit = ModeNFTables, true, 3
		}},
		{"the node's address as the source", "--masquerade-source=node", func(c *Config) { c.MasqueradeSource = SourceNode }},
		{"deprecated ports", "--healthz-port=9 --metrics-port=0", func(c *Config) {
			c.HealthzAddress, c.MetricsAddress = netip.MustParseAddrPort("0.0.0.0:9"), netip.AddrPort{}
		}},
		{"deprecated ports where the address has one, and has none", "--healthz-bind-address=10.0.0.1:10256 --healthz-port=9 --metrics-port=9 --metrics-bind-address=fd00::1", func(c *Config) {
			c.HealthzAddress, c.MetricsAddress = netip.MustParseAddrPort("10.0.0.1:10256"), netip.MustParseAddrPort("[fd00::1]:9")
		}},
		{"deprecated port and no server", "--healthz-bind-address= --healthz-port=9", func(c *Config) { c.HealthzAddress = netip.AddrPort{} }},
		{"default address in so many words", "--bind-address=:: --healthz-bind-address=0.0.0.0:10256", func(c *Config) {
			c.BindAddress, c.MetricsAddress = netip.IPv6Unspecified(), netip.MustParseAddrPort("[::1]:10249")
		}},
		{"zeros at the beginning of numbers", "--bind-address=010.0.0.1 --cluster-cidr=010.0.0.0/8 --metrics-bind-address=010.0.0.1:5", func(c *Config) {
			c.BindAddress, c.ClusterCIDRs, c.MetricsAddress = netip.MustParseAddr("10.0.0.1"), prefixes("10.0.0.0/8"), netip.MustParseAddrPort("10.0.0.1:5")
		}},
		{"rate limits of 0 are client-go's", "--kube-api-qps=0 --kube-api-burst=0", func(*Config) {}},
		{"flags that are gone", "--proxy-port-range= --boot-id-file=a --machine-id-file=b --cleanup-iptables --resource-container=/x --logtostderr --stderrthreshold=2 --windows-service=false", func(*Config) {}},
		{"node port addresses, repeated", "--nodeport-addresses primary,10.0.0.1/8 --nodeport-addresses all,localhost", func(c *Config) {
			c.NodePortAddresses = NodePortAddresses{Primary: true, All: true, Localhost: true, Prefixes: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}}
		}},
		{"gates", "--feature-gates LoadBalancerIPMode=false,Zeta=true --feature-gates=AllAlpha=false,AllowServiceExternalIPs=false", func(c *Config) {
			c.Gates = Gates{PreferSameTrafficDistribution: true}
			c.UnknownGates = map[string]bool{"AllAlpha": false, "Zeta": true}
		}},
		{"the rest", "-v4 --logging-format json --oom-score-adj=-1000 --kube-api-qps 0.5 --kube-api-burst 1 --iptables-masquerade-bit 0 --iptables-localhost-nodeports=false --objects o.yaml --kubeconfig k --master m --kube-api-content-type c --service-proxy-name My_proxy.v-1",
			func(c *Config) {
				c.Verbosity, c.LogJSON, c.OOMScoreAdj, c.QPS, c.Burst, c.MasqueradeBit, c.LocalhostNodePorts = 4, true, -1000, 0.5, 1, 0, false
				c.Objects, c.Kubeconfig, c.Master, c.ContentType, c.ServiceProxyName = "o.yaml", "k", "m", "c", "My_proxy.v-1"
			}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			want, err := Parse(nil, hostname)
			if err != nil {
				t.Fatal(err)
			}
			tt.want(want)
			got, err := Parse(strings.Split(tt.args, " "), hostname)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(want, got, compare); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestRefusals(t *testing.T) {
	tests := []struct {
		name string
		args []string
		// want are parts of the error, which is one line: flag, value, what is allowed.
		want []string
	}{
		{"argument", []string{"start"}, []string{`"start"`, "flags only"}},
		{"unknown flag", []string{"--no-such"}, []string{"--no-such"}},
		{"mode", []string{"--mode=userspace"}, []string{"--mode", `"userspace"`, "want iptables"}},
		{"mode by its old name", []string{"--proxy-mode=userspace"}, []string{"--proxy-mode", `"userspace"`, "want iptables"}},
		{"cluster CIDR", []string{"--cluster-cidr=10.0.0.0"}, []string{"--cluster-cidr", `"10.0.0.0"`, "CIDR such as"}},
		{"mapped cluster CIDR", []string{"--cluster-cidr=::ffff:10.0.0.0/104"}, []string{"--cluster-cidr", "CIDR such as"}},
		{"two cluster CIDRs of a family", []string{"--cluster-cidr=10.0.0.0/8,11.0.0.0/8"}, []string{"--cluster-cidr 10.0.0.0/8,11.0.0.0/8", "one of IPv4 and one of IPv6"}},
		{"three cluster CIDRs", []string{"--cluster-cidr=10.0.0.0/8,fd00::/64,fd01::/64"}, []string{"--cluster-cidr", "one of IPv4 and one of IPv6"}},
		{"detector", []string{"--detect-local-mode=clustercidr"}, []string{"--detect-local-mode", `"clustercidr"`, "want ClusterCIDR, NodeCIDR, BridgeInterface, InterfaceNamePrefix"}},
		{"bridge without name", []string{"--detect-local-mode=BridgeInterface"}, []string{`--pod-bridge-interface ""`, "interface name"}},
		{"prefix without name", []string{"--detect-local-mode=InterfaceNamePrefix"}, []string{`--pod-interface-name-prefix ""`, "prefix"}},
		{"bridge too long", []string{"--detect-local-mode=BridgeInterface", "--pod-bridge-interface=a23456789012345b"}, []string{"--pod-bridge-interface", "a23456789012345b", "at most 15", "not 16"}},
		{"prefix too long", []string{"--detect-local-mode=InterfaceNamePrefix", "--pod-interface-name-prefix=a23456789012345b"}, []string{"--pod-interface-name-prefix", "at most 15"}},
		{"prefix as iptables has it", []string{"--detect-local-mode=InterfaceNamePrefix", "--pod-interface-name-prefix=veth+"}, []string{`"veth+"`, "no wildcard"}},
		{"prefix as nft has it", []string{"--detect-local-mode=InterfaceNamePrefix", "--pod-interface-name-prefix=veth*"}, []string{`"veth*"`, "no wildcard"}},
		{"interface with a slash", []string{"--detect-local-mode=BridgeInterface", "--pod-bridge-interface=a/b"}, []string{`"a/b"`, "'/'"}},
		{"interface with a blank", []string{"--detect-local-mode=BridgeInterface", "--pod-bridge-interface=cni 0"}, []string{`"cni 0"`, "' '"}},
		{"interface beyond ASCII", []string{"--detect-local-mode=BridgeInterface", "--pod-bridge-interface=br\u00a00"}, []string{"--pod-bridge-interface", `'\u00a0'`}},
		{"scheduler", []string{"--mode=ipvs", "--ipvs-scheduler=0123456789abcdef"}, []string{"--ipvs-scheduler", "at most 15"}},
		{"masquerade source", []string{"--masquerade-source=eth0"}, []string{"--masquerade-source", `"eth0"`, "want auto, node"}},
		{"masquerade bit", []string{"--iptables-masquerade-bit=32"}, []string{"--iptables-masquerade-bit", `"32"`, "0 to 31"}},
		{"bool", []string{"--masquerade-all=maybe"}, []string{"--masquerade-all", `"maybe"`, "true or false"}},
		{"sync period", []string{"--iptables-sync-period=0s"}, []string{"--iptables-sync-period", `"0s"`, "above 0"}},
		{"min sync period", []string{"--iptables-min-sync-period=-1s"}, []string{"--iptables-min-sync-period", `"-1s"`, "or 0"}},
		{"min above sync", []string{"--iptables-min-sync-period=31s"}, []string{"--iptables-min-sync-period 31s", "at most", "30s"}},
		{"resync", []string{"--config-sync-period=5"}, []string{"--config-sync-period", `"5"`, "unit"}},
		{"node port addresses", []string{"--nodeport-addresses=primary,10.0.0.1"}, []string{"--nodeport-addresses", "10.0.0.1", "primary, localhost or all"}},
		{"gate", []string{"--feature-gates=LoadBalancerIPMode"}, []string{"--feature-gates", "LoadBalancerIPMode", "true or false"}},
		{"oom", []string{"--oom-score-adj=1001"}, []string{"--oom-score-adj", `"1001"`, "-1000 to 1000"}},
		{"verbosity", []string{"-v=x"}, []string{"-v", `"x"`, "whole number"}},
		{"format", []string{"--logging-format=xml"}, []string{"--logging-format", `"xml"`, "text, json"}},
		{"qps", []string{"--kube-api-qps=NaN"}, []string{"--kube-api-qps", `"NaN"`, "want a number"}},
		{"burst", []string{"--kube-api-burst=-1"}, []string{"--kube-api-burst", `"-1"`, "whole number from 0"}},
		{"healthz address of two colons", []string{"--healthz-bind-address=fd00::1:x"}, []string{"--healthz-bind-address", `"fd00::1:x"`, "IP:port"}},
		{"port", []string{"--metrics-bind-address=10.0.0.1:65536"}, []string{"--metrics-bind-address", "1 to 65535"}},
		{"way to own VIPs", []string{"--ipvs-vip=arp", "--mode=ipvs"}, []string{"--ipvs-vip", `"arp"`, "want address, route, mark"}},
		{"excluded CIDRs", []string{"--ipvs-exclude-cidrs=10.0.0.0", "--mode=ipvs"}, []string{"--ipvs-exclude-cidrs", "CIDR such as"}},
		{"conntrack", []string{"--conntrack-min=-1"}, []string{"--conntrack-min", `"-1"`, "whole number from 0"}},
		{"vmodule", []string{"--vmodule=a"}, []string{"--vmodule", `"a"`, "proxy*=4"}},
		{"bind address", []string{"--bind-address=eth0"}, []string{"--bind-address", `"eth0"`, "IPv4 or IPv6 address"}},
		{"healthz address", []string{"--healthz-bind-address=:10256"}, []string{"--healthz-bind-address", `":10256"`, "IP:port"}},
		{"label of another's Services", []string{"--service-proxy-name=-canary"}, []string{"--service-proxy-name", `"-canary"`, "value of a label"}},
		{"long label", []string{"--service-proxy-name=" + strings.Repeat("a", 64)}, []string{"--service-proxy-name", "at most 63"}},
		{"blank node name", []string{"--hostname-override=  "}, []string{"--hostname-override", `"  "`, "not spaces"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c, err := Parse(tt.args, hostname)
			if err == nil {
				t.Fatalf("Parse accepts %q: %+v", tt.args, c)
			}
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("more than one line: %q", err)
			}
			for _, part := range tt.want {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("error %q does not contain %q", err, part)
				}
			}
		})
	}
}

func TestNoHostName(t *testing.T) {
	broken := errors.New("broken")
	if _, err := Parse(nil, func() (string, error) { return "", broken }); !errors.Is(err, broken) {
		t.Errorf("got %v, want the cause", err)
	}
	if _, err := Parse(nil, func() (string, error) { return " ", nil }); err == nil || !strings.Contains(err.Error(), "--hostname-override") {
		t.Errorf("got %v, want advice to set --hostname-override", err)
	}
}

func TestVersionFlag(t *testing.T) {
	for _, v := range []string{"--version", "--version=true", "--version=raw", "--version=v1.30.0"} {
		if c, err := Parse([]string{v, "--mode=nonsense"}, nil); err != nil || !c.ShowVersion {
			t.Errorf("%s: %v", v, err)
		}
	}
	if _, err := Parse([]string{"--version=no"}, hostname); err == nil || !strings.Contains(err.Error(), "--version") {
		t.Errorf("got %v", err)
	}
}

// TestAllErrors proves that all errors are reported at once, one per line.
func TestAllErrors(t *testing.T) {
	_, err := Parse([]string{"--mode=x", "--conntrack-min=-1", "--detect-local-mode=BridgeInterface", "--iptables-sync-period=1ms"}, hostname)
	if err == nil {
		t.Fatal("accepted")
	}
	lines := strings.Split(err.Error(), "\n")
	for i, want := range []string{"--mode", "--iptables-min-sync-period", "--conntrack-min", "--pod-bridge-interface"} {
		if len(lines) != 4 || !strings.Contains(err.Error(), want) {
			t.Errorf("%d lines, no %s (%d):\n%s", len(lines), want, i, err)
		}
	}
}

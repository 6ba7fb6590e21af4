package config

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/fairlead/fairlead/internal/cluster"
	"github.com/fairlead/fairlead/internal/compile"
	"github.com/fairlead/fairlead/internal/fwd"
)

func parse(t *testing.T, args string) *Config {
	t.Helper()
	c, err := Parse(strings.Fields(args), hostname)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func prefixes(ss ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range ss {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

func addrs(ss ...string) []netip.Addr {
	var out []netip.Addr
	for _, s := range ss {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

func TestNodePorts(t *testing.T) {
	dual := cluster.Node{Name: "n1", Addrs: addrs("192.0.2.1", "2001:db8::1")}
	single := cluster.Node{Name: "n1", Addrs: addrs("192.0.2.1")}
	all4 := fwd.NodePortAddrs{All: true, Loopback: true}
	all6 := fwd.NodePortAddrs{All: true}
	none := fwd.NodePortAddrs{}
	some := func(loop bool, ps ...string) fwd.NodePortAddrs {
		return fwd.NodePortAddrs{Prefixes: prefixes(ps...), Loopback: loop}
	}
	tests := []struct {
		name string
		args string
		node cluster.Node
		want [2]fwd.NodePortAddrs
		// warn is part of the warnings; empty means no warnings.
		warn string
	}{
		{"unset", "", dual, [2]fwd.NodePortAddrs{all4, all6}, ""},
		{"unset without localhost", "--iptables-localhost-nodeports=false", dual, [2]fwd.NodePortAddrs{{All: true}, all6}, ""},
		{"CIDRs of both", "--nodeport-addresses 10.9.0.0/16,fd00::/8,10.1.0.0/16", dual, [2]fwd.NodePortAddrs{some(false, "10.1.0.0/16", "10.9.0.0/16"), some(false, "fd00::/8")}, ""},
		{"other family only", "--nodeport-addresses fd00::/8", dual, [2]fwd.NodePortAddrs{all4, some(false, "fd00::/8")}, "has no IPv4"},
		{"zero CIDR wins", "--nodeport-addresses 10.1.0.0/16,0.0.0.0/0,::/0", dual, [2]fwd.NodePortAddrs{all4, all6}, ""},
		{"masked zero CIDR", "--nodeport-addresses 10.0.0.0/0,::/0", dual, [2]fwd.NodePortAddrs{all4, all6}, ""},
		{"all", "--nodeport-addresses all", dual, [2]fwd.NodePortAddrs{all4, all6}, ""},
		{"primary", "--nodeport-addresses primary", dual, [2]fwd.NodePortAddrs{some(false, "192.0.2.1/32"), some(false, "2001:db8::1/128")}, ""},
		{"primary of the bind address", "--nodeport-addresses primary --bind-address 192.0.2.9", dual, [2]fwd.NodePortAddrs{some(false, "192.0.2.9/32"), some(false, "2001:db8::1/128")}, ""},
		{"primary of one family opens none in the other", "--nodeport-addresses primary", single, [2]fwd.NodePortAddrs{some(false, "192.0.2.1/32"), none}, "no IPv6 address"},
		{"primary without addresses opens none", "--nodeport-addresses primary", cluster.Node{}, [2]fwd.NodePortAddrs{none, none}, "no IPv4 address"},
		{"primary skips loopback", "--nodeport-addresses primary", cluster.Node{Addrs: addrs("127.0.0.1", "::1")}, [2]fwd.NodePortAddrs{none, none}, "no IPv4 address"},
		{"primary and localhost", "--nodeport-addresses primary,localhost", dual, [2]fwd.NodePortAddrs{some(true, "192.0.2.1/32"), some(false, "2001:db8::1/128")}, "::1"},
		{"localhost alone", "--nodeport-addresses localhost", dual, [2]fwd.NodePortAddrs{{Loopback: true}, none}, "::1"},
		{"explicit loopback", "--nodeport-addresses 127.0.0.1/32,2001:db8::/32", dual, [2]fwd.NodePortAddrs{{Loopback: true}, some(false, "2001:db8::/32")}, ""},
		{"explicit loopback, disabled", "--nodeport-addresses 127.0.0.0/8,::/0 --iptables-localhost-nodeports=false", dual, [2]fwd.NodePortAddrs{none, all6}, "ignored"},
		{"prefix around loopback", "--nodeport-addresses 126.0.0.0/7,::/0", dual, [2]fwd.NodePortAddrs{some(true, "126.0.0.0/7"), all6}, ""},
		{"another loopback address", "--nodeport-addresses 127.0.0.2/32,::/0", dual, [2]fwd.NodePortAddrs{none, all6}, ""},
		{"IPv6 loopback", "--nodeport-addresses 0.0.0.0/0,::1/128", dual, [2]fwd.NodePortAddrs{all4, none}, "::1"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := parse(t, tt.args+" --cluster-cidr 10.0.0.0/8,fd00::/8")
			if d := cmp.Diff(tt.want, c.Header(tt.node, nil).NodePorts, compare); d != "" {
				t.Error(d)
			}
			warnings := strings.Join(c.Warnings(tt.node, tt.node.Addrs), "\n")
			if tt.warn == "" && warnings != "" || !strings.Contains(warnings, tt.warn) {
				t.Errorf("warnings %q, want %q", warnings, tt.warn)
			}
		})
	}
}

func TestDetectors(t *testing.T) {
	node := cluster.Node{PodCIDRs: prefixes("fd00:1::/64", "10.1.0.0/24", "10.2.0.0/24")}
	tests := []struct {
		name  string
		args  string
		want  [2]fwd.Detector
		warns int
	}{
		{"none, and the Node has pods of both families", "", [2]fwd.Detector{}, 2},
		{"cluster CIDR of one family, and the Node has pods of both", "--cluster-cidr 10.0.0.0/8", [2]fwd.Detector{{Prefix: netip.MustParsePrefix("10.0.0.0/8")}}, 1},
		{"cluster CIDRs", "--cluster-cidr fd00::/16,10.0.0.0/8", [2]fwd.Detector{{Prefix: netip.MustParsePrefix("10.0.0.0/8")}, {Prefix: netip.MustParsePrefix("fd00::/16")}}, 0},
		{"node CIDRs", "--detect-local-mode NodeCIDR --cluster-cidr 10.0.0.0/8", [2]fwd.Detector{{Prefix: netip.MustParsePrefix("10.1.0.0/24")}, {Prefix: netip.MustParsePrefix("fd00:1::/64")}}, 0},
		{"bridge", "--detect-local-mode BridgeInterface --pod-bridge-interface cni0", [2]fwd.Detector{{Bridge: "cni0"}, {Bridge: "cni0"}}, 0},
		{"interface prefix", "--detect-local-mode InterfaceNamePrefix --pod-interface-name-prefix veth", [2]fwd.Detector{{InterfacePrefix: "veth"}, {InterfacePrefix: "veth"}}, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := parse(t, tt.args+" --nodeport-addresses all")
			if d := cmp.Diff(tt.want, c.Header(node, nil).Detector, compare); d != "" {
				t.Error(d)
			}
			if w := c.Warnings(node, nil); len(w) != tt.warns {
				t.Errorf("got %d warnings, want %d: %q", len(w), tt.warns, w)
			}
		})
	}
}

// TestNoWarningsAboutDefaults proves that clusters with one family and defaults cause no warnings.
func TestNoWarningsAboutDefaults(t *testing.T) {
	four := cluster.Node{Addrs: addrs("192.0.2.1"), PodCIDRs: prefixes("10.1.0.0/24")}
	six := cluster.Node{Addrs: addrs("2001:db8::1"), PodCIDRs: prefixes("fd00:1::/64")}
	bare := cluster.Node{Addrs: addrs("192.0.2.1")} // the network plugin allocates pod addresses
	dual := cluster.Node{Addrs: addrs("192.0.2.1", "2001:db8::1"), PodCIDRs: prefixes("10.1.0.0/24")}
	tests := []struct {
		name, args string
		node       cluster.Node
		// warn is part of the only warning; empty means none.
		warn string
	}{
		{"IPv4 alone", "--cluster-cidr 10.0.0.0/8", four, ""},
		{"IPv4 alone, the plugin allocates", "--cluster-cidr 10.0.0.0/8", bare, ""},
		{"IPv4 alone on nodes of both families", "--cluster-cidr 10.0.0.0/8", dual, ""},
		{"IPv6 alone", "--cluster-cidr fd00::/8", six, ""},
		{"IPv4 alone by podCIDR", "--detect-local-mode NodeCIDR", four, ""},
		{"IPv4 alone in mode nftables, where primary is the default", "--mode nftables --cluster-cidr 10.0.0.0/8", four, ""},
		{"IPv6 alone in mode nftables", "--mode nftables --cluster-cidr fd00::/8", six, ""},
		{"IPv4 alone in mode ipvs", "--mode ipvs --cluster-cidr 10.0.0.0/8", four, ""},
		{"node ports of IPv4", "--cluster-cidr 10.0.0.0/8 --nodeport-addresses 192.0.2.0/24", four, ""},
		{"node ports on loopback", "--cluster-cidr 10.0.0.0/8 --nodeport-addresses localhost", four, ""},
		{"node ports of IPv4, and the node has IPv6 addresses", "--cluster-cidr 10.0.0.0/8 --nodeport-addresses 192.0.2.0/24", dual, "has no IPv6 address"},
		{"no pod network", "", bare, "--cluster-cidr has no IPv4 CIDR"},
		{"no podCIDR", "--detect-local-mode NodeCIDR", bare, "the Node has no IPv4 podCIDR"},
		{"no address for primary", "--cluster-cidr 10.0.0.0/8 --nodeport-addresses primary", cluster.Node{}, "no IPv4 address"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			warnings := parse(t, tt.args).Warnings(tt.node, tt.node.Addrs)
			if want := tt.warn != ""; len(warnings) > 1 || want != (len(warnings) == 1) || !strings.Contains(strings.Join(warnings, ""), tt.warn) {
				t.Errorf("warnings %q, want %q", warnings, tt.warn)
			}
		})
	}
}

func TestHeaderLocalAddrs(t *testing.T) {
	h := parse(t, "--iptables-masquerade-bit 7").Header(cluster.Node{}, addrs("fe80::1%eth0", "192.0.2.2", "127.0.0.1", "::ffff:192.0.2.1", "192.0.2.2", "::1"))
	if d := cmp.Diff(addrs("192.0.2.1", "192.0.2.2", "fe80::1"), h.LocalAddrs, compare); d != "" {
		t.Error(d)
	}
	if h.MasqueradeBit != 7 {
		t.Errorf("bit %d, want 7", h.MasqueradeBit)
	}
}

func TestPrimaryIP(t *testing.T) {
	node := cluster.Node{Addrs: addrs("192.0.2.1", "192.0.2.2")}
	tests := []struct {
		name string
		args string
		node cluster.Node
		want [2]string
	}{
		{"of the node", "", node, [2]string{"192.0.2.1", "::1"}},
		{"of the bind address", "--bind-address 2001:db8::9", node, [2]string{"192.0.2.1", "2001:db8::9"}},
		{"unknown", "", cluster.Node{}, [2]string{"127.0.0.1", "::1"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := parse(t, tt.args)
			got := [2]string{c.PrimaryIP(tt.node, fwd.IPv4).String(), c.PrimaryIP(tt.node, fwd.IPv6).String()}
			if got != tt.want {
				t.Errorf("got %v, want %v", got, tt.want)
			}
		})
	}
}

func TestFacts(t *testing.T) {
	c := parse(t, "--hostname-override n1 --cluster-cidr 10.0.0.0/8 --masquerade-all --feature-gates AllowServiceExternalIPs=false,PreferSameTrafficDistribution=false")
	want := compile.Facts{
		NodeName: "n1", Zone: "z", PrimaryIP: [2]netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("2001:db8::1")},
		DetectsPods: [2]bool{true, false}, MasqueradeAll: true, IgnoreExternalIPs: true, IgnoreNodeHints: true,
	}
	if d := cmp.Diff(want, c.Facts(cluster.Node{Zone: "z", Addrs: addrs("2001:db8::1")}), compare); d != "" {
		t.Error(d)
	}
	if f := parse(t, "").Facts(cluster.Node{}); f.MasqueradeAll || f.IgnoreExternalIPs || f.IgnoreNodeHints || f.NodeName != "host.example" {
		t.Errorf("unexpected facts by default: %+v", f)
	}
}

// TestMasqueradeSource proves that the source is the node's address if it is known and local.
// Otherwise the kernel chooses, with a warning.
func TestMasqueradeSource(t *testing.T) {
	node := cluster.Node{Addrs: addrs("192.0.2.1", "2001:db8::1", "192.0.2.7")}
	local := addrs("127.0.0.1", "10.0.0.1", "192.0.2.1", "192.0.2.9", "2001:db8::1", "::1")
	none := netip.Addr{}
	for _, tt := range []struct {
		name  string
		args  string
		node  cluster.Node
		local []netip.Addr
		want  [2]netip.Addr
		warn  string
	}{
		{"by default", "", node, local, [2]netip.Addr{}, ""},
		{"auto", "--masquerade-source=auto", node, local, [2]netip.Addr{}, ""},
		{"node", "--masquerade-source=node", node, local, [2]netip.Addr{addrs("192.0.2.1")[0], addrs("2001:db8::1")[0]}, ""},
		{"bind address", "--masquerade-source=node --bind-address=192.0.2.9", node, local, [2]netip.Addr{addrs("192.0.2.9")[0], addrs("2001:db8::1")[0]}, ""},
		{"one family", "--masquerade-source=node", cluster.Node{Addrs: addrs("192.0.2.1")}, local, [2]netip.Addr{addrs("192.0.2.1")[0], none}, "no IPv6 address of the node is known: the kernel chooses"},
		{"no Node", "--masquerade-source=node", cluster.Node{}, local, [2]netip.Addr{}, "no IPv4 address of the node is known"},
		{"an address that is not local", "--masquerade-source=node --bind-address=2001:db8::2", node, local, [2]netip.Addr{addrs("192.0.2.1")[0], none}, "2001:db8::2 is on none of its interfaces"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := parse(t, strings.TrimSpace("--nodeport-addresses=all --cluster-cidr=10.0.0.0/8,fd00::/8 "+tt.args))
			if got := c.Header(tt.node, tt.local).MasqueradeSource; got != tt.want {
				t.Errorf("got %v, want %v", got, tt.want)
			}
			warnings := strings.Join(c.Warnings(tt.node, tt.local), "\n")
			if tt.warn == "" && warnings != "" || !strings.Contains(warnings, tt.warn) {
				t.Errorf("warnings %q, want %q", warnings, tt.warn)
			}
		})
	}
}

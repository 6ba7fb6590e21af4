package kube

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	v1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"github.com/fairlead/fairlead/internal/cluster"
	"github.com/fairlead/fairlead/internal/fwd"
)

// The types without their Equal methods, so that go-cmp shows the differences.
type (
	plainService cluster.Service
	plainSlice   cluster.Slice
	plainNode    cluster.Node
)

// equalValues compares cluster values; nil and empty lists are equal.
var equalValues = cmp.Options{
	cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
	cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
	cmpopts.EquateEmpty(),
}

func addrs(list ...string) (out []netip.Addr) {
	for _, s := range list {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

func prefixes(list ...string) (out []netip.Prefix) {
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

// fields returns the fields of problems.
func fields(problems []Problem) (out []string) {
	for _, p := range problems {
		out = append(out, p.Field)
	}
	return out
}

func TestParseAddr(t *testing.T) {
	for in, want := range map[string]string{
		"10.1.2.3":                  "10.1.2.3",
		"010.001.002.003":           "10.1.2.3",
		"10.0.000.3":                "10.0.0.3",
		"::ffff:1.2.3.4":            "1.2.3.4",
		"::ffff:001.2.3.4":          "1.2.3.4",
		"FD00::0001":                "fd00::1",
		"fe80::1%eth0":              "",
		"0.0.0.0":                   "",
		"::":                        "",
		"":                          "",
		" 10.1.2.3":                 "",
		"10.1.2":                    "",
		"10.1.2.":                   "",
		"10..2.3":                   "",
		"0x0a.1.2.3":                "",
		"10.1.2.256":                "",
		"10.1.2.3.4":                "",
		"example.org":               "",
		strings.Repeat("1", 100000): "",
	} {
		got, ok := parseAddr(in)
		if ok != (want != "") || ok && got.String() != want {
			t.Errorf("parseAddr(%.40q) = %v, %v; want %q", in, got, ok, want)
		}
	}
}

func TestParsePrefix(t *testing.T) {
	for in, want := range map[string]string{
		"10.1.2.3/8":           "10.0.0.0/8",
		"010.1.2.3/08":         "10.0.0.0/8",
		"0.0.0.0/0":            "0.0.0.0/0",
		"::/0":                 "::/0",
		"fd00::1/64":           "fd00::/64",
		"::ffff:10.1.2.3/120":  "10.1.2.0/24",
		"::ffff:10.1.2.3/64":   "::/64",
		"10.0.0.0":             "",
		"10.0.0.0/":            "",
		"10.0.0.0/33":          "",
		"10.0.0.0/-1":          "",
		"10.0.0.0/+8":          "",
		"10.0.0.0/256":         "",
		"fe80::1%eth0/64":      "",
		"/8":                   "",
		"10.0.0.0/8/8":         "",
		"fd00::/9999999999999": "",
	} {
		got, ok := parsePrefix(in)
		if ok != (want != "") || ok && got.String() != want {
			t.Errorf("parsePrefix(%q) = %v, %v; want %q", in, got, ok, want)
		}
	}
}

// TestSelection checks which labels the selectors select. The API server and files use the same
// selectors.
func TestSelection(t *testing.T) {
	const proxy, headless = "service.kubernetes.io/service-proxy-name", "service.kubernetes.io/headless"
	for name, c := range map[string]struct {
		labels map[string]string
		// the expected results for the default proxy and for one named x
		service, slice [2]bool
	}{
		"no labels":        {nil, [2]bool{true, false}, [2]bool{true, true}},
		"other labels":     {map[string]string{"app": "x"}, [2]bool{true, false}, [2]bool{true, true}},
		"our name":         {map[string]string{proxy: "x"}, [2]bool{false, true}, [2]bool{false, true}},
		"another name":     {map[string]string{proxy: "y"}, [2]bool{false, false}, [2]bool{false, true}},
		"empty proxy name": {map[string]string{proxy: ""}, [2]bool{false, false}, [2]bool{false, true}},
		"headless":         {map[string]string{headless: ""}, [2]bool{false, false}, [2]bool{false, false}},
		"our headless":     {map[string]string{proxy: "x", headless: ""}, [2]bool{false, false}, [2]bool{false, false}},
	} {
		for i, o := range []Converter{{}, {ServiceProxyName: "x"}} {
			for _, s := range []struct {
				kind, selector string
				want           bool
			}{
				{"service", o.serviceSelector(), c.service[i]},
				{"slice", o.sliceSelector(), c.slice[i]},
			} {
				if got := matches(s.selector, c.labels); got != s.want {
					t.Errorf("%s, %s, proxy %q: selected %v, want %v", name, s.kind, o.ServiceProxyName, got, s.want)
				}
			}
		}
	}
}

// service returns a minimal Service, changed by edit.
func service(edit func(*v1.Service)) *v1.Service {
	s := &v1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "svc"},
		Spec:       v1.ServiceSpec{ClusterIP: "10.96.0.1", Ports: []v1.ServicePort{{Port: 80}}},
	}
	edit(s)
	return s
}

// plain returns the conversion of the minimal Service, changed by edit.
func plain(edit func(*cluster.Service)) *cluster.Service {
	v := &cluster.Service{
		Name:       fwd.Service{Namespace: "ns", Name: "svc"},
		ClusterIPs: [2]netip.Addr{netip.MustParseAddr("10.96.0.1")},
		Ports:      []cluster.ServicePort{{Protocol: fwd.TCP, Port: 80}},
	}
	edit(v)
	return v
}

func TestConvertService(t *testing.T) {
	type svc = v1.Service
	type out = cluster.Service
	affinityOf := func(sec *int32) func(*svc) {
		return func(s *svc) {
			s.Spec.SessionAffinity = v1.ServiceAffinityClientIP
			s.Spec.SessionAffinityConfig = &v1.SessionAffinityConfig{ClientIP: &v1.ClientIPConfig{TimeoutSeconds: sec}}
		}
	}
	ingress := func(s *svc) {
		s.Status.LoadBalancer.Ingress = []v1.LoadBalancerIngress{
			{IP: "192.0.2.9"}, {IP: "192.0.2.1", IPMode: ptr.To(v1.LoadBalancerIPModeVIP)}, {Hostname: "lb.example"},
			{IP: "192.0.2.2", IPMode: ptr.To(v1.LoadBalancerIPModeProxy)}, {IP: "192.0.2.3", IPMode: ptr.To(v1.LoadBalancerIPMode("Odd"))},
			{IP: "192.0.2.9"}, {IP: "nonsense"}, {IP: "2001:db8::1"},
		}
	}
	cases := []struct {
		name     string
		edit     func(*svc)
		options  Converter
		want     *cluster.Service
		problems []string
	}{
		{name: "minimal", edit: func(*svc) {}, want: plain(func(*out) {})},
		{name: "headless", edit: func(s *svc) { s.Spec.ClusterIP = "None" }},
		{name: "no cluster IP", edit: func(s *svc) { s.Spec.ClusterIP = "" }},
		{name: "external name with cluster IP", edit: func(s *svc) { s.Spec.Type = v1.ServiceTypeExternalName }},
		{name: "nameless", edit: func(s *svc) { s.Name = "" }, problems: []string{"metadata"}},
		{name: "malformed cluster IP", edit: func(s *svc) { s.Spec.ClusterIP = "ten" }, problems: []string{"spec.clusterIP"}},
		{name: "IPv6 before dual-stack", edit: func(s *svc) { s.Spec.ClusterIP = "fd00::1" },
			want: plain(func(v *out) { v.ClusterIPs = [2]netip.Addr{{}, netip.MustParseAddr("fd00::1")} })},
		{name: "dual stack by index", edit: func(s *svc) {
			s.Spec.IPFamilies = []v1.IPFamily{v1.IPv6Protocol, v1.IPv4Protocol}
			s.Spec.ClusterIPs = []string{"fd00::1", "010.096.0.2"}
		}, want: plain(func(v *out) {
			v.ClusterIPs = [2]netip.Addr{netip.MustParseAddr("10.96.0.2"), netip.MustParseAddr("fd00::1")}
		})},
		{name: "families never searched by parsing", edit: func(s *svc) {
			s.Spec.IPFamilies = []v1.IPFamily{v1.IPv6Protocol, v1.IPv4Protocol}
			s.Spec.ClusterIPs = []string{"10.96.0.1"}
		}, problems: []string{"spec.clusterIPs[0]"}},
		{name: "family without address", edit: func(s *svc) {
			s.Spec.IPFamilies = []v1.IPFamily{v1.IPv4Protocol, v1.IPv6Protocol, "IPv5"}
			s.Spec.ClusterIPs = []string{"10.96.0.1"}
		}, want: plain(func(*out) {}), problems: []string{"spec.ipFamilies[2]"}},
		{name: "ports", edit: func(s *svc) {
			s.Spec.Ports = []v1.ServicePort{
				{Name: "web", Port: 443, NodePort: 30443}, {Name: "dns", Protocol: v1.ProtocolUDP, Port: 53}, {Name: "dns", Port: 53},
				{Name: "a", Protocol: v1.ProtocolSCTP, Port: 53},
				{Name: "zero"}, {Name: "big", Port: 65536}, {Name: "negative", Port: -1}, {Name: "odd", Protocol: "ICMP", Port: 1},
				{Name: "np", Port: 1, NodePort: 70000}, {Name: "web", Port: 2}, {Name: "again", Port: 443}, {Name: "np2", Port: 3, NodePort: 30443},
			}
		}, want: plain(func(v *out) {
			v.Ports = []cluster.ServicePort{
				{Name: "a", Protocol: fwd.SCTP, Port: 53}, {Name: "dns", Protocol: fwd.TCP, Port: 53},
				{Name: "dns", Protocol: fwd.UDP, Port: 53}, {Name: "np", Protocol: fwd.TCP, Port: 1},
				{Name: "np2", Protocol: fwd.TCP, Port: 3}, {Name: "web", Protocol: fwd.TCP, Port: 443, NodePort: 30443},
			}
		}), problems: []string{"spec.ports[4].port", "spec.ports[5].port", "spec.ports[6].port", "spec.ports[7].protocol",
			"spec.ports[8].nodePort", "spec.ports[9].name", "spec.ports[10].port", "spec.ports[11].nodePort"}},
		{name: "external IPs keep their order", edit: func(s *svc) {
			s.Spec.ExternalIPs = []string{"198.51.100.9", "", " ", "2001:db8::1", "198.051.100.009", "300.1.1.1", "198.51.100.1"}
		}, want: plain(func(v *out) { v.ExternalIPs = addrs("198.51.100.9", "2001:db8::1", "198.51.100.1") }),
			problems: []string{"spec.externalIPs[5]"}},
		{name: "ingress", edit: ingress, want: plain(func(v *out) { v.LoadBalancerIPs = addrs("192.0.2.1", "192.0.2.9", "2001:db8::1") }),
			problems: []string{"status.loadBalancer.ingress[4].ipMode", "status.loadBalancer.ingress[6].ip"}},
		{name: "ingress, all VIPs", edit: ingress, options: Converter{AllLBIPsAreVIPs: true},
			want: plain(func(v *out) {
				v.LoadBalancerIPs = addrs("192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.9", "2001:db8::1")
			}), problems: []string{"status.loadBalancer.ingress[6].ip"}},
		{name: "source ranges", edit: func(s *svc) {
			s.Spec.LoadBalancerSourceRanges = []string{" 10.1.2.3/8\n", "", "fd00::1/16", "010.0.0.0/8", "10.0.0.1", "10.0.0.0/33"}
		}, want: plain(func(v *out) { v.SourceRanges = prefixes("10.0.0.0/8", "fd00::/16") }),
			problems: []string{"spec.loadBalancerSourceRanges[4]", "spec.loadBalancerSourceRanges[5]"}},
		{name: "policies", edit: func(s *svc) {
			s.Spec.Type = v1.ServiceTypeLoadBalancer
			s.Spec.ExternalTrafficPolicy, s.Spec.InternalTrafficPolicy = "Local", ptr.To(v1.ServiceInternalTrafficPolicyLocal)
			s.Spec.HealthCheckNodePort = 32000
		}, want: plain(func(v *out) {
			v.Type, v.ExternalLocal, v.InternalLocal, v.HealthCheckNodePort = cluster.TypeLoadBalancer, true, true, 32000
		})},
		{name: "unknown words", edit: func(s *svc) {
			s.Spec.Type, s.Spec.SessionAffinity, s.Spec.HealthCheckNodePort = "Odd", "Cookie", -5
			s.Spec.ExternalTrafficPolicy, s.Spec.InternalTrafficPolicy = "Far", ptr.To(v1.ServiceInternalTrafficPolicy("Near"))
		}, want: plain(func(*out) {}), problems: []string{"spec.type", "spec.externalTrafficPolicy", "spec.sessionAffinity",
			"spec.internalTrafficPolicy", "spec.healthCheckNodePort"}},
		{name: "affinity without config", edit: func(s *svc) { s.Spec.SessionAffinity = "ClientIP" },
			want: plain(func(v *out) { v.AffinitySec = 10800 })},
		{name: "affinity without timeout", edit: affinityOf(nil), want: plain(func(v *out) { v.AffinitySec = 10800 })},
		{name: "affinity", edit: affinityOf(ptr.To(int32(86400))), want: plain(func(v *out) { v.AffinitySec = 86400 })},
		{name: "affinity of 0", edit: affinityOf(ptr.To(int32(0))), want: plain(func(v *out) { v.AffinitySec = 10800 }),
			problems: []string{"spec.sessionAffinityConfig.clientIP.timeoutSeconds"}},
		{name: "affinity too long", edit: affinityOf(ptr.To(int32(86401))), want: plain(func(v *out) { v.AffinitySec = 10800 }),
			problems: []string{"spec.sessionAffinityConfig.clientIP.timeoutSeconds"}},
		{name: "age", edit: func(s *svc) { s.CreationTimestamp = metav1.Unix(1700000000, 5) },
			want: plain(func(v *out) { v.CreatedUnix = 1700000000 })},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			got, problems := c.options.Service(service(c.edit))
			if d := cmp.Diff((*plainService)(c.want), (*plainService)(got), equalValues); d != "" {
				t.Errorf("value (-want +got):\n%s", d)
			}
			if d := cmp.Diff(c.problems, fields(problems), cmpopts.EquateEmpty()); d != "" {
				t.Errorf("problems (-want +got):\n%s%v", d, problems)
			}
		})
	}
}

func TestProblemsAreLimited(t *testing.T) {
	long := strings.Repeat("x", 1<<20)
	_, problems := Converter{}.Service(service(func(s *v1.Service) {
		s.Spec.ExternalIPs = slices.Repeat([]string{long}, 1000)
	}))
	if len(problems) != maxProblems+1 || problems[maxProblems].Message != "980 more problems" {
		t.Errorf("%d problems, the last is %v", len(problems), problems[len(problems)-1])
	}
	if n := len(problems[0].String()); n > 200 {
		t.Errorf("a problem has %d bytes", n)
	}
}

func TestConvertSlice(t *testing.T) {
	type in = discoveryv1.EndpointSlice
	base := func(edit func(*in)) *in {
		s := &in{
			ObjectMeta:  metav1.ObjectMeta{Namespace: "ns", Name: "svc-1", Labels: map[string]string{"kubernetes.io/service-name": "svc"}},
			AddressType: discoveryv1.AddressTypeIPv4,
		}
		edit(s)
		return s
	}
	want := func(edit func(*cluster.Slice)) *cluster.Slice {
		v := &cluster.Slice{Name: cluster.SliceName{Namespace: "ns", Name: "svc-1"}, Service: fwd.Service{Namespace: "ns", Name: "svc"}, Family: fwd.IPv4}
		edit(v)
		return v
	}
	cases := []struct {
		name     string
		edit     func(*in)
		want     *cluster.Slice
		problems []string
	}{
		{name: "empty", edit: func(*in) {}, want: want(func(*cluster.Slice) {})},
		{name: "FQDN", edit: func(s *in) { s.AddressType = discoveryv1.AddressTypeFQDN }},
		{name: "no service", edit: func(s *in) { s.Labels = nil }},
		{name: "no namespace", edit: func(s *in) { s.Namespace = "" }, problems: []string{"metadata"}},
		{name: "odd address type", edit: func(s *in) { s.AddressType = "IPv5" }, problems: []string{"addressType"}},
		{name: "ports", edit: func(s *in) {
			s.Ports = []discoveryv1.EndpointPort{
				{Name: ptr.To("web"), Port: ptr.To(int32(8080))}, {Name: ptr.To(""), Port: ptr.To(int32(53)), Protocol: ptr.To(v1.ProtocolUDP)},
				{Port: ptr.To(int32(1))}, {Name: ptr.To("all")}, {Name: ptr.To("zero"), Port: ptr.To(int32(0))}, {Name: ptr.To("big"), Port: ptr.To(int32(70000))},
				{Name: ptr.To("odd"), Port: ptr.To(int32(1)), Protocol: ptr.To(v1.Protocol("ICMP"))}, {Name: ptr.To("web"), Port: ptr.To(int32(8080))},
			}
		}, want: want(func(v *cluster.Slice) {
			v.Ports = []cluster.SlicePort{{Protocol: fwd.UDP, Port: 53}, {Name: "web", Protocol: fwd.TCP, Port: 8080}}
		}), problems: []string{"ports[2].name", "ports[3].port", "ports[4].port", "ports[5].port", "ports[6].protocol"}},
		{name: "conditions", edit: func(s *in) {
			s.Endpoints = []discoveryv1.Endpoint{
				{Addresses: []string{"10.0.1.3"}, Conditions: discoveryv1.EndpointConditions{Ready: ptr.To(false), Serving: ptr.To(false), Terminating: ptr.To(true)}},
				{Addresses: []string{"10.0.1.2", "10.0.1.9"}, NodeName: ptr.To("n1"), Zone: ptr.To("z"),
					TargetRef: &v1.ObjectReference{Kind: "Pod", Name: "web-1", UID: "3c0d"}},
			}
		}, want: want(func(v *cluster.Slice) {
			v.Endpoints = []cluster.Endpoint{
				{Addr: netip.MustParseAddr("10.0.1.2"), Ready: true, Serving: true, Place: &cluster.Place{Node: "n1", Zone: "z"}, Pod: "web-1", Instance: instance("3c0d")},
				{Addr: netip.MustParseAddr("10.0.1.3"), Terminating: true},
			}
		})},
		{name: "addresses", edit: func(s *in) {
			s.Endpoints = []discoveryv1.Endpoint{
				{}, {Addresses: []string{""}}, {Addresses: []string{"fd00::1"}}, {Addresses: []string{"::ffff:10.0.1.2"}},
				{Addresses: []string{"010.0.1.1"}}, {Addresses: []string{"10.0.1.1"}}, {Addresses: []string{"0.0.0.0"}},
			}
		}, want: want(func(v *cluster.Slice) {
			v.Endpoints = []cluster.Endpoint{
				{Addr: netip.MustParseAddr("10.0.1.1"), Ready: true, Serving: true}, {Addr: netip.MustParseAddr("10.0.1.2"), Ready: true, Serving: true},
			}
		}), problems: []string{"endpoints[0].addresses", "endpoints[1].addresses[0]", "endpoints[2].addresses[0]", "endpoints[6].addresses[0]"}},
		{name: "IPv6 wants no mapped IPv4", edit: func(s *in) {
			s.AddressType = discoveryv1.AddressTypeIPv6
			s.Endpoints = []discoveryv1.Endpoint{{Addresses: []string{"::ffff:10.0.1.2"}}, {Addresses: []string{"fd00::2"}}}
		}, want: want(func(v *cluster.Slice) {
			v.Family = fwd.IPv6
			v.Endpoints = []cluster.Endpoint{{Addr: netip.MustParseAddr("fd00::2"), Ready: true, Serving: true}}
		}), problems: []string{"endpoints[0].addresses[0]"}},
		{name: "duplicates: ready first", edit: func(s *in) {
			s.Endpoints = []discoveryv1.Endpoint{
				{Addresses: []string{"10.0.1.1"}, Conditions: discoveryv1.EndpointConditions{Ready: ptr.To(false)}}, {Addresses: []string{"10.0.1.1"}},
			}
		}, want: want(func(v *cluster.Slice) {
			a := netip.MustParseAddr("10.0.1.1")
			v.Endpoints = []cluster.Endpoint{{Addr: a, Ready: true, Serving: true}, {Addr: a, Serving: true}}
		})},
		{name: "hints", edit: func(s *in) {
			s.Endpoints = []discoveryv1.Endpoint{{Addresses: []string{"10.0.1.1"}, Hints: &discoveryv1.EndpointHints{
				ForZones: []discoveryv1.ForZone{{Name: "z2"}, {Name: "z1"}, {Name: ""}, {Name: "z2"}}, ForNodes: []discoveryv1.ForNode{{Name: "n1"}},
			}}}
		}, want: want(func(v *cluster.Slice) {
			v.Endpoints = []cluster.Endpoint{{Addr: netip.MustParseAddr("10.0.1.1"), Ready: true, Serving: true,
				Place: &cluster.Place{ZoneHints: []string{"z1", "z2"}, NodeHints: []string{"n1"}}}}
		})},
		{name: "trigger", edit: func(s *in) {
			s.Annotations = map[string]string{v1.EndpointsLastChangeTriggerTime: "2026-01-02T03:04:05.000000006Z"}
		}, want: want(func(v *cluster.Slice) {
			v.TriggerUnixNano = time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC).UnixNano()
		})},
		{name: "trigger out of range", edit: func(s *in) {
			s.Annotations = map[string]string{v1.EndpointsLastChangeTriggerTime: "9999-01-02T03:04:05Z"}
		}, want: want(func(*cluster.Slice) {}), problems: []string{"metadata.annotations[endpoints.kubernetes.io/last-change-trigger-time]"}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			for _, converter := range []Converter{{}, Converter{}.interning()} {
				got, problems := converter.Slice(base(c.edit))
				if d := cmp.Diff((*plainSlice)(c.want), (*plainSlice)(got), equalValues); d != "" {
					t.Errorf("value (-want +got):\n%s", d)
				}
				if d := cmp.Diff(c.problems, fields(problems), cmpopts.EquateEmpty()); d != "" {
					t.Errorf("problems (-want +got):\n%s%v", d, problems)
				}
			}
		})
	}
}

func TestConvertNode(t *testing.T) {
	now := metav1.Now()
	n := &v1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: "n1", Labels: map[string]string{"topology.kubernetes.io/zone": "z1"}, DeletionTimestamp: &now},
		Spec: v1.NodeSpec{PodCIDR: "10.9.0.0/24", PodCIDRs: []string{"10.0.1.5/24", "x", "fd00:1::/64"},
			Taints: []v1.Taint{{Key: "other"}, {Key: "ToBeDeletedByClusterAutoscaler"}}},
		Status: v1.NodeStatus{Addresses: []v1.NodeAddress{
			{Type: v1.NodeExternalIP, Address: "203.0.113.1"}, {Type: v1.NodeHostName, Address: "n1"}, {Type: v1.NodeInternalIP, Address: "10.1.0.1"},
			{Type: v1.NodeInternalIP, Address: "nonsense"}, {Type: v1.NodeInternalIP, Address: "fd00::1"}, {Type: v1.NodeExternalIP, Address: "10.1.0.1"},
		}},
	}
	want := plainNode{Name: "n1", Zone: "z1", Deleting: true, ToBeDeleted: true,
		Addrs: addrs("10.1.0.1", "fd00::1", "203.0.113.1"), PodCIDRs: prefixes("10.0.1.0/24", "fd00:1::/64")}
	if d := cmp.Diff(want, plainNode(ConvertNode(n)), equalValues); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	old := &v1.Node{Spec: v1.NodeSpec{PodCIDR: "10.9.0.0/24"}}
	if d := cmp.Diff(plainNode{PodCIDRs: prefixes("10.9.0.0/24")}, plainNode(ConvertNode(old)), equalValues); d != "" {
		t.Errorf("single podCIDR (-want +got):\n%s", d)
	}
	if d := cmp.Diff(plainNode{}, plainNode(ConvertNode(nil)), equalValues); d != "" {
		t.Errorf("nil (-want +got):\n%s", d)
	}
}

func TestInterner(t *testing.T) {
	in := newInterner()
	at := func(zone string, hints ...string) *cluster.Place {
		return in.place(cluster.Place{Node: "n1", Zone: strings.Clone(zone), ZoneHints: hints})
	}
	if first, second := at("z", "a", "b"), at("z", "a", "b"); first != second {
		t.Error("two endpoints of the same place do not share it")
	}
	if at("z") == at("y") || at("z", "a") == at("z", "b") || at("z", "a") == at("z") || at("z", "ab") == at("z", "a", "b") {
		t.Error("endpoints of different places share one")
	}
	if p := in.place(cluster.Place{}); p != nil {
		t.Errorf("the empty place is %+v, want none", p)
	}
	for i := range 3 * maxInterned {
		in.str(string(rune(i)) + "x")
		at(string(rune(i)))
	}
	if len(in.strings) > maxInterned || len(in.places) > maxInterned {
		t.Errorf("%d strings and %d places are held", len(in.strings), len(in.places))
	}
}

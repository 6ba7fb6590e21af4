package kube

import (
	"encoding/json"
	"net/netip"
	"slices"
	"testing"

	v1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/fairlead/fairlead/internal/cluster"
	"github.com/fairlead/fairlead/internal/fwd"
)

func validAddr(a netip.Addr) bool { return a.IsValid() && a == a.Unmap() && a.Zone() == "" }

func FuzzConvertService(f *testing.F) {
	for _, seed := range []string{
		`{}`, `null`, `{"metadata":{"name":"a","namespace":"b"},"spec":{"clusterIP":"10.0.0.1","ports":[{"port":80}]}}`,
		`{"metadata":{"name":"a","namespace":"b"},"spec":{"clusterIP":"::ffff:1.2.3.4","ipFamilies":["IPv6","IPv4","IPv6"],
		  "clusterIPs":["::ffff:1.2.3.4","010.1.1.1","fd00::1"],"ports":[{"port":-1},{"port":65536},{"port":1,"nodePort":-3,"protocol":"x"},
		  {"name":"b","port":2,"nodePort":2},{"name":"a","port":3,"nodePort":2}],"externalIPs":["","x","::","1.1.1.1","01.1.1.1"],
		  "loadBalancerSourceRanges":["1.2.3.4/1","fe80::1%a/3","::ffff:1.2.3.4/97"," fd00::/8 "],"sessionAffinity":"ClientIP",
		  "sessionAffinityConfig":{"clientIP":{"timeoutSeconds":-1}},"healthCheckNodePort":99999},
		  "status":{"loadBalancer":{"ingress":[{"ip":"2001:db8::1","ipMode":"Proxy"},{"ip":"9.9.9.9"},{"ip":"8.8.8.8","ipMode":""}]}}}`,
		`{"metadata":{"name":"a","namespace":"b","creationTimestamp":"0001-01-01T00:00:00Z"},"spec":{"clusterIP":"x","sessionAffinity":"ClientIP","sessionAffinityConfig":{}}}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var s v1.Service
		if json.Unmarshal(data, &s) != nil {
			return
		}
		v, problems := Converter{}.Service(&s)
		if len(problems) > maxProblems+1 {
			t.Errorf("%d problems", len(problems))
		}
		if v == nil {
			return
		}
		again, _ := Converter{}.interning().Service(&s)
		if !v.Equal(again) {
			t.Errorf("not deterministic: %+v and %+v", v, again)
		}
		checkService(t, v)
	})
}

func checkService(t *testing.T, v *cluster.Service) {
	t.Helper()
	four, six := v.ClusterIPs[0], v.ClusterIPs[1]
	if four.IsValid() && !four.Is4() || six.IsValid() && (!six.Is6() || !validAddr(six)) || !four.IsValid() && !six.IsValid() {
		t.Errorf("cluster IPs %v", v.ClusterIPs)
	}
	keys := make(map[[2]uint16]bool)
	for _, p := range v.Ports {
		if p.Port == 0 || keys[[2]uint16{uint16(p.Protocol), p.Port}] {
			t.Errorf("ports %v", v.Ports)
		}
		keys[[2]uint16{uint16(p.Protocol), p.Port}] = true
	}
	if !slices.IsSortedFunc(v.Ports, func(a, b cluster.ServicePort) int {
		if a.Name < b.Name || a.Name == b.Name && a.Protocol < b.Protocol {
			return -1
		}
		return 1
	}) {
		t.Errorf("ports are not sorted: %v", v.Ports)
	}
	for _, a := range slices.Concat(v.ExternalIPs, v.LoadBalancerIPs) {
		if !validAddr(a) {
			t.Errorf("address %v", a)
		}
	}
	for _, r := range v.SourceRanges {
		if !r.IsValid() || r != r.Masked() || r.Addr().Is4In6() {
			t.Errorf("source range %v", r)
		}
	}
	if !slices.IsSortedFunc(v.SourceRanges, netip.Prefix.Compare) || !slices.IsSortedFunc(v.LoadBalancerIPs, netip.Addr.Compare) {
		t.Errorf("not sorted: %v, %v", v.SourceRanges, v.LoadBalancerIPs)
	}
	if v.AffinitySec > 86400 {
		t.Errorf("affinity %d", v.AffinitySec)
	}
}

func FuzzConvertSlice(f *testing.F) {
	for _, seed := range []string{
		`{}`, `null`,
		`{"metadata":{"name":"a","namespace":"b","labels":{"kubernetes.io/service-name":"s"}},"addressType":"IPv4",
		  "ports":[{"name":"","port":1},{"port":1},{"name":"x"},{"name":"x","port":0},{"name":"y","port":2,"protocol":"UDP"},{"name":"a","port":9}],
		  "endpoints":[{},{"addresses":[]},{"addresses":["x"]},{"addresses":["fd00::1"]},{"addresses":["10.0.0.2"],"hints":{"forZones":[{"name":"b"},{"name":"a"}]}},
		  {"addresses":["10.0.0.1"],"nodeName":"n","conditions":{"ready":false}},{"addresses":["10.0.0.1"],"hints":{}}]}`,
		`{"metadata":{"name":"a","namespace":"b","labels":{"kubernetes.io/service-name":"s"},
		  "annotations":{"endpoints.kubernetes.io/last-change-trigger-time":"1969-01-01T00:00:00Z"}},"addressType":"IPv6",
		  "endpoints":[{"addresses":["::ffff:1.2.3.4"]},{"addresses":["fe80::1%eth0"]},{"addresses":["fd00::1"]}]}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var s discoveryv1.EndpointSlice
		if json.Unmarshal(data, &s) != nil {
			return
		}
		v, problems := Converter{}.Slice(&s)
		if len(problems) > maxProblems+1 {
			t.Errorf("%d problems", len(problems))
		}
		if v == nil {
			return
		}
		slices.Reverse(s.Endpoints)
		slices.Reverse(s.Ports)
		if again, _ := (Converter{}).interning().Slice(&s); !v.Equal(again) {
			t.Errorf("the order matters: %+v and %+v", v, again)
		}
		for _, p := range v.Ports {
			if p.Port == 0 {
				t.Errorf("ports %v", v.Ports)
			}
		}
		for _, e := range v.Endpoints {
			if !validAddr(e.Addr) || fwd.FamilyOf(e.Addr) != v.Family {
				t.Errorf("address %v", e.Addr)
			}
			if w := e.Where(); !slices.IsSorted(w.ZoneHints) || !slices.IsSorted(w.NodeHints) {
				t.Errorf("hints %v %v", w.ZoneHints, w.NodeHints)
			}
		}
		if !slices.IsSortedFunc(v.Endpoints, compareEndpoints) || v.TriggerUnixNano < 0 {
			t.Errorf("slice %+v", v)
		}
	})
}

package kube

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/fairlead/fairlead/internal/cluster"
	"github.com/fairlead/fairlead/internal/fwd"
)

func annotated(annotations map[string]string) (*cluster.Service, []Problem) {
	return Converter{}.Service(&v1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "web", Annotations: annotations},
		Spec:       v1.ServiceSpec{ClusterIP: "10.96.0.1", Ports: []v1.ServicePort{{Port: 80}}},
	})
}

func TestSchedulerAnnotations(t *testing.T) {
	for _, tt := range []struct {
		scheduler, flags string
		want             string
		wantFlags        fwd.SchedulerFlags
		problem          string
	}{
		{"", "", "", 0, ""},
		{"wlc", "", "wlc", 0, ""},
		{" mh ", "port, fallback", "mh", fwd.SchedulerFallback | fwd.SchedulerPort, ""},
		{"sh", "port,", "sh", fwd.SchedulerPort, ""},
		{"fastest", "port", "", 0, `metadata.annotations[fairlead.dev/scheduler]: "fastest" is not a scheduler`},
		{"mh", "flag-1", "mh", 0, `metadata.annotations[fairlead.dev/scheduler-flags]: "flag-1": invalid flags, using none: want fallback, port`},
		{"wlc", "port", "wlc", 0, "only the schedulers sh and mh"},
		{"", "port", "", 0, "only the schedulers sh and mh"},
	} {
		s, problems := annotated(map[string]string{AnnotationScheduler: tt.scheduler, AnnotationSchedulerFlags: tt.flags})
		if s.Scheduler != tt.want || s.SchedulerFlags != tt.wantFlags {
			t.Errorf("%q, %q: got %q, %s; want %q, %s", tt.scheduler, tt.flags, s.Scheduler, s.SchedulerFlags, tt.want, tt.wantFlags)
		}
		checkProblem(t, tt.scheduler+" "+tt.flags, problems, tt.problem)
	}
}

func TestWeightsAnnotation(t *testing.T) {
	for _, tt := range []struct {
		text    string
		want    []cluster.Weight
		problem string
	}{
		{"", nil, ""},
		{"  ", nil, ""},
		{"pod:web-canary-*=1, *=9", []cluster.Weight{{Selector: cluster.SelectPod, Value: "web-canary-*", Weight: 1}, {Weight: 9}}, ""},
		{"local=100,same-zone = 10,node:n1=65535,zone:eu-1a=3", []cluster.Weight{
			{Selector: cluster.SelectLocal, Weight: 100},
			{Selector: cluster.SelectSameZone, Weight: 10},
			{Selector: cluster.SelectNode, Value: "n1", Weight: 65535},
			{Selector: cluster.SelectZone, Value: "eu-1a", Weight: 3},
		}, ""},
		{"address:fd00::/64=2,address:10.0.0.1=5", []cluster.Weight{
			{Selector: cluster.SelectAddress, Prefix: netip.MustParsePrefix("fd00::/64"), Weight: 2},
			{Selector: cluster.SelectAddress, Prefix: netip.MustParsePrefix("10.0.0.1/32"), Weight: 5},
		}, ""},
		{"*=0", nil, "from 1 to 65535"},
		{"*=65536", nil, "from 1 to 65535"},
		{"*", nil, "want SELECTOR=WEIGHT"},
		{"local=1,", nil, "want SELECTOR=WEIGHT"},
		{"pod:[=1", nil, "want a pattern"},
		{"pod=1", nil, "want the selector"},
		{"local:n1=1", nil, "want the selector"},
		{"address:here=1", nil, "want an address"},
		{strings.Repeat("*=1,", maxWeights) + "*=1", nil, "more than 64"},
	} {
		s, problems := annotated(map[string]string{AnnotationWeights: tt.text})
		if diff := cmp.Diff(tt.want, s.Weights, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
			t.Errorf("%q (-want +got):\n%s", tt.text, diff)
		}
		checkProblem(t, tt.text, problems, tt.problem)
	}
}

// checkProblem expects one problem that contains a text, or none.
func checkProblem(t *testing.T, of string, problems []Problem, want string) {
	t.Helper()
	switch {
	case want == "" && len(problems) > 0:
		t.Errorf("%q: unexpected %v", of, problems)
	case want != "" && (len(problems) != 1 || !strings.Contains(problems[0].String(), want)):
		t.Errorf("%q: got %v, want one problem with %q", of, problems, want)
	}
}

func TestCritical(t *testing.T) {
	port := func(name string, number int32) []v1.ServicePort {
		return []v1.ServicePort{{Name: name, Port: number, Protocol: v1.ProtocolUDP}}
	}
	dns := map[string]string{"k8s-app": "kube-dns"}
	for _, tt := range []struct {
		name, namespace, service string
		labels                   map[string]string
		ports                    []v1.ServicePort
		priority                 string
		want                     bool
		problem                  string
	}{
		{name: "API server", namespace: "default", service: "kubernetes", want: true},
		{name: "its name elsewhere", namespace: "a", service: "kubernetes"},
		{name: "another Service in its namespace", namespace: "default", service: "web"},
		{name: "DNS by label", namespace: "kube-system", service: "coredns", labels: dns, want: true},
		{name: "DNS by label elsewhere", namespace: "a", service: "kube-dns", labels: dns},
		{name: "DNS by port", namespace: "kube-system", service: "rke2-coredns", ports: port("dns-tcp", 53), want: true},
		{name: "DNS by port elsewhere", namespace: "a", service: "dns", ports: port("dns", 53)},
		{name: "port of that name", namespace: "kube-system", service: "a", ports: port("dns", 5353)},
		{name: "port of that number", namespace: "kube-system", service: "a", ports: port("udp", 53)},
		{name: "asked for", namespace: "a", service: "b", priority: " critical ", want: true},
		{name: "no priority", namespace: "a", service: "b", priority: "high", problem: "high"},
		{name: "no priority, critical by name", namespace: "default", service: "kubernetes", priority: "high", want: true, problem: "high"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := &v1.Service{Spec: v1.ServiceSpec{ClusterIP: "10.96.0.10", Ports: tt.ports}}
			s.Namespace, s.Name, s.Labels = tt.namespace, tt.service, tt.labels
			if tt.priority != "" {
				s.Annotations = map[string]string{AnnotationPriority: tt.priority}
			}
			v, problems := Converter{}.Service(s)
			if v.Critical != tt.want {
				t.Errorf("critical: %v, want %v", v.Critical, tt.want)
			}
			if (len(problems) > 0) != (tt.problem != "") || len(problems) > 0 && !strings.Contains(problems[0].String(), tt.problem) {
				t.Errorf("problems %v, want %q", problems, tt.problem)
			}
		})
	}
}

package compile_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/fairlead/fairlead/internal/cluster"
	"github.com/fairlead/fairlead/internal/compile"
	"github.com/fairlead/fairlead/internal/fwd"
	"github.com/fairlead/fairlead/internal/fwdtext"
)

// text is the text form of a table that holds just the fragment, without the header.
func text(t testing.TB, f *fwd.Fragment) string {
	t.Helper()
	var table fwd.Table
	table.Put(f)
	var b strings.Builder
	if err := fwdtext.Write(&b, &table); err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(b.String(), "\n")
	return rest
}

func compiled(env, svc, eps string) (*fwd.Fragment, []compile.Problem) {
	facts, _ := environment(env)
	return compile.Compile(service(svc), endpointSlices(eps), facts)
}

func TestFragment(t *testing.T) {
	tests := []struct{ name, env, svc, eps, want string }{
		{"cluster IP with affinity", "", "172.30.0.41 affinity=10800", ".1@n1:R .2@n2:R", `
service ns/svc created=1
frontend 172.30.0.41:80/tcp kind=ClusterIP owner=ns/svc:/tcp outside=forward,cluster,masquerade,policy-cluster pod=forward,cluster,policy-cluster host=forward,cluster,masquerade,policy-cluster
pool ns/svc:/tcp family=IPv4 scope=cluster affinity=10800 endpoints=10.0.1.1:80/local,10.0.1.2:80
`},
		{"external policy Local: both pools, terminating local one", "", "172.30.0.41 np=3001 lb=1.2.3.4 etp=local hc=30000", ".1@n1:ST .2@n2:R", `
service ns/svc created=1 healthcheck=30000 leaving=10.0.1.1:80
frontend node4:3001/tcp kind=NodePort owner=ns/svc:/tcp outside=forward,local,external-local pod=forward,cluster,short-circuit host=forward,cluster,masquerade,short-circuit
frontend 1.2.3.4:80/tcp kind=LoadBalancer owner=ns/svc:/tcp outside=forward,local,external-local pod=forward,cluster,short-circuit host=forward,cluster,masquerade,short-circuit
frontend 172.30.0.41:80/tcp kind=ClusterIP owner=ns/svc:/tcp outside=forward,cluster,masquerade,policy-cluster pod=forward,cluster,policy-cluster host=forward,cluster,masquerade,policy-cluster
pool ns/svc:/tcp family=IPv4 scope=cluster endpoints=10.0.1.2:80
pool ns/svc:/tcp family=IPv4 scope=local endpoints=10.0.1.1:80/local/draining
`},
		{"no detector: the route of pods is that of outside", "noop", "172.30.0.41 lb=1.2.3.4 etp=local hc=30000", ".2@n2:R", `
service ns/svc created=1 healthcheck=30000 externalempty4=1
frontend 1.2.3.4:80/tcp kind=LoadBalancer owner=ns/svc:/tcp outside=drop,external-local-empty pod=drop,external-local-empty host=forward,cluster,masquerade,short-circuit
frontend 172.30.0.41:80/tcp kind=ClusterIP owner=ns/svc:/tcp all=forward,cluster,policy-cluster
pool ns/svc:/tcp family=IPv4 scope=cluster endpoints=10.0.1.2:80
`},
		{"internal policy Local without external frontends needs no cluster pool", "", "172.30.0.41 itp=local etp=local", ".1@n1:R .2@n2:R", `
service ns/svc created=1
frontend 172.30.0.41:80/tcp kind=ClusterIP owner=ns/svc:/tcp outside=forward,local,masquerade,internal-local pod=forward,local,internal-local host=forward,local,masquerade,internal-local
pool ns/svc:/tcp family=IPv4 scope=local endpoints=10.0.1.1:80/local
`},
		{"UDP: what serves, ready or not, and an empty list", "", "172.30.0.41 fd00:30::41 ports=dns/udp:53", "[dns/udp:53] .1@n1:NS .2@n2:NT .3@n2:ST .4@n2:NR", `
service ns/svc created=1 leaving=10.0.1.2:53,10.0.1.3:53
frontend 172.30.0.41:53/udp kind=ClusterIP owner=ns/svc:dns/udp outside=forward,cluster,masquerade,policy-cluster pod=forward,cluster,policy-cluster host=forward,cluster,masquerade,policy-cluster
frontend [fd00:30::41]:53/udp kind=ClusterIP owner=ns/svc:dns/udp all=reject,no-endpoints
pool ns/svc:dns/udp family=IPv4 scope=cluster endpoints=10.0.1.3:53/draining
serving ns/svc:dns/udp family=IPv4 endpoints=10.0.1.1:53,10.0.1.3:53
serving ns/svc:dns/udp family=IPv6 endpoints=
`},
		{"source ranges: sorted, nothing contained, VIPs because the node is inside", "", "172.30.0.41 lb=1.2.3.4,1.2.3.5 ranges=203.0.113.0/25,192.168.0.0/16,192.168.0.0/24,203.0.113.7/32,192.168.7.0/24,2001:db8::/32", "", `
service ns/svc created=1
frontend 1.2.3.4:80/tcp kind=LoadBalancer owner=ns/svc:/tcp all=reject,no-endpoints sources=1.2.3.4/32,1.2.3.5/32,192.168.0.0/16,203.0.113.0/25
frontend 1.2.3.5:80/tcp kind=LoadBalancer owner=ns/svc:/tcp all=reject,no-endpoints sources=1.2.3.4/32,1.2.3.5/32,192.168.0.0/16,203.0.113.0/25
frontend 172.30.0.41:80/tcp kind=ClusterIP owner=ns/svc:/tcp all=reject,no-endpoints
`},
		{"source ranges: masked; a zero prefix is no restriction", "", "172.30.0.41 fd00:30::41 lb=1.2.3.4,2001:db8::9 ranges=203.0.113.9/25,10.0.0.0/8,2001:db8::/32,::/0", "", `
service ns/svc created=1
frontend 1.2.3.4:80/tcp kind=LoadBalancer owner=ns/svc:/tcp all=reject,no-endpoints sources=10.0.0.0/8,203.0.113.0/25
frontend 172.30.0.41:80/tcp kind=ClusterIP owner=ns/svc:/tcp all=reject,no-endpoints
frontend [2001:db8::9]:80/tcp kind=LoadBalancer owner=ns/svc:/tcp all=reject,no-endpoints
frontend [fd00:30::41]:80/tcp kind=ClusterIP owner=ns/svc:/tcp all=reject,no-endpoints
`},
		{"an address twice in one field", "", "172.30.0.41 ext=1.2.3.4,1.2.3.4", "", `
service ns/svc created=1
frontend 1.2.3.4:80/tcp kind=ExternalIP owner=ns/svc:/tcp all=reject,no-endpoints
frontend 172.30.0.41:80/tcp kind=ClusterIP owner=ns/svc:/tcp all=reject,no-endpoints
`},
		{"not handled in any family", "", "np=3001 lb=1.2.3.4", ".1@n1:R", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f, problems := compiled(tt.env, tt.svc, tt.eps)
			if len(problems) > 0 {
				t.Errorf("problems: %v", problems)
			}
			if d := cmp.Diff(strings.TrimPrefix(tt.want, "\n"), text(t, f)); d != "" {
				t.Errorf("fragment (-want +got):\n%s", d)
			}
		})
	}
}

func TestProblems(t *testing.T) {
	const ok = "172.30.0.41 "
	tests := []struct {
		name, env, svc, eps string
		want                []string // "field: message", or the beginning of it
		keys                []string // the frontends that are left
	}{
		{"external IP that is the cluster IP", "", ok + "ext=172.30.0.41", "",
			[]string{`spec.externalIPs: 172.30.0.41:80/tcp of port "" is ignored: the Service already claims it as ClusterIP of port ""`},
			[]string{"172.30.0.41:80/tcp ClusterIP"}},
		{"load-balancer IP that is an external IP", "", ok + "ext=1.2.3.4 lb=1.2.3.4 ranges=10.0.0.0/8", "",
			[]string{`status.loadBalancer.ingress: 1.2.3.4:80/tcp of port "" is ignored: the Service already claims it as ExternalIP of port ""; spec.loadBalancerSourceRanges still restrict it`},
			[]string{"1.2.3.4:80/tcp ExternalIP", "172.30.0.41:80/tcp ClusterIP"}},
		{"two ports with one number", "", ok + "ports=b/tcp:80:3001,a/tcp:80:3001", "[a/tcp:80] .1@n1:R",
			[]string{`spec.ports: node4:3001/tcp of port "a" is ignored: the Service already claims it as NodePort of port "b"`,
				`spec.ports: 172.30.0.41:80/tcp of port "a" is ignored: the Service already claims it as ClusterIP of port "b"`},
			[]string{"node4:3001/tcp NodePort", "172.30.0.41:80/tcp ClusterIP"}},
		{"two ports with one name", "", ok + "ports=a/tcp:80,b/tcp:81,a/tcp:82", "",
			[]string{`spec.ports[2]: ignored: spec.ports[0] has the same name "a" and protocol tcp`},
			[]string{"172.30.0.41:80/tcp ClusterIP", "172.30.0.41:81/tcp ClusterIP"}},
		{"loopback and the like as virtual IPs", "", ok + "ext=127.0.0.1,0.0.0.0,224.0.0.1,::1,::ffff:1.2.3.4 lb=ff02::1", "",
			[]string{"spec.externalIPs: 127.0.0.1 is ignored: loopback", "spec.externalIPs: 0.0.0.0 is ignored: the unspecified",
				"spec.externalIPs: 224.0.0.1 is ignored: a multicast", "spec.externalIPs: ::1 is ignored: loopback",
				"spec.externalIPs: ::ffff:1.2.3.4 is ignored: an IPv4-mapped", "status.loadBalancer.ingress: ff02::1 is ignored: a multicast"},
			[]string{"172.30.0.41:80/tcp ClusterIP"}},
		{"loopback as cluster IP", "", "127.0.0.1 np=3001", "", []string{"spec.clusterIPs: 127.0.0.1 is ignored"}, []string{"node4:3001/tcp NodePort"}},
		{"addresses of endpoints", "", ok, ".1@n1:R 127.0.0.1@n1:R 0.0.0.0@n1:R",
			[]string{"EndpointSlice ns/svc-0: endpoints[].addresses: 127.0.0.1 is ignored: loopback addresses belong to the node (and 1 more of this EndpointSlice)"},
			[]string{"172.30.0.41:80/tcp ClusterIP"}},
		{"health check without a port", "", ok + "lb=1.2.3.4 etp=local", "",
			[]string{"spec.healthCheckNodePort: not set"},
			[]string{"1.2.3.4:80/tcp LoadBalancer", "172.30.0.41:80/tcp ClusterIP"}},
		{"gate off: the field is not looked at", "NoExternalIPs", ok + "ext=127.0.0.1", "", nil, []string{"172.30.0.41:80/tcp ClusterIP"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f, problems := compiled(tt.env, tt.svc, tt.eps)
			if len(problems) != len(tt.want) {
				t.Fatalf("got problems %q, want %q", problems, tt.want)
			}
			for i, p := range problems {
				if got := p.Field + ": " + p.Message; !strings.HasPrefix(got, tt.want[i]) {
					t.Errorf("problem %d\n got %s\nwant %s", i, got, tt.want[i])
				}
			}
			var keys []string
			for _, fe := range f.Frontends {
				keys = append(keys, fe.Key.String()+" "+fe.Kind.String())
			}
			if d := cmp.Diff(tt.keys, keys); d != "" {
				t.Errorf("frontends (-want +got):\n%s", d)
			}
			strict(t, f)
		})
	}
}

// TestSourceRangesHoldForEveryClaim proves that no other field of a Service opens a load-balancer
// IP to sources that its ranges keep out.
func TestSourceRangesHoldForEveryClaim(t *testing.T) {
	const ranges = " ranges=203.0.113.0/25,2001:db8::/32"
	ports := "172.30.0.41 fd00:30::41 ports=a/tcp:80:3001,b/tcp:80,c/udp:80 "
	for _, svc := range []string{
		ports + "lb=1.2.3.4" + ranges,
		ports + "ext=1.2.3.4 lb=1.2.3.4" + ranges,
		ports + "ext=1.2.3.4,1.2.3.4,1.2.3.5 lb=1.2.3.5,1.2.3.4,1.2.3.4" + ranges,
		ports + "lb=172.30.0.41,1.2.3.4" + ranges,
		ports + "ext=172.30.0.41 lb=172.30.0.41" + ranges,
		ports + "ext=fd00:30::41,2001:db8:1::4 lb=2001:db8:1::4,fd00:30::41" + ranges,
	} {
		for _, edit := range []string{"", " itp=local", " etp=local", " itp=local etp=local"} {
			f, problems := compiled("", svc+edit, "[a/tcp:8080] [b/tcp:8080] [c/udp:8080] .1@n1:R")
			balanced := make(map[string]bool)
			for field := range strings.FieldsSeq(svc) {
				if list, ok := strings.CutPrefix(field, "lb="); ok {
					for a := range strings.SplitSeq(list, ",") {
						balanced[a] = true
					}
				}
			}
			for i := range f.Frontends {
				fe := &f.Frontends[i]
				if restricted := len(fe.Sources) > 0; restricted != balanced[fe.Key.Addr.String()] {
					t.Errorf("%s%s: %s (%s) is restricted: %v", svc, edit, fe.Key, fe.Kind, restricted)
				}
			}
			told := strings.Contains(fmt.Sprint(problems), "spec.loadBalancerSourceRanges still restrict it")
			if overlaps := strings.Contains(svc, "ext=1.2.3.4") || strings.Contains(svc, "lb=172.30.0.41") || strings.Contains(svc, "ext=fd00"); told != overlaps {
				t.Errorf("%s%s: problems %v", svc, edit, problems)
			}
			strict(t, f)
		}
	}
}

// strict reads the fragment's text form again: the parser refuses whatever breaks a rule of package
// fwd.
func strict(t *testing.T, f *fwd.Fragment) {
	t.Helper()
	s := "header masqueradebit=0\n" + text(t, f)
	table, err := fwdtext.Read(strings.NewReader(s))
	if err != nil {
		t.Fatalf("%v\n%s", err, s)
	}
	if got := table.Fragment(f.Owner); !f.Empty() && !got.Equal(f) {
		t.Errorf("the fragment is not in its normal form:\n%s", s)
	}
}

func TestAddressesOfTheOtherFamily(t *testing.T) {
	facts, _ := environment("")
	eps := endpointSlices(".1@n1:R")
	eps[0].Endpoints = append(eps[0].Endpoints, endpoint("fd00:10::5@n1:R"), cluster.Endpoint{Ready: true})
	svc := service("172.30.0.41")
	svc.ClusterIPs[1] = addr("172.30.0.42")
	f, problems := compile.Compile(svc, eps, facts)
	want := []compile.Problem{
		{"EndpointSlice ns/svc-0: endpoints[].addresses", "fd00:10::5 is ignored: it is not an IPv4 address (and 1 more of this EndpointSlice)"},
		{"spec.clusterIPs", "172.30.0.42 is ignored: it is not an IPv6 address"},
	}
	if d := cmp.Diff(want, problems); d != "" {
		t.Errorf("problems (-want +got):\n%s", d)
	}
	if len(f.Frontends) != 1 || len(f.Pools) != 1 || len(f.Pools[0].Endpoints) != 1 {
		t.Errorf("want one frontend with one endpoint:\n%s", text(t, f))
	}
}

func TestHealthCheck(t *testing.T) {
	const lb = "172.30.0.41 fd00:30::41 lb=1.2.3.4 "
	const eps = ".1@n1:R .2@n1:ST .3@n2:R | [b/tcp:81] .1@n1:R .4@n1:R | fd00:10::5@n1:R | [other/tcp:9] .9@n1:R"
	ports := "ports=/tcp:80,b/tcp:81 "
	tests := []struct {
		name, svc, eps string
		want           fwd.HealthCheck
	}{
		{"distinct ready local addresses over ports, of the family with more", lb + ports + "etp=local hc=30000", eps, fwd.HealthCheck{Port: 30000, LocalEndpoints: 2}},
		{"only terminating ones", lb + "etp=local hc=30000", ".1@n1:ST", fwd.HealthCheck{Port: 30000}},
		{"policy Cluster", lb + "hc=30000", eps, fwd.HealthCheck{}},
		{"no load balancer", lb + "etp=local hc=30000 np=3001 type=ClusterIP ext=1.2.3.5", eps, fwd.HealthCheck{}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f, _ := compiled("", tt.svc, tt.eps)
			if f.HealthCheck != tt.want {
				t.Errorf("got %+v, want %+v", f.HealthCheck, tt.want)
			}
		})
	}
}

func TestLocalPolicyEmpty(t *testing.T) {
	tests := []struct {
		name, svc, eps string
		want           [2][2]int
	}{
		{"both, two ports", "172.30.0.41 lb=1.2.3.4 etp=local itp=local hc=1 ports=/tcp:80,b/tcp:81", "[/tcp:80] [b/tcp:80] .1@n2:R", [2][2]int{{2, 2}}},
		{"a local one", "172.30.0.41 lb=1.2.3.4 etp=local itp=local hc=1", ".1@n2:R .2@n1:ST", [2][2]int{}},
		{"none anywhere", "172.30.0.41 lb=1.2.3.4 etp=local itp=local hc=1", ".1@n2:NR", [2][2]int{}},
		{"policy Cluster", "172.30.0.41 lb=1.2.3.4", ".1@n2:R", [2][2]int{}},
		{"no external frontend", "172.30.0.41 etp=local itp=local", ".1@n2:R", [2][2]int{{1, 0}}},
		{"policy Local, load balancer pending, no node port", "172.30.0.41 type=LoadBalancer etp=local hc=1", ".1@n2:R", [2][2]int{}},
		{"one family", "172.30.0.41 fd00:30::41 itp=local", ".1@n1:R | fd00:10::5@n2:R", [2][2]int{{}, {1, 0}}},
		{"each family", "172.30.0.41 fd00:30::41 itp=local", ".1@n2:R | fd00:10::5@n2:R", [2][2]int{{1, 0}, {1, 0}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f, _ := compiled("", tt.svc, tt.eps)
			if f.LocalPolicyEmpty != tt.want {
				t.Errorf("got %v, want %v", f.LocalPolicyEmpty, tt.want)
			}
		})
	}
}

// TestPopulations goes through every population of ready and terminating, local and remote
// endpoints, with and without unusable ones, for every pair of policies, and reads the sets off
// what outside clients and local pods get.
func TestPopulations(t *testing.T) {
	kinds := []string{".1@n1:R", ".2@n2:R", ".3@n1:ST", ".4@n2:ST", ".5@n1:NR .6@n2:NT .7@n1:NS"}
	const lr, rr, ls, rs = 1, 2, 4, 8
	for population := range 1 << len(kinds) {
		var eps []string
		for i, k := range kinds {
			if population&(1<<i) != 0 {
				eps = append(eps, k)
			}
		}
		set := func(mask int) (out []string) {
			for i, name := range []string{".1", ".2", ".3", ".4"} {
				if population&mask&(1<<i) != 0 {
					out = append(out, name)
				}
			}
			return out
		}
		// The sets by the truth table.
		c, l := set(lr|rr), set(lr)
		if len(c) == 0 {
			c = set(ls | rs)
		}
		if len(l) == 0 {
			l = set(ls)
		}
		want := func(eps []string, mark string) string {
			switch {
			case len(c) == 0:
				return "REJECT"
			case len(eps) == 0:
				return "DROP"
			}
			return "{" + strings.Join(eps, ",") + "} " + mark
		}
		for _, p := range []struct {
			etp, itp string
			ext, int string // the verdicts for EXT > VIP and POD > cluster IP
		}{
			{"cluster", "cluster", want(c, "m"), want(c, "u")},
			{"local", "cluster", want(l, "u"), want(c, "u")},
			{"cluster", "local", want(c, "m"), want(l, "u")},
			{"local", "local", want(l, "u"), want(l, "u")},
		} {
			flows := []string{"EXT > 1.2.3.4:80 => " + p.ext, "POD > 172.30.0.41:80 => " + p.int}
			if p.etp == "local" {
				flows = append(flows, "POD > 1.2.3.4:80 => "+want(c, "u"), "NODE > 1.2.3.4:80 => "+want(c, "m"))
			}
			svc := fmt.Sprintf("172.30.0.41 lb=1.2.3.4 hc=1 etp=%s itp=%s", p.etp, p.itp)
			t.Run(fmt.Sprintf("etp=%s_itp=%s_%s", p.etp, p.itp, strings.Join(eps, "_")), row{svc: svc, eps: strings.Join(eps, " "), flows: flows}.run)
		}
	}
}

// TestTwoServicesOneBackend is row O22.
func TestTwoServicesOneBackend(t *testing.T) {
	facts, header := environment("")
	var table fwd.Table
	table.SetHeader(header)
	for name, ip := range map[string]string{"a": "172.30.0.41", "b": "172.30.0.42"} {
		svc := service(ip)
		svc.Name.Name = name
		f, _ := compile.Compile(svc, endpointSlices(".1@n1:R"), facts)
		table.Put(f)
	}
	for _, ip := range []string{"172.30.0.41", "172.30.0.42"} {
		p := packet("POD > " + ip + ":80")
		if got := verdict(table.Lookup(p), p.Src); got != "{.1} u" {
			t.Errorf("%s: %s", ip, got)
		}
	}
}

// TestRandom compiles random Services and checks that fragments keep the rules of package fwd, that
// the order of slices does not matter, that nothing that was passed is changed, and that the
// cluster pool is there wherever it is needed.
func TestRandom(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	one := func(list ...string) string { return list[r.IntN(len(list))] }
	for range 1500 {
		svc := one("172.30.0.41", "172.30.0.41 fd00:30::41", "fd00:30::41") + one("", " itp=local") + one("", " etp=local") + one("", " hc=1") +
			one("", " lb=1.2.3.4", " lb=1.2.3.4,2001:db8::9,127.0.0.1") + one("", " ext=1.2.3.4", " ext=1.2.3.5,172.30.0.41") + one("", " np=3001") +
			one("", " ranges=1.0.0.0/8,1.2.3.0/24", " ranges=::/0,192.168.0.0/24") + one("", " affinity=5") +
			one("", " ports=a/udp:80,b/udp:80:3001,a/tcp:80", " ports=b/tcp:80,a/tcp:80,b/tcp:81") + one("", " type=ClusterIP")
		var parts []string
		for range r.IntN(4) {
			part := one("", "[a/udp:53] ", "[b/udp:53] [a/tcp:80] ", "[b/tcp:80] [b/tcp:81] ")
			base := one(".", "fd00:10::")
			for range 1 + r.IntN(4) {
				part += fmt.Sprintf("%s%d@%s:%s%s%s ", base, 1+r.IntN(5), one("n1", "n2", ""), one("R", "R", "ST", "NT", "NR", "NS"), one("", ";z=a", ";z=b"), one("", ";n=n1", ";n=n2"))
			}
			parts = append(parts, part)
		}
		eps := strings.Join(parts, "|")
		facts, _ := environment(one("", "noop", "masqall"))

		in := endpointSlices(eps)
		f, problems := compile.Compile(service(svc), in, facts)
		strict(t, f)
		if !slices.EqualFunc(in, endpointSlices(eps), (*cluster.Slice).Equal) {
			t.Errorf("%s; %s: the slices were changed", svc, eps)
		}
		slices.Reverse(in)
		g, again := compile.Compile(service(svc), in, facts)
		if !f.Equal(g) || !slices.Equal(problems, again) {
			t.Errorf("%s; %s: the order of slices matters\n%s\n%s", svc, eps, text(t, f), text(t, g))
		}
		if t.Failed() {
			t.FailNow()
		}
	}
}

// large is a Service with n endpoints in slices of 100, as the controller makes them.
func large(n int) (*cluster.Service, []*cluster.Slice) {
	svc := service("172.30.0.41 np=3001 lb=1.2.3.4 etp=local hc=30000")
	var out []*cluster.Slice
	for i := range n {
		if i%100 == 0 {
			s := endpointSlices(".1@n1:R")[0]
			s.Name.Name = fmt.Sprintf("svc-%06d", i)
			s.Endpoints = nil
			out = append(out, s)
		}
		e := cluster.Endpoint{
			// Scattered, since slices hold endpoints in the order of their coming.
			Addr:  netip.AddrFrom4([4]byte{10, byte(i * 37), byte(i >> 8), byte(i)}),
			Ready: true, Serving: true, Place: &cluster.Place{Node: fmt.Sprintf("n%d", i%50), ZoneHints: []string{"a"}},
		}
		s := out[len(out)-1]
		s.Endpoints = append(s.Endpoints, e)
	}
	return svc, out
}

func BenchmarkCompile(b *testing.B) {
	for _, n := range []int{10, 1000, 10000} {
		b.Run(fmt.Sprintf("endpoints=%d", n), func(b *testing.B) {
			svc, eps := large(n)
			facts, _ := environment("")
			b.ReportAllocs()
			for b.Loop() {
				compile.Compile(svc, eps, facts)
			}
		})
	}
}

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"

	"github.com/fairlead/fairlead/e2e/apiserver"
	"github.com/fairlead/fairlead/e2e/daemon"
	"github.com/fairlead/fairlead/e2e/lab"
	"github.com/fairlead/fairlead/e2e/probe"
	"github.com/fairlead/fairlead/internal/host/hosttest"
)

// auditPolicy makes the API server log the requests of the pods' accounts only.
const auditPolicy = `apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: Metadata
  users: ["system:serviceaccount:kube-system:kube-proxy", "system:serviceaccount:kube-system:fairlead"]
- level: None
`

// kubeProxysRules are some of kube-proxy's rules.
const kubeProxysRules = `*nat
:KUBE-SERVICES - [0:0]
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
COMMIT
`

// expected are warnings about the connection-tracking table: its size belongs to the machine and
// not to the lab's node.
var expected = []string{"cannot set parameters of connection tracking"}

// dropIn is one way to replace kube-proxy by Fairlead.
type dropIn struct {
	name, mode string
	// file contains the objects of the proxy.
	file string
	// uninstall is set if its objects are deleted before the clean-up, as by Helm.
	uninstall bool
	// exact is set if the account's role allows exactly what is requested.
	exact bool
	// auth is set if metrics are on all addresses and need authorization.
	auth bool
}

// TestDropIn applies kubeadm's objects for kube-proxy, and our manifests, to an API server with
// RBAC, runs the pod of the DaemonSet in the image with the account's token, and tests it from
// outside.
func TestDropIn(t *testing.T) {
	lab.RequireKernel(t)
	hosttest.Need(t, hosttest.NFTables)
	binary, err := daemon.Build(t.Context(), t.TempDir())
	must(t, err)
	c := &cluster{lab: lab.ForTest(t, 1, 2), binary: binary, hosts: map[string]lab.Host{}, dialers: map[string]*probe.Dialer{}}
	c.addHosts(t)
	dir := t.TempDir()
	audit := filepath.Join(dir, "audit.log")
	must(t, os.WriteFile(filepath.Join(dir, "audit.yaml"), []byte(auditPolicy), 0o600))
	c.api, err = apiserver.Start(t.Context(), apiserver.Config{
		Dir: dir, Host: c.lab.Fabric, Addr: c.lab.Fabric.Addrs[0], ServiceCIDRs: lab.ServiceCIDRs[:], RBAC: true,
		// An API server without streaming lists gets list requests, which a role otherwise does not
		// need to allow.
		Flags: []string{"--allow-privileged", "--feature-gates=WatchList=false", "--audit-policy-file=" + filepath.Join(dir, "audit.yaml"), "--audit-log-path=" + audit},
	})
	must(t, err)
	t.Cleanup(func() { check(t, c.api.Close()) })
	c.client, err = c.api.Client(apiserver.Admin)
	must(t, err)
	c.addNodes(t)
	must(t, daemon.Hint(t.Context(), c.lab.Nodes[0], "nft"))
	stranger := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "stranger"}}
	_, err = c.client.CoreV1().ServiceAccounts(metav1.NamespaceSystem).Create(t.Context(), stranger, metav1.CreateOptions{})
	must(t, err)
	k := newKubelet(t, c)
	a := newApplier(t, c.api)

	for _, way := range []dropIn{
		{name: "kubeadm's DaemonSet", mode: "iptables", file: "testdata/kubeadm.yaml"},
		{name: "kubeadm", mode: "iptables", file: rendered + "/kubeadm.yaml", exact: true},
		{name: "kubeadm, nftables", mode: "nftables", file: rendered + "/kubeadm-nftables.yaml", exact: true},
		{name: "kubeadm, metrics", mode: "iptables", file: rendered + "/kubeadm-metrics.yaml", exact: true, auth: true},
		{name: "chart, config", mode: "iptables", file: rendered + "/chart-config.yaml", exact: true, auth: true, uninstall: true},
	} {
		t.Run(way.name, func(t *testing.T) { way.test(t, c, k, a, audit) })
	}
}

// singleStack makes a Service IPv4-only.
func singleStack(s *corev1.Service) {
	s.Spec.IPFamilyPolicy, s.Spec.IPFamilies = ptr.To(corev1.IPFamilyPolicySingleStack), []corev1.IPFamily{corev1.IPv4Protocol}
	s.Status.LoadBalancer.Ingress = s.Status.LoadBalancer.Ingress[:1]
}

func (way dropIn) test(t *testing.T, c *cluster, k *kubelet, a *applier, audit string) {
	objects := way.objects(t, c)
	a.put(t, objects)
	pod := daemonSet(t, objects).Spec.Template.Spec
	for name, value := range map[string]string{"established": "432000", "close_wait": "60"} { // the kernel's
		_, err := k.node.Run(t.Context(), "sysctl", "-q", "-w", "net.netfilter.nf_conntrack_tcp_timeout_"+name+"="+value)
		must(t, err)
	}
	before := k.state(t)
	asked := requests(t, audit, 0)

	untainted := c.taint(t, "fairlead/not-ready")
	restore := k.node.Command(t.Context(), "iptables-nft-restore", "--noflush")
	restore.Stdin = strings.NewReader(kubeProxysRules)
	if out, err := restore.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}

	web := c.service(t, "web", balanced(80, corev1.ServiceExternalTrafficPolicyCluster))
	c.endpoints(t, web, ready("node1-p1"))
	local := c.service(t, "web-local", balanced(81, corev1.ServiceExternalTrafficPolicyLocal), singleStack)
	c.endpoints(t, local, ready("node1-p1"))

	d := k.start(t, &pod)
	t.Cleanup(func() { check(t, d.Kill()) })
	c.daemons = []*daemon.Daemon{d}
	way.awaitReady(t, c, d)
	way.servers(t, c, k)
	c.healthCheckPort(t, local)
	for _, p := range []path{{from: "node1-p2", to: "cluster"}, {from: "client", to: "balancer"}, {from: "client", to: "node1"}} {
		for f := range families {
			if r := c.dialers[p.from].Dial(t.Context(), c.target(web, p, f)); r.Server != "node1-p1" {
				t.Errorf("from %s to %s, %s: %s", p.from, p.to, families[f], r)
			}
		}
	}
	c.awaitNodeEvent(t, "Starting")
	untainted(slices.ContainsFunc(pod.Containers[0].Args, func(a string) bool { return strings.HasPrefix(a, "--remove-taint=") }))
	way.conntrack(t, k, d)
	for _, said := range k.runInit(t, a, rendered+"/cleanup-kube-proxy.yaml") {
		if !strings.Contains(said, "removed kube-proxy's") {
			t.Errorf("clean-up after kube-proxy says\n%s", said)
		}
	}

	// The rules stay when the daemon has stopped, and are removed by "fairlead cleanup".
	must(t, d.Stop())
	for f := range families {
		if r := c.dialers["node1-p2"].Dial(t.Context(), c.target(web, path{to: "cluster"}, f)); r.Server != "node1-p1" {
			t.Errorf("after the daemon has ended, %s: %s", families[f], r)
		}
	}
	for line := range strings.Lines(d.Log()) {
		if strings.Contains(line, "level=ERROR") || strings.Contains(line, "forbidden") ||
			strings.Contains(line, "level=WARN") && !slices.ContainsFunc(expected, func(w string) bool { return strings.Contains(line, w) }) {
			t.Errorf("the log has %s", line)
		}
	}
	way.permissions(t, objects, requests(t, audit, len(asked)))

	for _, o := range objects {
		if way.uninstall && o.GetKind() != "PodMonitor" {
			must(t, a.remove(t.Context(), o))
		}
	}
	for _, said := range k.runInit(t, a, rendered+"/cleanup.yaml") {
		t.Logf("cleanup says\n%s", said)
	}
	if diff := cmp.Diff(before, k.state(t)); diff != "" {
		t.Errorf("what is left after cleanup (-before +after):\n%s", diff)
	}
	if t.Failed() {
		c.logState(t)
	}
}

// objects returns the objects of the file with the lab's API server and pod network, as operators
// and kubeadm set them.
func (way dropIn) objects(t *testing.T, c *cluster) []*unstructured.Unstructured {
	t.Helper()
	text, err := os.ReadFile(way.file)
	must(t, err)
	cidrs := lab.PodCIDRs[0].String() + "," + lab.PodCIDRs[1].String()
	rc, err := c.api.RESTConfig(apiserver.Admin)
	must(t, err)
	replace := strings.NewReplacer("server: SERVER", "server: "+rc.Host, "POD_SUBNET", cidrs,
		"192.0.2.10", c.lab.Fabric.Addrs[0].String(), "10.244.0.0/16", cidrs)
	return documents(t, []byte(replace.Replace(string(text))))
}

func daemonSet(t *testing.T, objects []*unstructured.Unstructured) *appsv1.DaemonSet {
	t.Helper()
	for _, o := range objects {
		if o.GetKind() == "DaemonSet" {
			ds := new(appsv1.DaemonSet)
			must(t, runtime.DefaultUnstructuredConverter.FromUnstructured(o.Object, ds))
			return ds
		}
	}
	t.Fatal("there is no DaemonSet")
	return nil
}

// awaitReady waits like the kubelet's probe, from outside and in both families.
func (way dropIn) awaitReady(t *testing.T, c *cluster, d *daemon.Daemon) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), settleTimeout)
	defer cancel()
	for f := range families {
		for {
			r, err := fetch(ctx, c.lab.Client, netip.AddrPortFrom(c.lab.Nodes[0].Addrs[f], 10256), "/readyz", "")
			if err == nil && r.code == http.StatusOK {
				break
			}
			if ctx.Err() != nil {
				t.Fatalf("%s: /readyz: %d %s %v\n%s", families[f], r.code, r.body, err, d.Log())
			}
			time.Sleep(20 * time.Millisecond)
		}
	}
}

// servers requests what load balancers, Prometheus and people request from kube-proxy.
func (way dropIn) servers(t *testing.T, c *cluster, k *kubelet) {
	t.Helper()
	for f := range families {
		to := netip.AddrPortFrom(k.node.Addrs[f], 10256)
		for path, fields := range map[string][]string{
			"/healthz": {"lastUpdated", "currentTime", "nodeEligible"}, "/livez": {"lastUpdated", "currentTime"},
		} {
			r, err := fetch(t.Context(), c.lab.Client, to, path, "")
			must(t, err)
			var body map[string]any
			if err := json.Unmarshal(r.body, &body); err != nil || r.code != http.StatusOK || r.header.Get("Content-Type") != "application/json" {
				t.Errorf("%s %s: %d %v %s", families[f], path, r.code, r.header, r.body)
			}
			for _, name := range fields {
				if _, there := body[name]; !there {
					t.Errorf("%s: no %s in %s", path, name, r.body)
				}
			}
		}
	}
	metrics, token := netip.MustParseAddrPort("127.0.0.1:10249"), ""
	if way.auth {
		token = k.token(t, "fairlead-metrics-reader")
		for bad, want := range map[string]int{
			"": http.StatusUnauthorized, "nobody": http.StatusUnauthorized, k.token(t, "stranger"): http.StatusForbidden,
		} {
			r, err := fetch(t.Context(), c.lab.Client, netip.AddrPortFrom(k.node.Addrs[0], 10249), "/metrics", bad)
			must(t, err)
			if r.code != want {
				t.Errorf("/metrics with token %.10q: %d, want %d", bad, r.code, want)
			}
		}
	} else if r, err := fetch(t.Context(), c.lab.Client, netip.AddrPortFrom(k.node.Addrs[0], 10249), "/metrics", ""); err == nil {
		t.Errorf("/metrics answers from outside: %d", r.code)
	}
	r, err := fetch(t.Context(), k.node.Host, metrics, "/metrics", token)
	must(t, err)
	for _, name := range []string{
		"kubeproxy_sync_proxy_rules_duration_seconds_bucket",
		"kubeproxy_sync_proxy_rules_last_timestamp_seconds", "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds",
		"kubeproxy_sync_proxy_rules_endpoint_changes_total", "kubeproxy_sync_proxy_rules_service_changes_total",
		"kubeproxy_sync_proxy_rules_no_local_endpoints_total",
		"kubeproxy_proxy_healthz_total", "kubeproxy_proxy_livez_total",
		"rest_client_requests_total", "process_cpu_seconds_total", "go_goroutines",
	} {
		if !strings.Contains(string(r.body), "\n"+name) {
			t.Errorf("/metrics: no %s, code %d", name, r.code)
		}
	}
	if way.auth { // who may read /metrics may not read the rest
		return
	}
	if r, err = fetch(t.Context(), k.node.Host, metrics, "/proxyMode", ""); err != nil || string(r.body) != way.mode {
		t.Errorf("/proxyMode: %q %v", r.body, err)
	}
	if r, err = fetch(t.Context(), k.node.Host, metrics, "/healthz", ""); err != nil || string(r.body) != "ok" {
		t.Errorf("/healthz of the metrics server: %q %v", r.body, err)
	}
	r, err = fetch(t.Context(), k.node.Host, metrics, "/configz", "")
	must(t, err)
	var configz map[string]struct{ APIVersion, Kind, Mode, HostnameOverride string }
	if err := json.Unmarshal(r.body, &configz); err != nil || configz["kubeproxy.config.k8s.io"].HostnameOverride != k.node.Label || configz["kubeproxy.config.k8s.io"].Kind != "KubeProxyConfiguration" {
		t.Errorf("/configz: %v: %s", err, r.body)
	}
}

// healthCheckPort asks the health-check node port of a Service, as a cloud's load balancer does,
// with an endpoint on the node and without.
func (c *cluster) healthCheckPort(t *testing.T, svc *corev1.Service) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), settleTimeout)
	defer cancel()
	for _, endpoints := range []int{1, 0} {
		if endpoints == 0 {
			c.endpoints(t, svc)
		}
		code := map[int]int{1: http.StatusOK, 0: http.StatusServiceUnavailable}[endpoints]
		want := map[string]any{
			"service": map[string]any{"namespace": svc.Namespace, "name": svc.Name}, "localEndpoints": float64(endpoints), "serviceProxyHealthy": true,
		}
		for f := range families {
			for {
				r, err := fetch(ctx, c.lab.Client, netip.AddrPortFrom(c.lab.Nodes[0].Addrs[f], uint16(svc.Spec.HealthCheckNodePort)), "/any", "")
				if err == nil && r.code == code {
					var got map[string]any
					must(t, json.Unmarshal(r.body, &got))
					if diff := cmp.Diff(want, got); diff != "" || r.header.Get("X-Load-Balancing-Endpoint-Weight") != strconv.Itoa(endpoints) {
						t.Errorf("health-check node port, %s: %v (-want +got):\n%s", families[f], r.header, diff)
					}
					break
				}
				if ctx.Err() != nil {
					t.Fatalf("health-check node port with %d endpoints, %s: %d %s %v", endpoints, families[f], r.code, r.body, err)
				}
				time.Sleep(20 * time.Millisecond)
			}
		}
	}
}

// awaitNodeEvent waits for an Event on the Node and deletes it.
func (c *cluster) awaitNodeEvent(t *testing.T, reason string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), settleTimeout)
	defer cancel()
	api := c.client.EventsV1().Events(metav1.NamespaceDefault)
	for {
		list, err := api.List(ctx, metav1.ListOptions{})
		must(t, err)
		found := false
		for _, e := range list.Items {
			if e.Regarding.Kind == "Node" && e.Regarding.Name == c.lab.Nodes[0].Label && e.Reason == reason && e.Type == corev1.EventTypeNormal {
				found = true
			}
			if found {
				must(t, api.Delete(ctx, e.Name, metav1.DeleteOptions{}))
			}
		}
		if found {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// taint adds a taint to the node. The returned function waits until the daemon has removed it, and
// removes it if the daemon does not.
func (c *cluster) taint(t *testing.T, key string) (untainted func(byDaemon bool)) {
	t.Helper()
	api, name := c.client.CoreV1().Nodes(), c.lab.Nodes[0].Label
	set := func(taints string) {
		_, err := api.Patch(t.Context(), name, types.MergePatchType, []byte(`{"spec":{"taints":`+taints+`}}`), metav1.PatchOptions{})
		must(t, err)
	}
	set(`[{"key":"` + key + `","effect":"NoSchedule"}]`)
	return func(byDaemon bool) {
		t.Helper()
		if !byDaemon {
			set("null")
			return
		}
		ctx, cancel := context.WithTimeout(t.Context(), settleTimeout)
		defer cancel()
		for {
			node, err := api.Get(ctx, name, metav1.GetOptions{})
			must(t, err)
			if len(node.Spec.Taints) == 0 {
				return
			}
			time.Sleep(20 * time.Millisecond)
		}
	}
}

// conntrack checks the connection-tracking parameters. Those of the node's network namespace have
// kube-proxy's defaults. The size of the table belongs to the machine, cannot be set here, and is
// not a failure.
func (way dropIn) conntrack(t *testing.T, k *kubelet, d *daemon.Daemon) {
	t.Helper()
	for name, want := range map[string]string{"nf_conntrack_tcp_timeout_established": "86400", "nf_conntrack_tcp_timeout_close_wait": "3600"} {
		got, err := k.node.Run(t.Context(), "cat", "/proc/sys/net/netfilter/"+name)
		if err != nil || strings.TrimSpace(got) != want {
			t.Errorf("%s is %q, want %s (%v)\n%s", name, got, want, err, d.Log())
		}
	}
}

// state returns everything that a proxy writes to the node's kernel.
func (k *kubelet) state(t *testing.T) string {
	t.Helper()
	localnet, err := k.node.Run(t.Context(), "cat", "/proc/sys/net/ipv4/conf/all/route_localnet")
	must(t, err)
	var lines []string
	for line := range strings.Lines(stateOf(t, k.node, "nft") + stateOf(t, k.node, "legacy")) {
		// The first rule in a table creates the table, with empty chains, and removing the last one
		// does not remove it.
		empty := strings.HasPrefix(line, "*") || strings.HasPrefix(line, "COMMIT") || strings.HasSuffix(line, "ACCEPT [0:0]\n") ||
			strings.HasPrefix(line, "table ") && !strings.Contains(line, "fairlead")
		if !empty {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines, "") + "route_localnet " + localnet
}

// request is a line of the API server's audit log.
type request struct {
	Verb      string
	ObjectRef *struct{ Resource, APIGroup string }
	// Annotations contain the decision of the authorizer.
	Annotations    map[string]string
	ResponseStatus struct{ Code int }
	RequestURI     string
}

// requests returns the entries of the audit log after the first n.
func requests(t *testing.T, log string, n int) []request {
	t.Helper()
	text, err := os.ReadFile(log)
	must(t, err)
	var out []request
	for line := range strings.Lines(string(text)) {
		var r request
		must(t, json.Unmarshal([]byte(line), &r))
		out = append(out, r)
	}
	return out[n:]
}

// permissions checks that every request was allowed, and that everything allowed was requested.
func (way dropIn) permissions(t *testing.T, objects []*unstructured.Unstructured, asked []request) {
	t.Helper()
	if len(asked) == 0 {
		t.Error("the API server has noted no request")
	}
	used := map[string]bool{}
	for _, r := range asked {
		if r.Annotations["authorization.k8s.io/decision"] != "allow" || r.ResponseStatus.Code == http.StatusForbidden {
			t.Errorf("forbidden: %s %s", r.Verb, r.RequestURI)
		}
		if r.ObjectRef != nil {
			used[r.Verb+" "+r.ObjectRef.Resource+"."+r.ObjectRef.APIGroup] = true
		}
	}
	if !way.exact {
		return
	}
	// With streaming lists nothing is listed, and no Event repeats here.
	for _, verb := range []string{"list services.", "list nodes.", "list endpointslices.discovery.k8s.io", "patch events.events.k8s.io"} {
		used[verb] = true
	}
	granted := map[string]bool{}
	for _, o := range objects {
		if o.GetKind() != "ClusterRole" {
			continue
		}
		role := new(rbacv1.ClusterRole)
		must(t, runtime.DefaultUnstructuredConverter.FromUnstructured(o.Object, role))
		for _, rule := range role.Rules {
			for _, res := range rule.Resources {
				for _, verb := range rule.Verbs {
					granted[verb+" "+res+"."+rule.APIGroups[0]] = true
				}
			}
		}
	}
	if diff := cmp.Diff(slices.Sorted(maps.Keys(granted)), slices.Sorted(maps.Keys(used))); diff != "" {
		t.Errorf("what is allowed and what is asked for (-allowed +asked):\n%s", diff)
	}
}

// response is an HTTP response.
type response struct {
	code   int
	header http.Header
	body   []byte
}

// fetch requests a path from inside a host's namespace, with a token unless it is empty.
func fetch(ctx context.Context, from lab.Host, to netip.AddrPort, path, token string) (response, error) {
	transport := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, network, address string) (conn net.Conn, err error) {
		err = from.Do(func() error {
			conn, err = (&net.Dialer{}).DialContext(ctx, network, address)
			return err
		})
		return conn, err
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+to.String()+path, nil)
	if err != nil {
		return response{}, err
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return response{}, fmt.Errorf("from %s: %w", from.Label, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return response{resp.StatusCode, resp.Header, body}, err
}

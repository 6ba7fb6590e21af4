package e2e

import (
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"github.com/fairlead/fairlead/e2e/apiserver"
	"github.com/fairlead/fairlead/e2e/daemon"
	"github.com/fairlead/fairlead/e2e/lab"
	"github.com/fairlead/fairlead/e2e/probe"
)

// TestServers tests a daemon's servers with an API server with RBAC: health-check node ports, which
// count both families, the metrics server with --metrics-auth, and all of them without the API
// server.
func TestServers(t *testing.T) {
	lab.RequireKernel(t)
	binary, err := daemon.Build(t.Context(), t.TempDir())
	must(t, err)
	c := &cluster{lab: lab.ForTest(t, 1, 1), hosts: map[string]lab.Host{}, dialers: map[string]*probe.Dialer{}}
	c.addHosts(t)
	c.api, err = apiserver.Start(t.Context(), apiserver.Config{
		Dir: t.TempDir(), Host: c.lab.Fabric, Addr: c.lab.Fabric.Addrs[0], ServiceCIDRs: lab.ServiceCIDRs[:], RBAC: true,
	})
	must(t, err)
	t.Cleanup(func() { check(t, c.api.Close()) })
	c.client, err = c.api.Client(apiserver.Admin)
	must(t, err)
	c.addNodes(t)
	for _, role := range []string{"system:node-proxier", "system:auth-delegator"} {
		_, err := c.client.RbacV1().ClusterRoleBindings().Create(t.Context(), &rbacv1.ClusterRoleBinding{
			ObjectMeta: metav1.ObjectMeta{Name: "test-" + strings.ReplaceAll(role, ":", "-")},
			RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: role},
			Subjects:   []rbacv1.Subject{{Kind: rbacv1.UserKind, APIGroup: rbacv1.GroupName, Name: apiserver.Daemon}},
		}, metav1.CreateOptions{})
		must(t, err)
	}
	svc, err := c.client.CoreV1().Services(namespace).Create(t.Context(), &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "web"},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeLoadBalancer, ExternalTrafficPolicy: corev1.ServiceExternalTrafficPolicyLocal,
			IPFamilyPolicy: ptr.To(corev1.IPFamilyPolicyRequireDualStack), Ports: []corev1.ServicePort{port("web", corev1.ProtocolTCP, 80)},
		},
	}, metav1.CreateOptions{})
	must(t, err)
	// The only endpoint is of IPv6, and on this node.
	slices := c.client.DiscoveryV1().EndpointSlices(namespace)
	slice, err := slices.Create(t.Context(), &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Name: "web-6", Labels: map[string]string{discoveryv1.LabelServiceName: svc.Name}},
		AddressType: discoveryv1.AddressTypeIPv6, Ports: []discoveryv1.EndpointPort{{Name: ptr.To("web"), Port: ptr.To[int32](8080)}},
		Endpoints: []discoveryv1.Endpoint{{
			Addresses: []string{c.lab.Pods()[0].Addrs[1].String()}, NodeName: ptr.To("node1"), Conditions: discoveryv1.EndpointConditions{Ready: ptr.To(true)},
		}},
	}, metav1.CreateOptions{})
	must(t, err)

	kubeconfig, err := c.api.Kubeconfig(apiserver.Daemon)
	must(t, err)
	node := c.lab.Nodes[0]
	d, err := daemon.Start(node, binary, "--hostname-override="+node.Label, "--proxy-mode=nftables", "--nodeport-addresses=all", "--kubeconfig="+kubeconfig,
		"--cluster-cidr="+lab.PodCIDRs[0].String()+","+lab.PodCIDRs[1].String(), "--metrics-auth", "--iptables-min-sync-period=20ms")
	must(t, err)
	t.Cleanup(func() { check(t, d.Kill()) })

	health := netip.AddrPortFrom(node.Addrs[0], 10256)
	await := func(at netip.AddrPort, path string, want int) {
		t.Helper()
		for end := time.Now().Add(settleTimeout); ; time.Sleep(50 * time.Millisecond) {
			r, err := fetch(t.Context(), c.lab.Client, at, path, "")
			switch {
			case err == nil && r.code == want:
				return
			case time.Now().After(end):
				t.Fatalf("%s%s: %d %s, %v, want %d\n%s", at, path, r.code, r.body, err, want, d.Log())
			}
		}
	}
	await(health, "/readyz", http.StatusOK)
	check := uint16(svc.Spec.HealthCheckNodePort)
	for f, family := range families {
		r, err := fetch(t.Context(), c.lab.Client, netip.AddrPortFrom(node.Addrs[f], check), "/any/path", "")
		if err != nil || r.code != http.StatusOK || r.header.Get("X-Load-Balancing-Endpoint-Weight") != "1" {
			t.Errorf("health check over %s: %d %v %v", family, r.code, r.header, err)
		}
	}
	slice.Endpoints[0].Conditions.Ready = ptr.To(false)
	_, err = slices.Update(t.Context(), slice, metav1.UpdateOptions{})
	must(t, err)
	await(netip.AddrPortFrom(node.Addrs[0], check), "/", http.StatusServiceUnavailable)

	metrics := netip.MustParseAddrPort("127.0.0.1:10249")
	asks := func(token, path string, want int) {
		t.Helper()
		if r, err := fetch(t.Context(), node.Host, metrics, path, token); err != nil || r.code != want {
			t.Errorf("%s with token %q: %d %s, %v, want %d", path, token, r.code, r.body, err, want)
		}
	}
	asks(apiserver.Admin, "/metrics", http.StatusOK)
	asks(apiserver.Admin, "/configz", http.StatusOK)
	asks(apiserver.Daemon, "/metrics", http.StatusForbidden)
	asks("nobody's", "/metrics", http.StatusUnauthorized)
	asks("", "/metrics", http.StatusUnauthorized)
	asks("", "/healthz", http.StatusOK)

	// Without the API server no new client is authorized, and the node's state stays.
	must(t, c.api.Close())
	asks(apiserver.Admin, "/statusz", http.StatusServiceUnavailable)
	for _, path := range []string{"/healthz", "/livez", "/readyz"} {
		await(health, path, http.StatusOK)
	}
	must(t, d.Stop())
}

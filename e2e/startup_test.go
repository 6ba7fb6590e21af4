package e2e

import (
	"context"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/fairlead/fairlead/e2e/apiserver"
	"github.com/fairlead/fairlead/e2e/daemon"
	"github.com/fairlead/fairlead/e2e/lab"
	"github.com/fairlead/fairlead/e2e/probe"
	"github.com/fairlead/fairlead/internal/host/hosttest"
)

// startup is a cluster of one node; tests create its Node and daemon.
type startup struct {
	*cluster
	node *lab.Node
	svc  *corev1.Service
	args []string
}

func newStartup(t *testing.T, needs ...hosttest.Feature) *startup {
	t.Helper()
	lab.RequireKernel(t)
	hosttest.Need(t, needs...)
	binary, err := daemon.Build(t.Context(), t.TempDir())
	must(t, err)
	s := &startup{cluster: &cluster{lab: lab.ForTest(t, 1, 2), binary: binary, hosts: map[string]lab.Host{}, dialers: map[string]*probe.Dialer{}}}
	s.node = s.lab.Nodes[0]
	s.addHosts(t)
	s.startAPI(t)
	s.svc = s.service(t, "web")
	s.endpoints(t, s.svc, ready("node1-p1"))
	kubeconfig, err := s.api.Kubeconfig(apiserver.Daemon)
	must(t, err)
	s.args = []string{"--kubeconfig=" + kubeconfig, "--hostname-override=" + s.node.Label, "--iptables-min-sync-period=20ms"}
	return s
}

// run starts the daemon, which is stopped at the end of the test at the latest.
func (s *startup) run(t *testing.T, args ...string) *daemon.Daemon {
	t.Helper()
	d, err := daemon.Start(s.node, s.binary, append(s.args, args...)...)
	must(t, err)
	t.Cleanup(func() { check(t, d.Kill()) })
	return d
}

// serves waits until the Service is served, or is not.
func (s *startup) serves(t *testing.T, d *daemon.Daemon, want bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), settleTimeout)
	defer cancel()
	for f := range families {
		to := s.target(s.svc, path{to: "cluster"}, f).Briefly()
		if _, err := s.await(ctx, "node1-p2", to, func(r probe.Result) bool { return (r.Verdict == probe.Answered) == want }); err != nil {
			t.Fatalf("%v\n%s", err, d.Log())
		}
	}
}

func said(t *testing.T, d *daemon.Daemon, text string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), settleTimeout)
	defer cancel()
	must(t, d.AwaitLog(ctx, text))
}

// TestStartup starts daemons on a node on which something is missing or in conflict.
func TestStartup(t *testing.T) {
	s := newStartup(t, hosttest.NFTables)
	t.Run("named proxy", s.testProxyName)
	t.Run("kube-proxy beside", s.testKubeProxy)
	t.Run("a family cannot be read", s.testUnreadFamily)
	t.Run("drift is an Event", s.testDriftEvent)
	t.Run("the Node comes and goes", s.testNode)
}

// testDriftEvent empties table nat: an Event on the Node reports it and names the process.
func (s *startup) testDriftEvent(t *testing.T) {
	d := s.run(t)
	awaitReady(t, s.node)
	_, err := s.node.Run(t.Context(), "iptables-nft", "-w", "-t", "nat", "-F")
	must(t, err)
	note := s.event(t, "Warning", "DriftRepaired")
	if !strings.Contains(note, "iptables") || !strings.Contains(note, "table nat") {
		t.Errorf("the Event does not say what was changed and by whom: %q", note)
	}
	s.serves(t, d, true)
}

// testNode starts a daemon before its Node exists, and deletes the Node again.
func (s *startup) testNode(t *testing.T) {
	nodes := s.client.CoreV1().Nodes()
	must(t, nodes.Delete(t.Context(), s.node.Label, metav1.DeleteOptions{}))
	_, err := s.node.Run(t.Context(), s.binary, "cleanup")
	must(t, err)
	d := s.run(t, "--detect-local-mode=NodeCIDR")
	said(t, d, "waiting for the node; no rules are written before it exists")
	// The watches start while the dataplane is opened, the servers after that.
	health := netip.MustParseAddrPort("127.0.0.1:10256")
	for end := time.Now().Add(hosttest.Patience); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if _, err := fetch(t.Context(), s.node.Host, health, "/readyz", ""); err == nil {
			break
		}
	}
	if code, body := get(t, s.node.Host, health, "/readyz"); code != http.StatusServiceUnavailable ||
		!strings.Contains(body, "is --hostname-override right?") {
		t.Errorf("/readyz: %d %s", code, body)
	}

	n, err := nodes.Create(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: s.node.Label}}, metav1.CreateOptions{})
	must(t, err)
	said(t, d, "waiting for the node's podCIDR")
	said(t, d, "node has no InternalIP or ExternalIP")
	s.serves(t, d, false)
	n.Spec.PodCIDRs = []string{s.node.PodCIDRs[0].String(), s.node.PodCIDRs[1].String()}
	n.Spec.PodCIDR = n.Spec.PodCIDRs[0]
	n, err = nodes.Update(t.Context(), n, metav1.UpdateOptions{})
	must(t, err)
	s.serves(t, d, true)
	for _, a := range s.node.Addrs {
		n.Status.Addresses = append(n.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: a.String()})
	}
	_, err = nodes.UpdateStatus(t.Context(), n, metav1.UpdateOptions{})
	must(t, err)
	said(t, d, "node addresses changed")

	must(t, nodes.Delete(t.Context(), s.node.Label, metav1.DeleteOptions{}))
	said(t, d, "node is being deleted; keeping its rules")
	s.endpoints(t, s.svc, ready("node1-p2"))
	s.serves(t, d, true)
	must(t, d.Stop())
	s.serves(t, d, true)
}

// testKubeProxy starts a daemon while a kube-proxy answers at its port, and adds kube-proxy's rules
// later.
func (s *startup) testKubeProxy(t *testing.T) {
	var l net.Listener
	must(t, s.node.Do(func() (err error) {
		l, err = net.Listen("tcp", "127.0.0.1:10249")
		return err
	}))
	peer := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		answer := map[string]string{"/proxyMode": "ipvs", "/metrics": "kubeproxy_sync_proxy_rules_iptables_total 1\n"}[r.URL.Path]
		_, _ = w.Write([]byte(answer))
	})}
	go func() { _ = peer.Serve(l) }()
	defer peer.Close()
	d := s.run(t, "--cluster-cidr="+lab.PodCIDRs[0].String()+","+lab.PodCIDRs[1].String())
	said(t, d, "a kube-proxy runs on this node, and both write rules")
	s.serves(t, d, true)
	if _, body := get(t, s.node.Host, netip.MustParseAddrPort("127.0.0.1:10256"), "/readyz"); !strings.Contains(body, "cleanup --kube-proxy") {
		t.Errorf("/readyz: %s", body)
	}
	s.event(t, "Normal", "Starting")
	s.event(t, "Warning", "KubeProxyRunning")
	must(t, d.Stop())

	check(t, peer.Close())
	_, err := s.node.Run(t.Context(), "nft", "add", "table", "ip", "kube-proxy")
	must(t, err)
	d = s.run(t, "--cluster-cidr="+lab.PodCIDRs[0].String()+","+lab.PodCIDRs[1].String())
	said(t, d, "kube-proxy's rules exist on this node")
	s.event(t, "Warning", "KubeProxyRules")
	if _, text := get(t, s.node.Host, netip.MustParseAddrPort("127.0.0.1:10249"), "/metrics"); !strings.Contains(text, "\nfairlead_kube_proxy_present 1\n") {
		t.Error("the metric does not say so")
	}
	must(t, d.Stop())
}

// event waits for an Event on the Node and returns its text.
func (s *startup) event(t *testing.T, kind, reason string) string {
	t.Helper()
	var all []eventsv1.Event
	for end := time.Now().Add(settleTimeout); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		list, err := s.client.EventsV1().Events(metav1.NamespaceDefault).List(t.Context(), metav1.ListOptions{})
		must(t, err)
		for _, e := range list.Items {
			if e.Reason == reason && e.Type == kind && e.ReportingController == "fairlead" && e.Regarding.Kind == "Node" && e.Regarding.Name == s.node.Label {
				return e.Note
			}
		}
		all = list.Items
	}
	t.Errorf("no Event %s %s among %v", kind, reason, all)
	return ""
}

// testProxyName runs a daemon for the Services with a label.
func (s *startup) testProxyName(t *testing.T) {
	d := s.run(t, "--cluster-cidr="+lab.PodCIDRs[0].String()+","+lab.PodCIDRs[1].String(), "--service-proxy-name=mine")
	said(t, d, "msg=synced")
	s.serves(t, d, false)
	for _, step := range []struct {
		label string
		want  bool
	}{{`"mine"`, true}, {`"theirs"`, false}, {`"mine"`, true}, {"null", false}} {
		patch := `{"metadata":{"labels":{"service.kubernetes.io/service-proxy-name":` + step.label + `}}}`
		_, err := s.client.CoreV1().Services(namespace).Patch(t.Context(), s.svc.Name, types.MergePatchType, []byte(patch), metav1.PatchOptions{})
		must(t, err)
		s.serves(t, d, step.want)
	}
	must(t, d.Stop())
}

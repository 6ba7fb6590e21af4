package kube

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	v1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/utils/ptr"

	"github.com/fairlead/fairlead/internal/cluster"
)

func apiService(name, ip string) *v1.Service {
	return service(func(s *v1.Service) {
		s.Name, s.UID, s.Spec.ClusterIP = name, "uid-1", ip
		s.Annotations = map[string]string{"big": strings.Repeat("x", 1000)}
		s.ManagedFields = []metav1.ManagedFieldsEntry{{Manager: "kubectl"}}
	})
}

func apiSlice(name, service, addr string) *discoveryv1.EndpointSlice {
	return &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: "ns", Name: name, Labels: map[string]string{"kubernetes.io/service-name": service}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: ptr.To(""), Port: ptr.To(int32(8080))}},
		Endpoints:   []discoveryv1.Endpoint{{Addresses: []string{addr}, NodeName: ptr.To("n1")}},
	}
}

func apiNode(zone string) *v1.Node {
	return &v1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1", Labels: map[string]string{"topology.kubernetes.io/zone": zone}}}
}

// attach runs an APISource that is connected to the fake server.
func attach(t *testing.T, a *fakeAPI, edit func(*APIOptions)) (*follower, *APISource) {
	t.Helper()
	f := newFollower(t)
	o := APIOptions{Master: a.URL, NodeName: "n1", QPS: 1000, Burst: 1000, Logger: f.logs.logger(), UserAgent: "fairlead/test"}
	edit(&o)
	s, err := NewAPISource(o, f.feed)
	if err != nil {
		t.Fatal(err)
	}
	s.startDelay = time.Nanosecond
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Run: %v", err)
			}
		case <-time.After(patience):
			t.Error("Run does not return when its context ends")
		}
	})
	return f, s
}

// next receives from a channel, with a timeout.
func next[T any](t *testing.T, from <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-from:
	case <-time.After(patience):
		t.Fatal("timeout")
	}
	return v
}

func TestAPISource(t *testing.T) {
	for name, streams := range map[string]bool{"server streams lists": true, "server lists": false} {
		t.Run(name, func(t *testing.T) {
			a := newFakeAPI(t, streams)
			a.put(apiService("a", "10.96.0.1"))
			a.put(apiSlice("a-1", "a", "10.0.1.1"))
			a.put(apiNode("z1"))
			f, _ := attach(t, a, func(*APIOptions) {})
			f.until("synced", f.feed.Synced)
			if f.ip("a") != "10.96.0.1" || len(f.store.Slices(named("a"))) != 1 || f.store.Node().Zone != "z1" {
				t.Fatalf("a has %s and %d slices, node %+v", f.ip("a"), len(f.store.Slices(named("a"))), f.store.Node())
			}
			if n := len(a.seen("services", false)); (n == 0) != streams {
				t.Errorf("%d lists, the server streams them: %v", n, streams)
			}

			a.put(apiService("b", "10.96.0.2"))
			a.put(apiService("a", "10.96.0.3"))
			f.until("b is there and a changed", func() bool { return f.ip("a") == "10.96.0.3" && f.ip("b") == "10.96.0.2" })
			external := apiService("a", "10.96.0.3")
			external.Spec.Type = v1.ServiceTypeExternalName
			a.put(external)
			f.untilIP("a", "none")
			a.remove(apiService("b", "10.96.0.2"))
			f.untilIP("b", "none")
			a.put(apiSlice("a-1", "b", "10.0.1.1"))
			f.until("the slice moved", func() bool { return len(f.store.Slices(named("a"))) == 0 && len(f.store.Slices(named("b"))) == 1 })
			a.put(apiNode("z2"))
			f.until("the zone changed", func() bool { return f.store.Node().Zone == "z2" })
		})
	}
}

func TestAPISourceRequests(t *testing.T) {
	const notOurs = "!service.kubernetes.io/service-proxy-name,!service.kubernetes.io/headless"
	type selectors struct{ Labels, Fields string }
	for _, c := range []struct {
		name, proxyName string
		want            map[string]selectors
	}{
		{"default proxy", "", map[string]selectors{
			"services": {notOurs, "spec.clusterIP!=None"}, "endpointslices": {notOurs, ""}, "nodes": {"", "metadata.name=n1"}}},
		{"named proxy", "fairlead", map[string]selectors{
			"services":       {"service.kubernetes.io/service-proxy-name=fairlead,!service.kubernetes.io/headless", "spec.clusterIP!=None"},
			"endpointslices": {"!service.kubernetes.io/headless", ""}, "nodes": {"", "metadata.name=n1"}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := newFakeAPI(t, false)
			a.put(apiNode("z1"))
			f, _ := attach(t, a, func(o *APIOptions) { o.Convert.ServiceProxyName = c.proxyName })
			f.until("synced", f.feed.Synced)
			got := make(map[string]selectors)
			for resource := range c.want {
				watches, lists := a.seen(resource, true), a.seen(resource, false)
				if len(watches) == 0 || len(lists) == 0 {
					t.Fatalf("%d watches and %d lists of %s", len(watches), len(lists), resource)
				}
				if watches[0].query.Get("sendInitialEvents") != "true" {
					t.Errorf("the first request for %s is no WatchList: %v", resource, watches[0].query)
				}
				if !strings.HasPrefix(lists[0].accept, "application/vnd.kubernetes.protobuf,") {
					t.Errorf("%s are wanted as %q", resource, lists[0].accept)
				}
				w := selectors{watches[0].query.Get("labelSelector"), watches[0].query.Get("fieldSelector")}
				got[resource] = selectors{lists[0].query.Get("labelSelector"), lists[0].query.Get("fieldSelector")}
				if got[resource] != w {
					t.Errorf("%s are listed by %v and watched by %v", resource, got[resource], w)
				}
			}
			if d := cmp.Diff(c.want, got); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
		})
	}
}

func TestAPISourceWithoutNode(t *testing.T) {
	a := newFakeAPI(t, true)
	a.put(apiService("a", "10.96.0.1"))
	f, _ := attach(t, a, func(*APIOptions) {})
	f.untilIP("a", "10.96.0.1")
	f.until("the log says so", func() bool {
		return f.logs.count("level=WARN", "waiting for the node", `has no node \"n1\": is --hostname-override right?`) > 0
	})
	if f.feed.Synced() {
		t.Error("synced without a node")
	}
	a.put(apiNode("z1"))
	f.until("synced", f.feed.Synced)
	a.remove(apiNode("z1"))
	f.until("the node is deleting", func() bool { return f.store.Node().Deleting })
	if f.store.Node().Zone != "z1" {
		t.Errorf("a deleted node lost its zone: %+v", f.store.Node())
	}
	if n := f.logs.count("waiting for the node"); n != 1 {
		t.Errorf("%d lines:\n%s", n, f.logs.String())
	}
}

func TestAPISourceSurvivesItsServer(t *testing.T) {
	a := newFakeAPI(t, true)
	a.put(apiService("a", "10.96.0.1"))
	a.put(apiService("b", "10.96.0.2"))
	a.put(apiNode("z1"))
	f, _ := attach(t, a, func(*APIOptions) {})
	f.until("synced", f.feed.Synced)

	a.setDown(true)
	for r := next(t, a.refused); r.resource != "services" || r.watches(); {
		r = next(t, a.refused) // the watch fails before the list, which is logged
	}
	f.feed.Drain(&f.store)
	if f.ip("a") != "10.96.0.1" || f.ip("b") != "10.96.0.2" || !f.feed.Synced() {
		t.Errorf("a has %s, b has %s, synced %v", f.ip("a"), f.ip("b"), f.feed.Synced())
	}
	a.remove(apiService("b", "10.96.0.2"))
	a.put(apiService("c", "10.96.0.3"))
	a.setDown(false)
	f.until("b is gone and c is there", func() bool { return f.ip("b") == "none" && f.ip("c") == "10.96.0.3" })
	if f.ip("a") != "10.96.0.1" {
		t.Errorf("a has %s", f.ip("a"))
	}
	for _, line := range []string{"lost contact with the API server", "API server is reachable again"} {
		if n := f.logs.count(line, "resource=services"); n != 1 {
			t.Errorf("%q is logged %d times:\n%s", line, n, f.logs.String())
		}
	}
}

// identity returns a self-signed certificate for 127.0.0.1.
func identity(t *testing.T) (tls.Certificate, []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

// TestAPISourceLogsEachCause proves that every cause of an outage is logged: the API server goes
// away, comes back with a certificate of another authority, and then no longer accepts the
// credential.
func TestAPISourceLogsEachCause(t *testing.T) {
	old, ca := identity(t)
	other, _ := identity(t)
	var away atomic.Bool
	var current atomic.Pointer[tls.Certificate]
	current.Store(&old)
	a := newFakeAPI(t, true)
	secure := httptest.NewUnstartedServer(a)
	secure.Config.ErrorLog = log.New(io.Discard, "", 0)
	secure.TLS = &tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
		if away.Load() {
			return nil, errors.New("away")
		}
		return &tls.Config{Certificates: []tls.Certificate{*current.Load()}}, nil
	}}
	secure.StartTLS()
	t.Cleanup(func() {
		secure.CloseClientConnections()
		secure.Close()
	})
	a.put(apiNode("z1"))
	kubeconfig := filepath.Join(t.TempDir(), "kubeconfig")
	text := fmt.Sprintf("clusters: [{name: c, cluster: {server: %q, certificate-authority-data: %s}}]\n"+
		"users: [{name: u, user: {token: secret}}]\ncontexts: [{name: x, context: {cluster: c, user: u}}]\ncurrent-context: x\n", secure.URL, base64.StdEncoding.EncodeToString(ca))
	if err := os.WriteFile(kubeconfig, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	f, s := attach(t, a, func(o *APIOptions) { o.Master, o.Kubeconfig = "", kubeconfig })
	f.until("synced", f.feed.Synced)
	if notes := s.Outage(); notes != nil {
		t.Errorf("notes %q", notes)
	}
	logged := func(name string, parts ...string) {
		t.Helper()
		f.until(name, func() bool {
			return f.logs.count(append(parts, "level=WARN", "resource=services")...) == 1 && strings.Contains(strings.Join(s.Outage(), ""), parts[len(parts)-1])
		})
	}
	away.Store(true)
	secure.CloseClientConnections()
	logged("the server is away", "lost contact with the API server; keeping the last known state", "tls: internal error")
	current.Store(&other)
	away.Store(false)
	logged("it has another authority", "for another reason", "certificate signed by unknown authority")
	a.setAbsent("services", http.StatusUnauthorized)
	current.Store(&old)
	logged("it rejects the credential", "for another reason", "does not accept our credential (401): the credential in kubeconfig "+kubeconfig)
	a.setAbsent("services", 0)
	f.until("all is well", func() bool {
		return f.logs.count("API server is reachable again", "resource=services") == 1 && s.Outage() == nil
	})
}

func TestAPISourceReportsProblems(t *testing.T) {
	a := newFakeAPI(t, true)
	bad := apiService("a", "10.96.0.1")
	bad.Spec.ExternalIPs = []string{"nonsense"}
	a.put(bad)
	a.put(apiNode("z1"))
	f, s := attach(t, a, func(o *APIOptions) { o.ContentType = "application/json" })
	f.until("synced", f.feed.Synced)
	e := next(t, a.events)
	type event struct{ Type, Reason, Note, Kind, Namespace, Name, UID string }
	got := event{e.Type, e.Reason, e.Note, e.Regarding.Kind, e.Regarding.Namespace, e.Regarding.Name, string(e.Regarding.UID)}
	want := event{"Warning", ReasonBadField, `Service ns/a: spec.externalIPs[0]: "nonsense" is not an IP address`, "Service", "ns", "a", "uid-1"}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	if n := f.logs.count("level=WARN", `object="Service ns/a"`, "field=spec.externalIPs[0]", "problem="); n != 1 {
		t.Errorf("%d lines:\n%s", n, f.logs.String())
	}
	s.Recorder().Node(false, "Starting", "hello")
	if e := next(t, a.events); e.Regarding.Kind != "Node" || e.Regarding.Name != "n1" || e.Reason != "Starting" || e.Type != "Normal" {
		t.Errorf("event %+v", e)
	}
}

func TestKeyStore(t *testing.T) {
	f, store, logs := NewFeed(), &cluster.Store{}, &logBuffer{}
	s := newKeyStore(KindServices, APIOptions{Logger: logs.logger()}, f, nil)
	at := func(name, ip, version string) *v1.Service {
		o := apiService(name, ip)
		o.ResourceVersion = version
		return o
	}
	changes := func(want int) {
		t.Helper()
		if d := f.Drain(store); d.Services != want {
			t.Errorf("%d changes, want %d", d.Services, want)
		}
	}
	bad := at("bad", "10.96.0.9", "9")
	bad.Spec.ExternalIPs = []string{"x"}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(s.Replace([]any{at("a", "10.96.0.1", "1"), at("b", "10.96.0.2", "2"), bad}, "9"))
	changes(3)
	tiny, err := s.Transformer()(at("a", "10.96.0.1", "1"))
	must(err)
	if r := tiny.(*reduced); r.service != nil {
		t.Error("a known version is converted again")
	}
	must(s.Replace([]any{tiny, bad}, "10"))
	changes(1)
	if store.Service(named("b")) != nil || store.Service(named("a")) == nil {
		t.Error("want b gone and a there")
	}
	must(s.Add(at("odd", "10.96.0.3", "")))
	must(s.Update(at("odd", "10.96.0.4", "")))
	must(s.Update(at("a", "None", "11")))
	must(s.Update(at("a", "None", "12")))
	must(s.Delete(at("a", "None", "12")))
	must(s.Delete(at("unknown", "10.96.0.7", "13")))
	must(s.Resync())
	changes(3)
	if got := store.Service(named("odd")); got == nil || got.ClusterIPs[0].String() != "10.96.0.4" {
		t.Errorf("odd is %+v", got)
	}
	if n := logs.count("spec.externalIPs[0]"); n != 1 {
		t.Errorf("a problem is logged %d times for one version", n)
	}
	if err := s.Add(&v1.Pod{}); err == nil {
		t.Error("a Pod is no error")
	}
}

// dialError returns errors that only differ in the port.
func dialError(port int) error {
	return &url.Error{Op: "Get", URL: "https://10.0.0.1:6443/api/v1/services", Err: fmt.Errorf("read tcp 10.0.0.2:%d->10.0.0.1:6443: connection reset by peer", port)}
}

// TestCausesAreLimited proves that errors that are always different do not flood the log.
func TestCausesAreLimited(t *testing.T) {
	var logs logBuffer
	o := &outage{resource: "services", log: logs.logger(), explain: func(error) string { return "" }}
	for n := range 1000 {
		o.record(t.Context(), metav1.ListOptions{}, errors.New("odd "+strings.Repeat("x", n)))
	}
	if n := logs.count("level=WARN"); n != maxCauses {
		t.Errorf("%d lines, want %d", n, maxCauses)
	}
}

func TestOutage(t *testing.T) {
	var logs logBuffer
	o := &outage{resource: "services", log: logs.logger(), explain: func(error) string { return "" }}
	stream := metav1.ListOptions{SendInitialEvents: ptr.To(true)}
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	refused := errors.New("connection refused")
	steps := []struct {
		name      string
		ctx       context.Context
		opts      metav1.ListOptions
		err       error
		bad, good int
	}{
		{"all is well", context.Background(), stream, nil, 0, 0},
		{"expired", context.Background(), metav1.ListOptions{}, apierrors.NewResourceExpired("old"), 0, 0},
		{"no streams", context.Background(), stream, apierrors.NewInvalid(schema.GroupKind{}, "", nil), 0, 0},
		{"stopped", ended, metav1.ListOptions{}, refused, 0, 0},
		{"refused", context.Background(), stream, refused, 1, 0},
		{"refused again", context.Background(), metav1.ListOptions{}, refused, 1, 0},
		{"back", context.Background(), metav1.ListOptions{}, nil, 1, 1},
		{"still back", context.Background(), metav1.ListOptions{}, nil, 1, 1},
		{"forbidden", context.Background(), metav1.ListOptions{}, apierrors.NewForbidden(schema.GroupResource{}, "", refused), 2, 1},
		{"another cause", context.Background(), stream, dialError(41000), 3, 1},
		{"the same from another port", context.Background(), stream, dialError(41001), 3, 1},
		{"a cause from before", context.Background(), metav1.ListOptions{}, apierrors.NewForbidden(schema.GroupResource{}, "", refused), 3, 1},
		{"not known any more", context.Background(), metav1.ListOptions{}, apierrors.NewUnauthorized("expired"), 4, 1},
		{"back again", context.Background(), metav1.ListOptions{}, nil, 4, 2},
		{"the next outage", context.Background(), stream, dialError(41002), 5, 2},
	}
	for _, s := range steps {
		o.record(s.ctx, s.opts, s.err)
		if bad, good := logs.count("level=WARN", "API server"), logs.count("level=INFO", "reachable again"); bad != s.bad || good != s.good {
			t.Errorf("%s: %d times bad and %d times good, want %d and %d", s.name, bad, good, s.bad, s.good)
		}
	}
}

func TestNewAPISourceErrors(t *testing.T) {
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	broken := filepath.Join(t.TempDir(), "kubeconfig")
	if err := os.WriteFile(broken, []byte("clusters: 7"), 0o600); err != nil {
		t.Fatal(err)
	}
	empty := filepath.Join(t.TempDir(), "empty")
	if err := os.WriteFile(empty, []byte("\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		o    APIOptions
		want string
	}{
		"empty kubeconfig":   {APIOptions{NodeName: "n1", Kubeconfig: empty}, "empty: the file is empty"},
		"no node name":       {APIOptions{Master: "http://127.0.0.1:1"}, "name of the node"},
		"no server":          {APIOptions{NodeName: "n1"}, "--kubeconfig or --master"},
		"missing kubeconfig": {APIOptions{NodeName: "n1", Kubeconfig: broken + "x"}, "kubeconfigx"},
		"broken kubeconfig":  {APIOptions{NodeName: "n1", Kubeconfig: broken}, "read kubeconfig"},
	} {
		if _, err := NewAPISource(c.o, NewFeed()); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %v, want %q", name, err, c.want)
		}
	}
}

func TestRecorder(t *testing.T) {
	var none *Recorder
	none.Service(named("a"), true, "Reason", "message")
	none.Node(true, "Reason", "message")
	if err := none.NodeAtOnce(t.Context(), "Reason", "message"); err != nil {
		t.Error(err)
	}
	if s := clipNote(strings.Repeat("é", 1000)); len(s) > maxNote || !strings.HasSuffix(s, "é…") {
		t.Errorf("a note of %d bytes ends with %q", len(s), s[len(s)-6:])
	}
	if s := clipNote("short"); s != "short" {
		t.Errorf("a short note becomes %q", s)
	}
}

func TestAPISourceStopsWhileItsServerRefuses(t *testing.T) {
	a := newFakeAPI(t, true)
	a.Close()
	f, _ := attach(t, a, func(*APIOptions) {}) // its cleanup checks that Run returns
	f.until("it was tried", func() bool { return f.logs.count("lost contact with the API server", "resource=services") == 1 })
}

func TestEventsFromBeforeTheStartAreSent(t *testing.T) {
	a := newFakeAPI(t, true)
	s, err := NewAPISource(APIOptions{Master: a.URL, NodeName: "n1", ContentType: "application/json"}, NewFeed())
	if err != nil {
		t.Fatal(err)
	}
	s.Recorder().Node(true, "Early", "before anything runs")
	if len(a.events) > 0 {
		t.Error("sent already")
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- s.Run(ctx) }()
	if e := next(t, a.events); e.Reason != "Early" || e.Type != "Warning" || e.Regarding.Name != "n1" {
		t.Errorf("event %+v", e)
	}
	cancel()
	if err := next(t, done); err != nil {
		t.Error(err)
	}
}

func TestNodeAtOnce(t *testing.T) {
	a := newFakeAPI(t, true)
	s, err := NewAPISource(APIOptions{Master: a.URL, NodeName: strings.Repeat("n", 250), ContentType: "application/json"}, NewFeed())
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Recorder().NodeAtOnce(t.Context(), "ModeUnusable", strings.Repeat("x", 2000)); err != nil {
		t.Fatal(err)
	}
	e := next(t, a.events)
	if e.Reason != "ModeUnusable" || e.Type != "Warning" || e.Namespace != "default" || e.EventTime.IsZero() || e.Action == "" || e.ReportingController != "fairlead" {
		t.Errorf("event %+v", e)
	}
	if len(e.Name) > 253 || len(e.ReportingInstance) > 128 || len(e.Note) > maxNote {
		t.Errorf("the API server refuses %d bytes of name, %d of instance, %d of note", len(e.Name), len(e.ReportingInstance), len(e.Note))
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Recorder().NodeAtOnce(ctx, "ModeUnusable", "late"); err == nil {
		t.Error("no error without an answer")
	}
}

// Package manifests tests the manifests in this directory as hack/manifests renders them into the
// golden files in testdata. "make manifests" writes these files. The tests of package e2e check
// that they are up to date and apply them to a real API server.
package manifests

import (
	"bytes"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/fairlead/fairlead/internal/config"
	"github.com/fairlead/fairlead/internal/health"
)

// podMonitor has the fields of the Prometheus operator's kind that are used here.
type podMonitor struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
	Spec              struct {
		Selector            metav1.LabelSelector `json:"selector"`
		PodMetricsEndpoints []struct {
			Port          string `json:"port"`
			Interval      string `json:"interval"`
			Authorization struct {
				Credentials corev1.SecretKeySelector `json:"credentials"`
			} `json:"authorization"`
			Relabelings []struct {
				SourceLabels []string `json:"sourceLabels"`
				TargetLabel  string   `json:"targetLabel"`
				Replacement  string   `json:"replacement"`
			} `json:"relabelings"`
		} `json:"podMetricsEndpoints"`
	} `json:"spec"`
}

// rendered is the content of one golden file.
type rendered struct {
	// words is the command that renders it.
	words    []string
	ds       *appsv1.DaemonSet
	configs  map[string]*corev1.ConfigMap
	accounts map[string]*corev1.ServiceAccount
	secrets  map[string]*corev1.Secret
	roles    map[string]*rbacv1.ClusterRole
	bindings []*rbacv1.ClusterRoleBinding
	monitor  *podMonitor
}

// load decodes the documents of a golden file, strictly.
func load(t *testing.T, file string) rendered {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	first, rest, _ := bytes.Cut(text, []byte("\n"))
	r := rendered{
		words: strings.Fields(strings.TrimPrefix(string(first), "#")), configs: map[string]*corev1.ConfigMap{},
		accounts: map[string]*corev1.ServiceAccount{}, secrets: map[string]*corev1.Secret{}, roles: map[string]*rbacv1.ClusterRole{},
	}
	for doc := range bytes.SplitSeq(bytes.TrimPrefix(rest, []byte("---\n")), []byte("\n---\n")) {
		var head metav1.TypeMeta
		if err := yaml.Unmarshal(doc, &head); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		decode := func(into any) {
			if err := yaml.UnmarshalStrict(doc, into); err != nil {
				t.Fatalf("%s: %s: %v", file, head.Kind, err)
			}
		}
		switch head.APIVersion + " " + head.Kind {
		case "apps/v1 DaemonSet":
			if r.ds != nil {
				t.Fatalf("%s: a second DaemonSet", file)
			}
			r.ds = new(appsv1.DaemonSet)
			decode(r.ds)
		case "v1 ConfigMap":
			o := new(corev1.ConfigMap)
			decode(o)
			r.configs[o.Name] = o
		case "v1 ServiceAccount":
			o := new(corev1.ServiceAccount)
			decode(o)
			r.accounts[o.Name] = o
		case "v1 Secret":
			o := new(corev1.Secret)
			decode(o)
			r.secrets[o.Name] = o
		case "rbac.authorization.k8s.io/v1 ClusterRole":
			o := new(rbacv1.ClusterRole)
			decode(o)
			r.roles[o.Name] = o
		case "rbac.authorization.k8s.io/v1 ClusterRoleBinding":
			o := new(rbacv1.ClusterRoleBinding)
			decode(o)
			r.bindings = append(r.bindings, o)
		case "monitoring.coreos.com/v1 PodMonitor":
			r.monitor = new(podMonitor)
			decode(r.monitor)
		default:
			t.Fatalf("%s: %s %s is not expected", file, head.APIVersion, head.Kind)
		}
	}
	if r.ds == nil {
		t.Fatalf("%s: no DaemonSet", file)
	}
	return r
}

// each runs a test on each golden file.
func each(t *testing.T, test func(*testing.T, rendered)) {
	t.Helper()
	files, err := filepath.Glob("testdata/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no golden files: %v", err)
	}
	for _, f := range files {
		t.Run(strings.TrimSuffix(filepath.Base(f), ".yaml"), func(t *testing.T) { test(t, load(t, f)) })
	}
}

// dropIn reports whether it is kube-proxy's DaemonSet, whose account and ConfigMap kubeadm creates.
func (r rendered) dropIn() bool { return r.ds.Name == "kube-proxy" }

// hasOtherProxy reports whether Fairlead serves only Services with a label, so that another proxy
// is on the node.
func (r rendered) hasOtherProxy() bool {
	return slices.ContainsFunc(r.ds.Spec.Template.Spec.Containers[0].Args, func(a string) bool { return strings.HasPrefix(a, "--service-proxy-name=") })
}

// daemon returns the container that runs the daemon, nil for DaemonSets that clean up.
func (r rendered) daemon() *corev1.Container {
	c := &r.ds.Spec.Template.Spec.Containers[0]
	if !strings.Contains(c.Image, "fairlead") {
		return nil
	}
	return c
}

// kubeadmConfig is the config.conf of the drop-in.
const kubeadmConfig = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nclusterCIDR: 10.244.0.0/16\nmode: \"\"\n"

// parse parses a container's arguments as the daemon does, with its environment and ConfigMaps
// resolved.
func (r rendered) parse(t *testing.T, c *corev1.Container) *config.Config {
	t.Helper()
	var pairs []string
	for _, e := range c.Env {
		v := e.Value
		switch {
		case e.ValueFrom == nil:
		case e.ValueFrom.ConfigMapKeyRef != nil:
			ref := e.ValueFrom.ConfigMapKeyRef
			if cm := r.configs[ref.Name]; cm == nil || cm.Data[ref.Key] == "" {
				t.Errorf("%s: there is no %s in a ConfigMap %s", e.Name, ref.Key, ref.Name)
			} else {
				v = cm.Data[ref.Key]
			}
		default:
			v = "n1"
		}
		pairs = append(pairs, "$("+e.Name+")", v)
	}
	dir := t.TempDir()
	for _, m := range c.VolumeMounts {
		for _, v := range r.ds.Spec.Template.Spec.Volumes {
			if v.Name != m.Name || v.ConfigMap == nil {
				continue
			}
			pairs = append(pairs, m.MountPath, dir)
			data := map[string]string{"config.conf": kubeadmConfig}
			if cm := r.configs[v.ConfigMap.Name]; cm != nil {
				data = cm.Data
			} else if !r.dropIn() {
				t.Errorf("there is no ConfigMap %s", v.ConfigMap.Name)
			}
			for name, text := range data {
				if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	replace := strings.NewReplacer(pairs...)
	var args []string
	for _, a := range append(slices.Clone(c.Command), c.Args...) {
		args = append(args, replace.Replace(a))
	}
	if len(c.Command) > 0 {
		args = args[1:]
	}
	cfg, err := config.Parse(args, nil)
	if err != nil {
		t.Fatalf("%q: %v", args, err)
	}
	if notes := cfg.Notes(); len(notes) > 0 {
		t.Errorf("the daemon would warn: %q", notes)
	}
	return cfg
}

// TestContainers checks the parsed arguments and the privileges of all containers.
func TestContainers(t *testing.T) {
	each(t, func(t *testing.T, r rendered) {
		spec := r.ds.Spec.Template.Spec
		d := r.daemon()
		if d == nil {
			return
		}
		cfg := r.parse(t, d)
		if cfg.NodeName != "n1" || len(cfg.ClusterCIDRs) == 0 {
			t.Errorf("unexpected configuration from %q: %+v", d.Args, cfg)
		}
		for _, mode := range []config.Mode{config.ModeNFTables, config.ModeIPVS} {
			named := slices.Contains(r.words, string(mode)) || slices.Contains(r.words, "testdata/values/"+string(mode)+".yaml")
			if named != (cfg.Mode == mode) {
				t.Errorf("%q is in mode %s", r.words, cfg.Mode)
			}
		}
		privileged := d.SecurityContext.Privileged != nil && *d.SecurityContext.Privileged
		if want := cfg.Mode == config.ModeIPTables && cfg.LocalhostNodePorts || r.dropIn(); privileged != want {
			t.Errorf("privileged %t, want %t", privileged, want)
		}
		checkCapabilities(t, r, d, privileged)

		i := slices.IndexFunc(spec.InitContainers, func(c corev1.Container) bool { return c.Name == "init" })
		if i < 0 {
			if !privileged && (cfg.Conntrack.MaxPerCore != 0 || cfg.Mode == config.ModeIPVS) {
				t.Error("nothing sets the kernel parameters that the daemon is configured to set")
			}
			return
		}
		first := r.parse(t, &spec.InitContainers[i])
		if !first.InitOnly || first.Mode != cfg.Mode || first.NodeName != cfg.NodeName {
			t.Errorf("the container init has --init-only %t, mode %s, node %s", first.InitOnly, first.Mode, first.NodeName)
		}
		if diff := cmp.Diff(cfg.Conntrack, first.Conntrack); diff != "" {
			t.Errorf("the containers want different connection-tracking parameters:\n%s", diff)
		}
	})
}

func checkCapabilities(t *testing.T, r rendered, d *corev1.Container, privileged bool) {
	t.Helper()
	if privileged {
		return
	}
	want := []corev1.Capability{"NET_ADMIN", "NET_RAW"}
	if slices.Contains(r.words, "no-iptables") {
		want = []corev1.Capability{"NET_ADMIN"}
	}
	if slices.ContainsFunc(d.VolumeMounts, func(m corev1.VolumeMount) bool { return m.MountPath == "/lib/modules" }) {
		want = append(want, "SYS_MODULE")
	}
	c := d.SecurityContext
	if !slices.Equal(c.Capabilities.Add, want) || !slices.Equal(c.Capabilities.Drop, []corev1.Capability{"ALL"}) {
		t.Errorf("capabilities %v without %v, want %v", c.Capabilities.Add, c.Capabilities.Drop, want)
	}
	if *c.AllowPrivilegeEscalation || !*c.ReadOnlyRootFilesystem {
		t.Errorf("security context %+v", c)
	}
}

// TestWithoutIPTables checks that the component leaves nothing that only iptables needs.
func TestWithoutIPTables(t *testing.T) {
	r := load(t, "testdata/kubeadm-nftables.yaml")
	if v := r.ds.Spec.Template.Spec.Volumes; len(v) != 0 {
		t.Errorf("volumes are left: %v", v)
	}
}

// TestPorts compares ports and probes with the addresses of the servers, and requests the paths of
// the probes from the health server.
func TestPorts(t *testing.T) {
	h := health.NewState(health.Options{SyncPeriod: config.Default().SyncPeriod}).Handler()
	each(t, func(t *testing.T, r rendered) {
		d := r.daemon()
		if d == nil {
			return
		}
		cfg := r.parse(t, d)
		listens := map[string]int32{"health": int32(cfg.HealthzAddress.Port()), "metrics": int32(cfg.MetricsAddress.Port())}
		for _, p := range d.Ports {
			if p.ContainerPort != listens[p.Name] || p.HostPort != p.ContainerPort {
				t.Errorf("port %s is %d of the container and %d of the host, the server listens on %d", p.Name, p.ContainerPort, p.HostPort, listens[p.Name])
			}
			delete(listens, p.Name)
		}
		if _, named := listens["metrics"]; named != cfg.MetricsAddress.Addr().IsLoopback() && !r.dropIn() {
			t.Errorf("the metrics server listens on %s, the container's ports are %v", cfg.MetricsAddress, d.Ports)
		}
		for probe, path := range map[*corev1.Probe]string{d.LivenessProbe: "/livez", d.ReadinessProbe: "/readyz"} {
			if probe.HTTPGet.Path != path {
				t.Errorf("a probe asks for %s, want %s", probe.HTTPGet.Path, path)
			}
			if p := probe.HTTPGet.Port; p.StrVal != "health" && p.IntVal != int32(cfg.HealthzAddress.Port()) {
				t.Errorf("%s is asked for on port %s, the server listens on %s", path, p.String(), cfg.HealthzAddress)
			}
			w := httptest.NewRecorder()
			h.ServeHTTP(w, httptest.NewRequest("GET", path, nil))
			if w.Code == 404 {
				t.Errorf("%s is not served", path)
			}
		}
	})
}

// TestPermissions compares what RBAC allows the daemon with what its configuration needs.
// TestDropIn of package e2e checks that it needs no more.
func TestPermissions(t *testing.T) {
	each(t, func(t *testing.T, r rendered) {
		d := r.daemon()
		if d == nil {
			return
		}
		cfg := r.parse(t, d)
		want := map[string]string{}
		if !r.dropIn() {
			want = map[string]string{
				"/services": "list watch", "/nodes": "list watch", "discovery.k8s.io/endpointslices": "list watch", "events.k8s.io/events": "create patch",
			}
			if cfg.WatchesServiceCIDRs() {
				want["networking.k8s.io/servicecidrs"] = "list watch"
			}
		}
		if cfg.MetricsAuth {
			want["authentication.k8s.io/tokenreviews"] = "create"
			want["authorization.k8s.io/subjectaccessreviews"] = "create"
		}
		if cfg.RemoveTaint != "" {
			want["/nodes"] = "list patch watch"
		}
		if diff := cmp.Diff(want, r.allowed(t, r.ds.Spec.Template.Spec.ServiceAccountName)); diff != "" {
			t.Errorf("permissions (-want +got):\n%s", diff)
		}
	})
}

// allowed returns what an account may do by the roles that are bound to it: verbs by group and
// resource.
func (r rendered) allowed(t *testing.T, account string) map[string]string {
	t.Helper()
	verbs := map[string][]string{}
	for _, b := range r.bindings {
		for _, s := range b.Subjects {
			if s.Kind != rbacv1.ServiceAccountKind || s.Name != account || s.Namespace != r.ds.Namespace {
				continue
			}
			role := r.roles[b.RoleRef.Name]
			if role == nil {
				t.Fatalf("there is no ClusterRole %s", b.RoleRef.Name)
			}
			for _, rule := range role.Rules {
				for _, g := range rule.APIGroups {
					for _, res := range rule.Resources {
						verbs[g+"/"+res] = append(verbs[g+"/"+res], rule.Verbs...)
					}
				}
			}
		}
	}
	out := map[string]string{}
	for what, v := range verbs {
		slices.Sort(v)
		out[what] = strings.Join(slices.Compact(v), " ")
	}
	return out
}

// TestReferences checks the names by which objects refer to each other.
func TestReferences(t *testing.T) {
	each(t, func(t *testing.T, r rendered) {
		spec := r.ds.Spec.Template.Spec
		if name := spec.ServiceAccountName; r.accounts[name] == nil && name != "" && !r.dropIn() {
			t.Errorf("there is no ServiceAccount %s", name)
		}
		for _, b := range r.bindings {
			for _, s := range b.Subjects {
				if r.accounts[s.Name] == nil && !r.dropIn() {
					t.Errorf("ClusterRoleBinding %s: there is no ServiceAccount %s", b.Name, s.Name)
				}
			}
			if r.roles[b.RoleRef.Name] == nil {
				t.Errorf("ClusterRoleBinding %s: there is no ClusterRole %s", b.Name, b.RoleRef.Name)
			}
		}
		labels := r.ds.Spec.Template.Labels
		selects := func(who string, s *metav1.LabelSelector) {
			if len(s.MatchLabels) == 0 {
				t.Errorf("%s selects everything", who)
			}
			for k, v := range s.MatchLabels {
				if labels[k] != v {
					t.Errorf("%s selects %s=%s, pods have %v", who, k, v, labels)
				}
			}
		}
		selects("the DaemonSet", r.ds.Spec.Selector)
		mounted := map[string]bool{}
		for _, c := range append(slices.Clone(spec.InitContainers), spec.Containers...) {
			for _, m := range c.VolumeMounts {
				mounted[m.Name] = true
				if !slices.ContainsFunc(spec.Volumes, func(v corev1.Volume) bool { return v.Name == m.Name }) {
					t.Errorf("there is no volume %s", m.Name)
				}
			}
		}
		for _, v := range spec.Volumes {
			if !mounted[v.Name] {
				t.Errorf("nothing mounts volume %s", v.Name)
			}
		}
		if m := r.monitor; m != nil {
			selects("the PodMonitor", &m.Spec.Selector)
			e := m.Spec.PodMetricsEndpoints[0]
			if !slices.ContainsFunc(spec.Containers[0].Ports, func(p corev1.ContainerPort) bool { return p.Name == e.Port }) {
				t.Errorf("the PodMonitor wants port %s, the container has %v", e.Port, spec.Containers[0].Ports)
			}
			job := ""
			for _, l := range e.Relabelings {
				if l.TargetLabel == "job" && len(l.SourceLabels) == 0 {
					job = l.Replacement
				}
			}
			if another := r.hasOtherProxy(); job != map[bool]string{false: "kube-proxy", true: "fairlead"}[another] {
				t.Errorf("the job is %q, with another proxy on the node: %v", job, another)
			}
			if name := e.Authorization.Credentials.Name; name != "" {
				if s := r.secrets[name]; s == nil || r.accounts[s.Annotations[corev1.ServiceAccountNameKey]] == nil {
					t.Errorf("there is no Secret %s with the token of an account", name)
				}
			}
		}
	})
}

// TestDirectories checks that every directory is in some golden file.
func TestDirectories(t *testing.T) {
	used := map[string]bool{"base": true}
	each(t, func(_ *testing.T, r rendered) {
		for _, w := range r.words[1:] {
			used[w] = true
		}
	})
	for _, pattern := range []string{"*/kustomization.yaml", "*/Chart.yaml", "testdata/values/*.yaml"} {
		found, err := filepath.Glob(pattern)
		if err != nil || len(found) == 0 {
			t.Fatalf("%s: %v", pattern, err)
		}
		for _, f := range found {
			if name := strings.TrimSuffix(strings.TrimSuffix(f, "/kustomization.yaml"), "/Chart.yaml"); !used[name] {
				t.Errorf("%s is in no golden file", name)
			}
		}
	}
}

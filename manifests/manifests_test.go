// Package manifests tests the manifests in this directory.
package manifests

import (
	"bytes"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"sigs.k8s.io/yaml"

	"github.com/fairlead/fairlead/internal/config"
	"github.com/fairlead/fairlead/internal/health"
)

// kinds has a value of the API for each kind that is used.
var kinds = map[string]func() any{
	"apps/v1 DaemonSet":                               func() any { return new(appsv1.DaemonSet) },
	"v1 ServiceAccount":                               func() any { return new(corev1.ServiceAccount) },
	"rbac.authorization.k8s.io/v1 ClusterRole":        func() any { return new(rbacv1.ClusterRole) },
	"rbac.authorization.k8s.io/v1 ClusterRoleBinding": func() any { return new(rbacv1.ClusterRoleBinding) },
}

// objects decodes the documents of the base, strictly.
func objects(t *testing.T) []any {
	t.Helper()
	var out []any
	for _, file := range kustomization(t, "base").Resources {
		data, err := os.ReadFile(filepath.Join("base", file))
		if err != nil {
			t.Fatal(err)
		}
		for doc := range bytes.SplitSeq(data, []byte("\n---\n")) {
			var head struct{ APIVersion, Kind string }
			if err := yaml.Unmarshal(doc, &head); err != nil {
				t.Fatalf("%s: %v", file, err)
			}
			newObject := kinds[head.APIVersion+" "+head.Kind]
			if newObject == nil {
				t.Fatalf("%s: %s %s is not expected", file, head.APIVersion, head.Kind)
			}
			o := newObject()
			if err := yaml.UnmarshalStrict(doc, o); err != nil {
				t.Fatalf("%s: %s: %v", file, head.Kind, err)
			}
			out = append(out, o)
		}
	}
	return out
}

type kustomize struct {
	Resources, Components []string
	ConfigMapGenerator    []struct {
		Name string
		Envs []string
	}
	Patches []struct{ Patch string }
}

func kustomization(t *testing.T, dir string) kustomize {
	t.Helper()
	var k kustomize
	data, err := os.ReadFile(filepath.Join(dir, "kustomization.yaml"))
	if err == nil {
		err = yaml.Unmarshal(data, &k)
	}
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func daemonSet(t *testing.T) (*appsv1.DaemonSet, corev1.Container) {
	t.Helper()
	for _, o := range objects(t) {
		if ds, ok := o.(*appsv1.DaemonSet); ok {
			return ds, ds.Spec.Template.Spec.Containers[0]
		}
	}
	t.Fatal("no DaemonSet")
	return nil, corev1.Container{}
}

// patched is the base's DaemonSet with the patches of components, in this order.
func patched(t *testing.T, components ...string) (*appsv1.DaemonSet, corev1.Container) {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("base", "daemonset.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var tree any
	if err := yaml.Unmarshal(data, &tree); err != nil {
		t.Fatal(err)
	}
	for _, dir := range components {
		for _, p := range kustomization(t, dir).Patches {
			var ops []operation
			if err := yaml.UnmarshalStrict([]byte(p.Patch), &ops); err != nil {
				t.Fatalf("%s: %v", dir, err)
			}
			for _, o := range ops {
				tree = o.apply(t, tree, strings.Split(o.Path, "/")[1:])
			}
		}
	}
	ds := new(appsv1.DaemonSet)
	if data, err = yaml.Marshal(tree); err == nil {
		err = yaml.UnmarshalStrict(data, ds)
	}
	if err != nil {
		t.Fatalf("%v: %v", components, err)
	}
	return ds, ds.Spec.Template.Spec.Containers[0]
}

// operation is one of JSON Patch (RFC 6902), of those that the components use.
type operation struct {
	Op, Path string
	Value    any
}

// apply returns the node with the operation carried out below it.
func (o operation) apply(t *testing.T, node any, path []string) any {
	t.Helper()
	if len(path) == 0 {
		switch {
		case o.Op == "replace":
			return o.Value
		case o.Op != "test":
			t.Fatalf("%s %s: this operation is not known here", o.Op, o.Path)
		case !reflect.DeepEqual(node, o.Value):
			t.Fatalf("%s is %v, the patch expects %v", o.Path, node, o.Value)
		}
		return node
	}
	remove := o.Op == "remove" && len(path) == 1
	switch n := node.(type) {
	case map[string]any:
		child, there := n[path[0]]
		if !there {
			t.Fatalf("%s: there is no %s", o.Path, path[0])
		}
		if remove {
			delete(n, path[0])
		} else {
			n[path[0]] = o.apply(t, child, path[1:])
		}
		return n
	case []any:
		i, err := strconv.Atoi(path[0])
		if err != nil || i >= len(n) {
			t.Fatalf("%s: there is no %s", o.Path, path[0])
		}
		if remove {
			return slices.Delete(n, i, i+1)
		}
		n[i] = o.apply(t, n[i], path[1:])
		return n
	}
	t.Fatalf("%s: there is nothing below %v", o.Path, node)
	return nil
}

// cluster is what the overlay's ConfigMap holds.
func cluster(t *testing.T) map[string]string {
	t.Helper()
	out := make(map[string]string)
	for _, g := range kustomization(t, "kubeadm").ConfigMapGenerator {
		for _, file := range g.Envs {
			data, err := os.ReadFile(filepath.Join("kubeadm", file))
			if err != nil {
				t.Fatal(err)
			}
			for line := range strings.Lines(string(data)) {
				if name, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok && !strings.HasPrefix(name, "#") {
					out[g.Name+"/"+name] = value
				}
			}
		}
	}
	return out
}

// TestArguments lets the daemon's parser read the container's arguments, as they are and as the components make them.
func TestArguments(t *testing.T) {
	for _, tt := range []struct {
		name       string
		components []string
		mode       config.Mode
		localhost  bool
	}{
		{"base", nil, config.ModeIPTables, false},
		{"node ports on localhost", []string{"localhost-nodeports"}, config.ModeIPTables, true},
		{"nftables", []string{"nftables"}, config.ModeNFTables, false},
		{"nftables without iptables", []string{"nftables", "no-iptables"}, config.ModeNFTables, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, c := patched(t, tt.components...)
			cfg := parseArguments(t, c)
			if cfg.NodeName != "n1" || len(cfg.ClusterCIDRs) == 0 || cfg.Mode != tt.mode || cfg.LocalhostNodePorts != tt.localhost {
				t.Errorf("unexpected configuration from %q: %+v", c.Args, cfg)
			}
			if want := cfg.HealthzAddress.Port(); int32(want) != c.Ports[0].ContainerPort {
				t.Errorf("the container names port %d, the health server listens on %d", c.Ports[0].ContainerPort, want)
			}
		})
	}
}

// TestWithoutIPTables checks that the component leaves nothing that only iptables needs.
func TestWithoutIPTables(t *testing.T) {
	ds, c := patched(t, "nftables", "no-iptables")
	if len(ds.Spec.Template.Spec.Volumes) != 0 || len(c.VolumeMounts) != 0 {
		t.Errorf("volumes are left: %v", ds.Spec.Template.Spec.Volumes)
	}
	if got := c.SecurityContext.Capabilities.Add; !slices.Equal(got, []corev1.Capability{"NET_ADMIN"}) {
		t.Errorf("capabilities %v", got)
	}
}

// parseArguments resolves the container's environment in its arguments.
func parseArguments(t *testing.T, c corev1.Container) *config.Config {
	t.Helper()
	values := cluster(t)
	var pairs []string
	for _, e := range c.Env {
		v := "n1"
		if r := e.ValueFrom.ConfigMapKeyRef; r != nil {
			if v = values[r.Name+"/"+r.Key]; v == "" {
				t.Errorf("%s: the overlay has no %s in ConfigMap %s", e.Name, r.Key, r.Name)
			}
		}
		pairs = append(pairs, "$("+e.Name+")", v)
	}
	replace := strings.NewReplacer(pairs...)
	args := make([]string, 0, len(c.Args))
	for _, a := range c.Args {
		args = append(args, replace.Replace(a))
	}
	cfg, err := config.Parse(args, nil)
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

// TestProbes asks the health server for the paths of the probes.
func TestProbes(t *testing.T) {
	_, c := daemonSet(t)
	h := health.NewState(health.Options{SyncPeriod: config.Default().SyncPeriod}).Handler()
	for _, p := range []*corev1.Probe{c.LivenessProbe, c.ReadinessProbe} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest("GET", p.HTTPGet.Path, nil))
		if w.Code == 404 {
			t.Errorf("%s is not served", p.HTTPGet.Path)
		}
	}
}

// TestReferences checks the names by which objects refer to each other.
func TestReferences(t *testing.T) {
	ds, c := daemonSet(t)
	var account, role string
	var binding *rbacv1.ClusterRoleBinding
	for _, o := range objects(t) {
		switch o := o.(type) {
		case *corev1.ServiceAccount:
			account = o.Namespace + "/" + o.Name
		case *rbacv1.ClusterRole:
			role = o.Name
		case *rbacv1.ClusterRoleBinding:
			binding = o
		}
	}
	if s := binding.Subjects[0]; account != s.Namespace+"/"+s.Name || binding.RoleRef.Name != role {
		t.Errorf("the binding does not join account %s and role %s", account, role)
	}
	if got := ds.Namespace + "/" + ds.Spec.Template.Spec.ServiceAccountName; got != account {
		t.Errorf("the DaemonSet uses account %s, want %s", got, account)
	}
	if got, want := ds.Spec.Template.Labels["app.kubernetes.io/name"], ds.Spec.Selector.MatchLabels["app.kubernetes.io/name"]; got == "" || got != want {
		t.Errorf("pods have the label %q, the selector wants %q", got, want)
	}
	for _, m := range c.VolumeMounts {
		if !slices.ContainsFunc(ds.Spec.Template.Spec.Volumes, func(v corev1.Volume) bool { return v.Name == m.Name }) {
			t.Errorf("no volume %s", m.Name)
		}
	}
	for _, dir := range []string{"base", "kubeadm", "localhost-nodeports", "nftables", "no-iptables", "cleanup"} {
		k := kustomization(t, dir)
		for _, path := range append(k.Resources, k.Components...) {
			if _, err := os.Stat(filepath.Join(dir, path)); err != nil {
				t.Errorf("%s/kustomization.yaml: %v", dir, err)
			}
		}
	}
}

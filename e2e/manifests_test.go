package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/restmapper"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/yaml"

	"github.com/fairlead/fairlead/e2e/apiserver"
	"github.com/fairlead/fairlead/e2e/lab"
)

// manifestsDir is where manifests are, and rendered what kustomize and Helm make of them.
const (
	manifestsDir = "../manifests"
	rendered     = manifestsDir + "/testdata"
)

// podMonitors defines the kind of the Prometheus operator, with those of its fields that the
// manifests use.
const podMonitors = `apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata:
  name: podmonitors.monitoring.coreos.com
  annotations: {api-approved.kubernetes.io: unapproved}
spec:
  group: monitoring.coreos.com
  scope: Namespaced
  names: {kind: PodMonitor, listKind: PodMonitorList, plural: podmonitors, singular: podmonitor}
  versions:
  - name: v1
    served: true
    storage: true
    schema:
      openAPIV3Schema:
        type: object
        required: [spec]
        properties:
          spec:
            type: object
            required: [selector]
            properties:
              selector: {type: object, properties: {matchLabels: {type: object, additionalProperties: {type: string}}}}
              podMetricsEndpoints:
                type: array
                items:
                  type: object
                  properties:
                    port: {type: string}
                    interval: {type: string, pattern: "^([0-9]+(ms|s|m|h))+$"}
                    relabelings:
                      type: array
                      items:
                        type: object
                        properties:
                          sourceLabels: {type: array, items: {type: string}}
                          targetLabel: {type: string}
                          replacement: {type: string}
                    authorization:
                      type: object
                      properties:
                        credentials: {type: object, required: [key], properties: {name: {type: string}, key: {type: string}}}
`

// TestManifests gives all that kustomize and Helm make of the manifests to a real API server, which
// checks it as it does for "kubectl apply --server-side --dry-run=server --validate=strict". A
// warning is a failure.
func TestManifests(t *testing.T) {
	lab.RequireKernel(t)
	golden := exec.CommandContext(t.Context(), "go", "-C", "../hack/manifests", "test", "-count=1", ".")
	golden.Env = append(os.Environ(), "GOFLAGS=", "GOWORK=off")
	if out, err := golden.CombinedOutput(); err != nil {
		t.Errorf("%s is not up to date: %v\n%s", rendered, err, out)
	}

	l := lab.ForTest(t, 1, 0)
	server, err := apiserver.Start(t.Context(), apiserver.Config{
		Dir: t.TempDir(), Host: l.Fabric, Addr: l.Fabric.Addrs[0], ServiceCIDRs: lab.ServiceCIDRs[:], RBAC: true, Flags: []string{"--allow-privileged"},
	})
	must(t, err)
	t.Cleanup(func() { check(t, server.Close()) })
	a := newApplier(t, server)
	a.apply(t, documents(t, []byte(podMonitors))[0], false)
	a.awaitKind(t, "monitoring.coreos.com/v1", "PodMonitor")
	// The drop-in is applied over what kubeadm has made.
	text, err := os.ReadFile("testdata/kubeadm.yaml")
	must(t, err)
	for _, o := range documents(t, text) {
		a.apply(t, o, false)
	}

	files, err := filepath.Glob(rendered + "/*.yaml")
	must(t, err)
	if len(files) == 0 {
		t.Fatal("nothing is rendered")
	}
	for _, f := range files {
		t.Run(strings.TrimSuffix(filepath.Base(f), ".yaml"), func(t *testing.T) {
			text, err := os.ReadFile(f)
			must(t, err)
			for _, o := range documents(t, text) {
				a.apply(t, o, true)
			}
		})
	}
	t.Run("what is wrong is refused", func(t *testing.T) {
		o := documents(t, []byte("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a, namespace: kube-system}\ndatum: {}\n"))[0]
		if err := a.try(t.Context(), o, true); err == nil {
			t.Error("a field that does not exist is accepted")
		}
	})
}

// documents are the objects in a text.
func documents(t *testing.T, text []byte) []*unstructured.Unstructured {
	t.Helper()
	var out []*unstructured.Unstructured
	for doc := range bytes.SplitSeq(text, []byte("\n---\n")) {
		o := &unstructured.Unstructured{}
		must(t, yaml.UnmarshalStrict(doc, &o.Object))
		if len(o.Object) > 0 {
			out = append(out, o)
		}
	}
	return out
}

// applier writes objects of any kind.
type applier struct {
	client dynamic.Interface
	mapper *restmapper.DeferredDiscoveryRESTMapper
	// warnings are those of the API server since the last object.
	warnings *warnings
}

// warnings collects; the HTTP client calls it.
type warnings struct {
	// mu guards texts.
	mu    sync.Mutex
	texts []string
}

// HandleWarningHeader implements rest.WarningHandler.
func (w *warnings) HandleWarningHeader(_ int, _, text string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.texts = append(w.texts, text)
}

func (w *warnings) take() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	texts := w.texts
	w.texts = nil
	return texts
}

func newApplier(t *testing.T, server *apiserver.Server) *applier {
	t.Helper()
	cfg, err := server.RESTConfig(apiserver.Admin)
	must(t, err)
	a := &applier{warnings: &warnings{}}
	cfg.WarningHandler = a.warnings
	a.client, err = dynamic.NewForConfig(cfg)
	must(t, err)
	d, err := discovery.NewDiscoveryClientForConfig(cfg)
	must(t, err)
	a.mapper = restmapper.NewDeferredDiscoveryRESTMapper(freshDiscovery{d})
	return a
}

// freshDiscovery is a discovery cache that caches nothing, so that new kinds are known at once.
type freshDiscovery struct{ discovery.DiscoveryInterface }

// Fresh implements discovery.CachedDiscoveryInterface.
func (freshDiscovery) Fresh() bool { return true }

// Invalidate implements discovery.CachedDiscoveryInterface.
func (freshDiscovery) Invalidate() {}

// awaitKind waits until the API server knows a kind that was defined just now.
func (a *applier) awaitKind(t *testing.T, version, kind string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), settleTimeout)
	defer cancel()
	o := &unstructured.Unstructured{}
	o.SetAPIVersion(version)
	o.SetKind(kind)
	o.SetName("a")
	o.SetNamespace(namespace)
	o.Object["spec"] = map[string]any{"selector": map[string]any{}}
	for {
		a.mapper.Reset()
		err := a.try(ctx, o, true)
		if err == nil {
			return
		}
		if ctx.Err() != nil {
			t.Fatalf("%s is not served: %v", kind, err)
		}
	}
}

// apply writes an object, or lets the API server only check it; a warning is an error.
func (a *applier) apply(t *testing.T, o *unstructured.Unstructured, dryRun bool) {
	t.Helper()
	if err := a.try(t.Context(), o, dryRun); err != nil {
		t.Errorf("%s %s: %v", o.GetKind(), o.GetName(), err)
	}
	for _, w := range a.warnings.take() {
		t.Errorf("%s %s: warning: %s", o.GetKind(), o.GetName(), w)
	}
}

func (a *applier) try(ctx context.Context, o *unstructured.Unstructured, dryRun bool) error {
	r, err := a.resource(o)
	if err != nil {
		return err
	}
	data, err := json.Marshal(o)
	if err != nil {
		return err
	}
	options := metav1.PatchOptions{FieldManager: "e2e", Force: ptr.To(true), FieldValidation: metav1.FieldValidationStrict}
	if dryRun {
		options.DryRun = []string{metav1.DryRunAll}
	}
	_, err = r.Patch(ctx, o.GetName(), types.ApplyPatchType, data, options)
	return err
}

// put writes objects and deletes them at the end of the test. Kinds of the Prometheus operator are
// left out.
func (a *applier) put(t *testing.T, objects []*unstructured.Unstructured) {
	t.Helper()
	for _, o := range objects {
		if o.GetKind() == "PodMonitor" {
			continue
		}
		must(t, a.try(t.Context(), o, false))
		t.Cleanup(func() { check(t, a.remove(context.Background(), o)) })
	}
}

// remove deletes an object. It is not an error if the object does not exist.
func (a *applier) remove(ctx context.Context, o *unstructured.Unstructured) error {
	r, err := a.resource(o)
	if err != nil {
		return err
	}
	if err := r.Delete(ctx, o.GetName(), metav1.DeleteOptions{}); !apierrors.IsNotFound(err) {
		return err
	}
	return nil
}

// resource is where objects like this one are.
func (a *applier) resource(o *unstructured.Unstructured) (dynamic.ResourceInterface, error) {
	kind := o.GroupVersionKind()
	m, err := a.mapper.RESTMapping(kind.GroupKind(), kind.Version)
	if err != nil {
		return nil, err
	}
	if m.Scope.Name() == meta.RESTScopeNameNamespace {
		return a.client.Resource(m.Resource).Namespace(o.GetNamespace()), nil
	}
	return a.client.Resource(m.Resource), nil
}

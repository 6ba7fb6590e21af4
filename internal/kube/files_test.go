package kube

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/fairlead/fairlead/internal/cluster"
	"github.com/fairlead/fairlead/internal/fwd"
)

// logBuffer collects log lines.
type logBuffer struct {
	// wrote, if not nil, is called after each line.
	wrote func()
	mu    sync.Mutex
	buf   bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	if b.wrote != nil {
		defer b.wrote()
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

// count returns the number of lines that contain all parts.
func (b *logBuffer) count(parts ...string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := 0
	for line := range strings.Lines(b.buf.String()) {
		if !slices.ContainsFunc(parts, func(p string) bool { return !strings.Contains(line, p) }) {
			n++
		}
	}
	return n
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

func (b *logBuffer) logger() *slog.Logger { return slog.New(slog.NewTextHandler(b, nil)) }

func serviceYAML(name, ip string) string {
	return fmt.Sprintf("apiVersion: v1\nkind: Service\nmetadata: {name: %s, namespace: ns}\nspec: {clusterIP: %s, ports: [{port: 80}]}\n", name, ip)
}

const sliceYAML = `apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: a-1, namespace: ns, labels: {kubernetes.io/service-name: a}}
addressType: IPv4
ports: [{name: "", port: 8080}]
endpoints: [{addresses: [10.0.1.1], nodeName: n1}]
`

const nodeYAML = `apiVersion: v1
kind: Node
metadata: {name: n1, labels: {topology.kubernetes.io/zone: z1}}
status: {addresses: [{type: InternalIP, address: 10.1.0.1}]}
`

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// replace writes a temporary file and renames it to the path.
func replace(t *testing.T, path, text string) {
	t.Helper()
	temporary := filepath.Join(t.TempDir(), "new")
	write(t, temporary, text)
	if err := os.Rename(temporary, path); err != nil {
		t.Fatal(err)
	}
}

// follower runs a FileSource and applies what it delivers.
type follower struct {
	t     *testing.T
	feed  *Feed
	store cluster.Store
	logs  logBuffer
}

func newFollower(t *testing.T) *follower {
	f := &follower{t: t, feed: NewFeed()}
	f.logs.wrote = f.feed.signal // so that until can also wait for the log
	return f
}

func follow(t *testing.T, path string) *follower {
	t.Helper()
	return followWith(t, path, Converter{})
}

func followWith(t *testing.T, path string, o Converter) *follower {
	t.Helper()
	f := newFollower(t)
	s, err := NewFileSource(path, "n1", o, f.logs.logger(), f.feed)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	f.until("synced", func() bool { return f.feed.Synced() })
	return f
}

// patience is the timeout for anything that takes milliseconds on an idle machine.
const patience = 3 * time.Minute

// until drains the Feed whenever it wakes, until the condition holds and the Feed is drained.
func (f *follower) until(what string, ok func() bool) {
	f.t.Helper()
	limit := time.After(patience)
	for {
		f.feed.Drain(&f.store)
		if ok() {
			// The condition may depend on a change that came after the last Drain.
			f.feed.Drain(&f.store)
			return
		}
		select {
		case <-f.feed.Wake():
		case <-limit:
			f.t.Fatalf("timeout: %s; log:\n%s", what, f.logs.String())
		}
	}
}

func (f *follower) ip(name string) string {
	if s := f.store.Service(named(name)); s != nil {
		return s.ClusterIPs[0].String()
	}
	return "none"
}

func (f *follower) untilIP(name, ip string) {
	f.t.Helper()
	f.until(name+" has IP "+ip, func() bool { return f.ip(name) == ip })
}

func TestFileSourceFollowsAFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "objects.yaml")
	write(t, path, serviceYAML("a", "10.96.0.1")+"---\n"+sliceYAML+"---\n"+nodeYAML)
	f := follow(t, path)
	if f.ip("a") != "10.96.0.1" || len(f.store.Slices(named("a"))) != 1 || f.store.Node().Zone != "z1" {
		t.Fatalf("service %s, slices %v, node %+v", f.ip("a"), f.store.Slices(named("a")), f.store.Node())
	}
	write(t, path, serviceYAML("a", "10.96.0.2")+"---\n"+sliceYAML+"---\n"+nodeYAML)
	f.untilIP("a", "10.96.0.2")
	replace(t, path, serviceYAML("a", "10.96.0.3")+"---\n"+nodeYAML)
	f.untilIP("a", "10.96.0.3")
	f.until("slice gone", func() bool { return len(f.store.Slices(named("a"))) == 0 })
	replace(t, path, serviceYAML("a", "10.96.0.4"))
	f.untilIP("a", "10.96.0.4")
	if f.store.Node().Name != "n1" || f.store.Node().Zone != "" || f.logs.count("level=INFO", "Node n1") != 1 {
		t.Errorf("node %+v, log\n%s", f.store.Node(), f.logs.String())
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	f.untilIP("a", "none")
	write(t, path, serviceYAML("a", "10.96.0.5"))
	f.untilIP("a", "10.96.0.5")
}

// TestFileSourceForANamedProxy proves that a Service is handled while it has the right label, and
// that slices need no label.
func TestFileSourceForANamedProxy(t *testing.T) {
	path := filepath.Join(t.TempDir(), "objects.yaml")
	labelled := func(proxy string) string {
		return strings.Replace(serviceYAML("a", "10.96.0.1"), "namespace: ns", "namespace: ns, labels: {service.kubernetes.io/service-proxy-name: "+proxy+"}", 1)
	}
	others := "---\n" + serviceYAML("b", "10.96.0.2") + "---\n" + sliceYAML
	write(t, path, labelled("mine")+others)
	f := followWith(t, path, Converter{ServiceProxyName: "mine"})
	if f.ip("a") != "10.96.0.1" || f.ip("b") != "none" || len(f.store.Slices(named("a"))) != 1 {
		t.Errorf("a has %s and %d slices, b has %s", f.ip("a"), len(f.store.Slices(named("a"))), f.ip("b"))
	}
	write(t, path, labelled("theirs")+others)
	f.untilIP("a", "none")
	write(t, path, labelled("mine")+others)
	f.untilIP("a", "10.96.0.1")
	write(t, path, serviceYAML("a", "10.96.0.1")+others)
	f.untilIP("a", "none")
}

func TestFileSourceKeepsTheLastGoodState(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "objects.yaml")
	marker := filepath.Join(dir, "marker.yaml")
	write(t, path, serviceYAML("a", "10.96.0.1")+"---\n"+serviceYAML("b", "10.96.0.2"))
	f := follow(t, dir)

	replace(t, path, serviceYAML("a", "10.96.0.9")+"---\nkind: [unfinished\n")
	write(t, marker, serviceYAML("m", "10.96.1.1"))
	f.untilIP("m", "10.96.1.1")
	if f.ip("a") != "10.96.0.1" || f.ip("b") != "10.96.0.2" {
		t.Errorf("a has %s, b has %s after a file that does not parse", f.ip("a"), f.ip("b"))
	}
	if n := f.logs.count("level=ERROR", "objects.yaml", "document 2", "line 6"); n != 1 {
		t.Errorf("%d lines name the document:\n%s", n, f.logs.String())
	}

	replace(t, path, serviceYAML("a", "10.96.0.3")+"---\n"+strings.Replace(serviceYAML("b", "10.96.0.4"), "80", `"eighty"`, 1))
	f.untilIP("a", "10.96.0.3")
	if f.ip("b") != "10.96.0.2" {
		t.Errorf("b has %s after an object that cannot be read", f.ip("b"))
	}
	if n := f.logs.count("level=ERROR", "ignoring invalid object", "objects.yaml", "document 2", "Service ns/b", "port"); n != 1 {
		t.Errorf("%d lines name the object:\n%s", n, f.logs.String())
	}
	write(t, marker, serviceYAML("m", "10.96.1.2"))
	f.untilIP("m", "10.96.1.2")
	if n := f.logs.count("ignoring invalid object"); n != 1 {
		t.Errorf("the same bad object is logged %d times:\n%s", n, f.logs.String())
	}
}

func TestFileSourceFollowsADirectory(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "b.yml"), serviceYAML("a", "10.96.0.2")+"---\n"+serviceYAML("b", "10.96.0.3"))
	write(t, filepath.Join(dir, "notes.txt"), "not: [yaml")
	write(t, filepath.Join(dir, ".#b.yml"), "not: [yaml")
	if err := os.Mkdir(filepath.Join(dir, "sub.yaml"), 0o755); err != nil {
		t.Fatal(err)
	}
	f := follow(t, dir)
	if f.ip("a") != "10.96.0.2" {
		t.Fatalf("a has %s", f.ip("a"))
	}
	write(t, filepath.Join(dir, "a.json"), "{\n\t\"apiVersion\": \"v1\", \"kind\": \"Service\", \"metadata\": {\"name\": \"a\", \"namespace\": \"ns\"}, \"spec\": {\"clusterIP\": \"10.96.0.1\"}}")
	f.untilIP("a", "10.96.0.1")
	if n := f.logs.count("defined twice", "Service ns/a", "a.json", "b.yml"); n != 1 {
		t.Errorf("%d lines tell of the second definition:\n%s", n, f.logs.String())
	}
	if err := os.Remove(filepath.Join(dir, "a.json")); err != nil {
		t.Fatal(err)
	}
	f.untilIP("a", "10.96.0.2")
	if err := os.Remove(filepath.Join(dir, "b.yml")); err != nil {
		t.Fatal(err)
	}
	f.untilIP("b", "none")
}

// TestFileSourceFollowsAConfigMap updates a volume as the kubelet does: the files are links through
// ..data, which is replaced.
func TestFileSourceFollowsAConfigMap(t *testing.T) {
	dir := t.TempDir()
	version := func(n int, ip string) {
		name := fmt.Sprintf("..version_%d", n)
		if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(dir, name, "objects.yaml"), serviceYAML("a", ip))
		if err := os.Symlink(name, filepath.Join(dir, "..data_tmp")); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(filepath.Join(dir, "..data_tmp"), filepath.Join(dir, "..data")); err != nil {
			t.Fatal(err)
		}
	}
	version(1, "10.96.0.1")
	path := filepath.Join(dir, "objects.yaml")
	if err := os.Symlink("..data/objects.yaml", path); err != nil {
		t.Fatal(err)
	}
	for name, watched := range map[string]string{"file": path, "directory": dir} {
		t.Run(name, func(t *testing.T) {
			f := follow(t, watched)
			ip := fmt.Sprintf("10.96.0.%d", 2+len(name))
			version(len(name), ip)
			f.untilIP("a", ip)
		})
	}
}

func TestFileSourceAtTheStart(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		write(t, path, text)
		return path
	}
	for _, c := range []struct{ name, path, want string }{
		{"missing", filepath.Join(dir, "missing"), "missing: no such file"},
		{"empty", file("empty.yaml", ""), "empty.yaml is empty"},
		{"comments", file("comments.yaml", "# nothing\n---\n"), "comments.yaml is empty"},
		{"an old dump", file("old.yaml", "apiVersion: discovery.k8s.io/v1beta1\nkind: EndpointSliceList\nitems: [{metadata: {name: a-1}}]\n"),
			"old.yaml: document 1 (line 1): item 1: EndpointSlice default/a-1: discovery.k8s.io/v1beta1 is not supported: want discovery.k8s.io/v1"},
		{"other kinds", file("other.yaml", "apiVersion: v1\nkind: Pod\n"), "no Service, EndpointSlice or Node"},
		{"broken", file("broken.yaml", "\n\n---\na: b\n---\nkind: [\n"), "broken.yaml: document 2 (line 6): yaml: line 6"},
		{"broken JSON", file("broken.json", "{}\n{\"a\": \n,}"), "broken.json: line 3"},
		{"bad object", file("bad.yaml", strings.Replace(serviceYAML("a", "10.96.0.1"), "80", "x", 1)), "Service ns/a"},
		{"directory with a broken file", dir, "broken"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := NewFileSource(c.path, "n1", Converter{}, nil, NewFeed())
			if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("error %q, want one line with %q", err, c.want)
			}
		})
	}
	if _, err := NewFileSource(t.TempDir(), "n1", Converter{}, nil, NewFeed()); err != nil {
		t.Errorf("an empty directory: %v", err)
	}
}

func TestLoadFiles(t *testing.T) {
	indent := func(text string) string { return strings.ReplaceAll(strings.TrimSpace(text), "\n", "\n  ") }
	kubectl := "apiVersion: v1\nkind: List\nitems:\n- " + indent(serviceYAML("a", "10.96.0.1")) + "\n- " + indent(sliceYAML) + "\n- " + indent(nodeYAML) +
		"\n- {apiVersion: v1, kind: Pod, metadata: {name: p}}\nunknown: field\n"
	typed := `{"apiVersion": "v1", "kind": "ServiceList", "items": [{"metadata": {"name": "a"}, "spec": {"clusterIP": "10.96.0.7"}},
		{"metadata": {"name": "headless"}, "spec": {"clusterIP": "None"}},
		{"metadata": {"name": "foreign", "labels": {"service.kubernetes.io/service-proxy-name": "x"}}, "spec": {"clusterIP": "10.96.0.8"}}]}
		{"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSliceList", "items": [
		{"metadata": {"name": "a-1", "labels": {"kubernetes.io/service-name": "a"}}, "addressType": "IPv4"}]}
		{"apiVersion": "v1", "kind": "NodeList", "items": [{"metadata": {"name": "n1", "labels": {"topology.kubernetes.io/zone": "z1"}}}]}`
	t.Run("lists", func(t *testing.T) {
		for name, c := range map[string]struct{ text, namespace string }{
			"kubectl.yaml": {kubectl, "ns"}, "typed.json": {typed, "default"},
		} {
			path := filepath.Join(t.TempDir(), name)
			write(t, path, c.text)
			store, err := LoadFiles(path, "n1", Converter{}, nil)
			if err != nil {
				t.Errorf("%s: %v", name, err)
				continue
			}
			a := fwd.Service{Namespace: c.namespace, Name: "a"}
			services, slices := store.Len()
			if services != 1 || slices != 1 || store.Service(a) == nil || len(store.Slices(a)) != 1 || store.Node().Zone != "z1" {
				t.Errorf("%s: %d services, %d slices, node %+v", name, services, slices, store.Node())
			}
		}
	})
	t.Run("all problems are in the error", func(t *testing.T) {
		dir := t.TempDir()
		write(t, filepath.Join(dir, "a.yaml"), "kind: [\n")
		write(t, filepath.Join(dir, "b.yaml"), "just text\n---\nmetadata: {name: x}\n---\napiVersion: v1\nkind: List\nitems: [{apiVersion: v1, kind: Service, metadata: {name: svc}, spec: 7}]\n")
		_, err := LoadFiles(dir, "n1", Converter{}, nil)
		if err == nil {
			t.Fatal("no error")
		}
		for _, want := range []string{"a.yaml: document 1 (line 1)", "b.yaml: document 1 (line 1): not an object", "b.yaml: document 2 (line 3): apiVersion or kind is missing",
			"b.yaml: document 3 (line 5): item 1: Service default/svc"} {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("the error does not contain %q:\n%v", want, err)
			}
		}
	})
	t.Run("fields are logged", func(t *testing.T) {
		var logs logBuffer
		path := filepath.Join(t.TempDir(), "objects.yaml")
		write(t, path, strings.Replace(serviceYAML("a", "10.96.0.1"), "ports:", "externalIPs: [nonsense], ports:", 1))
		if _, err := LoadFiles(path, "n1", Converter{}, logs.logger()); err != nil {
			t.Fatal(err)
		}
		if logs.count("level=WARN", "Service ns/a", "spec.externalIPs[0]", "nonsense") != 1 {
			t.Errorf("log:\n%s", logs.String())
		}
	})
	if _, err := LoadFiles(filepath.Join(t.TempDir(), "missing"), "n1", Converter{}, nil); err == nil {
		t.Error("a missing path is no error")
	}
}

// TestIgnoredObjectsAreLogged proves that unsupported objects of old dumps are logged once per kind
// and file, with what to do about them.
func TestIgnoredObjectsAreLogged(t *testing.T) {
	const labels = "labels: {kubernetes.io/service-name: a}"
	text := serviceYAML("a", "10.96.0.1") + `---
apiVersion: discovery.k8s.io/v1beta1
kind: EndpointSlice
metadata: {name: beta, namespace: ns, ` + labels + `}
---
apiVersion: discovery.k8s.io/v1beta1
kind: EndpointSliceList
items: [{metadata: {name: beta-2, namespace: ns}}, {metadata: {name: beta-3, namespace: ns}}]
---
apiVersion: v1
kind: List
items: [{apiVersion: v1, kind: Endpoints, metadata: {name: a, namespace: ns}}, {apiVersion: v1, kind: Endpoints, metadata: {name: b, namespace: ns}}]
---
apiVersion: networking.k8s.io/v1alpha1
kind: ServiceCIDR
metadata: {name: kubernetes}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: fqdn, namespace: ns, ` + labels + `}
addressType: FQDN
endpoints: [{addresses: [example.com]}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: lost, namespace: ns}
addressType: IPv4
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: headless, namespace: ns, labels: {kubernetes.io/service-name: a, service.kubernetes.io/headless: ""}}
addressType: FQDN
---
apiVersion: serving.knative.dev/v1
kind: Service
metadata: {name: a, namespace: ns}
`
	want := [][]string{
		{`object="EndpointSlice ns/beta and 2 more"`, "discovery.k8s.io/v1beta1 is not supported", "want discovery.k8s.io/v1,", "document 2"},
		{`object="Endpoints ns/a and 1 more"`, "kubectl get endpointslices", "document 4", "item 1"},
		{`object="ServiceCIDR kubernetes"`, "networking.k8s.io/v1alpha1 is not supported", "want networking.k8s.io/v1,"},
		{`object="EndpointSlice ns/fqdn"`, "FQDN"},
		{`object="EndpointSlice ns/lost"`, "kubernetes.io/service-name"},
	}
	check := func(t *testing.T, logs *logBuffer, path string) {
		t.Helper()
		for _, parts := range want {
			if n := logs.count(append(parts, "level=WARN", "ignoring object", path)...); n != 1 {
				t.Errorf("%q: %d lines", parts, n)
			}
		}
		if n := logs.count("level=WARN"); n != len(want) {
			t.Errorf("%d lines, want %d:\n%s", n, len(want), logs.String())
		}
	}
	path := filepath.Join(t.TempDir(), "objects.yaml")
	write(t, path, text)
	t.Run("read once", func(t *testing.T) {
		var logs logBuffer
		store, err := LoadFiles(path, "n1", Converter{}, logs.logger())
		if err != nil {
			t.Fatal(err)
		}
		if services, slices := store.Len(); services != 1 || slices != 0 {
			t.Errorf("%d services, %d slices", services, slices)
		}
		check(t, &logs, path)
	})
	t.Run("followed", func(t *testing.T) {
		f := follow(t, path)
		check(t, &f.logs, path)
		write(t, path, text+"---\n"+serviceYAML("b", "10.96.0.2"))
		f.untilIP("b", "10.96.0.2")
		check(t, &f.logs, path)
	})
}

func TestLoadFilesFromStandardInput(t *testing.T) {
	path := filepath.Join(t.TempDir(), "in")
	write(t, path, serviceYAML("a", "10.96.0.1"))
	in, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	defer func(old *os.File) { os.Stdin = old }(os.Stdin)
	os.Stdin = in
	store, err := LoadFiles("-", "n1", Converter{}, nil)
	if err != nil || store.Service(named("a")) == nil {
		t.Errorf("store %+v, error %v", store, err)
	}
}

func TestSplitYAML(t *testing.T) {
	docs, err := splitYAML([]byte("%YAML 1.1\n# head\n---\na: 1\n--- # two\nb: |\n ---\n  x\n...\n\n---\n\n---   \nc: 3"))
	if err != nil {
		t.Fatal(err)
	}
	want := []document{{line: 4, text: []byte("a: 1\n")}, {line: 6, text: []byte("b: |\n ---\n  x\n")}, {line: 14, text: []byte("c: 3")}}
	if d := cmp.Diff(want, docs, cmp.AllowUnexported(document{}), cmpopts.EquateEmpty()); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

func FuzzParseFile(f *testing.F) {
	for _, seed := range []string{
		"", "---\n", "null", "{}", "[]", "{\"apiVersion\":\"v1\",\"kind\":\"List\",\"items\":[null,{},7]}", "a: &a [*a]", "\ufeff{}", "--- x\n...\n%",
		serviceYAML("a", "10.96.0.1") + "---\n" + sliceYAML + "---\n" + nodeYAML,
		"apiVersion: v1\nkind: List\nitems: {}\n", "apiVersion: v1\nkind: Service\nmetadata: 7\n",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		r := &reader{convert: Converter{}.interning(), log: slog.New(slog.DiscardHandler)}
		p, err := r.parse("f", data)
		if err != nil && len(p.objects) > 0 {
			t.Errorf("objects in spite of error %v", err)
		}
		for _, o := range p.objects {
			if (o.service != nil) == (o.slice != nil) && o.node == nil {
				t.Errorf("object %v has not one value", o.name)
			}
			if o.service != nil {
				checkService(t, o.service)
			}
		}
	})
}

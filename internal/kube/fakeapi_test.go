package kube

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"

	v1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	eventsv1 "k8s.io/api/events/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// fakeAPI is an API server with a few resources that can be listed and watched, in JSON. It ignores
// selectors; tests check the selectors of the requests.
type fakeAPI struct {
	*httptest.Server
	// streamsLists means that the server supports WatchList.
	streamsLists bool
	// refused receives requests that got status 503, and patches that got 403. events receives
	// posted Events.
	refused chan apiRequest
	events  chan eventsv1.Event
	// patched receives Nodes after a patch.
	patched chan *v1.Node

	mu   sync.Mutex
	down bool
	// racing is called once before a patch is applied.
	racing func()
	// absent are the status codes of resources that the server does not provide.
	absent   map[string]int
	version  int
	objects  map[string]map[string]metav1.Object
	log      []apiChange
	changed  chan struct{}
	requests []apiRequest
}

type apiRequest struct {
	resource string
	query    url.Values
	accept   string
}

func (r apiRequest) watches() bool { return r.query.Get("watch") != "" }

type apiChange struct {
	resource, kind string
	version        int
	object         []byte
}

func newFakeAPI(t *testing.T, streamsLists bool) *fakeAPI {
	a := &fakeAPI{streamsLists: streamsLists, refused: make(chan apiRequest, 100), events: make(chan eventsv1.Event, 100), patched: make(chan *v1.Node, 100),
		version: 1, objects: make(map[string]map[string]metav1.Object), changed: make(chan struct{})}
	a.Server = httptest.NewServer(a)
	t.Cleanup(func() {
		a.CloseClientConnections()
		a.Close()
	})
	return a
}

// put adds or changes an object.
func (a *fakeAPI) put(obj metav1.Object) {
	resource, key := resourceOf(obj), obj.GetNamespace()+"/"+obj.GetName()
	a.mu.Lock()
	defer a.mu.Unlock()
	a.version++
	obj.SetResourceVersion(fmt.Sprint(a.version))
	kind := "ADDED"
	if a.objects[resource] == nil {
		a.objects[resource] = make(map[string]metav1.Object)
	} else if a.objects[resource][key] != nil {
		kind = "MODIFIED"
	}
	a.objects[resource][key] = obj
	a.tell(kind, obj)
}

func (a *fakeAPI) remove(obj metav1.Object) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.version++
	obj.SetResourceVersion(fmt.Sprint(a.version))
	delete(a.objects[resourceOf(obj)], obj.GetNamespace()+"/"+obj.GetName())
	a.tell("DELETED", obj)
}

func (a *fakeAPI) tell(kind string, obj metav1.Object) {
	a.log = append(a.log, apiChange{resourceOf(obj), kind, a.version, encode(obj)})
	close(a.changed)
	a.changed = make(chan struct{})
}

// setDown makes the server answer with status 503, and closes open connections.
func (a *fakeAPI) setDown(down bool) {
	a.mu.Lock()
	a.down = down
	a.mu.Unlock()
	if down {
		a.CloseClientConnections()
	}
}

// setAbsent sets the status code for requests for a resource; 0 means normal answers.
func (a *fakeAPI) setAbsent(resource string, code int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.absent = map[string]int{resource: code}
}

// seen returns the requests for a resource.
func (a *fakeAPI) seen(resource string, watches bool) (out []apiRequest) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, r := range a.requests {
		if r.resource == resource && r.watches() == watches {
			out = append(out, r)
		}
	}
	return out
}

func resourceOf(obj metav1.Object) string {
	switch obj.(type) {
	case *v1.Service:
		return "services"
	case *discoveryv1.EndpointSlice:
		return "endpointslices"
	case *networkingv1.ServiceCIDR:
		return "servicecidrs"
	}
	return "nodes"
}

func typeOf(resource string) metav1.TypeMeta {
	return map[string]metav1.TypeMeta{
		"services":       {APIVersion: "v1", Kind: "Service"},
		"endpointslices": {APIVersion: "discovery.k8s.io/v1", Kind: "EndpointSlice"},
		"servicecidrs":   {APIVersion: "networking.k8s.io/v1", Kind: "ServiceCIDR"},
		"nodes":          {APIVersion: "v1", Kind: "Node"},
	}[resource]
}

// encode returns the object as JSON with its type.
func encode(obj metav1.Object) []byte {
	fields := make(map[string]any)
	text, err := json.Marshal(obj)
	if err == nil {
		err = json.Unmarshal(text, &fields)
	}
	t := typeOf(resourceOf(obj))
	fields["apiVersion"], fields["kind"] = t.APIVersion, t.Kind
	if err == nil {
		text, err = json.Marshal(fields)
	}
	if err != nil {
		panic(err)
	}
	return text
}

func (a *fakeAPI) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	r := apiRequest{resource: req.URL.Path[strings.LastIndexByte(req.URL.Path, '/')+1:], query: req.URL.Query(), accept: req.Header.Get("Accept")}
	a.mu.Lock()
	down, code := a.down, a.absent[r.resource]
	a.requests = append(a.requests, r)
	a.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	switch {
	case down:
		status(w, http.StatusServiceUnavailable, metav1.StatusReasonServiceUnavailable)
		a.refused <- r
	case code == http.StatusNotFound:
		status(w, code, metav1.StatusReasonNotFound)
	case code == http.StatusUnauthorized:
		status(w, code, metav1.StatusReasonUnauthorized)
	case code == http.StatusForbidden:
		status(w, code, metav1.StatusReasonForbidden)
		if req.Method == http.MethodPatch {
			a.refused <- r
		}
	case r.resource == "events":
		var e eventsv1.Event
		if err := json.NewDecoder(req.Body).Decode(&e); err != nil {
			status(w, http.StatusBadRequest, metav1.StatusReasonBadRequest)
			return
		}
		a.events <- e
		_ = json.NewEncoder(w).Encode(e)
	case req.Method == http.MethodPatch:
		a.patch(w, req, r.resource)
	case !r.watches():
		a.list(w, r.resource)
	case r.query.Get("sendInitialEvents") == "true" && !a.streamsLists:
		status(w, http.StatusUnprocessableEntity, metav1.StatusReasonInvalid)
	default:
		a.watch(w, req, r)
	}
}

func status(w http.ResponseWriter, code int, reason metav1.StatusReason) {
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(metav1.Status{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"},
		Status: metav1.StatusFailure, Code: int32(code), Reason: reason, Message: "no"})
}

func (a *fakeAPI) list(w http.ResponseWriter, resource string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	var items []json.RawMessage
	for _, obj := range a.objects[resource] {
		items = append(items, encode(obj))
	}
	t := typeOf(resource)
	_ = json.NewEncoder(w).Encode(map[string]any{"apiVersion": t.APIVersion, "kind": t.Kind + "List", "items": items,
		"metadata": map[string]string{"resourceVersion": fmt.Sprint(a.version)}})
}

// patch applies a JSON patch to the taints of a Node, after calling racing.
func (a *fakeAPI) patch(w http.ResponseWriter, req *http.Request, name string) {
	var ops []struct {
		Op, Path string
		Value    []v1.Taint
	}
	if err := json.NewDecoder(req.Body).Decode(&ops); err != nil || req.Header.Get("Content-Type") != "application/json-patch+json" {
		status(w, http.StatusBadRequest, metav1.StatusReasonBadRequest)
		return
	}
	a.mu.Lock()
	racing := a.racing
	a.racing = nil
	a.mu.Unlock()
	if racing != nil {
		racing()
	}
	a.mu.Lock()
	old, ok := a.objects["nodes"]["/"+name].(*v1.Node)
	a.mu.Unlock()
	if !ok {
		status(w, http.StatusNotFound, metav1.StatusReasonNotFound)
		return
	}
	n := old.DeepCopy()
	for _, op := range ops {
		missing := op.Op != "add" && len(n.Spec.Taints) == 0
		if op.Path != "/spec/taints" || missing || op.Op == "test" && !slices.EqualFunc(op.Value, n.Spec.Taints, func(a, b v1.Taint) bool { return a.MatchTaint(&b) && a.Value == b.Value }) {
			status(w, http.StatusUnprocessableEntity, metav1.StatusReasonInvalid)
			return
		}
		if op.Op != "test" {
			n.Spec.Taints = op.Value
		}
	}
	a.put(n)
	_, _ = w.Write(encode(n))
	a.patched <- n
}

// watch streams the changes after a version, and before them all objects if the client requests
// initial events.
func (a *fakeAPI) watch(w http.ResponseWriter, req *http.Request, r apiRequest) {
	send := func(kind string, object []byte) {
		_ = json.NewEncoder(w).Encode(map[string]any{"type": kind, "object": json.RawMessage(object)})
	}
	var after int
	_, _ = fmt.Sscan(r.query.Get("resourceVersion"), &after)
	if r.query.Get("sendInitialEvents") == "true" {
		a.mu.Lock()
		for _, obj := range a.objects[r.resource] {
			send("ADDED", encode(obj))
		}
		after = a.version
		a.mu.Unlock()
		t := typeOf(r.resource)
		send("BOOKMARK", fmt.Appendf(nil, `{"apiVersion":%q,"kind":%q,"metadata":{"resourceVersion":"%d","annotations":{"k8s.io/initial-events-end":"true"}}}`,
			t.APIVersion, t.Kind, after))
	}
	for {
		a.mu.Lock()
		news := slices.DeleteFunc(slices.Clone(a.log), func(c apiChange) bool { return c.version <= after || c.resource != r.resource })
		after = a.version
		changed := a.changed
		a.mu.Unlock()
		for _, c := range news {
			send(c.kind, c.object)
		}
		w.(http.Flusher).Flush()
		select {
		case <-req.Context().Done():
			return
		case <-changed:
		}
	}
}

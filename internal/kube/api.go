package kube

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"

	"github.com/fairlead/fairlead/internal/cluster"
)

// Source delivers objects to a Feed until ctx ends, and then returns nil.
type Source interface {
	Run(ctx context.Context) error
}

const contentProtobuf = "application/vnd.kubernetes.protobuf"

// maxStartDelay limits the random delay before the first request: after a rollout or a restart of
// the API server, the agents of all nodes start at the same time.
const maxStartDelay = 200 * time.Millisecond

// absentPause is the delay before the next attempt to read an optional resource that the API server
// does not have or does not allow us to read.
const absentPause = 10 * time.Minute

// APIOptions configure an APISource.
type APIOptions struct {
	// Kubeconfig is a file; without it the service account of the pod is used. Master overrides the
	// server address of both. A proxy needs it: it cannot reach the API server through the Service
	// that it implements itself.
	Kubeconfig, Master string
	// ContentType is for requests and AcceptContentTypes for responses; empty means protobuf.
	ContentType, AcceptContentTypes string
	// QPS and Burst limit requests; 0 means 5 and 10. Events have a separate limit.
	QPS   float32
	Burst int
	// NodeName is the name of the Node.
	NodeName string
	Convert  Converter
	// ServiceCIDRs also watches ServiceCIDRs, and makes the Feed wait for them. If the server does
	// not have them or does not allow us to read them, the Feed gets none.
	ServiceCIDRs bool
	// RemoveTaint is the key of a taint to remove from the Node after Programmed; empty for none.
	RemoveTaint string
	Logger      *slog.Logger
	UserAgent   string
	// absentPause is for tests: 0 means the constant.
	absentPause time.Duration
}

// APISource delivers the objects of an API server.
type APISource struct {
	config     *rest.Config
	http       *http.Client
	client     kubernetes.Interface
	recorder   *Recorder
	node       *nodeStore
	taint      *taintRemover
	log        *slog.Logger
	credential string // where the credential of requests comes from, for people
	resources  []*resource
	startDelay time.Duration // upper limit of the random delay before the first request
}

// NewAPISource returns a source that sends no request before Run. The error means that the options
// do not lead to a server.
func NewAPISource(o APIOptions, f *Feed) (*APISource, error) {
	if o.NodeName == "" {
		return nil, errors.New("connect to the API server: the name of the node is empty")
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	cfg, err := restConfig(o)
	if err != nil {
		return nil, err
	}
	httpClient, err := rest.HTTPClientFor(cfg)
	if err != nil {
		return nil, fmt.Errorf("connect to the API server %s: %w", cfg.Host, err)
	}
	s := &APISource{config: cfg, http: httpClient, log: o.Logger, credential: credentialOf(o, cfg), startDelay: maxStartDelay}
	if s.client, err = s.newClient(); err != nil {
		return nil, err
	}
	eventClient, err := s.newClient()
	if err != nil {
		return nil, err
	}
	s.recorder = newRecorder(eventClient, o.NodeName)
	s.taint = newTaintRemover(o.RemoveTaint, o.NodeName, s.client.CoreV1().Nodes(), s.recorder, o.Logger)
	s.node = &nodeStore{watchState: newWatchState(KindNode.String()), name: o.NodeName, feed: f, taint: s.taint, log: o.Logger, explain: s.explain}
	s.addResources(o, f)
	return s, nil
}

// newClient returns a client that shares the connection but has its own rate limit, so that Events
// or reviews do not delay the watches.
func (s *APISource) newClient() (kubernetes.Interface, error) {
	c, err := kubernetes.NewForConfigAndClient(s.config, s.http)
	if err != nil {
		return nil, fmt.Errorf("connect to the API server %s: %w", s.config.Host, err)
	}
	return c, nil
}

// credentialOf describes where the credential of requests comes from.
func credentialOf(o APIOptions, cfg *rest.Config) string {
	switch {
	case o.Kubeconfig != "":
		return "the credential in kubeconfig " + o.Kubeconfig
	case cfg.BearerTokenFile != "":
		return "the service account token in " + cfg.BearerTokenFile
	}
	return "no credential, because --master is given without --kubeconfig"
}

// explain describes an error that means that a request was refused, and returns nothing for other
// errors.
func (s *APISource) explain(err error) string {
	switch {
	case apierrors.IsUnauthorized(err):
		return "the API server does not accept our credential (401): " + s.credential
	case apierrors.IsForbidden(err):
		return "the API server does not allow us to read (403): check the ClusterRole and its binding, list and watch are needed: " + err.Error()
	}
	return ""
}

// Outage explains why watched resources cannot be read, one sentence per reason. It is empty while
// the server responds.
func (s *APISource) Outage() []string {
	var order []string
	resources, first := make(map[string][]string), make(map[string]time.Time)
	for _, r := range s.resources {
		why, since := r.outage.current()
		if since.IsZero() {
			continue
		}
		if resources[why] == nil {
			order = append(order, why)
		}
		if first[why].IsZero() || since.Before(first[why]) {
			first[why] = since
		}
		resources[why] = append(resources[why], r.name)
	}
	for i, why := range order {
		order[i] = fmt.Sprintf("cannot read %s from the API server since %s: %s",
			strings.Join(resources[why], ", "), first[why].UTC().Format(time.RFC3339), why)
	}
	return order
}

func restConfig(o APIOptions) (*rest.Config, error) {
	var cfg *rest.Config
	var err error
	if o.Kubeconfig != "" {
		if cfg, err = clientcmd.BuildConfigFromFlags(o.Master, o.Kubeconfig); err != nil {
			if data, readErr := os.ReadFile(o.Kubeconfig); readErr == nil && len(bytes.TrimSpace(data)) == 0 {
				err = errors.New("the file is empty")
			}
			return nil, fmt.Errorf("read kubeconfig %s: %w", o.Kubeconfig, err)
		}
	} else if cfg, err = inClusterConfig(o.Master); err != nil {
		return nil, err
	}
	cfg.QPS, cfg.Burst, cfg.UserAgent = o.QPS, o.Burst, o.UserAgent
	cfg.ContentType, cfg.AcceptContentTypes = o.ContentType, o.AcceptContentTypes
	if cfg.ContentType == "" {
		cfg.ContentType = contentProtobuf
		if cfg.AcceptContentTypes == "" {
			cfg.AcceptContentTypes = contentProtobuf + "," + runtime.ContentTypeJSON
		}
	}
	return cfg, nil
}

// inClusterConfig returns the config of the pod's service account; master overrides the address.
func inClusterConfig(master string) (*rest.Config, error) {
	cfg, err := rest.InClusterConfig()
	switch {
	case errors.Is(err, rest.ErrNotInCluster) && master != "":
		return &rest.Config{Host: master}, nil
	case errors.Is(err, rest.ErrNotInCluster):
		return nil, errors.New("connect to the API server: this is not a pod (KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT are not set), so --kubeconfig or --master is needed")
	case err != nil:
		return nil, fmt.Errorf("use the pod's service account: %w", err)
	}
	cfg.Host = cmp.Or(master, cfg.Host)
	return cfg, nil
}

// Client returns the client of the source.
func (s *APISource) Client() kubernetes.Interface { return s.client }

// Host returns the API server in the URLs of requests, such as "10.0.0.1:6443".
func (s *APISource) Host() string { return s.client.CoreV1().RESTClient().Get().URL().Host }

// Watches returns the state of the watches that this source depends on.
func (s *APISource) Watches() []cluster.Watch {
	var out []cluster.Watch
	for _, r := range s.resources {
		if r.outage.optional == "" {
			out = append(out, r.state.get())
		}
	}
	return out
}

// NodeProblem returns why there is no Node; empty if there is one, or if that is not known yet.
func (s *APISource) NodeProblem() string { return s.node.problem() }

// Programmed reports that the rules of all Services were found in the kernel. It does not block and
// may be called repeatedly.
func (s *APISource) Programmed() { s.taint.programmed() }

// Recorder returns the recorder of Events, which are sent while Run runs.
func (s *APISource) Recorder() *Recorder { return s.recorder }

// Run lists and watches until ctx ends. It retries failed requests forever, with backoff. The error
// means that the API server has responded for five minutes and this Node does not exist.
func (s *APISource) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	logger := klog.New(debugSink{ctx, s.log})
	clientCtx := klog.NewContext(ctx, logger)
	if err := s.recorder.start(clientCtx); err != nil {
		return err
	}
	sleep(ctx, rand.N(s.startDelay), nil)
	var wg sync.WaitGroup
	for _, r := range s.resources {
		reflector := cache.NewReflectorWithOptions(s.listWatch(r), r.example, r.store,
			cache.ReflectorOptions{Name: r.name, Logger: &logger, Backoff: retryBackoff()})
		wg.Go(func() { reflector.RunWithContext(clientCtx) })
	}
	wg.Go(func() { s.taint.run(ctx) })
	err := s.node.wait(ctx)
	cancel()
	wg.Wait()
	return err
}

// retryBackoff returns the delays between attempts to reach the server: 0.8 s, doubled up to 10 s,
// plus up to as much at random. client-go's default goes up to a minute, so that a node would learn
// of changes only a minute after the server came back.
func retryBackoff() *wait.Backoff {
	return &wait.Backoff{Duration: 800 * time.Millisecond, Factor: 2, Cap: 10 * time.Second, Steps: 10, Jitter: 1}
}

// resource is a resource that is listed and watched.
type resource struct {
	name           string
	labels, fields string // selectors
	example        runtime.Object
	store          cache.ReflectorStore
	list           func(context.Context, metav1.ListOptions) (runtime.Object, error)
	watch          func(context.Context, metav1.ListOptions) (watch.Interface, error)
	state          *watchState
	outage         outage
	// listed, if not nil, is called with the result of each list. A refused watch is followed by a
	// list.
	listed func(error)
}

// addResources adds the resources to watch, with kube-proxy's selectors: the API server only sends
// objects that are for us.
func (s *APISource) addResources(o APIOptions, f *Feed) {
	add := func(r *resource) {
		r.outage.resource, r.outage.log, r.outage.explain = r.name, o.Logger, s.explain
		r.outage.pause = cmp.Or(o.absentPause, absentPause)
		s.resources = append(s.resources, r)
	}
	core, discovery := s.client.CoreV1(), s.client.DiscoveryV1()
	services := newKeyStore(KindServices, o, f, s.recorder)
	add(&resource{
		name: KindServices.String(), labels: o.Convert.serviceSelector(), fields: "spec.clusterIP!=None",
		example: &v1.Service{}, store: services, state: services.watchState,
		list:  streamList(core.RESTClient(), services, func() unmarshaler { return new(v1.Service) }),
		watch: core.Services(metav1.NamespaceAll).Watch,
	})
	slices := newKeyStore(KindSlices, o, f, s.recorder)
	add(&resource{
		name: KindSlices.String(), labels: o.Convert.sliceSelector(),
		example: &discoveryv1.EndpointSlice{}, store: slices, state: slices.watchState,
		list:  streamList(discovery.RESTClient(), slices, func() unmarshaler { return new(discoveryv1.EndpointSlice) }),
		watch: discovery.EndpointSlices(metav1.NamespaceAll).Watch,
	})
	add(&resource{
		name: KindNode.String(), fields: "metadata.name=" + o.NodeName,
		example: &v1.Node{}, store: s.node, state: s.node.watchState,
		list: lister(core.Nodes().List), watch: core.Nodes().Watch, listed: s.node.listed,
	})
	if o.ServiceCIDRs {
		f.needServiceCIDRs()
		cidrs, store := s.client.NetworkingV1().ServiceCIDRs(), newCIDRStore(f)
		add(&resource{
			name:    KindServiceCIDRs.String(),
			example: &networkingv1.ServiceCIDR{}, store: store, state: store.watchState,
			list: lister(cidrs.List), watch: cidrs.Watch, listed: store.listed,
			outage: outage{optional: "packets to addresses without a Service are not dropped"},
		})
	}
}

func lister[L runtime.Object](list func(context.Context, metav1.ListOptions) (L, error)) func(context.Context, metav1.ListOptions) (runtime.Object, error) {
	return func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) { return list(ctx, o) }
}

// listWatch adds the selectors to requests and records their results.
func (s *APISource) listWatch(r *resource) cache.ListerWatcher {
	return cache.ToListWatcherWithWatchListSemantics(&cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			o.LabelSelector, o.FieldSelector = r.labels, r.fields
			list, err := r.list(ctx, o)
			r.outage.record(ctx, o, err)
			if r.listed != nil {
				r.listed(err)
			}
			r.outage.waitIfAbsent(ctx, err)
			if err == nil {
				r.state.alive()
			}
			return list, err
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			o.LabelSelector, o.FieldSelector = r.labels, r.fields
			w, err := r.watch(ctx, o)
			r.outage.record(ctx, o, err)
			if o.SendInitialEvents != nil && utilnet.IsConnectionRefused(err) {
				// While a Reflector streams a list, it reacts to this error with a sleep of up to a
				// minute that ignores its context. For an unknown error it lists instead, with a
				// backoff that can be cancelled.
				err = errors.New(err.Error())
			}
			if err != nil {
				return nil, err
			}
			return r.state.track(w, o), nil
		},
	}, s.client)
}

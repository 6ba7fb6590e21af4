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

	"github.com/fairlead/fairlead/internal/cluster"
)

// Source delivers objects into a Feed until ctx ends, and then returns nil.
type Source interface {
	Run(ctx context.Context) error
}

const contentProtobuf = "application/vnd.kubernetes.protobuf"

// maxStartDelay bounds the random delay before the first request: a roll-out or a new API server makes the agents of all
// nodes start together.
const maxStartDelay = 200 * time.Millisecond

// APIOptions are the settings of an APISource.
type APIOptions struct {
	// Kubeconfig is a file; without one the service account of the pod is used. Master overrides the server's address of
	// both, which a proxy needs as it cannot reach the API server through the Service that it implements.
	Kubeconfig, Master string
	// ContentType is for requests and AcceptContentTypes for answers; empty ones mean protobuf.
	ContentType, AcceptContentTypes string
	// QPS and Burst limit requests; 0 means 5 and 10. Events have a limit of their own.
	QPS   float32
	Burst int
	// NodeName names the Node.
	NodeName string
	// Resync is the period in which kube-proxy replays its caches. The Feed loses nothing, so nothing happens then.
	Resync  time.Duration
	Convert ConvertOptions
	// ServiceCIDRs also watches these, and has the Feed wait for them. Where the server has or shows none, it gets none.
	ServiceCIDRs bool
	// RemoveTaint is the key of a taint that the Node loses after Programmed; empty for none.
	RemoveTaint string
	Logger      *slog.Logger
	UserAgent   string
	// withoutPause is for tests: 0 stands for withoutPeriod.
	withoutPause time.Duration
}

// APISource delivers what an API server has.
type APISource struct {
	config   *rest.Config
	http     *http.Client
	client   kubernetes.Interface
	recorder *Recorder
	services *keyStore
	slices   *keyStore
	node     *nodeStore
	cidrs    *cidrStore
	taint    *taintRemover
	o        APIOptions
	// credential says where the one comes from that requests carry, for people.
	credential string
	// links are those of the resources that are watched.
	links []*link
	// startDelay bounds the random delay before the first request.
	startDelay time.Duration
}

// NewAPISource prepares a source; it sends no request before Run. An error means that the options do not lead to a server.
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
	// Two clients over one connection: a burst of Events must not hold up a watch.
	client, err := kubernetes.NewForConfigAndClient(cfg, httpClient)
	if err != nil {
		return nil, fmt.Errorf("connect to the API server %s: %w", cfg.Host, err)
	}
	eventClient, err := kubernetes.NewForConfigAndClient(cfg, httpClient)
	if err != nil {
		return nil, fmt.Errorf("connect to the API server %s: %w", cfg.Host, err)
	}
	r := newRecorder(eventClient, o.NodeName)
	if o.ServiceCIDRs {
		f.awaitServiceCIDRs()
	}
	taint := newTaintRemover(o.RemoveTaint, o.NodeName, client.CoreV1().Nodes(), r, o.Logger)
	s := &APISource{
		config:     cfg,
		http:       httpClient,
		client:     client,
		recorder:   r,
		services:   newKeyStore(KindServices, o, f, r),
		slices:     newKeyStore(KindSlices, o, f, r),
		node:       &nodeStore{contact: newContact("nodes"), name: o.NodeName, feed: f, taint: taint, log: o.Logger},
		cidrs:      newCIDRStore(f),
		taint:      taint,
		o:          o,
		credential: credentialOf(o, cfg),
		startDelay: maxStartDelay,
	}
	s.node.explain = s.explain
	for _, r := range s.resources() {
		s.links = append(s.links, &link{resource: r.name, without: r.without, log: o.Logger, explain: s.explain, pause: cmp.Or(o.withoutPause, withoutPeriod)})
	}
	return s, nil
}

// credentialOf says where the credential of requests comes from.
func credentialOf(o APIOptions, cfg *rest.Config) string {
	switch {
	case o.Kubeconfig != "":
		return "the one of kubeconfig " + o.Kubeconfig
	case cfg.BearerTokenFile != "":
		return "the service account's token in " + cfg.BearerTokenFile
	}
	return "there is none, since --master is given without --kubeconfig"
}

// explain says what an answer means that refuses a request, and nothing of other errors.
func (s *APISource) explain(err error) string {
	switch {
	case apierrors.IsUnauthorized(err):
		return "the API server does not accept our credential (401): " + s.credential
	case apierrors.IsForbidden(err):
		return "the API server does not allow us to read (403): are the ClusterRole and its binding there, with list and watch? " + err.Error()
	}
	return ""
}

// Outage says why the API server cannot be asked for what is watched, one sentence for each reason. It is empty while the server
// answers.
func (s *APISource) Outage() []string {
	var order []string
	resources, first := make(map[string][]string), make(map[string]time.Time)
	for _, l := range s.links {
		why, since := l.trouble()
		if since.IsZero() {
			continue
		}
		if resources[why] == nil {
			order = append(order, why)
		}
		if first[why].IsZero() || since.Before(first[why]) {
			first[why] = since
		}
		resources[why] = append(resources[why], l.resource)
	}
	for i, why := range order {
		order[i] = fmt.Sprintf("the API server cannot be asked for %s since %s: %s", strings.Join(resources[why], ", "), first[why].UTC().Format(time.RFC3339), why)
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

// inClusterConfig uses the pod's service account, also for another address of the server.
func inClusterConfig(master string) (*rest.Config, error) {
	cfg, err := rest.InClusterConfig()
	switch {
	case errors.Is(err, rest.ErrNotInCluster) && master != "":
		return &rest.Config{Host: master}, nil
	case errors.Is(err, rest.ErrNotInCluster):
		return nil, errors.New("connect to the API server: neither --kubeconfig nor --master is given, and KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT are not set as they are in a pod")
	case err != nil:
		return nil, fmt.Errorf("use the pod's service account: %w", err)
	}
	if master != "" {
		cfg.Host = master
	}
	return cfg, nil
}

// Client returns the client that the source uses.
func (s *APISource) Client() kubernetes.Interface { return s.client }

// Host is the API server in the URLs of requests, such as "10.0.0.1:6443".
func (s *APISource) Host() string { return s.client.CoreV1().RESTClient().Get().URL().Host }

// Watches returns the state of the watches that this source depends on.
func (s *APISource) Watches() []cluster.Watch {
	return []cluster.Watch{s.services.get(), s.slices.get(), s.node.get()}
}

// NodeLack says why there is no Node; empty where there is one, or where nobody knows yet.
func (s *APISource) NodeLack() string { return s.node.lack() }

// Programmed says that the rules of all Services were found in the kernel. It may be said again, and does not wait.
func (s *APISource) Programmed() { s.taint.programmed() }

// Recorder returns what reports Events; they are sent while Run runs.
func (s *APISource) Recorder() *Recorder { return s.recorder }

// Run lists and watches until ctx ends. Requests that fail are repeated with back-off, for ever. The error says that the API
// server answers and that this Node was not among the answers for five minutes.
func (s *APISource) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	quietCtx, logger := quiet(ctx, s.o.Logger)
	if err := s.recorder.start(quietCtx); err != nil {
		return err
	}
	delay := time.NewTimer(rand.N(s.startDelay))
	defer delay.Stop()
	select {
	case <-ctx.Done():
		return nil
	case <-delay.C:
	}
	var wg sync.WaitGroup
	for i, r := range s.resources() {
		reflector := cache.NewReflectorWithOptions(s.listWatch(r, s.links[i]), r.example, r.store,
			cache.ReflectorOptions{Name: r.name, Logger: &logger, Backoff: retry()})
		wg.Go(func() { reflector.RunWithContext(quietCtx) })
	}
	wg.Go(func() { s.taint.run(ctx) })
	err := s.node.await(ctx)
	cancel()
	wg.Wait()
	return err
}

// retry is the pause between attempts to reach the server: 0.8 s, doubled up to 10 s, and up to as much again at random.
// client-go's own goes up to a minute, for which a node would not learn of changes after the server has come back.
func retry() *wait.Backoff {
	return &wait.Backoff{Duration: 800 * time.Millisecond, Factor: 2, Cap: 10 * time.Second, Steps: 10, Jitter: 1}
}

// resource is one of the things that are watched.
type resource struct {
	name    string
	labels  string
	fields  string
	example runtime.Object
	store   cache.ReflectorStore
	list    func(context.Context, metav1.ListOptions) (runtime.Object, error)
	watch   func(context.Context, metav1.ListOptions) (watch.Interface, error)
	// without says what it means that the server does not have the resource, or does not show it to us; empty if we cannot
	// do without.
	without string
	contact *contact
	// noted, if not nil, takes the outcome of lists. A watch that is refused is followed by one.
	noted func(error)
}

// withoutPeriod is the pause after a server said that it has no such resource, or does not show it to us.
const withoutPeriod = 10 * time.Minute

// resources names what is watched, with the selectors of kube-proxy: what is not for us never arrives.
func (s *APISource) resources() []resource {
	services := s.client.CoreV1().Services(metav1.NamespaceAll)
	endpointSlices := s.client.DiscoveryV1().EndpointSlices(metav1.NamespaceAll)
	nodes := s.client.CoreV1().Nodes()
	all := []resource{
		{"services", s.o.Convert.serviceSelector(), "spec.clusterIP!=None", &v1.Service{}, s.services,
			streamList(s.client.CoreV1().RESTClient(), "services", s.services, func() unmarshaler { return new(v1.Service) }), services.Watch, "", s.services.contact, nil},
		{"endpointslices", s.o.Convert.sliceSelector(), "", &discoveryv1.EndpointSlice{}, s.slices,
			streamList(s.client.DiscoveryV1().RESTClient(), "endpointslices", s.slices, func() unmarshaler { return new(discoveryv1.EndpointSlice) }), endpointSlices.Watch, "", s.slices.contact, nil},
		{"nodes", "", "metadata.name=" + s.o.NodeName, &v1.Node{}, s.node, lister(nodes.List), nodes.Watch, "", s.node.contact, s.node.noted},
	}
	if s.o.ServiceCIDRs {
		cidrs := s.client.NetworkingV1().ServiceCIDRs()
		all = append(all, resource{"servicecidrs", "", "", &networkingv1.ServiceCIDR{}, s.cidrs, lister(cidrs.List), cidrs.Watch,
			"packets to addresses that no Service has are not dropped", newContact("servicecidrs"), s.cidrs.noted})
	}
	return all
}

func lister[L runtime.Object](list func(context.Context, metav1.ListOptions) (L, error)) func(context.Context, metav1.ListOptions) (runtime.Object, error) {
	return func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) { return list(ctx, o) }
}

// listWatch adds the selectors to requests and takes note of their outcome.
func (s *APISource) listWatch(r resource, l *link) cache.ListerWatcher {
	return cache.ToListWatcherWithWatchListSemantics(&cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			o.LabelSelector, o.FieldSelector = r.labels, r.fields
			list, err := r.list(ctx, o)
			l.note(ctx, o, err)
			if r.noted != nil {
				r.noted(err)
			}
			l.rest(ctx, err)
			if err == nil {
				r.contact.hear()
			}
			return list, err
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			o.LabelSelector, o.FieldSelector = r.labels, r.fields
			w, err := r.watch(ctx, o)
			l.note(ctx, o, err)
			if o.SendInitialEvents != nil && utilnet.IsConnectionRefused(err) {
				// While it streams a list, a Reflector that knows this error sleeps without an eye on its context, for up
				// to a minute; not knowing it, it tries to list and then backs off in a way that can be stopped.
				err = errors.New(err.Error())
			}
			if err != nil {
				return nil, err
			}
			return r.contact.follow(w, o), nil
		},
	}, s.client)
}

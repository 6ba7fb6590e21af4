package kube

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	v1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/events"
	"k8s.io/client-go/util/flowcontrol"

	"github.com/fairlead/fairlead/internal/fwd"
)

// ReasonBadField is the reason of the Event on a Service with an invalid field.
const ReasonBadField = "FairleadBadField"

const (
	// reporter is the reporting controller of Events.
	reporter = "fairlead"
	// actionNode is the action of Events on the node.
	actionNode = "ProgramNode"
	// maxNote is the maximum length of an Event's note in the API server, in bytes.
	maxNote = 1024
	// Events are rate limited to eventQPS per second after a burst of eventBurst; the rest is
	// dropped.
	eventQPS   = 1
	eventBurst = 100
)

// Recorder reports Events (events.k8s.io) on Services and on the node. Repeated Events become a
// series. A nil Recorder drops all Events. Its methods never block and are safe for concurrent use.
type Recorder struct {
	broadcaster events.EventBroadcaster
	recorder    events.EventRecorder
	client      kubernetes.Interface
	limit       flowcontrol.RateLimiter
	node        string

	// mu guards the fields below.
	mu sync.Mutex
	// uids are the UIDs of Services; kubectl describe needs them to find Events.
	uids map[fwd.Service]types.UID
	// early are Events from before start, which the broadcaster would drop.
	early   []func()
	started bool
}

func newRecorder(client kubernetes.Interface, node string) *Recorder {
	b := events.NewBroadcaster(&events.EventSinkImpl{Interface: client.EventsV1()})
	return &Recorder{
		broadcaster: b,
		recorder:    b.NewRecorder(scheme.Scheme, reporter),
		client:      client,
		limit:       flowcontrol.NewTokenBucketRateLimiter(eventQPS, eventBurst),
		node:        node,
		uids:        make(map[fwd.Service]types.UID),
	}
}

// start sends Events to the API server until ctx ends, starting with those recorded before.
func (r *Recorder) start(ctx context.Context) error {
	if err := r.broadcaster.StartRecordingToSinkWithContext(ctx); err != nil {
		return fmt.Errorf("start recording events: %w", err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, send := range r.early {
		send()
	}
	r.early, r.started = nil, true
	return nil
}

// Service reports an Event on a Service.
func (r *Recorder) Service(name fwd.Service, warning bool, reason, message string) {
	if r == nil {
		return
	}
	r.mu.Lock()
	uid := r.uids[name]
	r.mu.Unlock()
	r.report(&v1.ObjectReference{APIVersion: "v1", Kind: "Service", Namespace: name.Namespace, Name: name.Name, UID: uid},
		warning, reason, "ProgramService", message)
}

// Node reports an Event on the node's Node. As in the kubelet's Events, the UID is the name.
func (r *Recorder) Node(warning bool, reason, message string) {
	if r == nil {
		return
	}
	r.report(r.nodeReference(), warning, reason, actionNode, message)
}

func (r *Recorder) nodeReference() *v1.ObjectReference {
	return &v1.ObjectReference{APIVersion: "v1", Kind: "Node", Name: r.node, UID: types.UID(r.node)}
}

// NodeAtOnce reports a Warning on the node's Node before the process exits; start is not needed. It
// blocks until the API server has it or ctx ends.
func (r *Recorder) NodeAtOnce(ctx context.Context, reason, message string) error {
	if r == nil {
		return nil
	}
	now := time.Now()
	e := &eventsv1.Event{
		ObjectMeta:          metav1.ObjectMeta{Name: fmt.Sprintf("%s.%x", clipName(r.node, 200), now.UnixNano()), Namespace: metav1.NamespaceDefault},
		EventTime:           metav1.NewMicroTime(now),
		ReportingController: reporter,
		ReportingInstance:   clipName(reporter+"-"+r.node, 128),
		Action:              actionNode,
		Reason:              reason,
		Regarding:           *r.nodeReference(),
		Note:                clipNote(message),
		Type:                v1.EventTypeWarning,
	}
	if _, err := r.client.EventsV1().Events(metav1.NamespaceDefault).Create(ctx, e, metav1.CreateOptions{}); err != nil {
		return fmt.Errorf("report an Event on node %s: %w", r.node, err)
	}
	return nil
}

func (r *Recorder) report(on *v1.ObjectReference, warning bool, reason, action, message string) {
	if !r.limit.TryAccept() {
		return
	}
	kind := v1.EventTypeNormal
	if warning {
		kind = v1.EventTypeWarning
	}
	send := func() { r.recorder.Eventf(on, nil, kind, reason, action, "%s", clipNote(message)) }
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.started {
		r.early = append(r.early, send)
		return
	}
	send()
}

// clipName shortens a name to what the API server accepts.
func clipName(s string, limit int) string { return strings.TrimRight(s[:min(len(s), limit)], ".-") }

// clipNote shortens a message to what the API server accepts, between two runes.
func clipNote(s string) string {
	if len(s) <= maxNote {
		return s
	}
	end := maxNote - len("…")
	for end > 0 && !utf8.RuneStart(s[end]) {
		end--
	}
	return s[:end] + "…"
}

// remember stores the UID of a Service.
func (r *Recorder) remember(name fwd.Service, uid types.UID) {
	if r == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.uids[name] = uid
}

func (r *Recorder) forget(name fwd.Service) {
	if r == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.uids, name)
}

// badFields reports the problems of one version of an object: a log line each, and one Event on the
// Service.
func (r *Recorder) badFields(log *slog.Logger, service fwd.Service, problems []Problem) {
	if len(problems) == 0 {
		return
	}
	lines := make([]string, 0, len(problems))
	for _, p := range problems {
		log.Warn(ignoringField, "object", p.Object, "field", p.Field, "problem", p.Message)
		lines = append(lines, p.String())
	}
	r.Service(service, true, ReasonBadField, strings.Join(lines, "; "))
}

// ignoringField is the log message about a Problem.
const ignoringField = "ignoring invalid field"

package kube

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	corev1 "k8s.io/client-go/kubernetes/typed/core/v1"
)

// ReasonTaintRemoved is the reason of the Event on the Node that lost its taint.
const ReasonTaintRemoved = "TaintRemoved"

const (
	// firstTaintRetry is the pause after an attempt that failed; each pause is twice the one before, up to lastTaintRetry.
	firstTaintRetry = time.Second
	lastTaintRetry  = time.Minute
)

// taintRemover takes a taint from the Node when the rules are in force. Whoever creates Nodes puts it on, so that no pod
// starts there before its Services work. A Node that is made anew with the taint, by a kubelet that registers again, loses it
// again: the rules are still in force.
type taintRemover struct {
	key      string
	node     string
	client   corev1.NodeInterface
	recorder *Recorder
	log      *slog.Logger

	// ready is closed when the rules are in force; wake receives when the Node was seen with the taint.
	ready   chan struct{}
	isReady sync.Once
	wake    chan struct{}

	// mu guards taints, the taints of the Node as it was seen last, nil where ours is not among them.
	mu     sync.Mutex
	taints []v1.Taint
}

// newTaintRemover returns nil if there is no key. The methods of a nil taintRemover do nothing.
func newTaintRemover(key, node string, client corev1.NodeInterface, r *Recorder, log *slog.Logger) *taintRemover {
	if key == "" {
		return nil
	}
	return &taintRemover{key: key, node: node, client: client, recorder: r, log: log, ready: make(chan struct{}), wake: make(chan struct{}, 1)}
}

func (t *taintRemover) isOurs(taint v1.Taint) bool { return taint.Key == t.key }

// see takes in a version of the Node.
func (t *taintRemover) see(n *v1.Node) {
	if t == nil {
		return
	}
	has := slices.ContainsFunc(n.Spec.Taints, t.isOurs)
	t.mu.Lock()
	t.taints = nil
	if has {
		t.taints = n.Spec.Taints
	}
	t.mu.Unlock()
	if has {
		select {
		case t.wake <- struct{}{}:
		default:
		}
	}
}

func (t *taintRemover) seen() []v1.Taint {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.taints
}

// programmed says that the rules are in force.
func (t *taintRemover) programmed() {
	if t != nil {
		t.isReady.Do(func() { close(t.ready) })
	}
}

// run removes the taint whenever the Node has it, once the rules are in force, until ctx ends.
func (t *taintRemover) run(ctx context.Context) {
	if t == nil {
		return
	}
	select {
	case <-ctx.Done():
		return
	case <-t.ready:
	}
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.wake:
			t.remove(ctx)
		}
	}
}

// remove tries until the Node is without the taint.
func (t *taintRemover) remove(ctx context.Context) {
	told, pause := "", firstTaintRetry
	for {
		taints := t.seen()
		if taints == nil {
			return
		}
		_, err := t.client.Patch(ctx, t.node, types.JSONPatchType, t.patch(taints), metav1.PatchOptions{})
		switch {
		case err == nil:
			t.log.Info("taint removed, the rules are in force", "node", t.node, "taint", t.key)
			t.recorder.Node(false, ReasonTaintRemoved, "taint "+t.key+" removed: the rules of all Services are in force")
			return
		case ctx.Err() != nil:
			return
		case apierrors.IsInvalid(err) || apierrors.IsConflict(err) || apierrors.IsNotFound(err):
			// The Node is not as it was seen last: the next version comes by watch.
			t.log.Debug("taint not removed yet, the Node has changed", "node", t.node, "taint", t.key, "error", err)
		case err.Error() != told:
			told = err.Error()
			t.log.Warn("cannot remove the taint, it is tried again", "node", t.node, "taint", t.key, "error", err)
		}
		wait := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			wait.Stop()
			return
		case <-t.wake: // there is a newer version
			wait.Stop()
		case <-wait.C:
		}
		pause = min(2*pause, lastTaintRetry)
	}
}

// patch is a JSON patch (RFC 6902) that fails if the taints are not those given.
func (t *taintRemover) patch(taints []v1.Taint) []byte {
	type operation struct {
		Op    string     `json:"op"`
		Path  string     `json:"path"`
		Value []v1.Taint `json:"value,omitempty"`
	}
	const path = "/spec/taints"
	change := operation{Op: "remove", Path: path}
	if left := slices.DeleteFunc(slices.Clone(taints), t.isOurs); len(left) > 0 {
		change = operation{Op: "replace", Path: path, Value: left}
	}
	text, err := json.Marshal([]operation{{Op: "test", Path: path, Value: taints}, change})
	if err != nil {
		panic(fmt.Sprintf("BUG: taints as JSON: %v", err))
	}
	return text
}

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

// ReasonTaintRemoved is the reason of the Event on a Node whose taint was removed.
const ReasonTaintRemoved = "TaintRemoved"

const (
	// firstTaintRetry is the delay after a failed attempt; each delay is twice the one before, up
	// to lastTaintRetry.
	firstTaintRetry = time.Second
	lastTaintRetry  = time.Minute
)

// taintRemover removes a taint from the Node once the rules are in the kernel. New Nodes are
// created with the taint, so that no pod starts before its Services work. If the kubelet registers
// the Node again with the taint, it is removed again: the rules are still there. The methods of a
// nil taintRemover do nothing.
type taintRemover struct {
	key      string
	node     string
	client   corev1.NodeInterface
	recorder *Recorder
	log      *slog.Logger

	// ready is closed when the rules are in the kernel; wake receives when the Node was seen with
	// the taint.
	ready   chan struct{}
	isReady sync.Once
	wake    chan struct{}

	// mu guards taints, which are the taints of the last version of the Node, or nil without ours.
	mu     sync.Mutex
	taints []v1.Taint
}

// newTaintRemover returns nil if the key is empty.
func newTaintRemover(key, node string, client corev1.NodeInterface, r *Recorder, log *slog.Logger) *taintRemover {
	if key == "" {
		return nil
	}
	return &taintRemover{key: key, node: node, client: client, recorder: r, log: log, ready: make(chan struct{}), wake: make(chan struct{}, 1)}
}

func (t *taintRemover) isOurs(taint v1.Taint) bool { return taint.Key == t.key }

// see takes a version of the Node.
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

func (t *taintRemover) lastTaints() []v1.Taint {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.taints
}

// programmed reports that the rules are in the kernel.
func (t *taintRemover) programmed() {
	if t != nil {
		t.isReady.Do(func() { close(t.ready) })
	}
}

// run removes the taint whenever the Node has it and the rules are in the kernel, until ctx ends.
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

// remove retries until the Node does not have the taint.
func (t *taintRemover) remove(ctx context.Context) {
	logged, pause := "", firstTaintRetry
	for {
		taints := t.lastTaints()
		if taints == nil {
			return
		}
		_, err := t.client.Patch(ctx, t.node, types.JSONPatchType, t.patch(taints), metav1.PatchOptions{})
		switch {
		case err == nil:
			t.log.Info("taint removed: the rules are in the kernel", "node", t.node, "taint", t.key)
			t.recorder.Node(false, ReasonTaintRemoved, "taint "+t.key+" removed: the rules of all Services are in the kernel")
			return
		case ctx.Err() != nil:
			return
		case apierrors.IsInvalid(err) || apierrors.IsConflict(err) || apierrors.IsNotFound(err):
			// The Node has changed. The watch delivers the next version.
			t.log.Debug("taint not removed yet: the Node has changed", "node", t.node, "taint", t.key, "error", err)
		case err.Error() != logged:
			logged = err.Error()
			t.log.Warn("cannot remove the taint; retrying", "node", t.node, "taint", t.key, "error", err)
		}
		sleep(ctx, pause, t.wake) // or until there is a new version
		pause = min(2*pause, lastTaintRetry)
	}
}

// patch returns a JSON patch (RFC 6902) that fails if the taints have changed.
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

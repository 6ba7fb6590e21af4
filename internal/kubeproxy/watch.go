package kubeproxy

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"time"
)

const (
	// ReasonRules is the reason of the Event on the Node for existing rules of kube-proxy.
	ReasonRules = "KubeProxyRules"
	// ReasonRunning is the reason of the Event on the Node for a running kube-proxy.
	ReasonRunning = "KubeProxyRunning"
)

// period is the mean polling interval. Each interval is up to a fifth shorter or longer.
const period = 5 * time.Minute

// Watcher reports that a kube-proxy runs on this node. Set its exported fields before Start.
type Watcher struct {
	// Signs and Running are the functions of the same names, Running for Address.
	Signs   func(context.Context) ([]string, error)
	Running func(context.Context) Neighbour
	// Warn makes a Warning event on the Node.
	Warn func(reason, message string)
	// Present is called at startup and after each change, with whether kube-proxy runs or its rules
	// exist.
	Present func(bool)
	Log     *slog.Logger

	// runs is whether a kube-proxy answered at startup.
	runs bool
	// seen are the signs found by the last look, if looked is true.
	seen   []string
	looked bool
	// failing is whether the last look failed, which is logged once.
	failing bool
}

// Start looks for a running kube-proxy. Call it before our own servers listen, which would answer
// instead.
func (w *Watcher) Start(ctx context.Context) {
	n := w.Running(ctx)
	w.runs = n.Mode != "" && !n.Fairlead
	w.Present(w.runs)
	if n.Fairlead {
		w.Log.Info("another Fairlead, not a kube-proxy, answers at kube-proxy's address on this node", "address", Address, "mode", n.Mode)
	}
	if w.runs {
		w.warn(ReasonRunning, "a kube-proxy runs on this node, and both write rules: stop it (without --cleanup), then run fairlead cleanup --kube-proxy", "kubeProxyMode", n.Mode)
	}
}

// first records the signs that existed at startup.
func (w *Watcher) first(signs []string) {
	w.seen, w.looked = signs, true
	w.Present(w.runs || len(signs) > 0)
	if len(signs) > 0 && !w.runs {
		w.warn(ReasonRules, "kube-proxy's rules exist on this node: make sure that it does not run, then run fairlead cleanup --kube-proxy", "found", strings.Join(signs, "; "))
	}
}

// Run polls for rules of kube-proxy until ctx ends. Rules that appear while it runs are written by
// a running kube-proxy.
func (w *Watcher) Run(ctx context.Context) {
	for {
		w.poll(ctx)
		t := time.NewTimer(period - period/5 + rand.N(2*period/5))
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-t.C:
		}
	}
}

func (w *Watcher) poll(ctx context.Context) {
	signs, ok := w.look(ctx)
	if !ok || w.looked && slices.Equal(signs, w.seen) {
		return
	}
	if !w.looked {
		w.first(signs)
		return
	}
	var added []string
	for _, s := range signs {
		if !slices.Contains(w.seen, s) {
			added = append(added, s)
		}
	}
	if len(added) > 0 {
		w.warn(ReasonRunning, "new rules of kube-proxy: a kube-proxy runs on this node; stop it (without --cleanup), then run fairlead cleanup --kube-proxy",
			"found", strings.Join(added, "; "))
	} else if len(signs) == 0 {
		w.Log.Info("kube-proxy's rules are gone")
	}
	w.seen = signs
	w.Present(len(signs) > 0)
}

// look returns the signs, and whether all of them could be read.
func (w *Watcher) look(ctx context.Context) ([]string, bool) {
	signs, err := w.Signs(ctx)
	if err != nil && ctx.Err() == nil && !w.failing {
		w.Log.Warn("cannot read rules of kube-proxy", "error", err)
	}
	w.failing = err != nil
	return signs, err == nil
}

func (w *Watcher) warn(reason, message, key, value string) {
	w.Log.Warn(message, key, value)
	w.Warn(reason, message+" ("+key+": "+value+")")
}

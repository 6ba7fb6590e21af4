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
	// ReasonRules is the reason of the Event on the Node that kube-proxy's rules are beside ours.
	ReasonRules = "KubeProxyRules"
	// ReasonRunning is the reason of the Event on the Node that kube-proxy runs beside us.
	ReasonRunning = "KubeProxyRunning"
)

// period is the mean time between two looks; each pause is up to a fifth shorter or longer.
const period = 5 * time.Minute

// Watcher tells when a kube-proxy works on the node on which we do. Its fields are set before Run.
type Watcher struct {
	// Signs and Running are the functions of that name, Running for Address.
	Signs   func(context.Context) ([]string, error)
	Running func(context.Context) Neighbour
	// Warn makes a Warning event on the Node.
	Warn func(reason, message string)
	// Present is told whether there is anything of kube-proxy's on the node, at the start and after each change.
	Present func(bool)
	Log     *slog.Logger

	// runs says that a kube-proxy answered at the start.
	runs bool
	// seen is what the last look found, looked says that there was one.
	seen   []string
	looked bool
	// failing says that the last look failed, which is logged once.
	failing bool
}

// Start asks for a kube-proxy that runs. It is called before our own servers listen, which would answer in its place.
func (w *Watcher) Start(ctx context.Context) {
	n := w.Running(ctx)
	w.runs = n.Mode != "" && !n.Fairlead
	w.Present(w.runs)
	if n.Fairlead {
		w.Log.Info("another Fairlead answers at kube-proxy's address on this node, no kube-proxy", "address", Address, "mode", n.Mode)
	}
	if w.runs {
		w.warn(ReasonRunning, "a kube-proxy runs on this node, and both write rules: end it (without --cleanup), then run fairlead cleanup --kube-proxy", "kubeProxyMode", n.Mode)
	}
}

// first takes note of what was there before us.
func (w *Watcher) first(signs []string) {
	w.seen, w.looked = signs, true
	w.Present(w.runs || len(signs) > 0)
	if len(signs) > 0 && !w.runs {
		w.warn(ReasonRules, "kube-proxy's rules are in force beside ours: see that it does not run, then run fairlead cleanup --kube-proxy", "found", strings.Join(signs, "; "))
	}
}

// Run looks for rules, then again, rarely, until ctx ends. Rules that come back were written by somebody who runs.
func (w *Watcher) Run(ctx context.Context) {
	for {
		w.again(ctx)
		t := time.NewTimer(period - period/5 + rand.N(2*period/5))
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-t.C:
		}
	}
}

func (w *Watcher) again(ctx context.Context) {
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
		w.warn(ReasonRunning, "kube-proxy's rules have come while we run, so that a kube-proxy runs on this node: end it (without --cleanup), then run fairlead cleanup --kube-proxy",
			"found", strings.Join(added, "; "))
	} else if len(signs) == 0 {
		w.Log.Info("kube-proxy's rules are gone")
	}
	w.seen = signs
	w.Present(len(signs) > 0)
}

// look returns what there is, sorted by its kind, and whether all of it could be looked at.
func (w *Watcher) look(ctx context.Context) ([]string, bool) {
	signs, err := w.Signs(ctx)
	if err != nil && ctx.Err() == nil && !w.failing {
		w.Log.Warn("cannot look for rules of kube-proxy", "error", err)
	}
	w.failing = err != nil
	return signs, err == nil
}

func (w *Watcher) warn(reason, message, key, value string) {
	w.Log.Warn(message, key, value)
	w.Warn(reason, message+" ("+key+": "+value+")")
}

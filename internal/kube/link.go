package kube

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/klog/v2"
)

// link watches over the requests for one resource, and logs once when they begin to fail and once when they succeed again.
type link struct {
	resource string
	// without is that of the resource, pause how long to wait after it could not be had.
	without string
	pause   time.Duration
	log     *slog.Logger

	// mu guards badSince, which is zero while all is well, and absent, which says that it was told that we do without.
	mu       sync.Mutex
	badSince time.Time
	absent   bool
}

// lacking says that the server does not have the resource, or does not show it to us, and that we can do without.
func (l *link) lacking(err error) bool {
	return l.without != "" && (apierrors.IsNotFound(err) || apierrors.IsForbidden(err))
}

// rest waits, where we can do without the resource: all nodes of a cluster would ask in vain every few seconds.
func (l *link) rest(ctx context.Context, err error) {
	if !l.lacking(err) {
		return
	}
	t := time.NewTimer(l.pause)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// note takes the outcome of a list or watch request.
func (l *link) note(ctx context.Context, opts metav1.ListOptions, err error) {
	if ctx.Err() != nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	var status apierrors.APIStatus
	switch {
	case err == nil:
		l.absent = false
		if !l.badSince.IsZero() {
			l.log.Info("API server answers again", "resource", l.resource, "after", time.Since(l.badSince).Round(time.Second))
			l.badSince = time.Time{}
		}
	case l.lacking(err):
		if !l.absent {
			l.log.Info("API server has no "+l.resource+" for us, going on without: "+l.without, "error", err)
			l.absent = true
		}
	case apierrors.IsResourceExpired(err), apierrors.IsGone(err):
		l.log.Debug("watch starts anew", "resource", l.resource, "error", err)
	case opts.SendInitialEvents != nil && errors.As(err, &status) && !apierrors.IsTooManyRequests(err):
		// The Reflector lists instead, and the outcome of that counts.
		l.log.Debug("API server streams no lists", "resource", l.resource, "error", err)
	case l.badSince.IsZero():
		l.log.Warn("API server cannot be asked, the last state stays in force", "resource", l.resource, "error", err)
		l.badSince = time.Now()
	default:
		l.log.Debug("API server still cannot be asked", "resource", l.resource, "error", err)
	}
}

// quiet returns a context whose logger is ours at level Debug: what matters in client-go's own log lines is told by link.
func quiet(ctx context.Context, log *slog.Logger) (context.Context, klog.Logger) {
	logger := klog.New(demoted{ctx, log})
	return klog.NewContext(ctx, logger), logger
}

// demoted is a klog sink that writes everything at level Debug.
type demoted struct {
	ctx context.Context
	log *slog.Logger
}

func (d demoted) Init(klog.RuntimeInfo) {}

func (d demoted) Enabled(level int) bool {
	return level <= 4 && d.log.Enabled(d.ctx, slog.LevelDebug)
}

func (d demoted) Info(_ int, msg string, kv ...any) { d.log.Debug(msg, kv...) }

func (d demoted) Error(err error, msg string, kv ...any) {
	d.log.Debug(msg, append([]any{"error", err}, kv...)...)
}

func (d demoted) WithValues(kv ...any) klog.LogSink { return demoted{d.ctx, d.log.With(kv...)} }

func (d demoted) WithName(string) klog.LogSink { return d }

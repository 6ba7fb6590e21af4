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
	log      *slog.Logger

	// mu guards badSince, which is zero while all is well.
	mu       sync.Mutex
	badSince time.Time
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
		if !l.badSince.IsZero() {
			l.log.Info("API server answers again", "resource", l.resource, "after", time.Since(l.badSince).Round(time.Second))
			l.badSince = time.Time{}
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

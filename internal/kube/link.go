package kube

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"regexp"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/klog/v2"
)

// link watches over the requests for one resource. It logs when they begin to fail, when they fail for another reason, and when
// they succeed again.
type link struct {
	resource string
	// without is that of the resource, pause how long to wait after it could not be had.
	without string
	pause   time.Duration
	log     *slog.Logger
	// explain says what an error means where its text does not say it; otherwise it returns nothing.
	explain func(error) string

	// mu guards what follows.
	mu sync.Mutex
	// badSince is zero while all is well. Since then, told holds the causes that were logged, and why is the last one, for people.
	badSince time.Time
	told     map[string]bool
	why      string
	// absent says that it was logged that we do without the resource.
	absent bool
}

// maxCauses bounds how many causes of one outage are logged for a resource: an error may be different each time.
const maxCauses = 10

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
			l.badSince, l.told, l.why = time.Time{}, nil, ""
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
	default:
		l.bad(err)
	}
}

// bad takes a request that failed.
func (l *link) bad(err error) {
	message := "API server still cannot be asked, for another reason"
	if l.badSince.IsZero() {
		message = "API server cannot be asked, the last state stays in force"
		l.badSince, l.told = time.Now(), make(map[string]bool)
	}
	args := []any{"resource", l.resource, "error", err}
	meaning := l.explain(err)
	if meaning != "" {
		args = append(args, "why", meaning)
	}
	l.why = cmp.Or(meaning, withoutURL(err).Error())
	kind := cause(err)
	if l.told[kind] || len(l.told) == maxCauses {
		l.log.Debug("API server still cannot be asked", args...)
		return
	}
	l.told[kind] = true
	l.log.Warn(message, args...)
}

// trouble says why and since when requests fail; the time is zero while they do not.
func (l *link) trouble() (why string, since time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.why, l.badSince
}

// numbers are what differs between two errors of one cause: ports, times, sizes.
var numbers = regexp.MustCompile(`[0-9]+`)

// cause is the same for errors that tell the same.
func cause(err error) string {
	var status apierrors.APIStatus
	if errors.As(err, &status) {
		return fmt.Sprint(status.Status().Code, status.Status().Reason)
	}
	return numbers.ReplaceAllString(withoutURL(err).Error(), "#")
}

// withoutURL is an error without the request that it is about.
func withoutURL(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		return u.Err
	}
	return err
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

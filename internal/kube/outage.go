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

// outage logs when requests for a resource start to fail, when the cause changes, and when they
// succeed again.
type outage struct {
	resource string
	log      *slog.Logger
	// explain returns the meaning of an error that its text does not give, or nothing.
	explain func(error) string
	// optional, if not empty, says what happens if the server does not have the resource. pause is
	// the delay before the next attempt in this case.
	optional string
	pause    time.Duration

	// mu guards the fields below.
	mu sync.Mutex
	// since is zero while requests succeed. During an outage, logged holds the causes that were
	// logged, and why is the last one.
	since  time.Time
	logged map[string]bool
	why    string
	// absent means that the absence of an optional resource was logged.
	absent bool
}

// maxCauses limits how many causes of one outage are logged per resource: each error may be
// different.
const maxCauses = 10

// isAbsent reports whether an error means that we have to do without an optional resource.
func (o *outage) isAbsent(err error) bool {
	return o.optional != "" && (apierrors.IsNotFound(err) || apierrors.IsForbidden(err))
}

// waitIfAbsent delays the next attempt if the resource is absent. Otherwise all nodes of a cluster
// would send useless requests every few seconds.
func (o *outage) waitIfAbsent(ctx context.Context, err error) {
	if o.isAbsent(err) {
		sleep(ctx, o.pause, nil)
	}
}

// sleep returns after d, when ctx ends, or when wake receives.
func sleep(ctx context.Context, d time.Duration, wake <-chan struct{}) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-wake:
	case <-t.C:
	}
}

// record takes the result of a list or watch request.
func (o *outage) record(ctx context.Context, opts metav1.ListOptions, err error) {
	if ctx.Err() != nil {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	var status apierrors.APIStatus
	switch {
	case err == nil:
		o.absent = false
		if !o.since.IsZero() {
			o.log.Info("API server is reachable again", "resource", o.resource, "duration", time.Since(o.since).Round(time.Second))
			o.since, o.logged, o.why = time.Time{}, nil, ""
		}
	case o.isAbsent(err):
		if !o.absent {
			o.log.Info("API server does not provide "+o.resource+"; continuing without: "+o.optional, "error", err)
			o.absent = true
		}
	case apierrors.IsResourceExpired(err), apierrors.IsGone(err):
		o.log.Debug("watch restarts", "resource", o.resource, "error", err)
	case opts.SendInitialEvents != nil && errors.As(err, &status) && !apierrors.IsTooManyRequests(err):
		// The Reflector lists instead, and the result of the list counts.
		o.log.Debug("API server does not stream lists", "resource", o.resource, "error", err)
	default:
		o.failed(err)
	}
}

// failed records a failed request. o.mu is held.
func (o *outage) failed(err error) {
	message := "API server still unreachable, for another reason"
	if o.since.IsZero() {
		message = "lost contact with the API server; keeping the last known state"
		o.since, o.logged = time.Now(), make(map[string]bool)
	}
	args := []any{"resource", o.resource, "error", err}
	meaning := o.explain(err)
	if meaning != "" {
		args = append(args, "reason", meaning)
	}
	o.why = cmp.Or(meaning, withoutURL(err).Error())
	kind := cause(err)
	if o.logged[kind] || len(o.logged) == maxCauses {
		o.log.Debug("API server still unreachable", args...)
		return
	}
	o.logged[kind] = true
	o.log.Warn(message, args...)
}

// current returns why and since when requests fail; the time is zero if they do not.
func (o *outage) current() (why string, since time.Time) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.why, o.since
}

// numbers are what differs between errors of the same cause: ports, times, sizes.
var numbers = regexp.MustCompile(`[0-9]+`)

// cause returns the same text for errors of the same cause.
func cause(err error) string {
	var status apierrors.APIStatus
	if errors.As(err, &status) {
		return fmt.Sprint(status.Status().Code, status.Status().Reason)
	}
	return numbers.ReplaceAllString(withoutURL(err).Error(), "#")
}

// withoutURL strips the request from an error.
func withoutURL(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		return u.Err
	}
	return err
}

// debugSink is a klog sink that writes everything at level Debug. outage logs what matters of
// client-go's own log lines.
type debugSink struct {
	ctx context.Context
	log *slog.Logger
}

func (d debugSink) Init(klog.RuntimeInfo) {}

func (d debugSink) Enabled(level int) bool {
	return level <= 4 && d.log.Enabled(d.ctx, slog.LevelDebug)
}

func (d debugSink) Info(_ int, msg string, kv ...any) { d.log.Debug(msg, kv...) }

func (d debugSink) Error(err error, msg string, kv ...any) {
	d.log.Debug(msg, append([]any{"error", err}, kv...)...)
}

func (d debugSink) WithValues(kv ...any) klog.LogSink { return debugSink{d.ctx, d.log.With(kv...)} }

func (d debugSink) WithName(string) klog.LogSink { return d }
